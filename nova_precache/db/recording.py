# SPDX-License-Identifier: Apache-2.0
"""Outcomes, inside a transaction: jobs, and the tasks that want them, become final or wait.

Each is a compare-and-set on the job; what it changed is told, and has to be announced.
"""

import dataclasses
import datetime
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import announcements, models
from nova_precache.db import session as db_session


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Whose tasks an outcome has ended: nobody's when its call no longer counted."""

    current: bool
    requests: tuple[str, ...] = ()


STALE = Recorded(current=False)


def finish(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
) -> Recorded:
    ended = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            active_key=None,
            bytes_done=at_least(models.Job.bytes_done, outcome.bytes_done),
            bytes_total=sa.func.coalesce(outcome.bytes_total, models.Job.bytes_total),
            next_attempt_at=None,
            finished_at=db_session.now(session),
        )
    )
    if db_session.rowcount(ended) != 1:
        return STALE
    return _end_tasks(session, models.Task.job_uuid == job_id, outcome)


def _end_tasks(
    session: orm.Session, which: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    in_flight = models.Task.status.in_(model.TASK_IN_FLIGHT)
    wanting = sa.select(models.Task.request_id).where(which, in_flight).distinct()
    requests = tuple(sorted(session.scalars(wanting)))
    _lock_requests(session, requests)
    # Only now: whoever held a request's lock may have ended some of these tasks.
    pairs = sa.select(models.Task.request_id, models.Task.host).where(which, in_flight).distinct()
    touched = sorted((row.request_id, row.host) for row in session.execute(pairs))
    session.execute(
        db_session.update(models.Task)
        .where(which, in_flight)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            bytes_done=at_least(models.Task.bytes_done, outcome.bytes_done),
            bytes_total=sa.func.coalesce(outcome.bytes_total, models.Task.bytes_total),
            next_attempt_at=None,
            finished_at=db_session.now(session),
        )
    )
    for request_id, host in touched:
        _count_if_done(session, request_id, host)
    return Recorded(current=True, requests=requests)


def _lock_requests(session: orm.Session, request_ids: Sequence[str]) -> None:
    """Have those who end tasks of one request take turns, so that hosts_done adds up."""
    for request_id in request_ids:
        session.execute(
            db_session.update(models.CacheRequest)
            .where(models.CacheRequest.id == request_id)
            .values(hosts_done=models.CacheRequest.hosts_done)
        )


def _count_if_done(session: orm.Session, request_id: str, host: str) -> None:
    """Count the host as done for the request when nothing of it is in flight.

    Before the plan is complete nobody knows that; whoever completes it counts these hosts.
    """
    still = (
        sa.select(models.Task.id)
        .where(models.Task.request_id == request_id, models.Task.host == host)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .limit(1)
    )
    if session.scalars(still).first() is not None:
        return
    this = models.CacheRequest.id == request_id
    counted = session.execute(
        db_session.update(models.CacheRequest)
        .where(this, models.CacheRequest.status != model.RequestStatus.ACCEPTED)
        .values(hosts_done=models.CacheRequest.hosts_done + 1)
    )
    if db_session.rowcount(counted) != 1:
        return
    index = session.scalars(sa.select(models.CacheRequest.hosts_done).where(this)).one()
    announcements.add_host(session, request_id, host, index)


def wait(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
    delay_seconds: float,
    attempts: int = 0,
) -> bool:
    """Put a job and its tasks into retry_wait; without an epoch no call of it counts."""
    due = db_session.now(session) + datetime.timedelta(seconds=delay_seconds)
    mismatches = 1 if outcome.retry == model.Retry.ONCE else 0
    waits = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=model.TaskStatus.RETRY_WAIT,
            reason=outcome.reason,
            epoch=None,
            attempts=models.Job.attempts + attempts,
            mismatches=models.Job.mismatches + mismatches,
            next_attempt_at=due,
        )
    )
    if db_session.rowcount(waits) != 1:
        return False
    mirror(
        session,
        job_id,
        status=model.TaskStatus.RETRY_WAIT,
        reason=outcome.reason,
        attempts=models.Task.attempts + attempts,
        next_attempt_at=due,
    )
    return True


def give_up(
    session: orm.Session, chosen: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    """Make those chosen tasks final that are in flight, and end the jobs nobody wants then."""
    wanted = (
        sa.select(models.Job.active_key)
        .join(models.Task, models.Task.job_uuid == models.Job.uuid)
        .where(chosen, models.Task.status.in_(model.TASK_IN_FLIGHT))
        .distinct()
    )
    keys = sorted(filter(None, session.scalars(wanted)))
    _lock_jobs(session, keys)
    recorded = _end_tasks(session, chosen, outcome)
    _end_unwanted_jobs(session, keys)
    return recorded


def _lock_jobs(session: orm.Session, keys: Sequence[str]) -> None:
    """Keep a plan from joining jobs while it is decided whether they are still wanted.

    By their active keys, as a plan locks them: in another order they might deadlock.
    """
    for chunk in db_session.chunks(keys):
        session.execute(
            db_session.update(models.Job)
            .where(models.Job.active_key.in_(chunk))
            .values(priority=models.Job.priority)
        )


def _end_unwanted_jobs(session: orm.Session, keys: Sequence[str]) -> None:
    """End those waiting jobs that no task in flight wants; the caller holds their row locks."""
    wanted = sa.exists().where(
        models.Task.job_uuid == models.Job.uuid, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    for chunk in db_session.chunks(keys):
        session.execute(
            db_session.update(models.Job)
            .where(models.Job.active_key.in_(chunk))
            .where(models.Job.status.in_(model.TASK_WAITING), ~wanted)
            .values(
                status=model.TaskStatus.SKIPPED,
                active_key=None,
                next_attempt_at=None,
                finished_at=db_session.now(session),
            )
        )


def mirror(session: orm.Session, job_id: str, **values: object) -> None:
    """Show a job's state in the tasks that want it."""
    session.execute(
        db_session.update(models.Task)
        .where(models.Task.job_uuid == job_id)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .values(**values)
    )


def at_least(column: orm.InstrumentedAttribute[int], value: int) -> sa.Case[int]:
    return sa.case((column < value, value), else_=column)
