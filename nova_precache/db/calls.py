# SPDX-License-Identifier: Apache-2.0
"""The calls of jobs, inside a transaction: fenced by an epoch, begun, followed."""

import dataclasses
import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import claims, models, parallel, recording
from nova_precache.db import session as db_session


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A job about to be called, under the epoch that fences the call.

    ``joins`` tells that a compute works on it already, so that the call is no attempt.
    """

    job_id: str
    host: str
    cell_uuid: str
    image_id: str
    epoch: int
    attempts: int
    mismatches: int
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """The last progress of a job that came in since the last bulk write."""

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress


def assign(
    session: orm.Session, conductor_id: str, host: str, job_id: str | None
) -> Assignment | None:
    limited = parallel.limits(session)
    if limited:
        claims.lock_counter(session)
    epoch = claims.fence(session, conductor_id, host)
    if epoch is None:
        return None
    query = sa.select(models.Job).where(
        models.Job.host == host, claims.due(db_session.database_now())
    )
    full = parallel.full_to_call(session, limited, host) if limited else []
    if full:
        query = query.where(parallel.lets_run(full))
    if job_id is not None:
        query = query.where(models.Job.uuid == job_id)
    job = session.scalars(query.order_by(*claims.urgency()).limit(1)).first()
    if job is None:
        return None
    attempts, attempt = job.attempts, dict[str, object]()
    if job.status in model.TASK_WAITING and job_id is None:
        attempts = job.attempts + 1
        attempt = {
            'status': model.TaskStatus.QUEUED,
            'attempts': attempts,
            'next_attempt_at': None,
        }
    same = model.TASK_WAITING if job.status in model.TASK_WAITING else model.TASK_WORKING
    assigned = session.execute(
        db_session.update(models.Job)
        .where(models.Job.id == job.id, models.Job.status.in_(same), models.Job.ready)
        .values(epoch=epoch, progress_sequence=0, **attempt)
    )
    if db_session.rowcount(assigned) != 1:
        return None  # it has ended, was begun, or may not be called, since it was chosen
    if attempt:
        recording.mirror(session, job.uuid, **attempt)
    return dataclasses.replace(assignment(job, epoch), attempts=attempts)


def assignment(job: models.Job, epoch: int) -> Assignment:
    return Assignment(
        job_id=job.uuid,
        host=job.host,
        cell_uuid=job.cell_uuid,
        image_id=job.image_id,
        epoch=epoch,
        attempts=job.attempts,
        mismatches=job.mismatches,
        joins=job.status in model.TASK_WORKING,
    )


def current(job_id: str, epoch: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        models.Job.uuid == job_id,
        models.Job.epoch == epoch,
        models.Job.status.in_(model.TASK_IN_FLIGHT),
    )


def begin(session: orm.Session, job_id: str, epoch: int, starts: bool) -> bool:
    now = db_session.database_now()
    held = sa.exists().where(
        models.Claim.host == models.Job.host,
        models.Claim.conductor_id.is_not(None),
        models.Claim.epoch == epoch,
    )
    waiting = models.Job.status.in_(model.TASK_WAITING)
    begun = session.execute(
        db_session.update(models.Job)
        .where(current(job_id, epoch), held, models.Job.ready, models.Job.stop_why.is_(None))
        .ordered_values(  # MariaDB assigns from left to right, and sees what it has assigned
            (models.Job.attempts, models.Job.attempts + sa.case((waiting, 0), else_=int(starts))),
            (
                models.Job.status,
                sa.case((waiting, model.TaskStatus.DOWNLOADING), else_=models.Job.status),
            ),
            (models.Job.started_at, sa.func.coalesce(models.Job.started_at, now)),
            (models.Job.progress_at, now),
        )
    )
    if db_session.rowcount(begun) != 1:
        return False
    job = session.execute(
        sa.select(models.Job.status, models.Job.attempts).where(models.Job.uuid == job_id)
    ).one()
    started_at = sa.func.coalesce(models.Task.started_at, now)
    recording.mirror(
        session, job_id, status=job.status, attempts=job.attempts, started_at=started_at
    )
    _start_requests(session, job_id)
    return True


def _start_requests(session: orm.Session, job_id: str) -> None:
    wanting = sa.select(models.Task.request_id).where(
        models.Task.job_uuid == job_id, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id.in_(wanting))
        .where(models.CacheRequest.status == model.RequestStatus.PLANNED)
        .values(status=model.RequestStatus.RUNNING, started_at=db_session.database_now())
    )


def record_progress(session: orm.Session, report: ProgressReport, now: datetime.datetime) -> bool:
    progress = report.progress
    job = models.Job
    # A word that this release does not know must not make the job look ended.
    known = progress.status in model.TASK_WORKING
    changed = session.execute(
        db_session.update(job)
        .where(current(report.job_id, report.epoch), job.progress_sequence < report.sequence)
        .where(job.status.in_(model.TASK_WORKING))
        .values(
            status=progress.status if known else job.status,
            progress_sequence=report.sequence,
            progress_at=now,
            bytes_done=recording.at_least(job.bytes_done, progress.bytes_done),
            bytes_total=sa.func.coalesce(progress.bytes_total, job.bytes_total),
            rate_bytes=progress.rate_bytes,
        )
    )
    if db_session.rowcount(changed) != 1:
        return False
    recording.mirror(
        session,
        report.job_id,
        status=progress.status if known else models.Task.status,
        bytes_done=recording.at_least(models.Task.bytes_done, progress.bytes_done),
        bytes_total=sa.func.coalesce(progress.bytes_total, models.Task.bytes_total),
        rate_bytes=progress.rate_bytes,
    )
    return True
