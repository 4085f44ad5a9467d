# SPDX-License-Identifier: Apache-2.0
"""Requests with ``max_parallel_hosts``, inside a transaction: on how many hosts they are busy.

It is held by those who claim hosts and call jobs, who take turns by the counter's lock.
While no request that is worked on has such a limit, it costs them one short query. A host is
busy while a job is called there, so between two images another host may take its place.
"""

import collections
import dataclasses
import types
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


class HostLimits:
    """On which hosts each request with a limit is busy; counts what a batch adds.

    :ivar limits: request id to its limit
    """

    def __init__(self, limits: Mapping[str, int], busy: Mapping[str, Collection[str]]) -> None:
        self.limits = limits
        self._busy = {request_id: set(busy.get(request_id, ())) for request_id in limits}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def saturated(self) -> list[SaturatedRequest]:
        """Return the requests that are busy on as many hosts as they may be."""
        return [
            SaturatedRequest(request_id, sorted(self._busy[request_id]))
            for request_id, limit in sorted(self.limits.items())
            if len(self._busy[request_id]) >= limit
        ]

    def take(self, host: str, wanted_by: Mapping[str, bool]) -> bool:
        """Count a call on a host for the requests that want its job, if one of them lets it run.

        :param wanted_by: request id to whether its task is open
        """
        may_run = (
            is_open
            and (
                each not in self.limits
                or host in self._busy[each]
                or len(self._busy[each]) < self.limits[each]
            )
            for each, is_open in wanted_by.items()
        )
        if not any(may_run):
            return False
        for each in self.limits.keys() & wanted_by.keys():
            self._busy[each].add(host)
        return True


NONE = HostLimits({}, {})


def load(session: orm.Session, ended: Mapping[str, int] = types.MappingProxyType({})) -> HostLimits:
    """Load the limits of the requests that are worked on; the caller holds the counter's lock.

    :param ended: job ids to the epochs of calls that are over, which keep no host busy
    """
    limits = {request_id: limit or 0 for request_id, limit in db_session.run(session, _LIMITS)}
    return HostLimits(limits, _busy(session, limits, ended) if limits else {})


def wanted_by(session: orm.Session, job_ids: Sequence[str]) -> Mapping[str, dict[str, bool]]:
    """Map jobs to the requests with a task of theirs in flight, and those to whether it is open."""
    task = models.Task
    found: collections.defaultdict[str, dict[str, bool]] = collections.defaultdict(dict)
    for chunk in db_session.chunks(job_ids):
        # By its jobs alone, or a database may go through all tasks of a request.
        query = sa.select(task.job_uuid, task.request_id, task.status, task.open).where(
            task.job_uuid.in_(chunk)
        )
        for row in session.execute(query):
            if row.status in model.TASK_IN_FLIGHT:
                found[row.job_uuid or ''][row.request_id] = row.open
    return found


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


def _busy(
    session: orm.Session, limited: Collection[str], ended: Mapping[str, int]
) -> Mapping[str, Collection[str]]:
    """Map the requests to the hosts on which a compute works on what they want, or is called."""
    job, hosts = models.Job, dict[str, str]()
    claimed = sa.select(models.Claim.host).where(models.Claim.conductor_id.is_not(None))
    is_called = sa.and_(
        job.host.in_(claimed), job.status.in_(model.TASK_WAITING), job.epoch.is_not(None)
    )
    for which in (is_called, job.status.in_(model.TASK_WORKING)):
        query = sa.select(job.uuid, job.host, job.epoch).where(which)
        hosts.update(
            (uuid, host)
            for uuid, host, epoch in session.execute(query)
            if uuid not in ended or ended[uuid] != epoch
        )
    busy: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
    for job_id, requests in wanted_by(session, sorted(hosts)).items():
        for request_id in requests:
            if request_id in limited:
                busy[request_id].add(hosts[job_id])
    return busy
