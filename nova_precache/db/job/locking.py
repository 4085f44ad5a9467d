# SPDX-License-Identifier: Apache-2.0
"""Locks on jobs while a transaction decides about them.

Jobs are locked all at once and by their active keys, in one order, and read only then: what
was read holds until the commit. A transaction that uses another index first holds that
index's entry while it waits for the row: a deadlock on MariaDB if the row's holder then needs
the entry.
"""

import dataclasses
import datetime
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim


@dataclasses.dataclass(frozen=True)
class Locked:
    """The state of an active job under its lock.

    :ivar claim_epoch: of its host; None if no conductor holds it
    :ivar agent_id: of the agent registered for its host; None if there is none
    :ivar read_at: the database's clock when this was read
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
    stop_keep: bool
    claim_epoch: int | None
    is_due: bool
    agent_id: str | None
    read_at: datetime.datetime

    @property
    def goes_on(self) -> bool:
        """Return whether the job is neither to stop nor to wait."""
        return self.ready and self.stop_why is None

    def is_current(self, epoch: int) -> bool:
        """Return whether a call under ``epoch`` is the last one of the job."""
        return self.epoch == epoch and self.status in model.TASK_IN_FLIGHT


_JOB, _CLAIM = models.Job, models.Claim
_JOBS: sa.BindParameter[Any] = sa.bindparam('jobs', expanding=True)
_KEYS = sa.select(_JOB.uuid, _JOB.active_key).where(
    expressions.among(_JOB.uuid, _JOBS), _JOB.active_key.is_not(None)
)
_TABLE = db_session.table(_JOB)
_TASK = db_session.table(models.Task)
# Jobs whose ids are the parameter ``keys``, and the tasks in flight that want them.
THE_JOBS = expressions.among(_TABLE.c.uuid, expressions.keys())
THEIR_TASKS = sa.and_(
    expressions.among(_TASK.c.job_uuid, expressions.keys()),
    _TASK.c.status.in_(model.TASK_IN_FLIGHT),
)
_ITS_KEY = expressions.among(_TABLE.c.active_key, expressions.keys())
_LEAST = sa.bindparam('least_priority', type_=sa.Integer())
_LOCK = (
    sa.update(_TABLE)
    .where(_ITS_KEY)
    .values(priority=sa.case((_TABLE.c.priority < _LEAST, _LEAST), else_=_TABLE.c.priority))
)
# On PostgreSQL an UPDATE locks rows in the order in which it finds them, and writes a new version
# of each. This order is also that of the chunks, whatever the collation of the database.
_LOCK_IN_ORDER = (
    sa.select(_TABLE.c.id)
    .where(_ITS_KEY)
    .order_by(_TABLE.c.active_key.collate('C'))
    .with_for_update()
)
_RAISE = sa.update(_TABLE).where(_ITS_KEY, _TABLE.c.priority < _LEAST).values(priority=_LEAST)
_ANY_PRIORITY = -(2**31)
_KEYS_AT_ONCE = 1000
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
        _JOB.stop_keep,
        _CLAIM.epoch,
        job_claim.due(expressions.database_now()).label('is_due'),
        models.Agent.agent_id,
        expressions.database_now(),
    )
    .outerjoin(_CLAIM, sa.and_(_CLAIM.host == _JOB.host, _CLAIM.conductor_id.is_not(None)))
    .outerjoin(models.Agent, models.Agent.host == _JOB.host)
    .where(expressions.among(_JOB.uuid, _JOBS), _JOB.active_key.is_not(None))
)


def lock(
    session: orm.Session, job_ids: Collection[str], keys: Mapping[str, str] | None = None
) -> Mapping[str, Locked]:
    """Lock the active ones of the jobs, and map them to their state.

    :param keys: more jobs by id, with their active keys
    """
    known = keys or {}
    if not lock_jobs(session, job_ids, known):
        return {}
    jobs = {'jobs': sorted({*job_ids, *known})}
    return {row[0]: Locked(*row) for row in db_session.run(session, _LOOK, jobs)}


def lock_jobs(
    session: orm.Session, job_ids: Collection[str], keys: Mapping[str, str] | None = None
) -> bool:
    """Lock the active ones of the jobs; return False if none is active."""
    found = dict(keys or {})
    unknown = sorted(set(job_ids) - found.keys())
    if unknown:
        found.update(tuple(row) for row in db_session.run(session, _KEYS, {'jobs': unknown}))
    lock_keys(session, found.values())
    return bool(found)


def lock_keys(
    session: orm.Session, keys: Collection[str], least_priority: int = _ANY_PRIORITY
) -> None:
    """Lock active jobs by their active keys, so that none is joined or ended meanwhile.

    :param least_priority: raise their priority to this one
    """
    is_postgresql = session.get_bind().dialect.name == 'postgresql'
    for chunk in db_session.chunks(sorted(keys), _KEYS_AT_ONCE):
        values = {'keys': chunk, 'least_priority': least_priority}
        if not is_postgresql:
            db_session.run(session, _LOCK, values)
            continue
        db_session.run(session, _LOCK_IN_ORDER, {'keys': chunk})
        if least_priority > _ANY_PRIORITY:
            db_session.run(session, _RAISE, values)
