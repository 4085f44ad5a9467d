# SPDX-License-Identifier: Apache-2.0
"""Claims on hosts, inside a transaction: which host a conductor may call, and for how long.

The parallelism limit is the row ``claimed_hosts`` of ``counters``, changed in
the transaction that makes or ends a claim. Each such transaction locks that row
first, which serialises them on every database.
"""

import dataclasses
import datetime
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import host_limits

CLAIMED_HOSTS = 'claimed_hosts'


_CLAIM, _COUNTER = db_session.table(models.Claim), db_session.table(models.Counter)
_HOSTS: sa.BindParameter[Any] = sa.bindparam('hosts', expanding=True)
_IS_HELD = sa.and_(_CLAIM.c.host.in_(_HOSTS), _CLAIM.c.conductor_id == sa.bindparam('conductor'))
_FENCE = sa.update(_CLAIM).where(_IS_HELD).values(epoch=_CLAIM.c.epoch + 1)
_HELD = sa.select(_CLAIM.c.host, _CLAIM.c.epoch).where(_IS_HELD)
_RELEASE = sa.update(_CLAIM).where(_IS_HELD).values(conductor_id=None, lease_expires_at=None)
_CLAIMED = sa.select(sa.func.count()).select_from(_CLAIM).where(_CLAIM.c.conductor_id.is_not(None))
_COUNT = _CLAIMED.add_columns(db_session.database_now())
_IS_COUNTER = _COUNTER.c.name == CLAIMED_HOSTS
_LOCK_COUNTER = sa.update(_COUNTER).where(_IS_COUNTER).values(value=_COUNTER.c.value)
_SET_COUNTER = sa.update(_COUNTER).where(_IS_COUNTER).values(value=sa.bindparam('to_value'))
_COUNT_ANEW = sa.update(_COUNTER).where(_IS_COUNTER).values(value=_CLAIMED.scalar_subquery())


_KNOWN = sa.select(_CLAIM.c.host, _CLAIM.c.epoch, _CLAIM.c.cell_uuid).where(
    _CLAIM.c.host.in_(_HOSTS)
)
_LEASED: dict[str, sa.BindParameter[Any]] = {
    'conductor_id': sa.bindparam('to_conductor'),
    'lease_expires_at': sa.bindparam('until'),
}
_TO_CELL: sa.BindParameter[Any] = sa.bindparam('to_cell')
_LEASE = sa.insert(_CLAIM).values(
    host=sa.bindparam('of_host'), epoch=1, cell_uuid=_TO_CELL, **_LEASED
)
_LEASE_AGAIN = (
    sa.update(_CLAIM)
    .where(_CLAIM.c.host.in_(db_session.keys()))
    .values(epoch=_CLAIM.c.epoch + 1, **_LEASED)
)
_MOVE = sa.update(_CLAIM).where(_CLAIM.c.host.in_(db_session.keys())).values(cell_uuid=_TO_CELL)
# Number of jobs read per host to claim; the larger one only if hosts have several jobs, of
# which only the first is used.
_JOBS_A_HOST = (2, 8)


@dataclasses.dataclass(frozen=True)
class ClaimRequest:
    """A conductor asks for as many hosts as it may claim at once.

    :ivar limit: maximum of claimed hosts over all conductors
    :ivar most: maximum of hosts to claim now
    """

    conductor_id: str
    limit: int
    most: int
    avoid_cells: Collection[str]
    lease: datetime.timedelta


@dataclasses.dataclass(frozen=True)
class ClaimBudget:
    """The number of hosts claimed by all conductors, at a moment of the database's clock."""

    claimed: int
    now: datetime.datetime

    def free(self, wanted: ClaimRequest, given_back: int = 0) -> int:
        """Count the hosts that may still be claimed.

        :param given_back: hosts that may be released before the claim
        """
        return max(0, min(wanted.limit - self.claimed + given_back, wanted.most))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A host that this conductor may call until the lease expires."""

    host: str
    cell_uuid: str
    epoch: int


def budget(session: orm.Session) -> ClaimBudget:
    """Count the live claims; the caller holds the counter's lock, and updates the counter."""
    return ClaimBudget(*db_session.run(session, _COUNT).one())


def acquire(
    session: orm.Session, wanted: ClaimRequest, among: Mapping[str, str], left: ClaimBudget
) -> list[Claim]:
    """Lease as many of the hosts as may be claimed; the caller still holds the counter's lock."""
    hosts = dict(itertools.islice(among.items(), left.free(wanted)))
    claims = _lease(session, wanted.conductor_id, hosts, left.now + wanted.lease)
    if claims:
        db_session.run(session, _SET_COUNTER, {'to_value': left.claimed + len(claims)})
    return claims


def take_over(session: orm.Session, conductor_id: str, lease: datetime.timedelta) -> list[Claim]:
    """Lease the hosts whose leases other conductors let expire; they still count as claimed."""
    lock_counter(session)
    now = db_session.now(session)
    expired = session.execute(
        sa.select(models.Claim.host, models.Claim.cell_uuid)
        .where(models.Claim.conductor_id != conductor_id, models.Claim.lease_expires_at < now)
        .order_by(models.Claim.lease_expires_at)
    )
    hosts = {row.host: row.cell_uuid for row in expired}
    return _lease(session, conductor_id, hosts, now + lease)


def _lease(
    session: orm.Session, conductor_id: str, hosts: Mapping[str, str], expires_at: datetime.datetime
) -> list[Claim]:
    if not hosts:
        return []
    known = {row.host: row for row in db_session.run(session, _KNOWN, {'hosts': sorted(hosts)})}
    lease = {'to_conductor': conductor_id, 'until': expires_at}
    if known:
        db_session.run(session, _LEASE_AGAIN, {**lease, 'keys': sorted(known)})
    moved = [row.host for row in known.values() if row.cell_uuid != hosts[row.host]]
    db_session.run_alike(session, _MOVE, [(host, {'to_cell': hosts[host]}) for host in moved])
    first = sorted(hosts.keys() - known.keys())
    if first:
        new = [{**lease, 'of_host': host, 'to_cell': hosts[host]} for host in first]
        db_session.run(session, _LEASE, new)
    epochs = {host: known[host].epoch + 1 if host in known else 1 for host in hosts}
    return [Claim(host, cell, epochs[host]) for host, cell in hosts.items()]


def most_urgent(
    session: orm.Session,
    avoid_cells: Collection[str],
    count: int,
    limits: host_limits.HostLimits,
    chosen: Collection[str] = (),
) -> Mapping[str, str]:
    """Map the hosts of the most urgent jobs to their cells; the caller holds the counter's lock.

    There may be more: jobs that are far from being next are not read.

    :param chosen: hosts to leave out
    """
    saturated = limits.saturated()
    only = host_limits.free_hosts(session, saturated) if saturated else None
    if only is not None and not only:
        return {}
    due_jobs = _due_within(saturated, only, chosen) if saturated or chosen else _DUE
    hosts: Mapping[str, str] = {}
    for jobs_a_host in _JOBS_A_HOST:
        page = jobs_a_host * count
        given = {'avoid': sorted(avoid_cells), 'rows': page}
        jobs = db_session.run(session, due_jobs, given).all()
        full = {status for status, rows in _by_status(jobs).items() if len(rows) == page}
        hosts = _first_hosts(jobs, full, count)
        if len(hosts) == count or not full:
            break
    return hosts


def _first_hosts(
    jobs: Sequence[sa.Row[*tuple[Any, ...]]], full: Collection[str], count: int
) -> Mapping[str, str]:
    """Choose the hosts of jobs; the statuses in ``full`` may have more jobs than were read."""
    # A job less urgent than the last of a full page has to wait for the next page.
    ends = [max(map(_rank, rows)) for status, rows in _by_status(jobs).items() if status in full]
    hosts: dict[str, str] = {}
    for job in sorted(jobs, key=_rank):
        if len(hosts) == count or (ends and _rank(job) > min(ends)):
            break
        hosts.setdefault(job.host, job.cell_uuid)
    return hosts


def _by_status(
    jobs: Sequence[sa.Row[*tuple[Any, ...]]],
) -> Mapping[str, Sequence[sa.Row[*tuple[Any, ...]]]]:
    found: dict[str, list[sa.Row[*tuple[Any, ...]]]] = {}
    for job in jobs:
        found.setdefault(job.status, []).append(job)
    return found


def _rank(job: sa.Row[*tuple[Any, ...]]) -> tuple[bool, int, int]:
    return job.status in model.TASK_WAITING, -job.priority, job.id


def release(session: orm.Session, conductor_id: str, hosts: Collection[str]) -> int:
    """Release those of the hosts that the conductor holds, and return their number.

    The caller holds the counter's lock.
    """
    held = {'conductor': conductor_id, 'hosts': sorted(hosts)}
    released = db_session.run(session, _RELEASE, held)
    db_session.run(session, _COUNT_ANEW)
    return db_session.rowcount(released)


def fence(session: orm.Session, conductor_id: str, hosts: Collection[str]) -> Mapping[str, int]:
    """Advance the epochs of those claims that the conductor holds, and map hosts to them."""
    if not hosts:
        return {}
    held = {'conductor': conductor_id, 'hosts': sorted(hosts)}
    db_session.run(session, _FENCE, held)
    return {row.host: row.epoch for row in db_session.run(session, _HELD, held)}


def lock_counter(session: orm.Session) -> None:
    """Serialise the transactions that claim hosts or call jobs under a limit."""
    db_session.run(session, _LOCK_COUNTER)


def due(
    now: datetime.datetime | db_session.database_now,
    statuses: Collection[str] = model.TASK_IN_FLIGHT,
    ready: sa.ColumnElement[bool] | orm.InstrumentedAttribute[bool] = models.Job.ready,
) -> sa.ColumnElement[bool]:
    """Select jobs that may be called now; a job that is to stop is not ready."""
    return sa.and_(
        ready,
        models.Job.status.in_(statuses),
        sa.or_(models.Job.next_attempt_at.is_(None), models.Job.next_attempt_at <= now),
    )


def unclaimed() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(
        models.Claim.host == models.Job.host, models.Claim.conductor_id.is_not(None)
    )


def urgency() -> tuple[sa.ColumnElement[int], ...]:
    """Order running transfers first: a call joins one, so that nothing runs beside it."""
    is_moving = sa.case((models.Job.status.in_(model.TASK_WORKING), 0), else_=1)
    return is_moving, models.Job.priority.desc(), models.Job.id.asc()


def _page(status: str, *conditions: sa.ColumnElement[bool]) -> sa.Select[*tuple[Any, ...]]:
    """Select the most urgent jobs in one status, in the order of the index."""
    job = models.Job
    page = (
        sa.select(job.host, job.cell_uuid, job.status, job.priority, job.id)
        .where(due(db_session.database_now(), [status]), unclaimed(), *conditions)
        .where(job.cell_uuid.not_in(sa.bindparam('avoid', expanding=True)))
        .order_by(job.priority.desc(), job.id)
        .limit(sa.bindparam('rows', type_=sa.Integer()))
        .subquery()
    )
    return sa.select(page)


def _pages(*conditions: sa.ColumnElement[bool]) -> sa.CompoundSelect[*tuple[Any, ...]]:
    return sa.union_all(*(_page(status, *conditions) for status in sorted(model.TASK_IN_FLIGHT)))


def _due_within(
    saturated: Collection[host_limits.SaturatedRequest],
    only: Collection[str] | None,
    chosen: Collection[str],
) -> sa.CompoundSelect[*tuple[Any, ...]]:
    """Select the due jobs that limits of requests let run, except on the chosen hosts."""
    conditions: list[sa.ColumnElement[bool]] = [models.Job.host.not_in(list(chosen))]
    if saturated:
        conditions.append(host_limits.lets_run(saturated))
    if only is not None:
        conditions.append(models.Job.host.in_(list(only)))
    return _pages(*conditions)


_DUE = _pages()
