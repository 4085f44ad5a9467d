# SPDX-License-Identifier: Apache-2.0
"""Which fleets are measured, and what one run of a conductor with one of them tells. No I/O."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

SQLITE, MARIADB = 'sqlite', 'mariadb'
SLOW_TASKS = 10_000  # so many at most are run with computes that take their time
REPEATED_TASKS = 1_000  # of fewer, one request would tell of a moment alone
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A fleet, and what is asked of it.

    :ivar delay_ms: how long each simulated compute takes
    :ivar broker: whether the computes are real RPC servers, behind RabbitMQ
    """

    database: str
    hosts: int
    cells: int = 2
    images: int = 1
    delay_ms: int = 0
    parallel: int = 16
    broker: bool = False

    @property
    def tasks(self) -> int:
        return self.hosts * self.images

    @property
    def requests(self) -> int:
        """How many requests are made, of which the median by its CPU is told."""
        return 1 if self.tasks >= REPEATED_TASKS else REPEATS

    def of_any_size(self) -> 'Case':
        """Give what it shares with those that differ from it in their hosts alone."""
        return dataclasses.replace(self, hosts=0)

    @property
    def name(self) -> str:
        by = ', RabbitMQ' if self.broker else ''
        waits = f', {self.delay_ms} ms' if self.delay_ms else ''
        cells = 'a cell' if self.cells == 1 else f'{self.cells} cells'
        return f'{self.hosts:,} x {self.images} in {cells}, {self.database}{waits}{by}'


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one step took: seconds of the clock and of this process, and SQL statements."""

    wall_seconds: float
    cpu_seconds: float
    reads: int
    inserts: int
    updates: int

    @property
    def statements(self) -> int:
        return self.reads + self.inserts + self.updates


@dataclasses.dataclass(frozen=True)
class Planning:
    """The SQL statements of the thread that plans."""

    reads: int
    inserts: int
    updates: int

    @property
    def statements(self) -> int:
        return self.reads + self.inserts + self.updates


@dataclasses.dataclass(frozen=True)
class Rpc:
    """What an empty call costs this process, in seconds of its CPU: made by it, and served."""

    made_seconds: float
    served_seconds: float
    made_wall_seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was measured of one case.

    :ivar plan: from when the request was there until it was seen to be planned
    :ivar work: from then until it had ended
    :ivar first_cpu_seconds: of a small request before, with all that a process does but once
    :ivar idle: what the process took afterwards, while nobody asked for anything
    :ivar get_seconds: median of ``Requests.get`` when all tasks are there
    :ivar peak_bytes: most that the process had resident in all of it
    :ivar idle_bytes: what it had before the request
    """

    case: Case
    plan: Cost
    work: Cost
    planning: Planning
    first_cpu_seconds: float
    idle: Cost
    get_seconds: float
    peak_bytes: int
    idle_bytes: int
    rpc: Rpc | None = None

    @property
    def wall_ms_per_task(self) -> float:
        return self._per_task(self.plan.wall_seconds + self.work.wall_seconds) * 1000

    @property
    def cpu_ms_per_task(self) -> float:
        """What a task adds to what the process takes anyhow."""
        spent = self.plan.cpu_seconds + self.work.cpu_seconds
        seconds = self.plan.wall_seconds + self.work.wall_seconds
        return self._per_task(spent - self.idle_share * seconds) * 1000

    @property
    def idle_share(self) -> float:
        """What the process takes of a CPU while there is nothing to do."""
        return self.idle.cpu_seconds / self.idle.wall_seconds

    @property
    def statements_per_task(self) -> float:
        return self._per_task(self.plan.statements + self.work.statements)

    @property
    def rpc_ms_per_task(self) -> float | None:
        """What of the CPU are the two calls of a task: one made, one served (``begin_job``)."""
        if self.rpc is None:
            return None
        return (self.rpc.made_seconds + self.rpc.served_seconds) * 1000

    def _per_task(self, value: float) -> float:
        return value / self.case.tasks


def from_json(found: Mapping[str, Any]) -> Outcome:
    """Read what a worker printed."""
    return Outcome(
        **{
            **found,
            'case': Case(**found['case']),
            'plan': Cost(**found['plan']),
            'work': Cost(**found['work']),
            'idle': Cost(**found['idle']),
            'planning': Planning(**found['planning']),
            'rpc': None if found['rpc'] is None else Rpc(**found['rpc']),
        }
    )


def choose(
    databases: Sequence[str],
    hosts: Sequence[int],
    cells: Sequence[int],
    images: Sequence[int],
    delays_ms: Sequence[int],
    parallel: int,
    *,
    every: bool = False,
) -> list[Case]:
    """Give the combinations, the small ones first.

    Computes that take their time only make the large ones longer: those are left out.

    :param every: combine all numbers of cells with all delays, and not the first with the
        first, the second with the second; of one that has fewer, the last goes on
    """
    kinds = list(itertools.product(cells, delays_ms) if every else _together(cells, delays_ms))
    found = [
        Case(database, host, cell, image, delay, parallel)
        for database, host, image in itertools.product(databases, hosts, images)
        for cell, delay in kinds
    ]
    kept = [case for case in found if not case.delay_ms or case.tasks <= SLOW_TASKS]
    return sorted(kept, key=lambda case: (case.tasks, case.delay_ms))


def _together(cells: Sequence[int], delays_ms: Sequence[int]) -> list[tuple[int, int]]:
    last = max(len(cells), len(delays_ms)) - 1
    return [
        (cells[min(each, len(cells) - 1)], delays_ms[min(each, len(delays_ms) - 1)])
        for each in range(last + 1)
    ]
