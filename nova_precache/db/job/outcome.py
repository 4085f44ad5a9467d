# SPDX-License-Identifier: Apache-2.0
"""Outcomes, inside a transaction: end jobs and the tasks that want them, or schedule a retry.

Each is a compare-and-set on the job; it returns what it changed, which has to be announced.
"""

import dataclasses
import datetime
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import outbox
from nova_precache.db.engine import models, session as db_session

_REQUEST = db_session.table(models.CacheRequest).c
_TASK = db_session.table(models.Task).c
_LOCK_REQUESTS = (
    sa.update(db_session.table(models.CacheRequest))
    .where(_REQUEST.id == sa.bindparam('request'))
    .values(hosts_done=_REQUEST.hosts_done)
)
# Not by status: SQLite would scan all tasks of the request that are in flight.
_ON_HOSTS = sa.select(_TASK.host, _TASK.status).where(
    _TASK.request_id == sa.bindparam('request'),
    _TASK.host.in_(sa.bindparam('hosts', expanding=True)),
)
_WORK = (
    sa.select(_TASK.id)
    .where(_TASK.request_id == sa.bindparam('request'), _TASK.status.in_(model.TASK_IN_FLIGHT))
    .limit(1)
)


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


def finish(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
) -> Recorded:
    if not end_job(session, which, outcome):
        return STALE
    return end_tasks(session, models.Task.job_uuid == job_id, outcome)


def end_job(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    outcome: model.ImageOutcome,
    stop_why: object = None,
) -> bool:
    """End a job but not its tasks; return False if ``which`` no longer matches."""
    ended = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            active_key=None,
            stop_why=stop_why,
            rate_bytes=None,
            next_attempt_at=None,
            finished_at=db_session.database_now(),
            **sizes(models.Job, outcome.bytes_done, outcome.bytes_total),
        )
    )
    return db_session.rowcount(ended) == 1


def end_tasks(
    session: orm.Session, which: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    """End the tasks that are in flight, and count the hosts that are then done."""
    in_flight = models.Task.status.in_(model.TASK_IN_FLIGHT)
    wanting = sa.select(models.Task.request_id).where(which, in_flight).distinct()
    requests = tuple(sorted(session.scalars(wanting)))
    if not requests:
        return Recorded(current=True)
    lock_requests(session, requests)
    # Only now: the previous holder of a request's lock may have ended some of these tasks.
    pairs = sa.select(models.Task.request_id, models.Task.host).where(which, in_flight).distinct()
    touched = sorted((row.request_id, row.host) for row in session.execute(pairs))
    session.execute(
        db_session.update(models.Task)
        .where(which, in_flight)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            rate_bytes=None,
            next_attempt_at=None,
            finished_at=db_session.database_now(),
            **sizes(models.Task, outcome.bytes_done, outcome.bytes_total),
        )
    )
    return Recorded(current=True, requests=requests, idle=count_done(session, touched))


def lock_requests(session: orm.Session, request_ids: Sequence[str]) -> None:
    """Serialise transactions that end tasks of one request, so that hosts_done adds up."""
    db_session.run(session, _LOCK_REQUESTS, [{'request': each} for each in sorted(request_ids)])


def count_done(session: orm.Session, touched: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Count hosts as done that have no task of a request left in flight.

    :param touched: each (request, host) of tasks that ended, sorted
    :returns: the requests with no task in flight on any host
    """
    idle = []
    for request_id, pairs in itertools.groupby(touched, key=operator.itemgetter(0)):
        done = _without_work(session, request_id, [host for _, host in pairs])
        may_be_last = bool(done) and outbox.add_hosts(session, request_id, done)
        if may_be_last and not has_work(session, request_id):
            idle.append(request_id)
    return tuple(idle)


def has_work(session: orm.Session, request_id: str) -> bool:
    """Return whether a task of a request is in flight, as it usually is."""
    return db_session.run(session, _WORK, {'request': request_id}).first() is not None


def _without_work(session: orm.Session, request_id: str, hosts: Sequence[str]) -> list[str]:
    busy: set[str] = set()
    for chunk in db_session.chunks(hosts):
        rows = db_session.run(session, _ON_HOSTS, {'request': request_id, 'hosts': chunk})
        busy.update(row.host for row in rows if row.status in model.TASK_IN_FLIGHT)
    return [host for host in hosts if host not in busy]


def schedule_retry(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
    delay_seconds: float,
    attempts: int = 0,
) -> bool:
    """Put a job and its tasks into retry_wait; clear the epoch, so that no earlier call counts."""
    due = db_session.now(session) + datetime.timedelta(seconds=delay_seconds)
    mismatches = 1 if outcome.retry == model.Retry.ONCE else 0
    waits = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=model.TaskStatus.RETRY_WAIT,
            reason=outcome.reason,
            epoch=None,
            stop_why=None,
            stop_keep=False,
            attempts=models.Job.attempts + attempts,
            mismatches=models.Job.mismatches + mismatches,
            rate_bytes=None,
            next_attempt_at=due,
        )
    )
    if db_session.rowcount(waits) != 1:
        return False
    copy_to_tasks(
        session,
        job_id,
        status=model.TaskStatus.RETRY_WAIT,
        reason=outcome.reason,
        attempts=models.Task.attempts + attempts,
        rate_bytes=None,
        next_attempt_at=due,
    )
    return True


def copy_to_tasks(session: orm.Session, job_id: str, **values: object) -> None:
    """Copy a job's state to the tasks that want it."""
    session.execute(
        db_session.update(models.Task)
        .where(models.Task.job_uuid == job_id)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .values(**values)
    )


def sizes(row: Any, done: Any, total: Any) -> dict[str, sa.ColumnElement[Any]]:
    """Build the byte counts of a job or a task after a report of its compute.

    Bytes done never decrease. Whatever a compute reports, the total stays at or below the known
    one, which came from Glance, and at or above the bytes done.

    :param row: the table, or its columns
    :param done: bytes done in this attempt, a number or a parameter
    :param total: the reported total, likewise; None if none was reported
    """
    moved = sa.literal(done, sa.BigInteger()) if isinstance(done, int) else done
    told = total if isinstance(total, sa.BindParameter) else sa.literal(total, sa.BigInteger())
    known = row.bytes_total
    # MariaDB assigns columns one after the other; the result is the same in either order.
    most = sa.case(
        (known.is_(None), told), (told.is_(None), known), (told < known, told), else_=known
    )
    capped = sa.case((most < moved, most), else_=moved)
    return {
        'bytes_done': sa.case((row.bytes_done < capped, capped), else_=row.bytes_done),
        'bytes_total': sa.case((most < row.bytes_done, row.bytes_done), else_=most),
    }
