# SPDX-License-Identifier: Apache-2.0
"""The calls of jobs, inside a transaction: fenced by an epoch, begun, followed."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import hearing
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import (
    call_terms as db_terms,
    claim as job_claim,
    host_limits,
    outcome as job_outcome,
)

_SEEN = (
    sa.select(
        models.Agent.host,
        models.Agent.seen_at,
        db_session.database_now().label('now'),
        models.Hearing.since,
        models.Hearing.until,
    )
    .outerjoin(models.Hearing, models.Hearing.cell_uuid == models.Agent.cell_uuid)
    .where(models.Agent.host.in_(sa.bindparam('hosts', expanding=True)))
)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A job about to be called, under the epoch that fences the call.

    ``joins`` tells that a compute works on it already, so that the call is no attempt.

    :ivar terms: as they stood when it was assigned
    :ivar seen_at: when the host reported last, by the clock of ``assigned_at``; None when it
        never did
    :ivar heard: when its cell could be heard, None where conductors do not note that
    """

    job_id: str
    host: str
    cell_uuid: str
    image_id: str
    epoch: int
    attempts: int
    mismatches: int
    joins: bool = False
    terms: db_terms.Terms = db_terms.NONE
    seen_at: datetime.datetime | None = None
    assigned_at: datetime.datetime | None = None
    heard: hearing.Heard | None = None


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """The last progress of a job that came in since the last bulk write.

    :ivar cell_uuid: the cell that reported it; a job of another cell is left unchanged
    :ivar agent_id: of whose call it is; None of an agent of an earlier release
    """

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress
    cell_uuid: str | None = None
    agent_id: str | None = None


def assign(
    session: orm.Session, conductor_id: str, host: str, job_id: str | None
) -> Assignment | None:
    limited = host_limits.limits(session)
    if limited:
        job_claim.lock_counter(session)
    epoch = job_claim.fence(session, conductor_id, host)
    if epoch is None:
        return None
    query = sa.select(models.Job).where(
        models.Job.host == host, job_claim.due(db_session.database_now())
    )
    full = host_limits.full_to_call(session, limited, host) if limited else []
    if full:
        query = query.where(host_limits.lets_run(full))
    if job_id is not None:
        query = query.where(models.Job.uuid == job_id)
    job = session.scalars(query.order_by(*job_claim.urgency()).limit(1)).first()
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
        job_outcome.copy_to_tasks(session, job.uuid, **attempt)
    made = dataclasses.replace(assignment(job, epoch), attempts=attempts)
    return complete(session, [made])[0]


def complete(session: orm.Session, made: Sequence[Assignment]) -> list[Assignment]:
    """Add what whoever makes the calls has to know."""
    if not made:
        return []
    agreed = db_terms.terms(session, [each.job_id for each in made])
    rows = db_session.run(session, _SEEN, {'hosts': [each.host for each in made]})
    seen = {row.host: _seen(row) for row in rows}
    never: dict[str, Any] = {}
    if any(each.host not in seen for each in made):
        now = db_session.now(session)
        never = {'assigned_at': now, 'heard': hearing.anywhere(session, now)}
    return [
        dataclasses.replace(each, terms=agreed[each.job_id], **seen.get(each.host, never))
        for each in made
    ]


def _seen(row: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    heard = None if row.until is None else hearing.Heard(row.since, row.until)
    return {'seen_at': row.seen_at, 'assigned_at': row.now, 'heard': heard}


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


def at_work(cell_uuid: str) -> tuple[sa.ColumnElement[bool], ...]:
    return models.Job.cell_uuid == cell_uuid, models.Job.status.in_(model.TASK_WORKING)


def record_progress(session: orm.Session, report: ProgressReport, now: datetime.datetime) -> bool:
    progress = report.progress
    values = {
        'job': report.job_id,
        'of_epoch': report.epoch,
        'of_cell': report.cell_uuid,
        'of_agent': report.agent_id,
        'to_sequence': report.sequence,
        'to_time': now,
        # A word that this release does not know must not make the job look ended.
        'to_status': str(progress.status) if progress.status in model.TASK_WORKING else None,
        'moved': progress.bytes_done,
        'total': progress.bytes_total,
        'rate': progress.rate_bytes,
    }
    if db_session.rowcount(db_session.run(session, _PROGRESS, values)) != 1:
        return False
    db_session.run(session, _SHOW_PROGRESS, values)
    return True


_AGENT, _JOB, _TASK = (db_session.table(each) for each in (models.Agent, models.Job, models.Task))
_OF_AGENT = sa.bindparam('of_agent', type_=sa.String())


def _progress(columns: sa.sql.base.ReadOnlyColumnCollection[str, sa.Column[Any]]) -> dict[str, Any]:
    """What of a progress is in a job, and in each task."""
    return {
        'status': sa.func.coalesce(sa.bindparam('to_status', type_=sa.String()), columns.status),
        'rate_bytes': sa.bindparam('rate', type_=sa.BigInteger()),
        **job_outcome.sizes(
            columns,
            sa.bindparam('moved', type_=sa.BigInteger()),
            sa.bindparam('total', type_=sa.BigInteger()),
        ),
    }


# Made once, since there is a progress of each transfer every second.
_PROGRESS = (
    sa.update(_JOB)
    .where(
        _JOB.c.uuid == sa.bindparam('job'),
        _JOB.c.epoch == sa.bindparam('of_epoch'),
        _JOB.c.status.in_(model.TASK_WORKING),
        _JOB.c.progress_sequence < sa.bindparam('to_sequence'),
        # None: it came from no cell.
        _JOB.c.cell_uuid
        == sa.func.coalesce(sa.bindparam('of_cell', type_=sa.String()), _JOB.c.cell_uuid),
        sa.or_(
            _OF_AGENT.is_(None),
            sa.exists().where(_AGENT.c.host == _JOB.c.host, _AGENT.c.agent_id == _OF_AGENT),
        ),
    )
    .values(
        progress_sequence=sa.bindparam('to_sequence'),
        progress_at=sa.bindparam('to_time'),
        **_progress(_JOB.c),
    )
)
_SHOW_PROGRESS = (
    sa.update(_TASK)
    .where(_TASK.c.job_uuid == sa.bindparam('job'), _TASK.c.status.in_(model.TASK_IN_FLIGHT))
    .values(**_progress(_TASK.c))
)
