# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait for a host that is down: they become due as soon as it reports again.

This saves polling the host.
"""

import datetime
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import standing
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import locking, outcome as job_outcome

# Prefix of the reason of jobs that wait for such a host; see agents.Agents.down.
DOWN = 'host down'
# The same for a nova-compute; see cells.services.
DISABLED = 'host disabled'
BATCH_JOBS = 1000


class AgentHostRecovery:
    """Jobs whose hosts have come back."""

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)

    def hasten(self) -> int:
        """Make up to BATCH_JOBS of these jobs due now; return their number."""
        with self._database.reader() as session:
            job_ids = sorted(session.scalars(self._returned(session)))
        if not job_ids:
            return 0
        return self._database.write(lambda session: _make_due(session, job_ids))

    def _returned(self, session: orm.Session) -> sa.Select[str]:
        now = db_session.now(session)
        is_up = sa.exists().where(
            models.Agent.host == models.Job.host, standing.is_up(models.Agent, now, self._down)
        )
        waits = sa.and_(
            models.Job.status == model.TaskStatus.RETRY_WAIT,
            models.Job.next_attempt_at > now,
            models.Job.reason.startswith(DOWN),
        )
        return sa.select(models.Job.uuid).where(waits, is_up).limit(BATCH_JOBS)


class Waiting:
    """Jobs that wait for hosts, where the caller knows which hosts are back."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def hosts(self) -> Sequence[str]:
        """List the hosts that jobs wait for."""
        query = sa.select(models.Job.host).where(self._waits()).distinct()
        with self._database.reader() as session:
            return session.scalars(query).all()

    def hasten(self, hosts: Collection[str]) -> int:
        """Make jobs of hosts that are back due now, some at a time; return their number."""
        job_ids: list[str] = []
        with self._database.reader() as session:
            for chunk in db_session.chunks(sorted(hosts)):
                these = sa.select(models.Job.uuid).where(models.Job.host.in_(chunk))
                job_ids += session.scalars(these.where(self._waits()).limit(BATCH_JOBS))
        if not job_ids:
            return 0
        return self._database.write(lambda session: _make_due(session, sorted(job_ids)))

    def _waits(self) -> sa.ColumnElement[bool]:
        job = models.Job
        is_away = sa.or_(*(job.reason.startswith(word) for word in (DOWN, DISABLED)))
        return sa.and_(
            job.status == model.TaskStatus.RETRY_WAIT,
            job.next_attempt_at > expressions.database_now(),
            is_away,
        )


def _make_due(session: orm.Session, job_ids: list[str]) -> int:
    locking.lock_jobs(session, job_ids)
    chunks = db_session.chunks(job_ids)
    return sum(job_outcome.make_due(session, models.Job.uuid.in_(chunk)) for chunk in chunks)
