# SPDX-License-Identifier: Apache-2.0
"""The next jobs of claimed hosts, inside a transaction, many hosts at once."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import calls, claim as job_claim, locking

_JOB, _TASK, _CLAIM = (db_session.table(each) for each in (models.Job, models.Task, models.Claim))
_TURN = sa.func.row_number().over(partition_by=models.Job.host, order_by=job_claim.urgency())
_DUE = (
    sa.select(models.Job.uuid, models.Job.host, models.Job.active_key, _TURN.label('turn'))
    .where(
        models.Job.host.in_(sa.bindparam('hosts', expanding=True)),
        models.Job.uuid.not_in(sa.bindparam('ended', expanding=True)),
        # In words for which no index is: with several hosts SQLite would take the one that has
        # ``ready``, and go through all that waits.
        job_claim.due(db_session.database_now(), ready=models.Job.ready.is_not(False)),
    )
    .subquery()
)
_ALL = sa.select(_DUE.c.host, _DUE.c.uuid, _DUE.c.active_key)
_FIRST = _ALL.where(_DUE.c.turn == 1)
# Of its host: whoever holds that has just fenced it.
_EPOCH = sa.select(_CLAIM.c.epoch).where(_CLAIM.c.host == _JOB.c.host).scalar_subquery()
_CALL = (
    sa.update(_JOB)
    .where(_JOB.c.uuid.in_(db_session.keys()))
    .values(epoch=_EPOCH, progress_sequence=0)
)
_ATTEMPT = _CALL.values(
    status=str(model.TaskStatus.QUEUED),
    attempts=sa.bindparam('to_attempts'),
    next_attempt_at=None,
)
_ATTEMPT_TASKS = (
    sa.update(_TASK)
    .where(
        _TASK.c.job_uuid.in_(db_session.keys()),
        _TASK.c.status.in_(model.TASK_IN_FLIGHT),
    )
    .values(
        status=str(model.TaskStatus.QUEUED),
        attempts=sa.bindparam('to_attempts'),
        next_attempt_at=None,
    )
)


@dataclasses.dataclass(frozen=True)
class DueJob:
    """A job that may be called, by its id and by the key that it is locked by."""

    job_id: str
    active_key: str


def choose(
    session: orm.Session, hosts: Collection[str], ended: Collection[str]
) -> Mapping[str, DueJob]:
    """Map those of the hosts that have due jobs to the most urgent.

    :param ended: jobs that are about to end
    """
    if not hosts:
        return {}
    rows = db_session.run(session, _FIRST, {'hosts': sorted(hosts), 'ended': list(ended)})
    return {row.host: DueJob(row.uuid, row.active_key) for row in rows}


def due(session: orm.Session, hosts: Collection[str]) -> Sequence[DueJob]:
    """Give all due jobs of the hosts."""
    if not hosts:
        return []
    values: dict[str, object] = {'hosts': sorted(hosts), 'ended': []}
    return [DueJob(row.uuid, row.active_key) for row in db_session.run(session, _ALL, values)]


def assign(
    session: orm.Session,
    chosen: Mapping[str, DueJob],
    epochs: Mapping[str, int],
    locked: Mapping[str, locking.Locked],
) -> dict[str, calls.Assignment]:
    """Fence the chosen jobs of hosts; one that is not due any more is left out."""
    jobs = [locked[each.job_id] for each in chosen.values() if each.job_id in locked]
    made = [_assignment(job, epochs[job.host]) for job in jobs if job.is_due]
    joined = [(each.job_id, dict[str, object]()) for each in made if each.joins]
    attempts = [(each.job_id, {'to_attempts': each.attempts}) for each in made if not each.joins]
    db_session.run_alike(session, _CALL, joined)
    db_session.run_alike(session, _ATTEMPT, attempts)
    db_session.run_alike(session, _ATTEMPT_TASKS, attempts)
    return {each.host: each for each in calls.complete(session, made)}


def _assignment(job: locking.Locked, epoch: int) -> calls.Assignment:
    joins = job.status in model.TASK_WORKING
    return calls.Assignment(
        job_id=job.job_id,
        host=job.host,
        cell_uuid=job.cell_uuid,
        image_id=job.image_id,
        epoch=epoch,
        attempts=job.attempts if joins else job.attempts + 1,
        mismatches=job.mismatches,
        joins=joins,
    )
