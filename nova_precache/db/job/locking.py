# SPDX-License-Identifier: Apache-2.0
"""Jobs that are held while it is decided what becomes of them, inside a transaction.

They are locked all at once and by their active keys, as a plan does, and looked at only
then: what is decided of them is so until the commit. Whoever goes by another index first
waits for the row with that index's entry in hand, which is a deadlock on MariaDB when the
row's holder comes to need it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import claim as job_claim


@dataclasses.dataclass(frozen=True)
class Locked:
    """An active job as it is.

    :ivar claim_epoch: of its host, None when no conductor holds it
    :ivar agent_id: of the agent that is registered for its host, None when none is
    """

    job_id: str
    host: str
    cell_uuid: str
    image_id: str
    status: str
    epoch: int | None
    attempts: int
    mismatches: int
    ready: bool
    stop_why: str | None
    claim_epoch: int | None
    is_due: bool
    agent_id: str | None

    @property
    def goes_on(self) -> bool:
        """Tell whether it is neither to stop nor to wait."""
        return self.ready and self.stop_why is None

    def is_current(self, epoch: int) -> bool:
        """Tell whether a call under an epoch is the last one of the job."""
        return self.epoch == epoch and self.status in model.TASK_IN_FLIGHT


_JOB, _CLAIM = models.Job, models.Claim
_JOBS: sa.BindParameter[Any] = sa.bindparam('jobs', expanding=True)
_KEYS = sa.select(_JOB.uuid, _JOB.active_key).where(
    _JOB.uuid.in_(_JOBS), _JOB.active_key.is_not(None)
)
_TABLE = db_session.table(_JOB)
_LOCK = (
    sa.update(_TABLE)
    .where(_TABLE.c.active_key.in_(sa.bindparam('keys', expanding=True)))
    .values(priority=_TABLE.c.priority)
)
_LOOK = (
    sa.select(
        _JOB.uuid,
        _JOB.host,
        _JOB.cell_uuid,
        _JOB.image_id,
        _JOB.status,
        _JOB.epoch,
        _JOB.attempts,
        _JOB.mismatches,
        _JOB.ready,
        _JOB.stop_why,
        _CLAIM.epoch,
        job_claim.due(db_session.database_now()).label('is_due'),
        models.Agent.agent_id,
    )
    .outerjoin(_CLAIM, sa.and_(_CLAIM.host == _JOB.host, _CLAIM.conductor_id.is_not(None)))
    .outerjoin(models.Agent, models.Agent.host == _JOB.host)
    .where(_JOB.uuid.in_(_JOBS), _JOB.active_key.is_not(None))
)


def lock(
    session: orm.Session, job_ids: Collection[str], keys: Mapping[str, str] | None = None
) -> Mapping[str, Locked]:
    """Map those of the jobs that are active to how they are now.

    :param keys: more jobs by their ids, whose active keys are known
    """
    known = keys or {}
    if not lock_jobs(session, job_ids, known):
        return {}
    jobs = {'jobs': sorted({*job_ids, *known})}
    return {row[0]: Locked(*row) for row in db_session.run(session, _LOOK, jobs)}


def lock_jobs(
    session: orm.Session, job_ids: Collection[str], keys: Mapping[str, str] | None = None
) -> bool:
    """Lock those of the jobs that are active; False when none is."""
    found = dict(keys or {})
    unknown = sorted(set(job_ids) - found.keys())
    if unknown:
        found.update(tuple(row) for row in db_session.run(session, _KEYS, {'jobs': unknown}))
    if found:
        db_session.run(session, _LOCK, {'keys': sorted(found.values())})
    return bool(found)


def current(job_id: str, epoch: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        models.Job.uuid == job_id,
        models.Job.epoch == epoch,
        models.Job.status.in_(model.TASK_IN_FLIGHT),
    )


def at_work(cell_uuid: str) -> tuple[sa.ColumnElement[bool], ...]:
    return models.Job.cell_uuid == cell_uuid, models.Job.status.in_(model.TASK_WORKING)
