# SPDX-License-Identifier: Apache-2.0
"""Requests with ``max_parallel_hosts``, inside a transaction: on how many hosts they are busy.

It is held by those who claim hosts and call jobs, who take turns by the counter's lock.
While no request that is worked on has such a limit, it costs them one short query.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session


@dataclasses.dataclass(frozen=True)
class SaturatedRequest:
    """A request that is busy on as many hosts as it may be: more work there may begin."""

    request_id: str
    hosts: Collection[str]


_REQUEST = models.CacheRequest
_LIMITS = sa.select(_REQUEST.id, _REQUEST.max_parallel_hosts).where(
    _REQUEST.status.in_(model.REQUEST_ACTIVE), _REQUEST.max_parallel_hosts.is_not(None)
)


def limits(session: orm.Session) -> dict[str, int]:
    """Map the requests that are worked on and have a limit to it."""
    return {request_id: limit or 0 for request_id, limit in db_session.run(session, _LIMITS)}


def full_to_claim(session: orm.Session, limited: Mapping[str, int]) -> list[SaturatedRequest]:
    """Give the requests for which no other host is to be claimed.

    A claimed host on which nothing is called yet counts for all that it may be claimed for.
    """
    job, called = models.Job, orm.aliased(models.Job)
    is_called = sa.exists().where(
        called.host == job.host,
        called.status.in_(model.TASK_IN_FLIGHT),
        called.epoch.is_not(None),
    )
    to_call = sa.and_(_is_claimed(), job.ready, ~is_called)
    return _full(limited, _busy(session, limited, *_called(), to_call))


def full_to_call(
    session: orm.Session, limited: Mapping[str, int], host: str
) -> list[SaturatedRequest]:
    """Give the requests of which no job is to be called on a host that is not busy for them."""
    busy = _busy(session, limited, *_called())
    others = {request_id: hosts - {host} for request_id, hosts in busy.items()}
    return _full(limited, others)


def free_hosts(session: orm.Session, full: Collection[SaturatedRequest]) -> Sequence[str] | None:
    """Give the only hosts that may be claimed; None when other requests have work elsewhere."""
    request = models.CacheRequest
    in_flight = sa.exists().where(
        models.Task.request_id == request.id, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    others = (
        sa.select(request.id)
        .where(request.status.in_(model.REQUEST_ACTIVE), request.is_planned, in_flight)
        .where(request.status != model.RequestStatus.PAUSED)
        .where(request.id.not_in([each.request_id for each in full]))
    )
    if session.scalars(others.limit(1)).first() is not None:
        return None
    claimed = sa.select(models.Claim.host).where(models.Claim.conductor_id.is_not(None))
    busy = {host for each in full for host in each.hosts}
    return sorted(busy - set(session.scalars(claimed)))


def lets_run(full: Collection[SaturatedRequest]) -> sa.ColumnElement[bool]:
    """Of a job: one of the requests that want it lets it run."""
    task = models.Task
    on_busy_host = (
        sa.and_(task.request_id == each.request_id, task.host.in_(each.hosts)) for each in full
    )
    allowed = sa.or_(task.request_id.not_in([each.request_id for each in full]), *on_busy_host)
    return sa.exists().where(
        task.job_uuid == models.Job.uuid,
        task.status.in_(model.TASK_IN_FLIGHT),
        task.open,
        allowed,
    )


def _called() -> tuple[sa.ColumnElement[bool], ...]:
    """Of a job: a compute works on it, or a conductor that holds its host has called it."""
    job = models.Job
    return job.status.in_(model.TASK_WORKING), sa.and_(_is_claimed(), job.epoch.is_not(None))


def _is_claimed() -> sa.ColumnElement[bool]:
    claimed = sa.select(models.Claim.host).where(models.Claim.conductor_id.is_not(None))
    return sa.and_(models.Job.host.in_(claimed), models.Job.status.in_(model.TASK_WAITING))


def _busy(
    session: orm.Session, limited: Collection[str], *which: sa.ColumnElement[bool]
) -> dict[str, set[str]]:
    """Map the requests to the hosts of those jobs that they want."""
    hosts: dict[str, str] = {}
    for jobs in which:
        query = sa.select(models.Job.uuid, models.Job.host).where(jobs)
        hosts.update((uuid, host) for uuid, host in session.execute(query))
    busy: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
    task = models.Task
    for chunk in db_session.chunks(sorted(hosts)):
        # By its jobs alone, or a database may go through all tasks of a request.
        wanting = sa.select(task.job_uuid, task.request_id, task.status).where(
            task.job_uuid.in_(chunk)
        )
        for uuid, request_id, status in session.execute(wanting):
            if request_id in limited and status in model.TASK_IN_FLIGHT:
                busy[request_id].add(hosts[uuid or ''])
    return busy


def _full(
    limited: Mapping[str, int], busy: Mapping[str, Collection[str]]
) -> list[SaturatedRequest]:
    return [
        SaturatedRequest(request_id, sorted(busy.get(request_id, ())))
        for request_id, limit in sorted(limited.items())
        if len(busy.get(request_id, ())) >= limit
    ]
