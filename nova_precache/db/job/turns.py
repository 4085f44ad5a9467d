# SPDX-License-Identifier: Apache-2.0
"""The hosts that wait for a slot, in the order in which they are claimed: only to show it.

In a cell, that is the order of their most urgent jobs that are due. Hosts of another cell come
first if their jobs have a higher priority; otherwise cells take turns, and hosts of other cells
are not counted. Jobs that a request at its ``max_parallel_hosts`` holds up are passed over. Only
the first jobs of a queue are read.
"""

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import claim as job_claim, host_limits

# In one status, for all cells of a page together.
MOST_JOBS = 500
_HEAD = 10
_MOST_IDS = 2**40
_JOB, _AGENT, _TASK = models.Job, models.Agent, models.Task
_Full = Collection[host_limits.SaturatedRequest]


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a host in the queue.

    :ivar is_beyond: it comes later, by a number of hosts that is not known
    """

    hosts_before: int
    bytes_before: int
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
    index: str, statuses: Collection[str], *which: sa.ColumnElement[bool]
) -> sa.Select[*tuple[Any, ...]]:
    """Select the first jobs of unclaimed hosts, with their number, in the order of an index.

    Whether they are due and may run is checked later: few of many may.
    """
    jobs = (
        sa.select(
            _JOB.uuid,
            _JOB.host,
            _JOB.cell_uuid,
            _JOB.priority,
            _JOB.next_attempt_at,
            to_come(_JOB).label('bytes'),
            # In this order, jobs are claimed.
            (_JOB.id - sa.cast(_JOB.priority, sa.BigInteger()) * _MOST_IDS).label('turn'),
        )
        .where(_JOB.status.in_(statuses), _JOB.ready, job_claim.unclaimed(), *which)
        .order_by(_JOB.priority.desc(), _JOB.id)
        .limit(sa.bindparam('most', type_=sa.Integer()))
    )
    page = db_session.by_index(jobs, _JOB, index).subquery()
    return sa.select(page, sa.func.count().over().label('jobs'))


def _due(jobs: sa.Subquery, full: _Full) -> sa.Subquery:
    now = sa.bindparam('now', type_=sa.DateTime())
    is_due = sa.or_(jobs.c.next_attempt_at.is_(None), jobs.c.next_attempt_at <= now)
    due = sa.select(jobs).where(is_due)
    return (due.where(host_limits.lets_run(full, jobs.c.uuid)) if full else due).subquery()


def _places(full: _Full = ()) -> sa.Select[*tuple[Any, ...]]:
    in_cell = _JOB.cell_uuid == sa.bindparam('cell')
    due = _due(_first_jobs('jobs_share_idx', model.TASK_WAITING, in_cell).subquery(), full)
    hosts = (
        sa.select(
            due.c.host,
            sa.func.min(due.c.turn).label('turn'),
            sa.func.max(due.c.priority).label('priority'),
            sa.func.max(due.c.jobs).label('jobs'),
            sa.func.sum(due.c.bytes).label('bytes'),
        )
        .group_by(due.c.host)
        .subquery()
    )
    up_to = sa.func.sum(hosts.c.bytes).over(order_by=hosts.c.turn)
    queue = sa.select(
        hosts.c.host,
        hosts.c.priority,
        (sa.func.row_number().over(order_by=hosts.c.turn) - 1).label('hosts_before'),
        (up_to - hosts.c.bytes).label('bytes_before'),
        hosts.c.bytes,
        sa.func.count().over().label('hosts'),
        hosts.c.jobs,
    ).subquery()
    is_last = queue.c.hosts_before == queue.c.hosts - 1
    return sa.select(queue).where(
        sa.or_(queue.c.host.in_(sa.bindparam('hosts', expanding=True)), is_last)
    )


def _more_urgent(full: _Full = ()) -> sa.Select[*tuple[Any, ...]]:
    is_more_urgent = _JOB.priority > sa.bindparam('lowest', type_=sa.Integer())
    pages = (
        _first_jobs('jobs_due_idx', [status], is_more_urgent)
        for status in sorted(model.TASK_WAITING)
    )
    due = _due(sa.union_all(*pages).subquery(), full)
    # By the most urgent job of each, as in its own cell.
    hosts = (
        sa.select(
            due.c.cell_uuid,
            sa.func.max(due.c.priority).label('priority'),
            sa.func.sum(due.c.bytes).label('bytes'),
        )
        .group_by(due.c.host, due.c.cell_uuid)
        .subquery()
    )
    return sa.select(
        hosts.c.cell_uuid,
        hosts.c.priority,
        sa.func.count().label('hosts'),
        sa.func.sum(hosts.c.bytes).label('bytes'),
    ).group_by(hosts.c.cell_uuid, hosts.c.priority)


_PLACES, _MORE_URGENT = _places(), _more_urgent()


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
    in_cell, more_urgent = (_places(full), _more_urgent(full)) if full else (_PLACES, _MORE_URGENT)
    most = max(1, MOST_JOBS // max(1, len(hosts)))
    found: dict[str, tuple[str, int, Place]] = {}
    for cell, names in sorted(hosts.items()):
        found.update(_in_cell(session, in_cell, {'now': now, 'cell': cell}, names, most))
    if not found:
        return {}
    given = {
        'now': now,
        'most': most,
        'lowest': min(priority for _, priority, _ in found.values()),
    }
    others = db_session.run(session, more_urgent, given).all()
    return {host: _after(others, *place) for host, place in found.items()}


def _in_cell(
    session: orm.Session,
    statement: sa.Executable,
    which: Mapping[str, Any],
    names: Collection[str],
    most: int,
) -> Mapping[str, tuple[str, int, Place]]:
    """Map hosts of a cell to it, their priority, and their place in its queue."""
    cell = which['cell']
    # Most pages that are read begin at the head of the queue.
    for jobs in (max(1, most // _HEAD), most):
        given = {**which, 'most': jobs, 'hosts': sorted(names)}
        rows = db_session.run(session, statement, given).all()
        known = {
            row.host: (cell, row.priority, Place(row.hosts_before, int(row.bytes_before)))
            for row in rows
            if row.host in names
        }
        last = max(rows, key=lambda row: row.hosts_before, default=None)
        if len(known) == len(names) or (last is not None and last.jobs < jobs):
            return known
    if last is None:
        return {}
    beyond = Place(last.hosts, int(last.bytes_before + last.bytes), is_beyond=True)
    return {host: known.get(host, (cell, last.priority, beyond)) for host in names}


def _after(
    others: Sequence[sa.Row[*tuple[Any, ...]]], cell: str, priority: int, place: Place
) -> Place:
    """Add the more urgent hosts of other cells to a place in a cell."""
    first = [row for row in others if row.cell_uuid != cell and row.priority > priority]
    return Place(
        place.hosts_before + sum(row.hosts for row in first),
        place.bytes_before + sum(int(row.bytes) for row in first),
        place.is_beyond,
    )


def is_stale(silent_since: datetime.datetime | sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
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
    .where(_JOB.status.in_(model.TASK_WORKING), _JOB.rate_bytes > 0)
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


_OTHER = orm.aliased(_JOB)
_BYTES_BEFORE = (
    sa.select(_TASK.id, sa.func.sum(to_come(_OTHER)))
    .join(_JOB, _JOB.uuid == _TASK.job_uuid)
    .join(_OTHER, _OTHER.host == _JOB.host)
    .where(
        _TASK.id.in_(sa.bindparam('tasks', expanding=True)),
        _OTHER.status.in_(model.TASK_IN_FLIGHT),
        _OTHER.ready,
        sa.or_(
            _OTHER.status.in_(model.TASK_WORKING),
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
