# SPDX-License-Identifier: Apache-2.0
"""Which free hosts come next, inside a transaction: the most urgent ones, shared between cells.

A running transfer comes first, then the higher priority. Among equal priorities the next slot
goes to the cell with the fewest Glance streams that has due work, then to the oldest job. So no
cell exceeds its share while others wait, and one may take all slots while no other does.

Each cell has a queue in the order of an index. A queue is read only as far as its jobs are next:
a claim reads about as many jobs as it claims hosts, however many are due.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim, host_limits

_Row = sa.Row[*tuple[Any, ...]]
_JOB = models.Job
_LEAST_PRIORITY = -(2**31)
# A cell that holds this many slots more than another, which waits, gives it one.
_OVER_SHARE = 2
# Jobs of one queue that are read at most; a job beyond waits until a later claim.
_MOST_ROWS = 32 * job_claim.MOST_HOSTS
_MORE_ROWS = 4
_LEAST_ROWS = 8
# Rows read for each host to claim: of several jobs of a host only the first counts.
_JOBS_A_HOST = 2
# Queues whose heads one statement looks up.
_MOST_BRANCHES = 25


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A free host that may be claimed next, by its most urgent job.

    :ivar joins: a compute works on the job already
    """

    host: str
    cell_uuid: str
    priority: int
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class Serving:
    """A claimed host with a Glance stream between two calls, with the priority of its next job."""

    host: str
    cell_uuid: str
    priority: int


@dataclasses.dataclass(frozen=True)
class Search:
    """What a look for free hosts may find.

    :ivar count: maximum of hosts
    :ivar avoid_cells: uuids of cells that are not to be called now
    :ivar loads: number of Glance streams by cell
    :ivar least: returns the least priority of a cell's jobs that counts; None if all count
    """

    count: int
    avoid_cells: Collection[str]
    loads: Mapping[str, int]
    least: Callable[[str], int] | None = None


class KnownCells:
    """The cells that had work at the last look, which saves looking for them one by one.

    Cells that are new since then are found, too.
    """

    def __init__(self) -> None:
        self.cells: Sequence[str] = ()


class _Queue:
    """The due jobs of one cell on free hosts, the most urgent first.

    :param top: the first job in the order of the index, whether it is due or not
    :param read: returns the first rows of the queue, at most as many as asked for
    :ivar next: the next job; None if the page ended and the next one was not needed yet
    """

    def __init__(self, top: _Row, read: Callable[[int], Sequence[_Row]], page_rows: int) -> None:
        self.next: _Row | None = None
        self._bound = top  # all jobs that are left come after it
        self._read = read
        self._rows: Sequence[_Row] = ()
        self._page_rows = page_rows
        self._position = 0
        self._may_have_more = True

    def turn(self, load: int) -> tuple[int, int, int]:
        """Return when its next job comes, or may come at the earliest.

        :param load: number of Glance streams of its cell
        """
        return -self._bound.priority, load, self._bound.id

    def advance(self, taken: Collection[str]) -> bool:
        """Go to the next job on another host than those, or to the page's end.

        Return False at the end of the queue.
        """
        if self._position == len(self._rows) and self._may_have_more:
            self._rows = self._read(self._page_rows)
            is_full = len(self._rows) == self._page_rows
            self._may_have_more = is_full and self._page_rows < _MOST_ROWS
            self._page_rows = min(_MORE_ROWS * self._page_rows, _MOST_ROWS)
        self.next = None
        while self.next is None and self._position < len(self._rows):
            self._bound = self._rows[self._position]
            if self._bound.host in taken:
                self._position += 1
            else:
                self.next = self._bound
        return self.next is not None or self._may_have_more


def most_urgent(
    session: orm.Session,
    search: Search,
    limits: host_limits.HostLimits,
    known: KnownCells,
    chosen: Collection[str] = (),
) -> Mapping[str, Candidate]:
    """Map the next hosts, in their order, to the jobs for which they are claimed.

    The caller holds the counter's lock. There may be more: jobs that are far from being next
    are not read.

    :param known: is updated
    :param chosen: hosts to leave out
    """
    saturated = limits.saturated()
    only = host_limits.free_hosts(session, saturated) if saturated else None
    if only is not None and not only:
        return {}
    moving, waiting = _statements(saturated, only)
    taken, loads = set(chosen), collections.Counter(search.loads)
    candidates: dict[str, Candidate] = {}

    def take(row: _Row, joins: bool) -> None:
        if row.host not in taken and len(candidates) < search.count:
            taken.add(row.host)
            loads[row.cell_uuid] += 1
            candidates[row.host] = Candidate(row.host, row.cell_uuid, row.priority, joins)

    for row in _moving(session, moving, search, len(chosen)):
        take(row, joins=True)
    queues = _queues(session, waiting, search, known) if len(candidates) < search.count else {}
    while queues and len(candidates) < search.count:
        cell = min(queues, key=lambda each: queues[each].turn(loads[each]))
        if (job := queues[cell].next) is not None:
            take(job, joins=False)
        if not queues[cell].advance(taken):
            del queues[cell]
    return candidates


def least_that_counts(
    serving: Collection[Serving], loads: Mapping[str, int]
) -> Callable[[str], int]:
    """Return the least priority for which a host gives way to one of a cell: see ``give_way``."""
    priority = min(each.priority for each in serving)
    most = max(loads[each.cell_uuid] for each in serving)
    return lambda cell: priority if loads.get(cell, 0) + _OVER_SHARE <= most else priority + 1


def give_way(
    serving: Sequence[Serving], others: Sequence[Candidate], loads: Mapping[str, int]
) -> Mapping[str, str]:
    """Map the hosts that give their slots to others, to these.

    A host gives way to a running transfer and to a higher priority; at the same priority to a
    cell that has at least two streams less than its own, so that the slot is not wanted back.

    :param serving: hosts between two calls
    :param others: free hosts in the order in which they are to be claimed
    """
    load = collections.Counter(loads)
    waiting = collections.deque(others)
    gave_way: dict[str, str] = {}
    for each in _least_urgent_first(serving, loads):
        if not waiting:
            break
        first = waiting[0]
        is_fairer = (
            first.priority == each.priority
            and load[first.cell_uuid] + _OVER_SHARE <= load[each.cell_uuid]
        )
        if first.joins or first.priority > each.priority or is_fairer:
            gave_way[each.host] = waiting.popleft().host
            load[each.cell_uuid] -= 1
            load[first.cell_uuid] += 1
    return gave_way


def _least_urgent_first(serving: Sequence[Serving], loads: Mapping[str, int]) -> Sequence[Serving]:
    """Sort by priority, then by the load of the cell, which each host that gives way lowers."""
    left = collections.Counter(loads)
    turns: list[tuple[int, int, int]] = []
    for number, each in sorted(enumerate(serving), key=lambda pair: pair[1].priority):
        turns.append((each.priority, -left[each.cell_uuid], number))
        left[each.cell_uuid] -= 1
    return [serving[number] for _, _, number in sorted(turns)]


def _moving(
    session: orm.Session, statement: sa.Executable, search: Search, chosen: int
) -> Sequence[_Row]:
    """Return running transfers on free hosts, such as those of a conductor that has stopped."""
    if search.least is not None:
        return []
    given = {'avoid': sorted(search.avoid_cells), 'rows': _JOBS_A_HOST * (search.count + chosen)}
    return db_session.run(session, statement, given).all()


def _queues(
    session: orm.Session, statement: sa.Executable, search: Search, known: KnownCells
) -> dict[str, _Queue]:
    """Map those cells to their queues in which jobs wait that count."""
    first = _first_jobs(session, known.cells)
    known.cells = sorted(first)
    least = search.least or (lambda cell: _LEAST_PRIORITY)
    waiting = [
        cell
        for cell, top in first.items()
        if cell not in search.avoid_cells and top.priority >= least(cell)
    ]
    page_rows = max(_LEAST_ROWS, _JOBS_A_HOST * search.count // max(1, len(waiting)))

    def read(cell: str, rows: int) -> Sequence[_Row]:
        given = {'share': cell, 'least': least(cell), 'rows': rows}
        return db_session.run(session, statement, given).all()

    return {cell: _Queue(first[cell], functools.partial(read, cell), page_rows) for cell in waiting}


def _first_jobs(session: orm.Session, known: Sequence[str]) -> Mapping[str, _Row]:
    """Map the cells with jobs to the first one in the order of the index.

    A branch of the statement looks up the first job after a cell: usually that of the next cell
    that is known, else that of a new one.
    """
    found: dict[str, _Row] = {}
    asked: set[str] = set()
    after = ['', *known]
    while after:
        asked.update(after)
        for chunk in db_session.chunks(after, _MOST_BRANCHES):
            given = {f'after_{number}': cell for number, cell in enumerate(chunk)}
            rows = db_session.run(session, tops(len(chunk)), given)
            found.update((row.cell_uuid, row) for row in rows)
        after = sorted(found.keys() - asked)
    return found


@functools.cache
def tops(branches: int) -> sa.Select[*tuple[Any, ...]] | sa.CompoundSelect[*tuple[Any, ...]]:
    """Select the first ready job after each of several cells, in the order of the index."""

    def branch(number: int) -> sa.Select[*tuple[Any, ...]]:
        first = (
            sa.select(_JOB.cell_uuid, _JOB.priority, _JOB.id)
            .where(_JOB.ready, _JOB.cell_uuid > sa.bindparam(f'after_{number}'))
            .order_by(_JOB.cell_uuid, _JOB.priority.desc(), _JOB.id)
            .limit(1)
            .subquery()
        )
        return sa.select(first)

    selects = [branch(number) for number in range(branches)]
    return selects[0] if branches == 1 else sa.union_all(*selects)


def _statements(
    saturated: Collection[host_limits.SaturatedRequest], only: Collection[str] | None
) -> tuple[sa.Executable, sa.Executable]:
    """Return the statements for running transfers and for waiting jobs that limits let run."""
    if not saturated:
        return _MOVING, _WAITING
    conditions = [host_limits.lets_run(saturated)]
    if only is not None:
        conditions.append(_JOB.host.in_(list(only)))
    return _moving_jobs(*conditions), waiting_jobs(*conditions)


def _free_jobs(
    statuses: Collection[str], *conditions: sa.ColumnElement[bool]
) -> sa.Select[*tuple[Any, ...]]:
    """Select due jobs on free hosts, in the order in which equal ones come."""
    return (
        sa.select(_JOB.host, _JOB.cell_uuid, _JOB.priority, _JOB.id)
        .where(job_claim.due(expressions.database_now(), statuses), job_claim.unclaimed())
        .where(*conditions)
        .order_by(_JOB.priority.desc(), _JOB.id)
        .limit(sa.bindparam('rows', type_=sa.Integer()))
    )


def _moving_jobs(*conditions: sa.ColumnElement[bool]) -> sa.Select[*tuple[Any, ...]]:
    avoided = _JOB.cell_uuid.not_in(sa.bindparam('avoid', expanding=True))
    return _free_jobs(model.TASK_WORKING, avoided, *conditions)


def waiting_jobs(*conditions: sa.ColumnElement[bool]) -> sa.Select[*tuple[Any, ...]]:
    """Select the due jobs of a cell on free hosts, the most urgent first."""
    return _free_jobs(
        model.TASK_WAITING,
        _JOB.cell_uuid == sa.bindparam('share'),
        _JOB.priority >= sa.bindparam('least', type_=sa.Integer()),
        *conditions,
    )


_MOVING, _WAITING = _moving_jobs(), waiting_jobs()
