# SPDX-License-Identifier: Apache-2.0
"""Claims on hosts, inside a transaction: which host a conductor may call, and for how long.

A claimed host holds a Glance stream until it releases that, as it may while it reads from
another host. The limit of parallelism counts streams: each transaction that claims or releases
a host or a stream locks the row ``claimed_hosts`` of ``counters`` first, which serialises them
on every database, and counts the claims.

The row of a claim names the conductor that released its stream. Under any other conductor it
holds one: a conductor of an earlier release, which counts each claim as a stream, may take it over
or claim the host again, and lets it read from Glance.
"""

import dataclasses
import datetime
import itertools
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session

CLAIMED_HOSTS = 'claimed_hosts'


_CLAIM, _COUNTER = db_session.table(models.Claim), db_session.table(models.Counter)
_HOSTS: sa.BindParameter[Any] = sa.bindparam('hosts', expanding=True)
_IS_HELD = sa.and_(_CLAIM.c.host.in_(_HOSTS), _CLAIM.c.conductor_id == sa.bindparam('conductor'))
_FENCE = sa.update(_CLAIM).where(_IS_HELD).values(epoch=_CLAIM.c.epoch + 1)
_RELEASE = sa.update(_CLAIM).where(_IS_HELD).values(conductor_id=None, lease_expires_at=None)
# SQLite uses no index for IS NOT NULL.
_IS_CLAIMED = _CLAIM.c.conductor_id > ''
_HOLDS_STREAM = sa.or_(
    _CLAIM.c.stream_released_by.is_(None), _CLAIM.c.stream_released_by != _CLAIM.c.conductor_id
)
_CLAIMED = sa.select(sa.func.count()).select_from(_CLAIM).where(_IS_CLAIMED)
_COUNT = (
    sa.select(
        _CLAIM.c.cell_uuid,
        sa.func.count().label('hosts'),
        sa.func.count(sa.case((_HOLDS_STREAM, 1))).label('streams'),
    )
    .where(_IS_CLAIMED)
    .group_by(_CLAIM.c.cell_uuid)
)
_CLAIMS = sa.select(
    _CLAIM.c.host, _CLAIM.c.cell_uuid, _CLAIM.c.epoch, _HOLDS_STREAM.label('holds_stream')
)
_HELD = _CLAIMS.where(_IS_HELD)
_OF_CONDUCTOR = _CLAIMS.where(_CLAIM.c.conductor_id == sa.bindparam('conductor'))
_IS_COUNTER = _COUNTER.c.name == CLAIMED_HOSTS
_LOCK_COUNTER = sa.update(_COUNTER).where(_IS_COUNTER).values(value=_COUNTER.c.value)
_SET_COUNTER = sa.update(_COUNTER).where(_IS_COUNTER).values(value=sa.bindparam('to_value'))
_NOW = sa.select(expressions.database_now())
_COUNT_ANEW = sa.update(_COUNTER).where(_IS_COUNTER).values(value=_CLAIMED.scalar_subquery())


_KNOWN = sa.select(_CLAIM.c.host, _CLAIM.c.epoch, _CLAIM.c.cell_uuid).where(
    _CLAIM.c.host.in_(_HOSTS)
)
_LEASED: dict[str, sa.BindParameter[Any] | None] = {
    'conductor_id': sa.bindparam('to_conductor'),
    'lease_expires_at': sa.bindparam('until'),
    'stream_released_by': None,
}
_TO_CELL: sa.BindParameter[Any] = sa.bindparam('to_cell')
_LEASE = sa.insert(_CLAIM).values(
    host=sa.bindparam('of_host'), epoch=1, cell_uuid=_TO_CELL, **_LEASED
)
_LEASE_AGAIN = (
    sa.update(_CLAIM)
    .where(_CLAIM.c.host.in_(expressions.keys()))
    .values(epoch=_CLAIM.c.epoch + 1, **_LEASED)
)
_MOVE = sa.update(_CLAIM).where(_CLAIM.c.host.in_(expressions.keys())).values(cell_uuid=_TO_CELL)
_IS_CALLED = sa.and_(
    _IS_CLAIMED,
    _CLAIM.c.host == sa.bindparam('of_host'),
    _CLAIM.c.epoch == sa.bindparam('of_epoch'),
)
_CALLED = _CLAIMS.where(_IS_CALLED)
_RELEASE_STREAM = (
    sa.update(_CLAIM).where(_IS_CALLED).values(stream_released_by=_CLAIM.c.conductor_id)
)
_ACQUIRE_STREAM = sa.update(_CLAIM).where(_IS_CALLED).values(stream_released_by=None)
_RELEASE_STREAMS = (
    sa.update(_CLAIM).where(_IS_HELD).values(stream_released_by=_CLAIM.c.conductor_id)
)
# Hosts that one transaction claims or takes over at most: others wait for the counter's lock.
MOST_HOSTS = 200


@dataclasses.dataclass(frozen=True)
class Slots:
    """The slots that a conductor may fill now: a claimed host with a Glance stream fills one.

    :ivar limit: maximum of streams over all conductors
    :ivar most: maximum of hosts to claim now
    :ivar avoid_cells: uuids of cells that are not to be called now
    """

    limit: int
    most: int
    avoid_cells: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class ClaimRequest:
    """A conductor asks for as many hosts as it may claim at once, each with a Glance stream.

    :ivar limit: maximum of streams over all conductors
    :ivar most: maximum of hosts to claim now
    """

    conductor_id: str
    limit: int
    most: int
    avoid_cells: Collection[str]
    lease: datetime.timedelta


@dataclasses.dataclass(frozen=True)
class ClaimBudget:
    """The hosts claimed by all conductors, and the Glance streams that they hold.

    :ivar by_cell: number of streams by cell
    """

    hosts: int
    by_cell: Mapping[str, int]

    @property
    def streams(self) -> int:
        return sum(self.by_cell.values())

    def free(self, wanted: ClaimRequest, given_back: int = 0) -> int:
        """Count the hosts that may still be claimed at once.

        :param given_back: streams that may be released before the claim
        """
        left = wanted.limit - self.streams + given_back
        return max(0, min(left, wanted.most, MOST_HOSTS))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A host that this conductor may call until the lease expires.

    :ivar holds_stream: it may read from Glance
    """

    host: str
    cell_uuid: str
    epoch: int
    holds_stream: bool = True


def budget(session: orm.Session) -> ClaimBudget:
    """Count the live claims; the caller holds the counter's lock, and updates the counter."""
    rows = db_session.run(session, _COUNT).all()
    return ClaimBudget(sum(row.hosts for row in rows), {row.cell_uuid: row.streams for row in rows})


def acquire(
    session: orm.Session, wanted: ClaimRequest, among: Mapping[str, str], left: ClaimBudget
) -> list[Claim]:
    """Lease as many of the hosts as may be claimed; the caller still holds the counter's lock."""
    hosts = dict(itertools.islice(among.items(), left.free(wanted)))
    claims = _lease(session, wanted.conductor_id, hosts, wanted.lease)
    if claims:
        db_session.run(session, _SET_COUNTER, {'to_value': left.hosts + len(claims)})
    return claims


def take_over(session: orm.Session, conductor_id: str, lease: datetime.timedelta) -> list[Claim]:
    """Lease hosts whose leases other conductors let expire.

    They still count as claimed, and hold a stream only if they did before. There may be more than
    one transaction takes over.
    """
    lock_counter(session)
    now = db_session.now(session)
    expired = session.execute(
        sa.select(models.Claim.host, models.Claim.cell_uuid, _HOLDS_STREAM.label('holds_stream'))
        .where(models.Claim.conductor_id != conductor_id, models.Claim.lease_expires_at < now)
        .order_by(models.Claim.lease_expires_at)
        .limit(MOST_HOSTS)
    ).all()
    claims = _lease(session, conductor_id, {row.host: row.cell_uuid for row in expired}, lease)
    without = {row.host for row in expired if not row.holds_stream}
    if without:
        held = {'conductor': conductor_id, 'hosts': sorted(without)}
        db_session.run(session, _RELEASE_STREAMS, held)
    return [dataclasses.replace(each, holds_stream=each.host not in without) for each in claims]


def _lease(
    session: orm.Session, conductor_id: str, hosts: Mapping[str, str], lease: datetime.timedelta
) -> list[Claim]:
    if not hosts:
        return []
    expires_at = db_session.run(session, _NOW).scalar_one() + lease
    known = {row.host: row for row in db_session.run(session, _KNOWN, {'hosts': sorted(hosts)})}
    leased = {'to_conductor': conductor_id, 'until': expires_at}
    if known:
        db_session.run(session, _LEASE_AGAIN, {**leased, 'keys': sorted(known)})
    moved = [row.host for row in known.values() if row.cell_uuid != hosts[row.host]]
    db_session.run_alike(session, _MOVE, [(host, {'to_cell': hosts[host]}) for host in moved])
    first = sorted(hosts.keys() - known.keys())
    if first:
        new = [{**leased, 'of_host': host, 'to_cell': hosts[host]} for host in first]
        db_session.run(session, _LEASE, new)
    epochs = {host: known[host].epoch + 1 if host in known else 1 for host in hosts}
    return [Claim(host, cell, epochs[host]) for host, cell in hosts.items()]


def release(session: orm.Session, conductor_id: str, hosts: Collection[str]) -> int:
    """Release those of the hosts that the conductor holds, and return their number.

    The caller holds the counter's lock.
    """
    released = 0
    for chunk in db_session.chunks(sorted(hosts)):
        held = {'conductor': conductor_id, 'hosts': chunk}
        released += db_session.rowcount(db_session.run(session, _RELEASE, held))
    db_session.run(session, _COUNT_ANEW)
    return released


def fence(session: orm.Session, conductor_id: str, hosts: Collection[str]) -> Mapping[str, Claim]:
    """Advance the epochs of those claims that the conductor holds, and map hosts to them."""
    if not hosts:
        return {}
    held = {'conductor': conductor_id, 'hosts': sorted(hosts)}
    db_session.run(session, _FENCE, held)
    rows = db_session.run(session, _HELD, held)
    return {row.host: Claim(*row) for row in rows}


def release_stream(session: orm.Session, host: str, epoch: int) -> bool:
    """Release the stream of a host that stays claimed; return False if its call is stale.

    The caller holds the counter's lock.

    :param epoch: of the host's call
    """
    called = {'of_host': host, 'of_epoch': epoch}
    return db_session.rowcount(db_session.run(session, _RELEASE_STREAM, called)) > 0


def acquire_stream(session: orm.Session, host: str, epoch: int, limit: int) -> bool:
    """Give a claimed host a stream within the limit, unless it holds one; return whether it does.

    The caller holds the counter's lock.

    :param epoch: of the host's call; a stale one gets no stream
    :param limit: maximum of streams over all conductors
    """
    called = {'of_host': host, 'of_epoch': epoch}
    claim = db_session.run(session, _CALLED, called).first()
    if claim is None or claim.holds_stream:
        return claim is not None
    if budget(session).streams >= limit:
        return False
    db_session.run(session, _ACQUIRE_STREAM, called)
    return True


def of_conductor(session: orm.Session, conductor_id: str) -> list[Claim]:
    """List the claims that a conductor holds."""
    rows = db_session.run(session, _OF_CONDUCTOR, {'conductor': conductor_id})
    return [Claim(*row) for row in rows]


def lock_counter(session: orm.Session) -> None:
    """Serialise the transactions that claim hosts or call jobs under a limit."""
    db_session.run(session, _LOCK_COUNTER)


def due(
    now: datetime.datetime | expressions.database_now,
    statuses: Collection[str] = model.TASK_IN_FLIGHT,
    ready: sa.ColumnElement[bool] | orm.InstrumentedAttribute[bool] = models.Job.ready,
) -> sa.ColumnElement[bool]:
    """Select jobs that may be called now; a job that is to stop is not ready."""
    return sa.and_(
        ready,
        models.Job.status.in_(statuses),
        sa.or_(models.Job.next_attempt_at.is_(None), models.Job.next_attempt_at <= now),
    )


def held() -> sa.ColumnElement[bool]:
    """Select the claims that conductors hold."""
    return _IS_CLAIMED


def holds_stream() -> sa.ColumnElement[bool]:
    """Select the claims that hold a Glance stream, of those that conductors hold."""
    return _HOLDS_STREAM


def unclaimed() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(
        models.Claim.host == models.Job.host, models.Claim.conductor_id.is_not(None)
    )


def urgency() -> tuple[sa.ColumnElement[int], ...]:
    """Order running transfers first: a call joins one, so that nothing runs beside it."""
    is_moving = sa.case((models.Job.status.in_(model.TASK_WORKING), 0), else_=1)
    return is_moving, models.Job.priority.desc(), models.Job.id.asc()
