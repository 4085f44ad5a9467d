# SPDX-License-Identifier: Apache-2.0
"""Calls that computes begin, inside a transaction, many at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, states
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import locking


@dataclasses.dataclass(frozen=True)
class Begin:
    """The arguments of ``Jobs.begin``; ``cell_uuid`` is None if a conductor begins the job."""

    job_id: str
    epoch: int
    starts: bool = False
    cell_uuid: str | None = None
    agent_id: str | None = None


_JOB, _TASK, _REQUEST = (
    db_session.table(each) for each in (models.Job, models.Task, models.CacheRequest)
)
_BEGIN_JOBS = (
    sa.update(_JOB)
    .where(_JOB.c.uuid.in_(db_session.keys()))
    .values(
        status=sa.bindparam('to_status'),
        attempts=sa.bindparam('to_attempts'),
        started_at=sa.func.coalesce(_JOB.c.started_at, db_session.database_now()),
        progress_at=db_session.database_now(),
    )
)
_BEGIN_TASKS = (
    sa.update(_TASK)
    .where(
        _TASK.c.job_uuid.in_(db_session.keys()),
        _TASK.c.status.in_(model.TASK_IN_FLIGHT),
    )
    .values(
        status=sa.bindparam('to_status'),
        attempts=sa.bindparam('to_attempts'),
        started_at=sa.func.coalesce(_TASK.c.started_at, db_session.database_now()),
    )
)
_NOT_STARTED = (
    sa.select(_REQUEST.c.id)
    .distinct()
    .join(_TASK, _TASK.c.request_id == _REQUEST.c.id)
    .where(
        _TASK.c.job_uuid.in_(sa.bindparam('jobs', expanding=True)),
        _TASK.c.status.in_(model.TASK_IN_FLIGHT),
        _REQUEST.c.status.in_(states.REQUESTS.origins(states.Event.BEGIN)),
    )
)
_START_REQUESTS = (
    sa.update(_REQUEST)
    .where(
        _REQUEST.c.id.in_(sa.bindparam('requests', expanding=True)),
        _REQUEST.c.status.in_(states.REQUESTS.origins(states.Event.BEGIN)),
    )
    .values(status=str(model.RequestStatus.RUNNING), started_at=db_session.database_now())
)


def to_start(
    session: orm.Session, begins: Sequence[Begin], locked: Mapping[str, locking.Locked]
) -> Sequence[str]:
    """Return the requests whose first calls these are."""
    jobs = [each.job_id for each in begins if _counts(each, locked)]
    if not jobs:
        return []
    return sorted(db_session.run(session, _NOT_STARTED, {'jobs': jobs}).scalars())


def begin(
    session: orm.Session,
    begins: Sequence[Begin],
    locked: Mapping[str, locking.Locked],
    starting: Sequence[str] | None = None,
) -> set[str]:
    """Begin the calls that still count; return their jobs.

    :param starting: the requests ``to_start``, if they had to be locked before
    """
    rows = [
        (each.job_id, _begun(each, locked[each.job_id])) for each in begins if _counts(each, locked)
    ]
    if not rows:
        return set()
    starting = to_start(session, begins, locked) if starting is None else starting
    db_session.run_alike(session, _BEGIN_JOBS, rows)
    db_session.run_alike(session, _BEGIN_TASKS, rows)
    if starting:
        db_session.run(session, _START_REQUESTS, {'requests': list(starting)})
    return {job_id for job_id, _ in rows}


def _counts(begin: Begin, locked: Mapping[str, locking.Locked]) -> bool:
    """Return whether a call counts: its job is not to stop, and its caller holds the host.

    It must also have reached the agent that is registered for the host.
    """
    job = locked.get(begin.job_id)
    if job is None or not job.is_current(begin.epoch):
        return False
    if begin.cell_uuid not in (None, job.cell_uuid) or begin.agent_id not in (None, job.agent_id):
        return False
    return job.claim_epoch == begin.epoch and job.goes_on


def _begun(begin: Begin, job: locking.Locked) -> dict[str, Any]:
    if job.status in states.JOBS.origins(states.Event.BEGIN):
        status, attempts = str(model.TaskStatus.DOWNLOADING), job.attempts
    else:
        status, attempts = job.status, job.attempts + int(begin.starts)
    return {'to_status': status, 'to_attempts': attempts}
