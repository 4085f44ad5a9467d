# SPDX-License-Identifier: Apache-2.0
"""Loads and changes cell mappings and host mappings in a session."""

import urllib.parse
from collections.abc import Collection

import sqlalchemy as sa
from oslo_utils import timeutils
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.cells import models

CELL0_UUID = '00000000-0000-0000-0000-000000000000'

_CHUNK = 500
_DEFAULT_PORT = 5672  # RabbitMQ's


def load_cells(session: orm.Session) -> list[model.Cell]:
    cell = models.CellMapping
    query = sa.select(cell).where(cell.uuid != CELL0_UUID).order_by(cell.id)
    return [to_cell(row) for row in session.scalars(query)]


def load_cell(session: orm.Session, uuid_or_name: str) -> models.CellMapping:
    cell = models.CellMapping
    query = sa.select(cell).where(sa.or_(cell.uuid == uuid_or_name, cell.name == uuid_or_name))
    found = session.scalars(query.order_by(cell.id)).all()
    # A uuid means the cell that has it, even if it is the name of another cell.
    for row in sorted(found, key=lambda row: row.uuid != uuid_or_name):
        return row
    raise exception.CellNotFound(uuid_or_name)


def to_cell(row: models.CellMapping) -> model.Cell:
    return model.Cell(
        uuid=row.uuid,
        name=row.name or '',
        transport_url=row.transport_url or '',
        database_connection=row.database_connection or '',
        disabled=bool(row.disabled),
    )


def create_cell(session: orm.Session, cell: model.Cell) -> model.Cell:
    for other in session.scalars(sa.select(models.CellMapping)):
        _refuse_same(cell, other)
    session.add(
        models.CellMapping(
            uuid=cell.uuid,
            name=cell.name,
            transport_url=cell.transport_url,
            database_connection=cell.database_connection,
            disabled=cell.disabled,
            created_at=timeutils.utcnow(),
        )
    )
    session.flush()
    return cell


def _refuse_same(cell: model.Cell, other: models.CellMapping) -> None:
    if cell.uuid == other.uuid or cell.name == other.name:
        raise exception.CellExists(f'Cell {other.name} ({other.uuid}) exists already.')
    if _brokers(cell.transport_url) & _brokers(other.transport_url or ''):
        raise exception.CellExists(f'Cell {other.name} has this broker and virtual host already.')


def _brokers(url: str) -> set[str]:
    """Return each broker of a transport URL with its virtual host, in canonical form.

    In-memory cells (``fake``) have no broker: their exchanges distinguish them.
    """
    try:
        scheme, netloc, path = urllib.parse.urlsplit(url)[:3]
        if scheme == 'fake':
            return set()
        virtual_host = urllib.parse.unquote(path[1:]) or '/'
        hosts = [urllib.parse.urlsplit(f'//{host}') for host in netloc.split(',')]
        return {
            f'{scheme}://{host.hostname or "localhost"}:{host.port or _DEFAULT_PORT}/{virtual_host}'
            for host in hosts
        }
    except ValueError:  # unusable, but must be unique, too
        return {url}


def map_host(session: orm.Session, host: str, cell_uuid: str) -> None:
    cell = load_cell(session, cell_uuid)
    if not is_mapped(session, host, cell_uuid):
        now = timeutils.utcnow()
        session.add(models.HostMapping(host=host, cell_id=cell.id, created_at=now))
        session.flush()


def unmap_host(session: orm.Session, host: str) -> None:
    session.execute(sa.delete(models.HostMapping).where(models.HostMapping.host == host))


def delete_cell(session: orm.Session, cell_uuid: str) -> None:
    cell = load_cell(session, cell_uuid)
    mapped = sa.select(models.HostMapping.host).where(models.HostMapping.cell_id == cell.id)
    host = session.scalars(mapped.limit(1)).first()
    if host is not None:
        raise exception.InUse(f'Cell {cell.name} has hosts, such as {host}.')
    session.delete(cell)
    session.flush()


def is_mapped(session: orm.Session, host: str, cell_uuid: str) -> bool:
    """Return whether the host is mapped to the cell.

    :raises nova_precache.exception.AgentConflict: it is mapped to another cell
    """
    mapped_to = cell_of_hosts(session, [host]).get(host)
    if mapped_to not in {None, cell_uuid}:
        raise exception.AgentConflict(
            f'Host {host} is mapped to cell {mapped_to}, not to {cell_uuid}.'
        )
    return mapped_to is not None


def refuse_unmapped(session: orm.Session, host: str) -> None:
    if not cell_of_hosts(session, [host]):
        raise exception.ComputeHostNotFound(host)


def cell_of_hosts(session: orm.Session, hosts: Collection[str]) -> dict[str, str]:
    names, found = sorted(set(hosts)), {}
    for start in range(0, len(names), _CHUNK):
        query = (
            sa.select(models.HostMapping.host, models.CellMapping.uuid)
            .join(models.CellMapping, models.CellMapping.id == models.HostMapping.cell_id)
            .where(models.HostMapping.host.in_(names[start : start + _CHUNK]))
        )
        found.update({row.host: row.uuid for row in session.execute(query)})
    # Not every database distinguishes case, but RPC does.
    return {host: found[host] for host in names if host in found}


def page_of_hosts(
    session: orm.Session, limit: int, marker: str | None, cell_uuid: str | None
) -> dict[str, str]:
    query = (
        sa.select(models.HostMapping.host, models.CellMapping.uuid)
        .join(models.CellMapping, models.CellMapping.id == models.HostMapping.cell_id)
        .order_by(models.HostMapping.host)
        .limit(limit)
    )
    if marker is not None:
        query = query.where(models.HostMapping.host > marker)
    if cell_uuid is not None:
        query = query.where(models.CellMapping.uuid == cell_uuid)
    return {row.host: row.uuid for row in session.execute(query)}


def load_hosts(session: orm.Session) -> list[tuple[str, model.Cell]]:
    query = (
        sa.select(models.HostMapping.host, models.CellMapping)
        .join(models.CellMapping, models.CellMapping.id == models.HostMapping.cell_id)
        .order_by(models.HostMapping.host)
    )
    return [(host, to_cell(row)) for host, row in session.execute(query)]
