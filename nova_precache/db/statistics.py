# SPDX-License-Identifier: Apache-2.0
"""Counts for the whole service, computed by the database.

Each is one aggregate query. Ended requests, with their tasks, and ended jobs are not counted:
there may be many, kept for long.
"""

import dataclasses
import datetime
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import hearing, standing, task_counts
from nova_precache.db.engine import expressions, models, session as db_session


@dataclasses.dataclass(frozen=True)
class HostCount:
    """The hosts of a cell by whether they can be called.

    :ivar unknown: silent hosts of a cell that could not be heard recently, and hosts whose state
        their cell's database does not report
    """

    up: int
    down: int
    unknown: int = 0


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts at one moment.

    :ivar requests: unfinished requests by status
    :ivar tasks: the tasks of these requests by status
    :ivar jobs_ready: waiting jobs that may be called
    :ivar jobs_held: waiting jobs that no request lets run now
    :ivar jobs_retry_wait: jobs that wait for their next attempt
    :ivar jobs_working: jobs that a compute works on
    :ivar claimed_hosts: hosts that a conductor has claimed
    :ivar hosts: by cell uuid
    :ivar oldest_ready_seconds: since the oldest job that may be called was planned; 0 without one
    :ivar silent_seconds: for which a cell has not been heard, by cell uuid; 0 while it is
    """

    requests: Mapping[str, int]
    tasks: Mapping[str, int]
    jobs_ready: int
    jobs_held: int
    jobs_retry_wait: int
    jobs_working: int
    claimed_hosts: int
    hosts: Mapping[str, HostCount]
    oldest_ready_seconds: float = 0.0
    silent_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Statistics:
    """Counts requests, tasks, jobs and hosts in the database."""

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)

    def take(self) -> Count:
        """Count now, in one read-only transaction."""
        with self._database.reader() as session:
            return Count(
                requests=_requests(session),
                tasks=_tasks(session),
                **_jobs(session),
                claimed_hosts=_claimed_hosts(session),
                hosts=_hosts(session, self._down),
                oldest_ready_seconds=_oldest_ready_seconds(session),
                silent_seconds=_silent_seconds(session),
            )

    def hosts(self) -> Mapping[str, HostCount]:
        """Count the hosts of each cell."""
        with self._database.reader() as session:
            return _hosts(session, self._down)


def _requests(session: orm.Session) -> dict[str, int]:
    row = models.CacheRequest
    query = (
        sa.select(row.status, sa.func.count())
        .where(row.status.in_(model.REQUEST_ACTIVE))
        .group_by(row.status)
    )
    return dict(session.execute(query).all())


def _tasks(session: orm.Session) -> dict[str, int]:
    request = models.CacheRequest
    active = sa.select(request.id).where(request.status.in_(model.REQUEST_ACTIVE))
    each = task_counts.totals(active).subquery()
    query = sa.select(each.c.status, sa.func.sum(each.c.tasks)).group_by(each.c.status)
    return {status: int(tasks) for status, tasks in session.execute(query) if tasks > 0}


def _jobs(session: orm.Session) -> dict[str, int]:
    job = models.Job
    query = (
        sa.select(job.status, job.ready, sa.func.count())
        .where(job.status.in_(model.TASK_IN_FLIGHT))
        .group_by(job.status, job.ready)
    )
    counted = dict.fromkeys(('jobs_working', 'jobs_held', 'jobs_retry_wait', 'jobs_ready'), 0)
    for status, ready, number in session.execute(query):
        counted[_waits_for(status, ready)] += number
    return counted


def _waits_for(status: str, ready: bool) -> str:
    if status in model.TASK_WORKING:
        return 'jobs_working'
    if not ready:
        return 'jobs_held'
    return 'jobs_retry_wait' if status == model.TaskStatus.RETRY_WAIT else 'jobs_ready'


def _oldest_ready_seconds(session: orm.Session) -> float:
    job = models.Job
    ready = sa.and_(job.status == model.TaskStatus.QUEUED, job.ready)
    query = sa.select(sa.func.min(job.created_at), expressions.database_now()).where(ready)
    oldest, now = session.execute(query).one()
    return 0.0 if oldest is None else _seconds(now - oldest)


def _silent_seconds(session: orm.Session) -> dict[str, float]:
    now = db_session.now(session)
    cells = hearing.every(session)
    return {cell_uuid: _seconds(now - heard.until) for cell_uuid, heard in cells.items()}


def _seconds(age: datetime.timedelta) -> float:
    return max(0.0, age.total_seconds())


def _claimed_hosts(session: orm.Session) -> int:
    claim = models.Claim
    held = sa.select(sa.func.count()).where(claim.conductor_id.is_not(None))
    return session.scalars(held).one()


def _hosts(session: orm.Session, down: datetime.timedelta) -> dict[str, HostCount]:
    agent, now = models.Agent, db_session.now(session)
    numbers = (
        sa.func.sum(sa.case((_has(status, now, down), 1), else_=0)).label(status)
        for status in model.HostStatus
    )
    query = sa.select(agent.cell_uuid, *numbers).group_by(agent.cell_uuid)
    return {
        row.cell_uuid: HostCount(up=int(row.up), down=int(row.down), unknown=int(row.unknown))
        for row in session.execute(query)
    }


def _has(
    status: model.HostStatus, now: datetime.datetime, down: datetime.timedelta
) -> sa.ColumnElement[bool]:
    agent = models.Agent
    return standing.has_status(agent, agent.cell_uuid, status, now, down)
