# SPDX-License-Identifier: Apache-2.0
"""The hosts that wait for a slot, in the order in which they are claimed: only to show it.

In a cell, that is the order of their most urgent jobs that are due. Hosts of another cell come
first if their jobs have a higher priority; otherwise cells take turns, and hosts of other cells
are not counted. Jobs that a request at its ``max_parallel_hosts`` holds up are passed over. Only
the first jobs of a queue are read, and all jobs of the hosts before those that are asked for: a
host has as many as the images that it waits for.
"""

import dataclasses
import datetime
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim, host_limits

# For all cells of a page together: the first jobs that are read for their order.
MOST_JOBS = 500
_CELLS_AT_ONCE = 20
_MOST_IDS = 2**40
_JOB, _AGENT, _TASK = models.Job, models.Agent, models.Task
_OTHER = orm.aliased(_JOB)
_Full = Collection[host_limits.SaturatedRequest]


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a host in the queue.

    :ivar bytes_before: to be received by the hosts before it; not counted if it is beyond them
    :ivar is_beyond: it comes later, by a number of hosts that is not known
    """

    hosts_before: int
    bytes_before: int = 0
    is_beyond: bool = False


@dataclasses.dataclass(frozen=True)
class AtWork:
    """The transfers that computes work on, and the sums over them."""

    transfers: int = 0
    bytes_to_come: int = 0
    rate_bytes: int = 0


def together(some: Collection[AtWork]) -> AtWork:
    """Return the sums over several cells."""
    return AtWork(
        sum(each.transfers for each in some),
        sum(each.bytes_to_come for each in some),
        sum(each.rate_bytes for each in some),
    )


def to_come(job: type[models.Job]) -> sa.ColumnElement[int]:
    """Return the remaining bytes of a job, 0 if its size is unknown."""
    left = sa.func.coalesce(job.bytes_total, job.bytes_done) - job.bytes_done
    return sa.case((left > 0, left), else_=0)


def _first_jobs(
    index: str, full: _Full, statuses: Collection[str], *which: sa.ColumnElement[bool]
) -> sa.Select[*tuple[Any, ...]]:
    """Select the first jobs of unclaimed hosts, in the order of an index.

    Whether they are due and may run is no condition, but a column: few of many may.
    """
    jobs = (
        sa.select(
            _JOB.host,
            _JOB.cell_uuid,
            _JOB.priority,
            to_come(_JOB).label('bytes'),
            # In this order, jobs are claimed.
            (_JOB.id - sa.cast(_JOB.priority, sa.BigInteger()) * _MOST_IDS).label('turn'),
            sa.case((_is_due(_JOB, full), 1), else_=0).label('due'),
        )
        .where(expressions.one_of(_JOB.status, statuses), _JOB.ready, job_claim.unclaimed(), *which)
        .order_by(_JOB.priority.desc(), _JOB.id)
        .limit(sa.bindparam('most', type_=sa.Integer()))
    )
    return expressions.by_index(jobs, _JOB, index)


def _is_due(job: type[models.Job], full: _Full) -> sa.ColumnElement[bool]:
    now = sa.bindparam('now', type_=sa.DateTime())
    is_due = sa.or_(job.next_attempt_at.is_(None), job.next_attempt_at <= now)
    return sa.and_(is_due, host_limits.lets_run(full, job.uuid)) if full else is_due


def _bytes_of(host: sa.ColumnElement[str], full: _Full) -> sa.ColumnElement[int]:
    """Sum up what a host is to receive, also by jobs that are not among the first ones."""
    jobs = sa.select(sa.func.coalesce(sa.func.sum(to_come(_OTHER)), 0)).where(
        _OTHER.host == host,
        _OTHER.status.in_(model.TASK_WAITING),
        _OTHER.ready,
        _is_due(_OTHER, full),
    )
    return expressions.by_index(jobs, _OTHER, 'jobs_host_idx').scalar_subquery()


def _queues(cells: int, full: _Full = ()) -> sa.Select[*tuple[Any, ...]]:
    """Select the places of hosts of some cells, and in each cell the last of those counted."""
    asked: sa.BindParameter[str] = sa.bindparam('hosts', expanding=True)
    host = _hosts(cells, full).c
    cell, order = host.cell_uuid, (host.turn.is_(None), host.turn)
    number = sa.func.row_number().over(partition_by=cell, order_by=order)
    asked_turn = sa.case((host.host.in_(asked), host.turn))
    ranked = sa.select(
        *host,
        (number - 1).label('hosts_before'),
        sa.func.count(host.turn).over(partition_by=cell).label('hosts'),
        sa.func.sum(host.jobs).over(partition_by=cell).label('all_jobs'),
        sa.func.max(asked_turn).over(partition_by=cell).label('last_turn'),
    ).subquery()
    # Of no other host: the bytes before one beyond are not shown.
    is_before = ranked.c.turn < ranked.c.last_turn
    moved = sa.case((is_before, _bytes_of(ranked.c.host, full)), else_=0)
    place = sa.select(ranked, moved.label('bytes')).subquery().c
    up_to = sa.func.sum(place.bytes).over(partition_by=place.cell_uuid, order_by=place.hosts_before)
    queue = sa.select(*place, (up_to - place.bytes).label('bytes_before')).subquery().c
    is_last = queue.hosts_before == queue.hosts - 1
    return sa.select(
        queue.cell_uuid,
        queue.host,
        queue.priority,
        queue.hosts_before,
        queue.bytes_before,
        queue.hosts,
        queue.all_jobs,
        _highest_priority().label('highest'),
    ).where(queue.turn.is_not(None), sa.or_(queue.host.in_(asked), is_last))


def _hosts(cells: int, full: _Full) -> sa.Subquery:
    """Select the hosts of the first jobs of each cell, with the turns of those that are due."""
    first = (sa.select(_first_of_cell(number, full).subquery()) for number in range(cells))
    job = sa.union_all(*first).subquery().c
    is_due = job.due == 1
    hosts = sa.select(
        job.cell_uuid,
        job.host,
        sa.func.min(sa.case((is_due, job.turn))).label('turn'),
        sa.func.max(sa.case((is_due, job.priority))).label('priority'),
        sa.func.count().label('jobs'),
    )
    return hosts.group_by(job.cell_uuid, job.host).subquery()


def _first_of_cell(number: int, full: _Full) -> sa.Select[*tuple[Any, ...]]:
    is_its = _JOB.cell_uuid == sa.bindparam(f'cell_{number}', type_=sa.String())
    return _first_jobs('jobs_share_idx', full, model.TASK_WAITING, is_its)


def _highest_priority() -> sa.ScalarSelect[int]:
    """Select that of the most urgent waiting job of all cells, which may be on a claimed host."""
    first = (
        sa.select(_JOB.priority)
        .where(expressions.one_of(_JOB.status, [status]), _JOB.ready)
        .order_by(_JOB.priority.desc(), _JOB.id)
        .limit(1)
        for status in sorted(model.TASK_WAITING)
    )
    jobs = sa.union_all(
        *(sa.select(expressions.by_index(each, _JOB, 'jobs_due_idx').subquery()) for each in first)
    ).subquery()
    return sa.select(sa.func.max(jobs.c.priority)).scalar_subquery()


def _more_urgent(full: _Full = ()) -> sa.Select[*tuple[Any, ...]]:
    """Select due jobs by cell and priority: their bytes, and the hosts of which they are first.

    ``read_to`` is the priority up to which all jobs are counted; NULL if none is left out.
    """
    most = sa.bindparam('most', type_=sa.Integer())
    is_more_urgent = _JOB.priority > sa.bindparam('lowest', type_=sa.Integer())
    pages = []
    for status in sorted(model.TASK_WAITING):
        page = _first_jobs('jobs_due_idx', full, [status], is_more_urgent).subquery()
        last = sa.case((sa.func.count().over() >= most, sa.func.min(page.c.priority).over()))
        pages.append(sa.select(page, last.label('read_to')))
    jobs = sa.union_all(*pages).subquery()
    is_due = jobs.c.due == 1
    first = sa.func.max(sa.case((is_due, jobs.c.priority)))
    ranked = sa.select(
        jobs, first.over(partition_by=(jobs.c.cell_uuid, jobs.c.host)).label('first')
    ).subquery()
    is_due = ranked.c.due == 1
    host = sa.case((sa.and_(is_due, ranked.c.priority == ranked.c.first), ranked.c.host))
    return sa.select(
        ranked.c.cell_uuid,
        ranked.c.priority,
        sa.func.count(host.distinct()).label('hosts'),
        sa.func.sum(sa.case((is_due, ranked.c.bytes), else_=0)).label('bytes'),
        sa.func.max(ranked.c.read_to).label('read_to'),
    ).group_by(ranked.c.cell_uuid, ranked.c.priority)


# Built once, as long as no request is at its limit.
_PLACES, _MORE_URGENT = functools.lru_cache(_queues), _more_urgent()


def places(
    session: orm.Session,
    now: datetime.datetime,
    hosts: Mapping[str, Collection[str]],
    full: _Full = (),
) -> Mapping[str, Place]:
    """Map hosts that wait for a slot to their places; one without a due job is left out.

    :param hosts: by cell
    :param full: the requests at their limit of hosts
    """
    most = max(1, MOST_JOBS // max(1, len(hosts)))
    found: dict[str, tuple[str, int, Place]] = {}
    highest: set[int] = set()
    for cell, queue in _read_queues(session, now, hosts, most, full):
        highest.update(row.highest for row in queue)
        names, last = hosts[cell], max(queue, key=lambda row: row.hosts_before, default=None)
        if last is not None and last.all_jobs >= most:
            beyond = Place(last.hosts, is_beyond=True)
            found.update((host, (cell, last.priority, beyond)) for host in names)
        found.update(
            (row.host, (cell, row.priority, Place(row.hosts_before, int(row.bytes_before))))
            for row in queue
            if row.host in names
        )
    if not found:
        return {}
    lowest = min(priority for _, priority, _ in found.values())
    if max(highest) <= lowest:
        return {host: place for host, (_, _, place) in found.items()}
    more_urgent = _more_urgent(full) if full else _MORE_URGENT
    others = db_session.run(session, more_urgent, {'now': now, 'most': most, 'lowest': lowest})
    urgent = others.all()
    return {host: _after(urgent, *place) for host, place in found.items()}


def _read_queues(
    session: orm.Session,
    now: datetime.datetime,
    hosts: Mapping[str, Collection[str]],
    jobs: int,
    full: _Full,
) -> Iterator[tuple[str, Sequence[sa.Row[*tuple[Any, ...]]]]]:
    """Read the places of hosts by cell, among the first jobs of each cell."""
    for cells in db_session.chunks(sorted(hosts), _CELLS_AT_ONCE):
        statement = _queues(len(cells), full) if full else _PLACES(len(cells))
        named = {f'cell_{place}': cell for place, cell in enumerate(cells)}
        names = sorted({host for cell in cells for host in hosts[cell]})
        given = {**named, 'now': now, 'most': jobs, 'hosts': names}
        rows = db_session.run(session, statement, given).all()
        for cell in cells:
            yield cell, [row for row in rows if row.cell_uuid == cell]


def _after(
    others: Sequence[sa.Row[*tuple[Any, ...]]], cell: str, priority: int, place: Place
) -> Place:
    """Add the more urgent hosts of other cells to a place in a cell."""
    first = [row for row in others if row.cell_uuid != cell and row.priority > priority]
    hosts = place.hosts_before + sum(row.hosts for row in first)
    is_cut = any(row.read_to is not None and row.read_to > priority for row in others)
    if place.is_beyond or is_cut:
        return Place(hosts, is_beyond=True)
    return Place(hosts, place.bytes_before + sum(int(row.bytes) for row in first))


def is_stale(silent_since: sa.ColumnElement[datetime.datetime]) -> sa.ColumnElement[bool]:
    """Select jobs whose rate was reported by a compute that is silent or has restarted since."""
    return sa.or_(
        sa.and_(_AGENT.seen_at < silent_since, _JOB.progress_at < silent_since),
        _AGENT.started_at > _JOB.progress_at,
    )


_AT_WORK = (
    sa.select(
        _JOB.cell_uuid,
        sa.func.count().label('transfers'),
        sa.func.sum(to_come(_JOB)).label('bytes_to_come'),
        sa.func.sum(_JOB.rate_bytes).label('rate_bytes'),
    )
    .outerjoin(_AGENT, _AGENT.host == _JOB.host)
    .where(expressions.one_of(_JOB.status, model.TASK_WORKING), _JOB.rate_bytes > 0)
    .where(sa.not_(sa.func.coalesce(is_stale(sa.bindparam('silent_since')), sa.false())))
    .group_by(_JOB.cell_uuid)
)


def at_work(session: orm.Session, silent_since: datetime.datetime) -> Mapping[str, AtWork]:
    """Map cells to the transfers that move bytes there."""
    rows = db_session.run(session, _AT_WORK, {'silent_since': silent_since})
    return {
        row.cell_uuid: AtWork(row.transfers, int(row.bytes_to_come), int(row.rate_bytes))
        for row in rows
    }


_BYTES_BEFORE = (
    sa.select(_TASK.id, sa.func.sum(to_come(_OTHER)))
    .join(_JOB, _JOB.uuid == _TASK.job_uuid)
    .join(_OTHER, _OTHER.host == _JOB.host)
    .where(
        _TASK.id.in_(sa.bindparam('tasks', expanding=True)),
        expressions.one_of(_OTHER.status, model.TASK_IN_FLIGHT),
        _OTHER.ready,
        sa.or_(
            expressions.one_of(_OTHER.status, model.TASK_WORKING),
            _OTHER.priority > _JOB.priority,
            sa.and_(_OTHER.priority == _JOB.priority, _OTHER.id < _JOB.id),
        ),
    )
    .group_by(_TASK.id)
)


def bytes_before(session: orm.Session, tasks: Collection[int]) -> Mapping[int, int]:
    """Map waiting tasks to the bytes of other images that their hosts receive first."""
    rows = db_session.run(session, _BYTES_BEFORE, {'tasks': sorted(tasks)})
    return {task: int(moved) for task, moved in rows}
