# SPDX-License-Identifier: Apache-2.0
"""What is to be announced: written in the transaction that makes it true, removed once sent.

A request's rows are numbered in the order in which they are sent: 0 is its start, then
come its hosts as they were done, then its end. Whoever sends one takes it first, and
only the first that is left can be taken. One that was taken by a conductor that died
is sent by another: each is sent at least once, and more than once only then.
"""

import dataclasses
import datetime
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import models
from nova_precache.db import session as db_session

TAKEN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Due:
    """A taken announcement; of a host, ``position`` says the how-manieth it is."""

    request_id: str
    position: int
    phase: str
    host: str | None
    is_admin: bool


class Announcements:
    """What the conductors have still to announce; every method is one short transaction."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def take(self, after: str = '') -> Due | None:
        """Take one to send it, if there is one that no other conductor holds.

        :param after: the request whose turn it was; that of the next comes first
        """
        return self._database.write(lambda session: _take(session, after))

    def remove(self, sent: Due) -> None:
        """Forget one that was sent; the next of its request may follow."""
        row = models.Announcement
        gone = sa.delete(row).where(
            row.request_id == sent.request_id, row.position == sent.position
        )
        self._database.write(lambda session: session.execute(gone))

    def drop(self) -> None:
        """Forget all of them: nobody listens."""
        self._database.write(lambda session: session.execute(sa.delete(models.Announcement)))


def add_start(session: orm.Session, request_id: str, hosts_done: Sequence[str]) -> None:
    """Have a request's start announced, and the hosts that were done by then."""
    hosts = [(index, model.Phase.PROGRESS, host) for index, host in enumerate(hosts_done, start=1)]
    _add(session, request_id, (0, model.Phase.START, None), *hosts)


def add_host(session: orm.Session, request_id: str, host: str, index: int) -> None:
    """Have it announced that a host is done, the index-th of the request."""
    _add(session, request_id, (index, model.Phase.PROGRESS, host))


def add_end(session: orm.Session, request_id: str) -> None:
    """Have a request's end announced, all of whose hosts are done."""
    total = sa.select(models.CacheRequest.hosts_total).where(models.CacheRequest.id == request_id)
    _add(session, request_id, (session.scalars(total).one() + 1, model.Phase.END, None))


def _add(session: orm.Session, request_id: str, *new: tuple[int, str, str | None]) -> None:
    rows = [
        {'request_id': request_id, 'position': position, 'phase': phase, 'host': host}
        for position, phase, host in new
    ]
    session.execute(sa.insert(models.Announcement), rows)


def _take(session: orm.Session, after: str) -> Due | None:
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
    return Due(due.request_id, due.position, due.phase, due.host, session.scalars(is_admin).one())


def _first(session: orm.Session, *which: sa.ColumnElement[bool]) -> models.Announcement | None:
    """Give the one that is next of the first request by id, of those chosen."""
    row, earlier = models.Announcement, orm.aliased(models.Announcement)
    is_first = ~sa.exists().where(
        earlier.request_id == row.request_id, earlier.position < row.position
    )
    query = sa.select(row).where(is_first, *which).order_by(row.request_id).limit(1)
    return session.scalars(query).first()
