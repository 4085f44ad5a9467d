# SPDX-License-Identifier: Apache-2.0
"""The fleets to measure, and the results of one of them. No I/O."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

SQLITE, MARIADB = 'sqlite', 'mariadb'
DATABASE, BROKER = 'database', 'broker'  # servers whose CPU time is measured
SLOW_TASKS = 10_000  # limit for computes with a delay
REPEATED_TASKS = 1_000  # below, a single request takes too short a time
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A fleet and its request.

    :ivar delay_ms: duration of a task on a simulated compute
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
        """The number of requests; the one with the median CPU time is the result."""
        return 1 if self.tasks >= REPEATED_TASKS else REPEATS

    def of_any_size(self) -> 'Case':
        """Return the case without its number of hosts, to group cases by the rest."""
        return dataclasses.replace(self, hosts=0)

    @property
    def name(self) -> str:
        by = ', RabbitMQ' if self.broker else ''
        waits = f', {self.delay_ms} ms' if self.delay_ms else ''
        cells = 'a cell' if self.cells == 1 else f'{self.cells} cells'
        return f'{self.hosts:,} x {self.images} in {cells}, {self.database}{waits}{by}'


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one step: wall time, CPU time of this process, and SQL statements.

    :ivar database_cpu_seconds: of its server; 0 without one, as ``broker_cpu_seconds``
    """

    wall_seconds: float
    cpu_seconds: float
    reads: int
    inserts: int
    updates: int
    database_cpu_seconds: float = 0.0
    broker_cpu_seconds: float = 0.0

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
    """CPU seconds of this process for an empty call, as its client and as its server."""

    made_seconds: float
    served_seconds: float
    made_wall_seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of one case.

    :ivar plan: from the request until it is planned
    :ivar work: from then until its end
    :ivar first_cpu_seconds: of a small request before, including one-time work of the process
    :ivar idle: cost of the process without requests
    :ivar get_seconds: median of ``Requests.get`` with all tasks
    :ivar peak_bytes: peak of resident memory
    :ivar idle_bytes: resident memory before the request
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
        """CPU time of a task above that of the idle process."""
        spent = self.plan.cpu_seconds + self.work.cpu_seconds
        seconds = self.plan.wall_seconds + self.work.wall_seconds
        return self._per_task(spent - self.idle_share * seconds) * 1000

    @property
    def database_ms_per_task(self) -> float:
        """CPU time of the database's server, as ``broker_ms_per_task``."""
        return (
            self._per_task(self.plan.database_cpu_seconds + self.work.database_cpu_seconds) * 1000
        )

    @property
    def broker_ms_per_task(self) -> float:
        return self._per_task(self.plan.broker_cpu_seconds + self.work.broker_cpu_seconds) * 1000

    @property
    def idle_share(self) -> float:
        """Share of a CPU that the idle process uses."""
        return self.idle.cpu_seconds / self.idle.wall_seconds

    @property
    def statements_per_task(self) -> float:
        return self._per_task(self.plan.statements + self.work.statements)

    @property
    def rpc_ms_per_task(self) -> float | None:
        """CPU time of the two calls of a task: one made, one served (``begin_job``)."""
        if self.rpc is None:
            return None
        return (self.rpc.made_seconds + self.rpc.served_seconds) * 1000

    def _per_task(self, value: float) -> float:
        return value / self.case.tasks


def from_json(found: Mapping[str, Any]) -> Outcome:
    """Parse the output of a worker."""
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
    """Return the combinations, small ones first, without large ones that have a delay.

    :param every: combine each number of cells with each delay, instead of the first with the
        first and so on; the last of the shorter list is repeated
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
