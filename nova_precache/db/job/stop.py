# SPDX-License-Identifier: Apache-2.0
"""Jobs that computes are to stop, inside a transaction: orders, outcomes, partial files."""

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, locking, outcome as job_outcome

_PAUSED = model.ImageOutcome(model.TaskStatus.RETRY_WAIT)


@dataclasses.dataclass(frozen=True)
class StopOrder:
    """A job that its compute is to stop."""

    job_id: str
    host: str
    cell_uuid: str
    epoch: int | None
    why: model.StopWhy
    keep_partial: bool


@dataclasses.dataclass(frozen=True)
class Discard:
    """An ended job whose partial file is to be removed from its host."""

    job_id: str
    host: str
    cell_uuid: str
    image_id: str


def retry(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
    delay_seconds: float,
    attempts: int,
) -> job_outcome.Recorded:
    """Schedule the next attempt of a job, unless it was to stop: then it has stopped."""
    locking.lock_jobs(session, [job_id])
    goes_on = sa.and_(which, models.Job.ready, models.Job.stop_why.is_(None))
    if job_outcome.schedule_retry(session, goes_on, job_id, outcome, delay_seconds, attempts):
        return job_outcome.Recorded(current=True)
    return stopped(session, which, job_id)


def stopped(
    session: orm.Session, which: sa.ColumnElement[bool], job_id: str
) -> job_outcome.Recorded:
    """Record that no compute works on a job that was to stop, or that may not begin now."""
    if job_outcome.schedule_retry(
        session, sa.and_(which, _waits()), job_id, _PAUSED, 0, attempts=-1
    ):
        return job_outcome.Recorded(current=True)
    query = sa.select(models.Job.stop_why, models.Job.stop_keep).where(
        which, models.Job.stop_why.in_(demand.UNWANTED)
    )
    job = session.execute(query).first()
    if job is None:
        return job_outcome.STALE
    if job.stop_why == model.StopWhy.DEADLINE:
        return leave(session, which, job_id, demand.EXPIRED)
    discard = None if job.stop_keep else demand.DISCARD
    return leave(session, which, job_id, demand.CANCELLED, discard)


def _waits() -> sa.ColumnElement[bool]:
    """Select jobs that are wanted, but not now."""
    job = models.Job
    is_held = sa.and_(~job.ready, job.stop_why.is_(None))
    return sa.or_(job.stop_why == model.StopWhy.PAUSED, is_held)


def leave(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
    stop_why: str | None = None,
) -> job_outcome.Recorded:
    """End a job that a compute has stopped; if a task still wants it, schedule another call."""
    locking.lock_jobs(session, [job_id])
    locked = db_session.update(models.Job).where(which).values(priority=models.Job.priority)
    if db_session.rowcount(session.execute(locked)) != 1:
        return job_outcome.STALE
    moved = job_outcome.sizes(models.Task, outcome.bytes_done, outcome.bytes_total)
    job_outcome.copy_to_tasks(session, job_id, **moved)
    recorded = demand.end_unwanting(session, [job_id], db_session.now(session))
    wanting = sa.select(models.Task.id).where(
        models.Task.job_uuid == job_id, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    if session.scalars(wanting.limit(1)).first() is None:
        job_outcome.end_job(session, which, outcome, stop_why)
        return recorded
    job_outcome.schedule_retry(session, which, job_id, _PAUSED, 0, attempts=-1)
    keys = demand.active_keys(session, models.Task.job_uuid == job_id)
    return job_outcome.together([recorded, demand.reconcile(session, keys)])


def orders(session: orm.Session) -> list[StopOrder]:
    job = models.Job
    query = (
        sa.select(job.uuid, job.host, job.cell_uuid, job.epoch, job.stop_why, job.stop_keep)
        .where(job.stop_why.in_(model.StopWhy))
        .where(job.active_key.is_not(None))
        .order_by(job.id)
    )
    return [
        StopOrder(*row[:4], model.StopWhy(str(row[4])), row[5]) for row in session.execute(query)
    ]


def discards(session: orm.Session, limit: int) -> list[Discard]:
    job = models.Job
    query = (
        sa.select(job.uuid, job.host, job.cell_uuid, job.image_id)
        .where(job.stop_why == demand.DISCARD, job.active_key.is_(None))
        .order_by(job.id)
        .limit(limit)
    )
    return [Discard(*row) for row in session.execute(query)]


def keep_what_is_left(session: orm.Session, keys: Sequence[str]) -> None:
    """Keep partial files that were to be removed: new jobs resume them."""
    file = models.Job.host + '/' + models.Job.image_id
    forget_discards(session, file.in_(keys))


def forget_discards(session: orm.Session, which: sa.ColumnElement[bool]) -> None:
    """Drop orders to remove partial files: they are removed, or wanted again."""
    session.execute(
        db_session.update(models.Job)
        .where(models.Job.stop_why == demand.DISCARD, which)
        .values(stop_why=None)
    )
