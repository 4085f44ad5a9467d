# SPDX-License-Identifier: Apache-2.0
"""Requests with ``max_parallel_hosts``, inside a transaction: the hosts on which they are busy.

Transactions that claim hosts or call jobs keep the limit; the counter's lock serialises them.
While no active request has such a limit, this costs them one short query. A host is busy while
a job is called there, so between two images another host may take its place.
"""

import collections
import dataclasses
import types
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim


@dataclasses.dataclass(frozen=True)
class SaturatedRequest:
    """A request at its limit of busy hosts: more of its work may begin on these hosts only."""

    request_id: str
    hosts: Collection[str]


_REQUEST, _JOB, _TASK = models.CacheRequest, models.Job, models.Task
_LIMITS = sa.select(_REQUEST.id, _REQUEST.max_parallel_hosts).where(
    expressions.one_of(_REQUEST.status, model.REQUEST_ACTIVE),
    _REQUEST.max_parallel_hosts.is_not(None),
)
_JOBS = sa.select(_JOB.uuid, _JOB.host, _JOB.epoch)
# The jobs for which a compute is called, and those that one works on.
_BUSY = (
    _JOBS.where(
        _JOB.host.in_(sa.select(models.Claim.host).where(job_claim.held())),
        expressions.one_of(_JOB.status, model.TASK_WAITING),
        _JOB.epoch.is_not(None),
    ),
    _JOBS.where(expressions.one_of(_JOB.status, model.TASK_WORKING)),
)
# By job alone: otherwise a database may scan all tasks of a request.
_WANTED = sa.select(_TASK.job_uuid, _TASK.request_id, _TASK.status, _TASK.open).where(
    _TASK.job_uuid.in_(expressions.keys())
)


class HostLimits:
    """The hosts on which each request with a limit is busy, with those that a batch adds.

    :ivar limits: request id to its limit
    """

    def __init__(self, limits: Mapping[str, int], busy: Mapping[str, Collection[str]]) -> None:
        self.limits = limits
        self._busy = {request_id: set(busy.get(request_id, ())) for request_id in limits}
        self._full = {each for each in limits if len(self._busy[each]) >= limits[each]}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def busy_hosts(self, request_id: str) -> Collection[str]:
        """Return the hosts on which a request with a limit is busy."""
        return frozenset(self._busy.get(request_id, ()))

    def saturated(self) -> list[SaturatedRequest]:
        """Return the requests at their limit of busy hosts."""
        return [
            SaturatedRequest(request_id, sorted(self._busy[request_id]))
            for request_id in sorted(self._full)
        ]

    def count_saturated(self) -> int:
        return len(self._full)

    def take(self, host: str, wanted_by: Mapping[str, bool]) -> bool:
        """Count a call for the requests that want its job; return False if none lets it run.

        :param wanted_by: request id to whether its task is open
        """
        may_run = (
            is_open
            and (each not in self.limits or host in self._busy[each] or each not in self._full)
            for each, is_open in wanted_by.items()
        )
        if not any(may_run):
            return False
        for each in self.limits.keys() & wanted_by.keys():
            self._busy[each].add(host)
            if len(self._busy[each]) >= self.limits[each]:
                self._full.add(each)
        return True


NONE = HostLimits({}, {})


def load(session: orm.Session, ended: Mapping[str, int] = types.MappingProxyType({})) -> HostLimits:
    """Load the limits of the requests that are worked on; the caller holds the counter's lock.

    :param ended: job ids to the epochs of calls that are over, which keep no host busy
    """
    limits = {request_id: limit or 0 for request_id, limit in db_session.run(session, _LIMITS)}
    return HostLimits(limits, _busy(session, limits, ended) if limits else {})


def wanted_by(session: orm.Session, job_ids: Sequence[str]) -> Mapping[str, dict[str, bool]]:
    """Map jobs to the requests with a task in flight, and those to whether the task is open."""
    found: collections.defaultdict[str, dict[str, bool]] = collections.defaultdict(dict)
    for chunk in db_session.chunks(job_ids):
        for row in db_session.run(session, _WANTED, {'keys': chunk}):
            if row.status in model.TASK_IN_FLIGHT:
                found[row.job_uuid or ''][row.request_id] = row.open
    return found


def free_hosts(session: orm.Session, full: Collection[SaturatedRequest]) -> Sequence[str] | None:
    """Return the only hosts that may be claimed; None if other requests have work elsewhere."""
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
    claimed = sa.select(models.Claim.host).where(job_claim.held())
    busy = {host for each in full for host in each.hosts}
    return sorted(busy - set(session.scalars(claimed)))


def lets_run(
    full: Collection[SaturatedRequest], job_uuid: sa.SQLColumnExpression[str] | None = None
) -> sa.ColumnElement[bool]:
    """Select jobs that at least one of the requests that want them lets run.

    :param job_uuid: the column that names the job; by default, that of the table of jobs
    """
    task = models.Task
    on_busy_host = (
        sa.and_(task.request_id == each.request_id, task.host.in_(each.hosts)) for each in full
    )
    allowed = sa.or_(task.request_id.not_in([each.request_id for each in full]), *on_busy_host)
    return sa.exists().where(
        task.job_uuid == (models.Job.uuid if job_uuid is None else job_uuid),
        task.status.in_(model.TASK_IN_FLIGHT),
        task.open,
        allowed,
    )


def _busy(
    session: orm.Session, limited: Collection[str], ended: Mapping[str, int]
) -> Mapping[str, Collection[str]]:
    """Map requests to the hosts where a compute works on, or is called for, a job they want."""
    hosts = {
        uuid: host
        for statement in _BUSY
        for uuid, host, epoch in db_session.run(session, statement)
        if uuid not in ended or ended[uuid] != epoch
    }
    busy: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
    for job_id, requests in wanted_by(session, sorted(hosts)).items():
        for request_id in requests:
            if request_id in limited:
                busy[request_id].add(hosts[job_id])
    return busy
