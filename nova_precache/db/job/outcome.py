# SPDX-License-Identifier: Apache-2.0
"""Outcomes, inside a transaction: end jobs and tasks, or schedule their next attempts.

Each function takes all jobs that it concerns; the caller holds their locks.
"""

import collections
import dataclasses
import datetime
import itertools
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import outbox, task_counts
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import locking


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The requests whose tasks an outcome ended; none if its call no longer counted.

    :ivar idle: those of the requests with no task in flight now
    """

    current: bool
    requests: tuple[str, ...] = ()
    idle: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __bool__(self) -> bool:
        return self.current


STALE = Recorded(current=False)


def together(recorded: Iterable[Recorded | None]) -> Recorded:
    """Merge several into one, which is current if any of them is."""
    several = [each for each in recorded if each is not None]
    requests = {request for each in several for request in each.requests}
    idle = {request for each in several for request in each.idle}
    return Recorded(any(several), tuple(sorted(requests)), tuple(sorted(idle)))


_MOVED: sa.ColumnElement[Any] = sa.bindparam('moved', type_=sa.BigInteger())
_TOTAL: sa.ColumnElement[Any] = sa.bindparam('total', type_=sa.BigInteger())


def sizes(
    columns: Any,
    moved: sa.ColumnElement[Any] = _MOVED,
    told: sa.ColumnElement[Any] = _TOTAL,
) -> dict[str, sa.ColumnElement[Any]]:
    """Build the byte counts of a job or a task after a report of its compute.

    Bytes done never decrease. Whatever a compute reports, the total stays at or below the known
    one, which came from Glance, and at or above the bytes done.

    :param columns: of the table
    :param moved: the bytes done in this attempt, by default the parameter ``moved``
    :param told: the total, by default the parameter ``total``; NULL if none was reported
    """
    known = columns.bytes_total
    # MariaDB assigns columns one after the other; the result is the same in either order.
    most = sa.case(
        (known.is_(None), told), (told.is_(None), known), (told < known, told), else_=known
    )
    capped = sa.case((most < moved, most), else_=moved)
    return {
        'bytes_done': sa.case((columns.bytes_done < capped, capped), else_=columns.bytes_done),
        'bytes_total': sa.case((most < columns.bytes_done, columns.bytes_done), else_=most),
    }


_JOBS, _TASKS = db_session.table(models.Job), db_session.table(models.Task)
_JOB, _TASK, _REQUEST = _JOBS.c, _TASKS.c, db_session.table(models.CacheRequest).c


def _final(columns: Any) -> dict[str, object]:
    return {
        'status': sa.bindparam('to_status'),
        'reason': sa.bindparam('to_reason'),
        'rate_bytes': None,
        'next_attempt_at': None,
        'finished_at': expressions.database_now(),
        **sizes(columns),
    }


# The one pair of statements that ends jobs and tasks.
_END_JOBS = (
    sa.update(_JOBS)
    .where(locking.THE_JOBS)
    .values(active_key=None, ready=False, stop_why=sa.bindparam('to_stop'), **_final(_JOB))
)
_END_TASKS = sa.update(_TASKS).where(_TASK.status.in_(model.TASK_IN_FLIGHT)).values(**_final(_TASK))
_LOCK_REQUESTS = (
    sa.update(db_session.table(models.CacheRequest))
    .where(_REQUEST.id == sa.bindparam('request'))
    .values(hosts_done=_REQUEST.hosts_done)
)
# Not by status: SQLite would scan all tasks of the request that are in flight.
_ON_HOSTS = sa.select(_TASK.host, *task_counts.COLUMNS).where(
    _TASK.request_id == sa.bindparam('request'),
    _TASK.host.in_(sa.bindparam('hosts', expanding=True)),
)
_WORK = (
    sa.select(_TASK.id)
    .where(_TASK.request_id == sa.bindparam('request'), _TASK.status.in_(model.TASK_IN_FLIGHT))
    .limit(1)
)

_WAIT: dict[str, object] = {
    'status': str(model.TaskStatus.RETRY_WAIT),
    'reason': sa.bindparam('to_reason'),
    'rate_bytes': None,
    'next_attempt_at': sa.bindparam('due_at'),
}
_MORE: sa.BindParameter[int] = sa.bindparam('more', type_=sa.Integer())
_WAIT_JOBS = (
    sa.update(_JOBS)
    .where(locking.THE_JOBS)
    .values(
        epoch=None,
        stop_why=None,
        stop_keep=False,
        attempts=_JOB.attempts + _MORE,
        mismatches=_JOB.mismatches + sa.bindparam('more_mismatches', type_=sa.Integer()),
        **_WAIT,
    )
)
_WAIT_TASKS = (
    sa.update(_TASKS).where(locking.THEIR_TASKS).values(attempts=_TASK.attempts + _MORE, **_WAIT)
)
_MAKE_JOBS_DUE = (
    sa.update(_JOBS).where(locking.THE_JOBS).values(next_attempt_at=sa.bindparam('due_at'))
)
_MAKE_TASKS_DUE = (
    sa.update(_TASKS)
    .where(locking.THEIR_TASKS, _TASK.status == str(model.TaskStatus.RETRY_WAIT))
    .values(next_attempt_at=sa.bindparam('due_at'))
)


class _Chosen:
    """Statements that end the chosen tasks in flight; ``which`` may use the parameter ``keys``."""

    def __init__(self, which: sa.ColumnElement[bool], *columns: sa.ColumnElement[Any]) -> None:
        where = sa.and_(which, _TASK.status.in_(model.TASK_IN_FLIGHT))
        self.requests = sa.select(_TASK.request_id).distinct().where(where)
        self.tasks = sa.select(_TASK.host, *task_counts.COLUMNS, *columns).where(where)
        self.end = _END_TASKS.where(which)


_OF_JOBS = _Chosen(_TASK.job_uuid.in_(expressions.keys()), _TASK.job_uuid)


def end(session: orm.Session, outcomes: Mapping[str, model.ImageOutcome]) -> Mapping[str, Recorded]:
    """End jobs and all tasks that want them; return the results by job id.

    :param outcomes: by job id
    """
    if not outcomes:
        return {}
    end_jobs(session, outcomes)
    ended, idle = _end_tasks(session, _OF_JOBS, outcomes)
    requests: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
    for row in sorted(ended, key=operator.attrgetter('request_id')):
        requests[row.job_uuid].append(row.request_id)
    over = frozenset(idle)
    return {
        job_id: Recorded(
            current=True,
            requests=tuple(requests[job_id]),
            idle=tuple(request for request in requests[job_id] if request in over),
        )
        for job_id in outcomes
    }


def end_jobs(
    session: orm.Session,
    outcomes: Mapping[str, model.ImageOutcome],
    stop_why: str | None = None,
) -> None:
    """End jobs but not their tasks.

    :param stop_why: what is still to be done on their hosts
    """
    rows = [(job_id, {**_row(each), 'to_stop': stop_why}) for job_id, each in outcomes.items()]
    db_session.run_alike(session, _END_JOBS, rows)


def end_tasks(
    session: orm.Session, which: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    """End the chosen tasks that are in flight, but not their jobs."""
    ended, idle = _end_tasks(session, _Chosen(which), {'': outcome})
    return Recorded(True, tuple(sorted({row.request_id for row in ended})), idle)


def _end_tasks(
    session: orm.Session, chosen: _Chosen, outcomes: Mapping[str, model.ImageOutcome]
) -> tuple[Sequence[sa.Row[*tuple[Any, ...]]], tuple[str, ...]]:
    """Return the ended tasks, and the requests with no task in flight now."""
    keys = {'keys': list(outcomes)}  # ignored if the tasks are not chosen by their jobs
    requests = db_session.run(session, chosen.requests, keys).scalars().all()
    if not requests:
        return [], ()
    lock_requests(session, requests)
    # Only now: the previous holder of a request's lock may have ended some of these tasks.
    ended = db_session.run(session, chosen.tasks, keys).all()
    rows = [(job_id, _row(outcome)) for job_id, outcome in outcomes.items()]
    db_session.run_alike(session, chosen.end, rows)
    return ended, _count_done(session, ended)


def _row(outcome: model.ImageOutcome) -> dict[str, object]:
    return {
        'to_status': str(outcome.status),
        'to_reason': outcome.reason,
        'moved': outcome.bytes_done,
        'total': outcome.bytes_total,
    }


def wanting(session: orm.Session, job_ids: Collection[str]) -> Sequence[str]:
    """Return the requests with tasks in flight that want these jobs: ``end`` locks them."""
    if not job_ids:
        return []
    return db_session.run(session, _OF_JOBS.requests, {'keys': list(job_ids)}).scalars().all()


def lock_requests(session: orm.Session, request_ids: Collection[str]) -> None:
    """Serialise transactions that end tasks of one request, so that hosts_done adds up."""
    if request_ids:
        rows = [{'request': each} for each in sorted(request_ids)]
        db_session.run(session, _LOCK_REQUESTS, rows)


def _count_done(session: orm.Session, ended: Sequence[sa.Row[*tuple[Any, ...]]]) -> tuple[str, ...]:
    """Count ended tasks, and as done the hosts with no task of a request left in flight.

    :param ended: the tasks as they were before
    :returns: the requests with no task in flight on any host
    """
    idle = []
    by_request = operator.attrgetter('request_id')
    for request_id, tasks in itertools.groupby(sorted(ended, key=by_request), by_request):
        before = {row.id: row for row in tasks}
        hosts = sorted({row.host for row in before.values()})
        after = _on_hosts(session, request_id, hosts)
        for row in after:
            if row.id in before and row.status not in model.TASK_IN_FLIGHT:
                task_counts.note_task(session, before[row.id], -1)
                task_counts.note_task(session, row, 1)
        busy = {row.host for row in after if row.status in model.TASK_IN_FLIGHT}
        done = [host for host in hosts if host not in busy]
        may_be_last = bool(done) and outbox.add_hosts(session, request_id, done)
        if may_be_last and not has_work(session, request_id):
            idle.append(request_id)
    return tuple(idle)


def has_work(session: orm.Session, request_id: str) -> bool:
    """Return whether a task of a request is in flight, as it usually is."""
    return db_session.run(session, _WORK, {'request': request_id}).first() is not None


def _on_hosts(
    session: orm.Session, request_id: str, hosts: Sequence[str]
) -> list[sa.Row[*tuple[Any, ...]]]:
    return [
        row
        for chunk in db_session.chunks(hosts)
        for row in db_session.run(session, _ON_HOSTS, {'request': request_id, 'hosts': chunk})
    ]


def schedule_retry(
    session: orm.Session,
    delays: Mapping[locking.Locked, float],
    outcome: model.ImageOutcome,
    attempts: int = 0,
) -> None:
    """Put jobs and their tasks into retry_wait; clear epochs, so that no earlier call counts.

    :param delays: seconds until the next attempt of each job
    :param attempts: to be added to those that were counted
    """
    more = {
        'to_reason': outcome.reason,
        'more': attempts,
        'more_mismatches': 1 if outcome.retry == model.Retry.ONCE else 0,
    }
    rows = [
        (job.job_id, {**more, 'due_at': job.read_at + datetime.timedelta(seconds=seconds)})
        for job, seconds in delays.items()
    ]
    task_counts.note_moves(session, [job_id for job_id, _ in rows], model.TaskStatus.RETRY_WAIT)
    db_session.run_alike(session, _WAIT_JOBS, rows)
    db_session.run_alike(session, _WAIT_TASKS, rows)


def make_due(session: orm.Session, which: sa.ColumnElement[bool]) -> int:
    """Make those of the chosen jobs due now that wait for their next attempt; count them."""
    job, now = models.Job, db_session.now(session)
    waiting = sa.and_(which, job.status == model.TaskStatus.RETRY_WAIT, job.next_attempt_at > now)
    # By key: for a subquery, MariaDB would scan all tasks.
    keys = session.scalars(sa.select(job.uuid).where(waiting)).all()
    if keys:
        due = {'keys': keys, 'due_at': now}
        db_session.run(session, _MAKE_JOBS_DUE, due)
        db_session.run(session, _MAKE_TASKS_DUE, due)
    return len(keys)
