# SPDX-License-Identifier: Apache-2.0
"""One part of the benchmark in a process of its own: reads its arguments, prints the results.

The conductor is that of the service, with all its loops, on a real database; only its computes
are simulated. Here is the cost of a task; the other parts have modules of their own.
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import sqlalchemy as sa

from benchmarks import cli, observed
from benchmarks.fleet import broker, calls, claims, fairness, messages, reads, site
from benchmarks.fleet.cases import BROKER, DATABASE, Case, Cost, Outcome, Planning
from benchmarks.fleet.computes import SimulatedComputes
from nova_precache import model
from nova_precache.db import requests
from nova_precache.db.engine import session as db_session

GETS = 5
IDLE_SECONDS = 2.0
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
    """Reads the clocks and counts the statements of this process, and the CPU time of its servers.

    It excludes the CPU time of the measuring thread, which polls for the end.

    :ivar servers: the processes of the database and the broker, if they are measured
    """

    statements: Statements
    servers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    last: Cost = dataclasses.field(default_factory=lambda: Cost(0, 0, 0, 0, 0))

    def lap(self) -> Cost:
        """Return the cost since the last lap."""
        now = Cost(
            wall_seconds=time.monotonic(),
            cpu_seconds=time.process_time() - time.thread_time(),
            reads=self.statements.of(*_READS),
            inserts=self.statements.of(*_INSERTS),
            updates=self.statements.of(*_UPDATES),
            database_cpu_seconds=self._cpu_seconds(DATABASE),
            broker_cpu_seconds=self._cpu_seconds(BROKER),
        )
        before, self.last = self.last, now
        return _since(before, now)

    def _cpu_seconds(self, server: str) -> float:
        pid = self.servers.get(server)
        return 0.0 if pid is None else observed.cpu_seconds(pid)

    def planning(self) -> Planning:
        """Return the statements of the planner so far."""
        counts = (
            self.statements.of(*verbs, thread=PLANNER) for verbs in (_READS, _INSERTS, _UPDATES)
        )
        return Planning(*counts)


def _since(before: C, now: C) -> C:
    names = [field.name for field in dataclasses.fields(now)]
    return type(now)(**{name: getattr(now, name) - getattr(before, name) for name in names})


def measure(
    case: Case,
    database_url: str,
    broker_url: str | None = None,
    servers: Mapping[str, int] | None = None,
) -> Outcome:
    """Run the requests of a case with a conductor."""
    transport_url = broker_url or site.IN_MEMORY
    with site.opened(case, database_url, transport_url) as world:
        if not case.broker:
            world.simulate(SimulatedComputes(world.parts.jobs, case.delay_ms / 1000))
        meter = CostMeter(Statements(world.parts.database), servers or {})
        with _running_computes(case, transport_url, world.site.fleet) as rpc, world.conducting():
            return _measure(case, world, meter, rpc)


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
    case: Case, world: site.World, meter: CostMeter, rpc: broker.Computes | None
) -> Outcome:
    meter.lap()
    _, once = _run(world, world.new_request(1, world.site.few), meter)
    once_cpu_seconds = once.cpu_seconds + meter.lap().cpu_seconds
    asked = [world.new_request(case.images, world.site.fleet) for _ in range(case.requests)]
    idle = _rest(meter)
    idle_bytes = _reset_peak()
    served = sorted(
        (_serve(case, world, each, meter) for each in asked),
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
        get_seconds=_time_get(world.parts.requests, median.request_id),
        peak_bytes=peak_bytes,
        idle_bytes=idle_bytes,
        rpc=None if rpc is None else rpc.measure(case.parallel),
    )


@dataclasses.dataclass(frozen=True)
class _Served:
    request_id: str
    plan: Cost
    work: Cost
    planning: Planning


def _serve(case: Case, world: site.World, asked: requests.NewRequest, meter: CostMeter) -> _Served:
    """Run a request of the case and return its cost."""
    meter.lap()
    before = meter.planning()
    request_id, plan = _run(world, asked, meter)
    work = meter.lap()
    _check(case, world.parts.requests.get(request_id))
    return _Served(request_id, plan, work, _since(before, meter.planning()))


def _rest(meter: CostMeter) -> Cost:
    """Return the cost of some seconds without requests."""
    meter.lap()
    time.sleep(IDLE_SECONDS)
    return meter.lap()


def _run(world: site.World, new: requests.NewRequest, meter: CostMeter) -> tuple[str, Cost]:
    """Run one request to its end and return its id and the cost of its plan."""
    request = world.ask(new)
    poll = site.StatusPoll(world.parts.database, request.id)
    poll.until_planned()
    plan = meter.lap()
    poll.until_ended()
    poll.close()
    return request.id, plan


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


MEASURES: Mapping[str, Callable[..., Any]] = {
    'cost': lambda case, **given: measure(Case(**case), **given),
    'reads': reads.measure,
    'claims': claims.measure,
    'fairness': fairness.measure,
    'messages': messages.measure_with_interval,
    'calls': calls.measure,
}


def main(arguments: list[str]) -> None:
    cli.log_progress(logging.ERROR)
    logging.getLogger('benchmarks').setLevel(logging.INFO)
    part, given = arguments
    found = MEASURES[part](**json.loads(given))
    print(json.dumps(dataclasses.asdict(found)), flush=True)
    os._exit(0)  # without waiting for the connections to the broker


if __name__ == '__main__':
    main(sys.argv[1:])
