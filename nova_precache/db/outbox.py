# SPDX-License-Identifier: Apache-2.0
"""Announcements to send: written in the transaction that makes them true, removed once sent.

A request's rows are numbered in sending order: its start, its hosts as they were done, its
end, and in between the actions on it; after a retry all of it again. A sender takes a row
before it sends it, and only the first remaining row can be taken. If a conductor dies with a
taken row, another conductor sends it: each is sent at least once, and more than once only in
this case.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session

TAKEN_SECONDS = 60

_REQUEST = db_session.table(models.CacheRequest)
_COUNT_HOSTS = (
    sa.update(_REQUEST)
    .where(_REQUEST.c.id == sa.bindparam('request'), _REQUEST.c.is_planned)
    .values(
        hosts_done=_REQUEST.c.hosts_done + sa.bindparam('count', type_=sa.Integer()),
        announced=_REQUEST.c.announced + sa.bindparam('count', type_=sa.Integer()),
    )
)
_COUNTED = sa.select(_REQUEST.c.hosts_done, _REQUEST.c.hosts_total, _REQUEST.c.announced).where(
    _REQUEST.c.id == sa.bindparam('request')
)
_INSERT = sa.insert(db_session.table(models.Announcement))

_New = tuple[model.Phase, str | None, int | None]


@dataclasses.dataclass(frozen=True)
class DueAnnouncement:
    """A taken announcement; ``host_index`` counts the hosts done up to this one, from 1."""

    request_id: str
    position: int
    phase: str
    host: str | None
    is_admin: bool
    host_index: int | None = None


class Announcements:
    """The announcements still to be sent; every method is one short transaction."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def take(self, after: str = '') -> DueAnnouncement | None:
        """Take an announcement that no other conductor holds, to send it; None if there is none.

        :param after: the request served last; the next one by id comes first
        """
        return self._database.write(lambda session: _take(session, after))

    def remove(self, sent: DueAnnouncement) -> None:
        """Delete a sent announcement; the next of its request may follow."""
        row = models.Announcement
        gone = sa.delete(row).where(
            row.request_id == sent.request_id, row.position == sent.position
        )
        self._database.write(lambda session: session.execute(gone))

    def drop(self) -> None:
        """Delete all announcements, since notifications are off."""
        self._database.write(lambda session: session.execute(sa.delete(models.Announcement)))


def add(session: orm.Session, request_id: str, phase: model.Phase) -> None:
    """Queue the announcement of a phase of a request as a whole."""
    _reserve(session, request_id, 1)
    _insert(session, request_id, _counted(session, request_id).announced, [(phase, None, None)])


def add_start(session: orm.Session, request_id: str, hosts_done: Sequence[str]) -> None:
    """Queue announcements of a request's start and of the hosts that were done by then."""
    _reserve(session, request_id, 1 + len(hosts_done))
    announced = _counted(session, request_id).announced
    new = [(model.Phase.START, None, None), *_progress(hosts_done, 0)]
    _insert(session, request_id, announced, new)


def add_hosts(session: orm.Session, request_id: str, hosts: Sequence[str]) -> bool:
    """Count done hosts and queue their announcements; return False if others are not done yet.

    Before the plan is complete, count nothing and return True: its completion counts these hosts.
    """
    count = len(hosts)
    counted = db_session.run(session, _COUNT_HOSTS, {'request': request_id, 'count': count})
    if db_session.rowcount(counted) != 1:
        return True
    now = _counted(session, request_id)
    _insert(session, request_id, now.announced, _progress(hosts, now.hosts_done - count))
    return bool(now.hosts_done >= now.hosts_total)


def _counted(session: orm.Session, request_id: str) -> sa.Row[*tuple[Any, ...]]:
    return db_session.run(session, _COUNTED, {'request': request_id}).one()


def _progress(hosts: Sequence[str], done_before: int) -> list[_New]:
    return [
        (model.Phase.PROGRESS, host, index)
        for index, host in enumerate(hosts, start=done_before + 1)
    ]


def _reserve(session: orm.Session, request_id: str, count: int) -> None:
    request = models.CacheRequest
    session.execute(
        db_session.update(request)
        .where(request.id == request_id)
        .values(announced=request.announced + count)
    )


def _insert(session: orm.Session, request_id: str, announced: int, new: Sequence[_New]) -> None:
    """Insert announcements at the last reserved positions."""
    rows = [
        {
            'request_id': request_id,
            'position': position,
            'phase': phase,
            'host': host,
            'host_index': host_index,
        }
        for position, (phase, host, host_index) in enumerate(new, start=announced - len(new))
    ]
    db_session.run(session, _INSERT, rows)


def _take(session: orm.Session, after: str) -> DueAnnouncement | None:
    now = db_session.now(session)
    row = models.Announcement
    is_free = sa.or_(row.taken_until.is_(None), row.taken_until < now)
    due = _first(session, is_free, row.request_id > after) or _first(
        session, is_free, row.request_id <= after
    )
    if due is None:
        return None
    taken = session.execute(
        db_session.update(row)
        .where(row.request_id == due.request_id, row.position == due.position, is_free)
        .values(taken_until=now + datetime.timedelta(seconds=TAKEN_SECONDS))
    )
    if db_session.rowcount(taken) != 1:
        return None
    is_admin = sa.select(models.CacheRequest.is_admin).where(
        models.CacheRequest.id == due.request_id
    )
    return DueAnnouncement(
        request_id=due.request_id,
        position=due.position,
        phase=due.phase,
        host=due.host,
        is_admin=session.scalars(is_admin).one(),
        host_index=due.host_index,
    )


def _first(session: orm.Session, *which: sa.ColumnElement[bool]) -> models.Announcement | None:
    """Return the next announcement of the first request by id, of those chosen."""
    row, earlier = models.Announcement, orm.aliased(models.Announcement)
    is_first = ~sa.exists().where(
        earlier.request_id == row.request_id, earlier.position < row.position
    )
    query = sa.select(row).where(is_first, *which).order_by(row.request_id).limit(1)
    return session.scalars(query).first()
