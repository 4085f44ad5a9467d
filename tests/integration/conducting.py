# SPDX-License-Identifier: Apache-2.0
"""A conductor in a process of its own, on a shared database, with computes that record calls.

Its parts are real except for the brokers, the images and the computes, which answer at
once or fail.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import random
import threading
import time
from multiprocessing import connection
from typing import Self

import pytest

from nova_precache import conf as options, context, exception, model
from nova_precache.cells import breaker, inventory
from nova_precache.compute import rpcapi
from nova_precache.conductor import (
    announcer,
    dispatcher,
    host_worker,
    planning,
    retry,
    tracker,
)
from nova_precache.db import agents, jobs, outbox, request_actions, requests
from nova_precache.db.engine import session
from nova_precache.image import fake
from nova_precache.notifications import emitter
from tests.unit.conftest import CACHED, LIMITS

LEASE_SECONDS = 30.0
DOWN_SECONDS = 3600.0  # no host reports meanwhile
POLL_SECONDS = 0.1
RENEW_SECONDS = 0.05
CHUNK_TASKS = 20
STOP_SECONDS = 120
POLICY = retry.RetryPolicy(max_attempts=4, delay_seconds=0.05, max_delay_seconds=0.1)
BROKEN = model.ImageOutcome(model.TaskStatus.ERROR, 'the line is dead', model.Retry.BACKOFF)
REFUSED = model.ImageOutcome(model.TaskStatus.ERROR, 'refused')
STOPPED = model.ImageOutcome(model.TaskStatus.CANCELLED, 'told to', bytes_done=30)
OUTCOMES = (*[CACHED] * 7, BROKEN, BROKEN, REFUSED)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that a compute took, with start and end on the clock of all processes."""

    host: str
    job_id: str
    epoch: int
    began: bool
    since: int
    until: int


@dataclasses.dataclass(frozen=True)
class Told:
    """The work of a conductor; each notification as its type and subject."""

    calls: list[Call]
    announced: list[tuple[str, ...]]
    errors: list[str]


@dataclasses.dataclass(frozen=True)
class Order:
    """Configuration of a conductor: its database, its limit, and the images of its computes."""

    url: str
    conductor_id: str
    limit: int
    images: tuple[str, ...]


class Crowd:
    """The computes of all hosts that one conductor calls."""

    def __init__(
        self, job_store: jobs.Jobs, steer: request_actions.RequestActions, seed: str
    ) -> None:
        self._jobs = job_store
        self._steering = steer
        self._any = random.Random(seed)
        self._lock = threading.Lock()
        self._progress: dict[str, jobs.ProgressReport] = {}
        self.calls: list[Call] = []

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        since = time.monotonic_ns()
        began = self._jobs.begin(call.job_id, call.epoch)
        outcome = self._work(call) if began else None
        until = time.monotonic_ns()
        with self._lock:
            self.calls.append(Call(host, call.job_id, call.epoch, began, since, until))
        return outcome

    def _work(self, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        for sequence in (1, 2):
            progress = model.Progress(model.TaskStatus.DOWNLOADING, 10 * sequence, 100, 5)
            report = jobs.ProgressReport(call.job_id, call.epoch, sequence, progress)
            with self._lock:
                self._progress[call.job_id] = report
            if any(order.job_id == call.job_id for order in self._steering.stop_orders()):
                return STOPPED
        return self._any.choice(OUTCOMES)

    def write_progress(self) -> None:
        """Write the buffered progress in bulk, as a conductor does."""
        with self._lock:
            reports, self._progress = self._progress, {}
        # It reads first, and no read is repeated on which the test cuts the connection.
        with contextlib.suppress(exception.DatabaseUnavailable):
            if reports:
                self._jobs.record_progress(reports.values())


class Conductor:
    """The loops of a conductor: it plans, claims and calls, renews its leases, and announces."""

    def __init__(self, order: Order) -> None:
        self._order = order
        conf = options.new(config_files=[])
        conf.set_override('connection', order.url, 'database')
        self._database = session.connect(conf)
        steer = request_actions.RequestActions(self._database)
        self._jobs = jobs.Jobs(self._database, LEASE_SECONDS)
        self._crowd = Crowd(self._jobs, steer, order.conductor_id)
        self._notifications = emitter.RecordingEmitter()
        self._errors: list[str] = []
        self._stopping = threading.Event()
        self._make(steer)
        self._ticker = threading.Thread(target=self._tick)

    def _make(self, steer: request_actions.RequestActions) -> None:
        store = requests.Requests(self._database, LIMITS)
        hosts = agents.Agents(self._database, DOWN_SECONDS)
        stock = inventory.Inventory(self._database)
        images = fake.FakeImageService()
        for image in self._order.images:
            images.add(b'data', id=image)
        self._tracker = tracker.Tracker(self._jobs, store, steer, lambda: None, POLICY)
        self._announcer = announcer.Announcer(
            outbox.Announcements(self._database),
            store,
            stock,
            self._notifications,
            POLL_SECONDS,
        )
        breakers = breaker.CellBreakers(10.0, time.monotonic)
        plans = planning.Planning(
            conductor_id=self._order.conductor_id,
            request_store=store,
            aggregates=stock,
            alive=hosts,
            images=images,
            track=self._tracker,
            chunk_tasks=CHUNK_TASKS,
            unsupported=lambda: None,
        )
        called = host_worker.HostWorker(
            conductor_id=self._order.conductor_id,
            job_store=self._jobs,
            why_down=lambda call: hosts.why_down(call.seen_at, call.assigned_at, call.heard),
            track=self._tracker,
            computes=lambda cell_uuid: self._crowd,
            images=images,
            access=lambda: ('http://glance', 'token'),
            breakers=breakers,
            moving_seconds=30,
        )
        self._dispatcher = dispatcher.Dispatcher(
            conductor_id=self._order.conductor_id,
            job_store=self._jobs,
            request_store=store,
            aggregates=stock,
            plans=plans,
            hosts=called,
            track=self._tracker,
            breakers=breakers,
            limit=self._order.limit,
            poll_seconds=POLL_SECONDS,
            stop_seconds=STOP_SECONDS,
        )

    def start(self) -> None:
        self._ticker.start()
        self._dispatcher.start()

    def stop(self) -> None:
        self._dispatcher.stop()
        self._stopping.set()
        self._ticker.join()

    def announce(self) -> Told:
        """Send the pending announcements, and return all the work done."""
        self._announcer.announce()
        self._database.dispose()
        return Told(self._crowd.calls, _sent(self._notifications), self._errors)

    def _tick(self) -> None:
        while not self._stopping.wait(RENEW_SECONDS):
            try:
                self._jobs.renew(self._order.conductor_id)
                self._crowd.write_progress()
            except Exception as exc:  # noqa: BLE001 - the test says so
                self._errors.append(f'{type(exc).__name__}: {exc}')


def _sent(notifications: emitter.RecordingEmitter) -> list[tuple[str, ...]]:
    told = []
    for each in notifications.emitted:
        data = each.payload['nova_object.data']
        about = (data.get(key) for key in ('request_id', 'id', 'host', 'image_id'))
        told.append((each.event_type, *(str(word) for word in about if word is not None)))
    return told


class Process:
    """Runs a conductor, which starts, stops and announces on command."""

    def __init__(self, order: Order) -> None:
        spawn = multiprocessing.get_context('spawn')
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(order, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def begin(self, what: str) -> None:
        """Start, stop or announce, without waiting."""
        self._pipe.send(what)

    def wait(self) -> Told | None:
        """Wait until that is done, and return its result."""
        if not self._pipe.poll(STOP_SECONDS):
            pytest.fail(f'process {self._process.pid} does not answer')
        told: Told | None = self._pipe.recv()
        return told


def _serve(order: Order, pipe: connection.Connection) -> None:
    made = Conductor(order)
    pipe.send(None)
    steps = {'start': made.start, 'stop': made.stop, 'announce': made.announce}
    while True:
        pipe.send(steps[pipe.recv()]())


def most_at_once(calls: list[Call]) -> int:
    """Return the highest number of calls that overlapped."""
    changes = sorted([(each.since, 1) for each in calls] + [(each.until, -1) for each in calls])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def by_host(calls: list[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = collections.defaultdict(list)
    for each in calls:
        found[each.host].append(each)
    return found
