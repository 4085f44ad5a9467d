# SPDX-License-Identifier: Apache-2.0
"""Pins: create, list and end them; lease each to the one conductor that keeps it.

The lease is in the pin's row and runs by the database's clock, so that another conductor
soon takes over the pins of one that died.
"""

import collections
import dataclasses
import datetime
import itertools
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from oslo_utils import timeutils
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import hearing, pages
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.request import queries

PINS = pages.Listing(
    {
        name: getattr(models.Pin, name)
        for name in ('created_at', 'until', 'status', 'checked_at', 'ended_at')
    },
    unique=models.Pin.number,
    marker=models.Pin.id,
)
NEWEST = pages.Page([model.SortKey('created_at', is_descending=True)], limit=1000)
LEASE_SECONDS = 120
FAILURES_COUNT_SECONDS = 24 * 3600
SUCCESSES_COUNT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class NewPin:
    """A validated order for a pin; ``until`` in UTC."""

    aggregate: model.Aggregate
    images: tuple[str, ...]
    until: datetime.datetime | None = None
    description: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    is_admin: bool = False
    request_id: str | None = None


@dataclasses.dataclass(frozen=True)
class PinAt:
    """A pin, read at the time ``now`` of the database's clock."""

    pin: model.Pin
    now: datetime.datetime


@dataclasses.dataclass(frozen=True)
class PinRequests:
    """The requests that a pin has made so far.

    :ivar last_number: number of the newest request in the database, 0 if there is none
    :ivar unfinished: request id to status
    """

    last_number: int
    unfinished: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PinLoad:
    """The unfinished work of all pins, including those that have ended.

    :ivar hosts: pin id to the number of hosts that use a slot or wait for one; a host whose
        next attempt is not due yet does neither, and no host of an unheard cell counts
    :ivar paused: pins with a paused request
    :ivar unheard_cells: uuids of the cells that no conductor hears
    """

    hosts: Mapping[str, int]
    paused: frozenset[str]
    unheard_cells: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class AttemptHistory:
    """Outcomes of a pin's requests for one image on one host.

    :ivar ended_at: end of the last task
    :ivar succeeded_at: end of the last successful task
    :ivar failures: failed tasks that ended within a day
    :ivar successes: successful tasks that ended within an hour
    :ivar not_ours_at: end of the last task that failed because the file exists but belongs to
        another user; None once the agent of the host has restarted, maybe with other rights
    """

    ended_at: datetime.datetime
    succeeded_at: datetime.datetime | None
    failures: int
    successes: int
    not_ours_at: datetime.datetime | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether the last task failed."""
        return self.succeeded_at is None or self.succeeded_at < self.ended_at

    @property
    def is_not_ours(self) -> bool:
        """Return whether the last task failed because the file belongs to another user."""
        return self.not_ours_at == self.ended_at


class Pins:
    """The pins in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def create(self, new: NewPin) -> model.Pin:
        """Record a pin; a conductor begins to keep it in its next round."""
        # Made outside the transaction: a retry after a lost commit answer finds the row.
        pin_id = str(uuid.uuid4())
        return self._database.write(lambda session: _create(session, pin_id, new))

    def get(self, pin_id: str, project_id: str | None = None) -> model.Pin:
        """Return a pin; ``project_id`` None matches any project.

        :raises nova_precache.exception.PinNotFound: unknown, or another project's
        """
        with self._database.reader() as session:
            return _pin(_load(session, pin_id, project_id))

    def list(
        self,
        project_id: str | None = None,
        status: str | None = None,
        aggregate: queries.AggregateFilter | None = None,
        page: pages.Page = NEWEST,
    ) -> Sequence[model.Pin]:
        """List pins, by default the newest first.

        :raises nova_precache.exception.InvalidMarker: unknown, or another project's
        """
        row = models.Pin
        wanted = {row.project_id: project_id, row.status: status}
        query = sa.select(row).where(
            *(each == value for each, value in wanted.items() if value is not None)
        )
        if aggregate is not None:
            query = query.where(aggregate.matches(row))
        with self._database.reader() as session:
            visible = None if project_id is None else row.project_id == project_id
            query = pages.select(session, query, PINS, page, visible)
            return [_pin(each) for each in session.scalars(query)]

    def end(self, pin_id: str, reason: str, project_id: str | None = None) -> model.Pin:
        """End a pin; its images stay cached, and age.

        :raises nova_precache.exception.PinNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: already ended
        """

        def work(session: orm.Session) -> model.Pin:
            _load(session, pin_id, project_id)
            active = _is_active(pin_id)
            if not _change(session, active, **_ended(session, reason)):
                raise exception.StatusConflict('Pin', pin_id, model.PinStatus.ENDED, 'ended')
            return _reload(session, pin_id)

        return self._database.write(work)

    def pinned_images(self, aggregate_ids: Collection[int]) -> Mapping[int, frozenset[str]]:
        """Map each given aggregate with active pins to the images kept there."""
        row = models.Pin
        query = sa.select(row.aggregate_id, row.images, row.images_gone).where(
            row.status == model.PinStatus.ACTIVE, row.aggregate_id.in_(list(aggregate_ids))
        )
        found: dict[int, set[str]] = {}
        with self._database.reader() as session:
            for aggregate_id, images, gone in session.execute(query):
                found.setdefault(aggregate_id, set()).update(set(images) - set(gone))
        return {aggregate_id: frozenset(images) for aggregate_id, images in found.items()}

    def active(self, aggregate_ids: Collection[int]) -> Sequence[model.Pin]:
        """List the active pins of the given aggregates, the oldest first."""
        row = models.Pin
        query = sa.select(row).where(
            row.status == model.PinStatus.ACTIVE, row.aggregate_id.in_(list(aggregate_ids))
        )
        with self._database.reader() as session:
            return [_pin(each) for each in session.scalars(query.order_by(row.number))]

    # For keepers

    def read(self, pin_id: str) -> PinAt | None:
        """Return a pin without leasing it; None if it is not active."""
        with self._database.reader() as session:
            row = session.scalars(sa.select(models.Pin).where(_is_active(pin_id))).first()
            return None if row is None else PinAt(_pin(row), db_session.now(session))

    def due(self, seconds: float) -> Sequence[str]:
        """List the unleased active pins not checked for ``seconds``, the longest first."""
        row = models.Pin
        with self._database.reader() as session:
            now = db_session.now(session)
            query = (
                sa.select(row.id)
                .where(row.status == model.PinStatus.ACTIVE, _is_due(now, seconds), _is_free(now))
                .order_by(row.checked_at.is_not(None), row.checked_at, row.number)
            )
            return session.scalars(query).all()

    def take(self, pin_id: str, keeper: str, seconds: float) -> PinAt | None:
        """Lease a pin; return None if it is no longer due or another conductor holds it."""

        def work(session: orm.Session) -> PinAt | None:
            now = db_session.now(session)
            is_mine = sa.and_(_is_active(pin_id), _is_due(now, seconds), _is_free(now))
            if not _change(session, is_mine, keeper=keeper, keeper_lease_until=_lease(now)):
                return None
            return PinAt(_reload(session, pin_id), now)

        return self._database.write(work)

    def hold(self, pin_id: str, keeper: str) -> bool:
        """Renew the lease; return False if the pin has ended or this keeper has lost it."""

        def work(session: orm.Session) -> bool:
            lease = _lease(db_session.now(session))
            return _change(session, _is_kept(pin_id, keeper), keeper_lease_until=lease)

        return self._database.write(work)

    def checked(
        self, pin_id: str, keeper: str, reason: str | None, gone: Mapping[str, str]
    ) -> bool:
        """Record a check and release the pin; return False if this keeper has lost it."""

        def work(session: orm.Session) -> bool:
            return _change(
                session,
                _is_kept(pin_id, keeper),
                checked_at=db_session.now(session),
                reason=reason,
                images_gone=dict(gone),
                keeper=None,
                keeper_lease_until=None,
            )

        return self._database.write(work)

    def note(self, pin_id: str, reason: str) -> None:
        """Record why an active pin is not kept now; the next check replaces the reason."""
        self._database.write(lambda session: _change(session, _is_active(pin_id), reason=reason))

    def close(self, pin_id: str, keeper: str, reason: str, gone: Mapping[str, str]) -> bool:
        """End a pin that cannot be kept; return False if this keeper has lost it."""

        def work(session: orm.Session) -> bool:
            values = {**_ended(session, reason), 'images_gone': dict(gone)}
            values['checked_at'] = values['ended_at']
            return _change(session, _is_kept(pin_id, keeper), **values)

        return self._database.write(work)

    def asked(self, pin_id: str, since: int = 0) -> PinRequests:
        """Return the requests that a pin has made.

        :param since: a request of the pin has this number, or a higher one
        """
        row = models.CacheRequest
        last = sa.select(sa.func.max(row.number)).where(row.pin_id == pin_id, row.number >= since)
        unfinished = sa.select(row.id, row.status).where(_is_unfinished(pin_id))
        with self._database.reader() as session:
            found = {each.id: each.status for each in session.execute(unfinished)}
            return PinRequests(session.scalars(last).one() or 0, found)

    def load(self) -> PinLoad:
        """Count the hosts in the unfinished requests of each pin, in three statements.

        They return a row for each pin, each unplanned request and each unheard cell.
        """
        hosts: collections.Counter[str] = collections.Counter()
        with self._database.reader() as session:
            unplanned = session.execute(_UNPLANNED).all()
            unheard = hearing.unheard(session)
            planned = session.execute(_PLANNED_LOAD, {'unheard': sorted(unheard)}).all()
        paused = {row.pin_id for row in (*unplanned, *planned) if row.paused}
        for row in unplanned:
            hosts[row.pin_id] += 0 if row.paused else len(row.hosts or ())
        for row in planned:
            hosts[row.pin_id] += row.hosts
        counted = {pin: count for pin, count in hosts.items() if count}
        return PinLoad(counted, frozenset(paused), unheard)

    def unheard_cells(self) -> frozenset[str]:
        """Return the cells that no conductor hears; none of their hosts is to be requested."""
        with self._database.reader() as session:
            return hearing.unheard(session)

    def in_flight(
        self, pin_id: str, hosts: Collection[str] | None = None
    ) -> frozenset[tuple[str, str]]:
        """Return the (host, image) of the pin's unfinished requests, by default on all hosts."""
        request, task = models.CacheRequest, models.Task
        unplanned = sa.select(request.hosts, request.images).where(
            _is_unfinished(pin_id), request.planned_at.is_(None)
        )
        planned = (
            sa.select(task.host, task.image_id)
            .join(request, request.id == task.request_id)
            .where(_is_unfinished(pin_id))
            .where(task.status.in_(model.TASK_IN_FLIGHT))
        )
        found: set[tuple[str, str]] = set()
        with self._database.reader() as session:
            for its_hosts, images in session.execute(unplanned):
                asked = [each for each in its_hosts or () if hosts is None or each in hosts]
                found.update(itertools.product(asked, images))
            for query in _among(planned, task.host, hosts):
                found.update((host, image_id) for host, image_id in session.execute(query))
        return frozenset(found)

    def tried(
        self, pin_id: str, since_seconds: float, hosts: Collection[str] | None = None
    ) -> Mapping[tuple[str, str], AttemptHistory]:
        """Map each (host, image) whose tasks ended within ``since_seconds`` to its outcomes.

        A failure because the file belongs to another user counts regardless of its age.

        :param hosts: by default all
        """
        found: dict[tuple[str, str], AttemptHistory] = {}
        with self._database.reader() as session:
            tried = _tried(pin_id, db_session.now(session), since_seconds)
            for query in _among(tried, models.Task.host, hosts):
                found.update(
                    (
                        (row.host, row.image_id),
                        AttemptHistory(
                            row.ended_at,
                            row.succeeded_at,
                            row.failures,
                            row.successes,
                            row.not_ours_at,
                        ),
                    )
                    for row in session.execute(query)
                )
        return found


_REQUEST, _TASK = models.CacheRequest, models.Task
_IS_ACTIVE = _REQUEST.status.in_(model.REQUEST_ACTIVE)
_PAUSED = sa.case((_REQUEST.status == model.RequestStatus.PAUSED, 1), else_=0)
_UNPLANNED = sa.select(_REQUEST.pin_id, _REQUEST.hosts, _PAUSED.label('paused')).where(
    _REQUEST.pin_id.is_not(None), _IS_ACTIVE, _REQUEST.planned_at.is_(None)
)
_IS_DUE = sa.or_(
    _TASK.next_attempt_at.is_(None), _TASK.next_attempt_at <= expressions.database_now()
)
_MAY_BE_HEARD = sa.or_(
    _TASK.cell_uuid.is_(None), _TASK.cell_uuid.not_in(sa.bindparam('unheard', expanding=True))
)
_NEEDS_SLOT = sa.and_(
    sa.or_(_TASK.status.in_(model.TASK_WORKING), sa.and_(_TASK.open, _IS_DUE)), _MAY_BE_HEARD
)
_PLANNED_LOAD = (
    sa.select(
        _REQUEST.pin_id,
        sa.func.count(sa.distinct(sa.case((_NEEDS_SLOT, _TASK.host)))).label('hosts'),
        sa.func.max(_PAUSED).label('paused'),
    )
    .join(_TASK, _TASK.request_id == _REQUEST.id)
    .where(_REQUEST.pin_id.is_not(None), _IS_ACTIVE)
    .where(_REQUEST.planned_at.is_not(None), _TASK.status.in_(model.TASK_IN_FLIGHT))
    .group_by(_REQUEST.pin_id)
)


def _is_unfinished(pin_id: str) -> sa.ColumnElement[bool]:
    # Phrased so that the index of pins does not match: SQLite would take it and read all requests
    # that the pin has ever made, instead of the few that are active.
    return sa.and_(sa.func.coalesce(_REQUEST.pin_id, '') == pin_id, _IS_ACTIVE)


def _among(
    query: sa.Select[*tuple[Any, ...]],
    column: orm.InstrumentedAttribute[str],
    hosts: Collection[str] | None,
) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """Yield the query for portions of the hosts; None: once, for all."""
    if hosts is None:
        yield query
        return
    for some in db_session.chunks(sorted(hosts)):
        yield query.where(column.in_(some))


def _create(session: orm.Session, pin_id: str, new: NewPin) -> model.Pin:
    saved = session.get(models.Pin, pin_id)
    if saved is not None:
        return _pin(saved)
    row = models.Pin(
        id=pin_id,
        number=_next_number(session),
        status=model.PinStatus.ACTIVE,
        aggregate_id=new.aggregate.id,
        aggregate_uuid=new.aggregate.uuid,
        aggregate_name=new.aggregate.name,
        images=list(new.images),
        images_gone={},
        description=new.description,
        project_id=new.project_id,
        user_id=new.user_id,
        is_admin=new.is_admin,
        request_id=new.request_id,
        until=None if new.until is None else timeutils.normalize_time(new.until),
        created_at=db_session.now(session),
    )
    session.add(row)
    session.flush()
    return _pin(row)


def _next_number(session: orm.Session) -> int:
    counter = models.Counter
    session.execute(
        db_session.update(counter).where(counter.name == 'pins').values(value=counter.value + 1)
    )
    return session.scalars(sa.select(counter.value).where(counter.name == 'pins')).one()


def _load(session: orm.Session, pin_id: str, project_id: str | None) -> models.Pin:
    row = session.get(models.Pin, pin_id)
    if row is None or (project_id is not None and row.project_id != project_id):
        raise exception.PinNotFound(pin_id)
    return row


def _reload(session: orm.Session, pin_id: str) -> model.Pin:
    # The session's copy may be older than the UPDATE.
    return _pin(session.get_one(models.Pin, pin_id, populate_existing=True))


def _change(session: orm.Session, which: sa.ColumnElement[bool], **values: object) -> bool:
    changed = session.execute(db_session.update(models.Pin).where(which).values(**values))
    return db_session.rowcount(changed) == 1


def _is_active(pin_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(models.Pin.id == pin_id, models.Pin.status == model.PinStatus.ACTIVE)


def _is_kept(pin_id: str, keeper: str) -> sa.ColumnElement[bool]:
    return sa.and_(_is_active(pin_id), models.Pin.keeper == keeper)


def _is_free(now: datetime.datetime) -> sa.ColumnElement[bool]:
    return sa.or_(models.Pin.keeper.is_(None), models.Pin.keeper_lease_until < now)


def _is_due(now: datetime.datetime, seconds: float) -> sa.ColumnElement[bool]:
    checked = models.Pin.checked_at
    return sa.or_(checked.is_(None), checked <= now - datetime.timedelta(seconds=seconds))


def _lease(now: datetime.datetime) -> datetime.datetime:
    return now + datetime.timedelta(seconds=LEASE_SECONDS)


def _ended(session: orm.Session, reason: str) -> model.Json:
    return {
        'status': model.PinStatus.ENDED,
        'reason': reason,
        'ended_at': db_session.now(session),
        'keeper': None,
        'keeper_lease_until': None,
    }


def _tried(
    pin_id: str, now: datetime.datetime, since_seconds: float
) -> sa.Select[*tuple[Any, ...]]:
    task, request, agent = models.Task, models.CacheRequest, models.Agent
    is_success = task.status.in_(model.TASK_SUCCEEDED)
    is_not_ours = sa.and_(
        task.reason.startswith(model.NOT_OURS, autoescape=True),
        task.finished_at >= agent.started_at,
    )
    is_recent = task.finished_at > now - datetime.timedelta(seconds=since_seconds)

    def count(which: sa.ColumnElement[bool], seconds: float) -> sa.ColumnElement[int]:
        is_counted = sa.and_(which, task.finished_at > now - datetime.timedelta(seconds=seconds))
        return sa.func.count(sa.case((is_counted, 1)))

    return (
        sa.select(
            task.host,
            task.image_id,
            sa.func.max(task.finished_at).label('ended_at'),
            sa.func.max(sa.case((is_success, task.finished_at))).label('succeeded_at'),
            count(~is_success, FAILURES_COUNT_SECONDS).label('failures'),
            count(is_success, SUCCESSES_COUNT_SECONDS).label('successes'),
            sa.func.max(sa.case((is_not_ours, task.finished_at))).label('not_ours_at'),
        )
        .join(request, request.id == task.request_id)
        .outerjoin(agent, agent.host == task.host)
        .where(request.pin_id == pin_id)
        .where(sa.or_(is_recent, is_not_ours))
        .group_by(task.host, task.image_id)
    )


def _pin(row: models.Pin) -> model.Pin:
    names = [field.name for field in dataclasses.fields(model.Pin)]
    values = {name: getattr(row, name) for name in names}
    return model.Pin(**{**values, 'images': tuple(row.images)})
