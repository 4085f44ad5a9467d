# SPDX-License-Identifier: Apache-2.0
"""One case in a process of its own: reads the case from its arguments and prints the results.

The conductor is that of the service, with all its loops, on a real database; only its computes
are simulated.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import sqlalchemy as sa

from benchmarks import observed
from benchmarks.fleet import broker, site
from benchmarks.fleet.cases import Case, Cost, Outcome, Planning
from benchmarks.fleet.computes import IMAGE_BYTES, Images, SimulatedComputes
from nova_precache import context, model
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.db import requests
from nova_precache.db.engine import models, session as db_session
from nova_precache.wiring import common, conductor as wiring_conductor

GETS = 5
LOOK_SECONDS = 0.05
IDLE_SECONDS = 2.0
NEVER_ENDS_SECONDS = 3600.0
PLANNER = 'planner'  # the thread that plans
_READS, _INSERTS, _UPDATES = ('SELECT',), ('INSERT',), ('UPDATE', 'DELETE')


class Statements:
    """Counts the statements that are sent to a database."""

    def __init__(self, database: db_session.Database) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        sa.event.listen(database.engine, 'before_cursor_execute', self._note)

    def _note(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        verb = statement.lstrip('( ').partition(' ')[0].upper()
        with self._lock:
            self._counts[threading.current_thread().name, verb] += 1

    def of(self, *verbs: str, thread: str | None = None) -> int:
        with self._lock:
            return sum(
                count
                for (name, verb), count in self._counts.items()
                if verb in verbs and thread in {None, name}
            )


C = TypeVar('C', Cost, Planning)


@dataclasses.dataclass
class CostMeter:
    """Reads the clocks and counts the statements of this process.

    It excludes the CPU time of the measuring thread, which polls for the end.
    """

    statements: Statements
    last: Cost = dataclasses.field(default_factory=lambda: Cost(0, 0, 0, 0, 0))

    def lap(self) -> Cost:
        """Return the cost since the last lap."""
        now = Cost(
            wall_seconds=time.monotonic(),
            cpu_seconds=time.process_time() - time.thread_time(),
            reads=self.statements.of(*_READS),
            inserts=self.statements.of(*_INSERTS),
            updates=self.statements.of(*_UPDATES),
        )
        before, self.last = self.last, now
        return _since(before, now)

    def planning(self) -> Planning:
        """Return the statements of the planner so far."""
        counts = (
            self.statements.of(*verbs, thread=PLANNER) for verbs in (_READS, _INSERTS, _UPDATES)
        )
        return Planning(*counts)


def _since(before: C, now: C) -> C:
    names = [field.name for field in dataclasses.fields(now)]
    return type(now)(**{name: getattr(now, name) - getattr(before, name) for name in names})


def measure(case: Case, database_url: str, broker_url: str | None = None) -> Outcome:
    """Run the requests of a case with a conductor."""
    transport_url = broker_url or 'fake:///fleet'
    with tempfile.TemporaryDirectory(prefix='fleet-') as state_dir:
        conf = site.configure(case, database_url, transport_url, state_dir)
        database = db_session.connect(conf)
        try:
            found = site.populate(case, database, transport_url)
            parts = wiring_conductor.ConductorParts(conf, database, common.exposition(conf))
            images = parts.images = Images()
            if not case.broker:
                computes = SimulatedComputes(parts.jobs, case.delay_ms / 1000)
                parts.computes = lambda cell_uuid: computes
            first = _request(images, found.few, 1)
            asked = [_request(images, found.fleet, case.images) for _ in range(case.requests)]
            with _running_computes(case, conf.transport_url, found.fleet) as rpc:
                return _measure(case, parts, database, first, asked, rpc)
        finally:
            database.dispose()


def _request(images: Images, aggregate: model.Aggregate, count: int) -> requests.NewRequest:
    ids = tuple(images.add(b'', size=IMAGE_BYTES).id for _ in range(count))
    return requests.NewRequest(aggregate=aggregate, images=ids, is_admin=True)


@contextlib.contextmanager
def _running_computes(
    case: Case, transport_url: str, aggregate: model.Aggregate
) -> Iterator[broker.Computes | None]:
    if not case.broker:
        yield None
        return
    with broker.Computes(transport_url, aggregate.hosts, case.delay_ms / 1000) as computes:
        yield computes


def _measure(
    case: Case,
    parts: wiring_conductor.ConductorParts,
    database: db_session.Database,
    first: requests.NewRequest,
    asked: Sequence[requests.NewRequest],
    rpc: broker.Computes | None,
) -> Outcome:
    conductor = parts.conductor()
    conductor.start()
    try:
        meter = CostMeter(Statements(database))
        meter.lap()
        _, once = _run(parts, database, first, meter)
        once_cpu_seconds = once.cpu_seconds + meter.lap().cpu_seconds
        idle = _rest(meter)
        idle_bytes = _reset_peak()
        served = sorted(
            (_serve(case, parts, database, each, meter) for each in asked),
            key=lambda each: each.plan.cpu_seconds + each.work.cpu_seconds,
        )
        median = served[len(served) // 2]
        peak_bytes = observed.memory(os.getpid()).peak_bytes
        return Outcome(
            case=case,
            plan=median.plan,
            work=median.work,
            planning=median.planning,
            first_cpu_seconds=once_cpu_seconds,
            idle=idle,
            get_seconds=_time_get(parts.requests, median.request_id),
            peak_bytes=peak_bytes,
            idle_bytes=idle_bytes,
            rpc=None if rpc is None else rpc.measure(case.parallel),
        )
    finally:
        conductor.stop()


@dataclasses.dataclass(frozen=True)
class _Served:
    request_id: str
    plan: Cost
    work: Cost
    planning: Planning


def _serve(
    case: Case,
    parts: wiring_conductor.ConductorParts,
    database: db_session.Database,
    asked: requests.NewRequest,
    meter: CostMeter,
) -> _Served:
    """Run a request of the case and return its cost."""
    meter.lap()
    before = meter.planning()
    request_id, plan = _run(parts, database, asked, meter)
    work = meter.lap()
    _check(case, parts.requests.get(request_id))
    return _Served(request_id, plan, work, _since(before, meter.planning()))


def _rest(meter: CostMeter) -> Cost:
    """Return the cost of some seconds without requests."""
    meter.lap()
    time.sleep(IDLE_SECONDS)
    return meter.lap()


def _run(
    parts: wiring_conductor.ConductorParts,
    database: db_session.Database,
    new: requests.NewRequest,
    meter: CostMeter,
) -> tuple[str, Cost]:
    """Run one request to its end and return its id and the cost of its plan."""
    request = parts.requests.accept(new)
    conductor_rpcapi.ConductorAPI(parts.api_transport).work_available(context.admin_context())
    poll = _StatusPoll(database, request.id)
    poll.until(lambda status: status != model.RequestStatus.ACCEPTED)
    plan = meter.lap()
    poll.until(lambda status: status not in model.REQUEST_ACTIVE)
    poll.close()
    return request.id, plan


class _StatusPoll:
    """Polls the status of a request through a connection that is not counted."""

    def __init__(self, database: db_session.Database, request_id: str) -> None:
        self._engine = sa.create_engine(database.engine.url)
        row = models.CacheRequest
        self._query = sa.select(row.status).where(row.id == request_id)

    def until(self, is_so: Callable[[str], bool]) -> None:
        give_up_at = time.monotonic() + NEVER_ENDS_SECONDS
        while True:
            with self._engine.connect() as connection:
                if is_so(connection.scalars(self._query).one()):
                    return
            if time.monotonic() > give_up_at:
                raise RuntimeError('The request did not end in time')
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        self._engine.dispose()


def _check(case: Case, request: model.CacheRequest) -> None:
    """Check that each task was cached: a failure would be fast."""
    expected = {str(model.TaskStatus.CACHED): case.tasks}
    if request.status != model.RequestStatus.COMPLETED or dict(request.counts) != expected:
        raise RuntimeError(f'The request ended {request.status}: {request.counts}')


def _time_get(store: requests.Requests, request_id: str) -> float:
    taken = []
    for _ in range(GETS):
        began = time.monotonic()
        store.get(request_id)
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def _reset_peak() -> int:
    """Reset the peak of resident memory and return the current value."""
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    return observed.memory(os.getpid()).resident_bytes


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.ERROR)
    found = measure(Case(**json.loads(arguments[0])), arguments[1], *arguments[2:])
    print(json.dumps(dataclasses.asdict(found)), flush=True)
    os._exit(0)  # without waiting for the connections to the broker


if __name__ == '__main__':
    main(sys.argv[1:])
