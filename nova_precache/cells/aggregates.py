# SPDX-License-Identifier: Apache-2.0
"""Loads and changes aggregates in a session.

The rules and messages are Nova's. The database decides races between writers: its unique
constraints and foreign keys raise, and the caller retries.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import sqlalchemy as sa
from oslo_utils import timeutils, uuidutils
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.cells import models
from nova_precache.db.engine import session as db_session

AVAILABILITY_ZONE = 'availability_zone'

_CHUNK = 500
_GREATEST_ID = 2**31 - 1

Item = TypeVar('Item', int, str)


class Changes(TypedDict, total=False):
    """The fields that an update may change; omitted ones stay unchanged."""

    name: str
    availability_zone: str | None


def load_all(session: orm.Session) -> list[model.Aggregate]:
    return _to_models(session, session.scalars(_ordered()).all())


def load(session: orm.Session, aggregate_id: int) -> model.Aggregate:
    # A greater number is an error in PostgreSQL and SQLite instead of an empty result.
    if 0 < aggregate_id <= _GREATEST_ID:
        query = _ordered().where(models.Aggregate.id == aggregate_id)
        for aggregate in _to_models(session, session.scalars(query).all()):
            return aggregate
    raise exception.AggregateNotFound(aggregate_id)


def ids_of_hosts(session: orm.Session, hosts: Collection[str]) -> set[int]:
    member, wanted = models.AggregateHost, set(hosts)
    found = set[int]()
    for chunk in db_session.chunks(sorted(wanted)):
        query = sa.select(member.aggregate_id, member.host).where(member.host.in_(chunk))
        # Not every database distinguishes case, but RPC does.
        found.update(row.aggregate_id for row in session.execute(query) if row.host in wanted)
    return found


def create(session: orm.Session, name: str, zone: str | None) -> model.Aggregate:
    _refuse_taken(session, name)
    row = models.Aggregate(uuid=uuidutils.generate_uuid(), name=name, created_at=timeutils.utcnow())
    session.add(row)
    session.flush()
    if zone:
        _put_metadata(session, row.id, {AVAILABILITY_ZONE: zone})
    return load(session, row.id)


def update(session: orm.Session, aggregate_id: int, changes: Changes) -> model.Aggregate:
    aggregate = load(session, aggregate_id)
    if changes.get('name', aggregate.name) != aggregate.name:
        _refuse_taken(session, changes['name'], but_by=aggregate_id)
        _change(session, aggregate_id, name=changes['name'], updated_at=timeutils.utcnow())
        aggregate = load(session, aggregate_id)
    if 'availability_zone' in changes:
        zone = {AVAILABILITY_ZONE: changes['availability_zone']}
        return _change_metadata(session, aggregate, zone, 'Cannot update aggregate')
    return aggregate


def set_metadata(
    session: orm.Session, aggregate_id: int, metadata: Mapping[str, str | None]
) -> model.Aggregate:
    aggregate = load(session, aggregate_id)
    return _change_metadata(session, aggregate, metadata, 'Cannot update metadata of aggregate')


def delete(session: orm.Session, aggregate_id: int) -> None:
    if load(session, aggregate_id).hosts:
        raise exception.InvalidAggregateAction(
            f'Cannot remove host from aggregate {aggregate_id}. '
            'Reason: Host aggregate is not empty.'
        )
    item, row = models.AggregateMetadata, models.Aggregate
    session.execute(sa.delete(item).where(item.aggregate_id == aggregate_id))
    session.execute(sa.delete(row).where(row.id == aggregate_id))


def add_host(session: orm.Session, aggregate_id: int, host: str) -> model.Aggregate:
    aggregate = load(session, aggregate_id)
    if aggregate.availability_zone is not None:
        others = _other_zones(session, aggregate_id, [host], aggregate.availability_zone)
        if others:
            raise exception.InvalidHost(aggregate_id, _in_zones(others))
    if host in aggregate.hosts:
        raise exception.AggregateHostExists(aggregate_id, host)
    now = timeutils.utcnow()
    session.add(models.AggregateHost(host=host, aggregate_id=aggregate_id, created_at=now))
    session.flush()
    return load(session, aggregate_id)


def remove_host(session: orm.Session, aggregate_id: int, host: str) -> model.Aggregate:
    load(session, aggregate_id)
    member = models.AggregateHost
    removed = session.execute(
        sa.delete(member).where(member.aggregate_id == aggregate_id, member.host == host)
    )
    if db_session.rowcount(removed) == 0:
        raise exception.AggregateHostNotFound(aggregate_id, host)
    return load(session, aggregate_id)


def _ordered() -> sa.Select[models.Aggregate]:
    # The session may hold older rows than an UPDATE has just written.
    query = sa.select(models.Aggregate).order_by(models.Aggregate.id)
    return query.execution_options(populate_existing=True)


def _to_models(session: orm.Session, rows: Sequence[models.Aggregate]) -> list[model.Aggregate]:
    hosts: dict[int, list[str]] = {row.id: [] for row in rows}
    metadata: dict[int, dict[str, str]] = {row.id: {} for row in rows}
    for ids in _chunks(list(hosts)):
        for aggregate_id, host in _parts(session, ids, models.AggregateHost.host):
            hosts[aggregate_id].append(host or '')
        item = models.AggregateMetadata
        for aggregate_id, key, value in _parts(session, ids, item.key, item.value):
            metadata[aggregate_id][key] = value
    return [
        model.Aggregate(
            id=row.id,
            uuid=row.uuid or '',
            name=row.name or '',
            hosts=tuple(hosts[row.id]),
            metadata=metadata[row.id],
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


def _parts(
    session: orm.Session, ids: Sequence[int], *columns: orm.InstrumentedAttribute[Any]
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Return rows that belong to aggregates: the aggregate id, then the columns.

    Columns instead of ORM objects, since an aggregate may have many hosts.
    """
    table = columns[0].class_
    query = sa.select(table.aggregate_id, *columns).where(table.aggregate_id.in_(ids))
    return session.execute(query.order_by(table.id)).all()


def _refuse_taken(session: orm.Session, name: str, but_by: int | None = None) -> None:
    row = models.Aggregate
    for aggregate_id in session.scalars(sa.select(row.id).where(row.name == name)):
        if aggregate_id != but_by:
            raise exception.AggregateNameExists(name)


def _change(session: orm.Session, aggregate_id: int, **values: Any) -> None:
    row = models.Aggregate
    changed = session.execute(db_session.update(row).where(row.id == aggregate_id).values(**values))
    if db_session.rowcount(changed) == 0:
        raise exception.AggregateNotFound(aggregate_id)


def _change_metadata(
    session: orm.Session,
    aggregate: model.Aggregate,
    metadata: Mapping[str, str | None],
    refusal: str,
) -> model.Aggregate:
    """Change the metadata; return the aggregate with a new ``updated_at``.

    As in Nova, this time is not stored.
    """
    if AVAILABILITY_ZONE in metadata:
        why = _why_not_in(session, aggregate, metadata[AVAILABILITY_ZONE])
        if why is not None:
            raise exception.InvalidAggregateAction(f'{refusal} {aggregate.id}. Reason: {why}.')
    # This changes nothing, but locks the aggregate's row, so that other writers wait.
    _change(session, aggregate.id, name=models.Aggregate.name)
    _put_metadata(session, aggregate.id, metadata)
    return dataclasses.replace(load(session, aggregate.id), updated_at=timeutils.utcnow())


def _why_not_in(session: orm.Session, aggregate: model.Aggregate, zone: str | None) -> str | None:
    if not zone:
        return f'Aggregate {aggregate.name} does not support empty named availability zone'
    others = _other_zones(session, aggregate.id, aggregate.hosts, zone)
    return _in_zones(others) if others else None


def _in_zones(zones: Sequence[str]) -> str:
    return f'One or more hosts already in availability zone(s) {zones}'


def _other_zones(
    session: orm.Session, aggregate_id: int, hosts: Sequence[str], zone: str
) -> list[str]:
    """Return the zones of the other aggregates that hold any of the hosts, one per aggregate."""
    zones: dict[int, str] = {}
    item, member = models.AggregateMetadata, models.AggregateHost
    for names in _chunks(hosts):
        query = (
            sa.select(item.aggregate_id, item.value)
            .join(member, member.aggregate_id == item.aggregate_id)
            .where(item.key == AVAILABILITY_ZONE, item.value != zone)
            .where(item.aggregate_id != aggregate_id, member.host.in_(names))
        )
        zones.update((row.aggregate_id, row.value) for row in session.execute(query))
    return [zones[key] for key in sorted(zones)]


def _put_metadata(
    session: orm.Session, aggregate_id: int, metadata: Mapping[str, str | None]
) -> None:
    item, now = models.AggregateMetadata, timeutils.utcnow()
    for key, value in metadata.items():
        here = sa.and_(item.aggregate_id == aggregate_id, item.key == key)
        if value is None:
            session.execute(sa.delete(item).where(here))
            continue
        changed = session.execute(
            db_session.update(item).where(here).values(value=value, updated_at=now)
        )
        if db_session.rowcount(changed) == 0:
            session.add(item(aggregate_id=aggregate_id, key=key, value=value, created_at=now))
            session.flush()


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
