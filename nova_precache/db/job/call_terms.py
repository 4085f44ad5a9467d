# SPDX-License-Identifier: Apache-2.0
"""The terms under which a job is called, and the measured rates of earlier jobs."""

import collections
import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import rows as db_rows
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand

_RECENT_DAYS = 30
_RECENT_JOBS = 5


@dataclasses.dataclass(frozen=True)
class Terms:
    """The combined terms of all tasks that want a job.

    :ivar max_rate_bytes: per second; None if a task sets no limit
    :ivar deadline_seconds: from now; None if a task sets none
    :ivar waits_for_host: while the host is down, the job waits for it
    :ivar request_id: of the API call that first asked for the job, as ``global_request_id``
    """

    max_rate_bytes: int | None = None
    deadline_seconds: float | None = None
    waits_for_host: bool = False
    request_id: str | None = None
    global_request_id: str | None = None


NONE = Terms()

_JOBS: sa.BindParameter[Any] = sa.bindparam('jobs', expanding=True)
_WANTING = (
    sa.select(
        models.Task.job_uuid,
        models.CacheRequest.options,
        models.CacheRequest.deadline,
        models.CacheRequest.number,
        models.CacheRequest.request_id,
        models.CacheRequest.global_request_id,
        db_session.database_now().label('now'),
    )
    .join(models.CacheRequest, models.CacheRequest.id == models.Task.request_id)
    .where(models.Task.job_uuid.in_(_JOBS), demand.wants(db_session.database_now()))
)


def terms(session: orm.Session, job_ids: Collection[str]) -> Mapping[str, Terms]:
    """Map jobs to their terms."""
    rows = db_session.run(session, _WANTING, {'jobs': list(job_ids)}).all()
    wanting = {job_id: [row for row in rows if row.job_uuid == job_id] for job_id in job_ids}
    return {job_id: _agreed(of_job) for job_id, of_job in wanting.items()}


def _agreed(rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> Terms:
    if not rows:
        return Terms(deadline_seconds=0)  # the last deadline has just passed
    options = [db_rows.options(row.options) for row in rows]
    rates = [each.max_rate_bytes for each in options if each.max_rate_bytes is not None]
    first = min(rows, key=lambda row: row.number)
    left = [(row.deadline - row.now).total_seconds() for row in rows if row.deadline is not None]
    return Terms(
        max_rate_bytes=max(rates) if rates and len(rates) == len(rows) else None,
        deadline_seconds=max(left) if left and len(left) == len(rows) else None,
        waits_for_host=any(each.wait_for_down_hosts for each in options),
        request_id=first.request_id,
        global_request_id=first.global_request_id,
    )


def measured_rates(session: orm.Session, hosts: Collection[str]) -> Mapping[str, float]:
    since = db_session.now(session) - datetime.timedelta(days=_RECENT_DAYS)
    moved: collections.Counter[str] = collections.Counter()
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for names in db_session.chunks(sorted(hosts)):
        for host, bytes_done, started_at, finished_at in session.execute(_recent(names, since)):
            moved[host] += bytes_done
            seconds[host] += (finished_at - started_at).total_seconds()
    return {host: moved[host] / seconds[host] for host in moved if seconds[host] > 0}


def _recent(
    hosts: Collection[str], since: datetime.datetime
) -> sa.Select[str, int, datetime.datetime, datetime.datetime]:
    """Select the last few jobs of each host that succeeded at the first attempt."""
    job = models.Job
    age = sa.func.row_number().over(partition_by=job.host, order_by=job.id.desc()).label('age')
    done = (
        sa.select(job.host, job.bytes_done, job.started_at, job.finished_at, age)
        .where(job.host.in_(hosts), job.status == model.TaskStatus.CACHED)
        .where(job.bytes_done > 0, job.attempts == 1, job.finished_at >= since)
        .where(job.started_at.is_not(None))
        .subquery()
    )
    return sa.select(done.c.host, done.c.bytes_done, done.c.started_at, done.c.finished_at).where(
        done.c.age <= _RECENT_JOBS
    )
