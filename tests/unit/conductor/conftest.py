# SPDX-License-Identifier: Apache-2.0
"""A conductor's parts on a real database, with a compute that a test scripts."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest
from oslo_context import context as oslo_context

from nova_precache import context, model
from nova_precache.cells import breaker
from nova_precache.compute import rpcapi
from nova_precache.conductor import (
    announcer,
    dispatcher,
    host_worker,
    lifecycle,
    planning,
    retry,
    stop_orders,
    tracker,
)
from nova_precache.db import host_recovery, jobs, outbox, request_actions as db_steering
from nova_precache.image import fake
from nova_precache.notifications import emitter, payloads
from tests.unit.conftest import CACHED, DOWN_SECONDS, World
from tools.waiting import TIMEOUT_SECONDS

REST_SECONDS = 10.0
POLICY = retry.RetryPolicy(max_attempts=3, delay_seconds=10, max_delay_seconds=15)

Step = Callable[[str, rpcapi.CacheImageCall], model.ImageOutcome | None]


@dataclasses.dataclass(frozen=True)
class Told:
    """An order to a host outside its calls: to stop or change a job, or to forget an image."""

    host: str
    what: str
    why: str | None = None
    keep_partial: bool = False


class FakeCompute:
    """Every compute of every cell: begins each job, and answers ``cached`` unless scripted.

    ``script`` holds steps by (host, image), used up from the front; a step is called
    with the host and the call, and returns the answer or raises. ``answer`` holds a host's
    answer to orders to stop or to forget: True by default.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._condition = threading.Condition()
        self._script: dict[tuple[str, str], list[Step]] = collections.defaultdict(list)
        self.calls: list[tuple[str, rpcapi.CacheImageCall]] = []
        self.told: list[Told] = []
        self.answer: dict[str, Callable[[], bool]] = {}

    def stop_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        why: model.StopWhy,
        keep_partial: bool = False,
    ) -> bool:
        return self._tell(Told(host, f'{job_id} {epoch}', why.value, keep_partial))

    def change_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        change: model.OptionChange,
    ) -> bool:
        said = f'{change.number} {change.max_rate_bytes} {change.deadline_seconds is not None}'
        return self._tell(Told(host, f'{job_id} {epoch}', said))

    def forget_image(self, ctxt: context.RequestContext, host: str, image_id: str) -> bool:
        return self._tell(Told(host, image_id))

    def _tell(self, told: Told) -> bool:
        with self._condition:
            self.told.append(told)
            self._condition.notify_all()
        return self.answer.get(told.host, lambda: True)()

    def wait_told(self, count: int) -> None:
        """Wait until this many orders were sent."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.told) >= count, TIMEOUT_SECONDS)

    def script(self, host: str, image_id: str, *steps: Step) -> None:
        self._script[host, image_id] += steps

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        with self._condition:
            self.calls.append((host, call))
            steps = self._script[host, call.image_id]
            step = steps.pop(0) if steps else self.answers(CACHED)
            self._condition.notify_all()
        return step(host, call)

    def answers(self, outcome: model.ImageOutcome) -> Step:
        """Return a step that begins the job and ends it with the outcome."""

        def step(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome | None:
            return outcome if self._world.jobs.begin(call.job_id, call.epoch) else None

        return step

    def fails(self, error: Exception, begins: bool = False) -> Step:
        """Return a step that raises, with or without having begun the job."""

        def step(host: str, call: rpcapi.CacheImageCall) -> None:
            if begins:
                assert self._world.jobs.begin(call.job_id, call.epoch)
            raise error

        return step

    def called(self) -> list[tuple[str, str]]:
        """Return the (host, image) of each call so far."""
        with self._condition:
            return [(host, call.image_id) for host, call in self.calls]

    def wait_called(self, count: int) -> None:
        """Wait until this many calls have come in."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.calls) >= count, TIMEOUT_SECONDS)


class Announcements(emitter.RecordingEmitter):
    """The notifications sent; a test can wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = threading.Condition()

    def emit(self, notification: payloads.Notification) -> None:
        with self._condition:
            super().emit(notification)
            self._condition.notify_all()

    def events(self, family: str = 'aggregate.cache_images.') -> list[str]:
        """Return the last words of the event types of a family, by default Nova's."""
        types = [notification.event_type for notification in self.emitted]
        return [each.removeprefix(family) for each in types if each.startswith(family)]

    def data(self, phase: str, family: str = 'aggregate.cache_images.') -> list[model.Json]:
        """Return the data of the notifications of one kind."""
        return [
            notification.payload['nova_object.data']
            for notification in self.emitted
            if notification.event_type == f'{family}{phase}'
        ]

    def wait(self, event: str, count: int = 1) -> None:
        """Wait until this many of these events were sent."""
        with self._condition:
            came = self._condition.wait_for(
                lambda: self.events().count(event) >= count, TIMEOUT_SECONDS
            )
        assert came, self.events()


@dataclasses.dataclass
class Parts:
    """The parts of conductors that share one database, one clock and one compute."""

    world: World
    compute: FakeCompute
    announced: Announcements
    images: fake.FakeImageService
    breakers: breaker.CellBreakers
    announcer: announcer.Announcer
    steering: db_steering.RequestActions
    tracker: tracker.Tracker
    now: list[float]
    why_no_call: Callable[[], str | None] = lambda: None
    access: Callable[[], tuple[str | None, str | None]] = lambda: ('http://glance', 'token-1')
    compute_of: Callable[[str], host_worker.ComputeClient] | None = None

    def why_down(self, assignment: jobs.Assignment) -> str | None:
        return self.world.agents.why_no_call(
            assignment.seen_at, assignment.assigned_at, assignment.heard, assignment.stopped_at
        )

    def caller(self, conductor: str = 'c1') -> host_worker.HostWorker:
        return host_worker.HostWorker(
            conductor_id=conductor,
            job_store=self.world.jobs,
            why_down=self.why_down,
            track=self.tracker,
            computes=self.compute_of or (lambda cell_uuid: self.compute),
            images=self.images,
            access=self.access,
            breakers=self.breakers,
            moving_seconds=30,
        )

    def planning(self, conductor: str = 'c1', chunk_tasks: int = 1000) -> planning.Planning:
        return planning.Planning(
            conductor_id=conductor,
            request_store=self.world.requests,
            aggregates=self.world.inventory,
            alive=self.world.agents,
            images=self.images,
            track=self.tracker,
            chunk_tasks=chunk_tasks,
            unsupported=self.why_no_call,
        )

    def dispatcher(
        self,
        conductor: str = 'c1',
        limit: int = 1,
        stop_seconds: float = TIMEOUT_SECONDS,
        count_takeover: Callable[[], None] = lambda: None,
    ) -> dispatcher.Dispatcher:
        return dispatcher.Dispatcher(
            conductor_id=conductor,
            job_store=self.world.jobs,
            request_store=self.world.requests,
            aggregates=self.world.inventory,
            plans=self.planning(conductor),
            hosts=self.caller(conductor),
            track=self.tracker,
            breakers=self.breakers,
            limit=limit,
            poll_seconds=0.05,
            stop_seconds=stop_seconds,
            count_takeover=count_takeover,
        )

    def orders(self, freed: Callable[[], None] = lambda: None) -> stop_orders.StopOrders:
        return stop_orders.StopOrders(
            store=self.steering,
            job_store=self.world.jobs,
            agent_store=self.world.agents,
            track=self.tracker,
            computes=lambda cell_uuid: self.compute,
            breakers=self.breakers,
            clock=lambda: self.now[0],
            freed=freed,
        )

    def helm(self, freed: Callable[[], None] = lambda: None) -> lifecycle.LifecycleLoop:
        return lifecycle.LifecycleLoop(
            store=self.steering,
            hosts=host_recovery.AgentHostRecovery(self.world.database, DOWN_SECONDS),
            track=self.tracker,
            orders=self.orders(freed),
            poll_seconds=0.05,
            freed=freed,
        )

    def serve(self, conductor: str = 'c1') -> str:
        """Claim the next host and serve it to the end; return its name."""
        claim = self.world.claim(conductor, 100, self.breakers.avoid())
        assert claim is not None
        assignments = iter(range(50))
        first = self.world.first.pop((conductor, claim.host), None)
        self.caller(conductor).serve(claim, lambda: next(assignments, None) is None, first)
        assert next(assignments, None) is not None, 'the host was served without end'
        return claim.host


@pytest.fixture
def parts(world: World) -> Parts:
    now = [1000.0]
    announced = Announcements()
    announce = announcer.Announcer(
        outbox.Announcements(world.database),
        world.requests,
        world.inventory,
        announced,
        poll_seconds=0.05,
    )
    store = db_steering.RequestActions(world.database)
    return Parts(
        world=world,
        compute=FakeCompute(world),
        announced=announced,
        images=fake.FakeImageService(),
        breakers=breaker.CellBreakers(REST_SECONDS, lambda: now[0]),
        announcer=announce,
        steering=store,
        # At once, in the thread that recorded it.
        tracker=tracker.Tracker(world.jobs, world.requests, store, announce.announce, POLICY),
        now=now,
    )


class Lines(logging.Handler):
    """The log, each line with the request id of the thread that logs it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[str | None, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        current = oslo_context.get_current()
        ids = None if current is None else current.request_id
        self._lines.append((ids, record.getMessage()))

    def about(self, names: Iterable[str]) -> list[tuple[str, str | None, str]]:
        """Return the lines that name one of these ids: the id, the request id, and the message."""
        return [
            (name, current, message)
            for current, message in self._lines
            for name in names
            if name in message
        ]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger('nova_precache')
    caplog.set_level(logging.DEBUG, logger.name)
    logger.addHandler(handler)
    oslo_context._request_store.context = None
    yield handler
    logger.removeHandler(handler)
