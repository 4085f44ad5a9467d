# SPDX-License-Identifier: Apache-2.0
"""The inventory: the aggregates and the cell of each host.

Its tables have Nova's schema. Standalone, they are in this service's own database and are
written here; beside Nova, they are in Nova's database and are only read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, Unpack

from oslo_db import exception as db_exception
from oslo_utils import uuidutils
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.cells import aggregates, mappings
from nova_precache.db.engine import session as db_session

T = TypeVar('T')

_RACES = 5


class Inventory:
    """Aggregates, cells and host mappings; every method is one short transaction.

    Each method that writes raises ``ReadOnlyInventory`` if the tables are in Nova's database.

    :param fill_cell: returns a cell, whose URLs may be templates, with the URLs filled in
    """

    def __init__(
        self,
        database: db_session.Database,
        writable: bool = True,
        fill_cell: Callable[[model.Cell], model.Cell] = lambda cell: cell,
    ) -> None:
        self._database = database
        self._writable = writable
        self._fill_cell = fill_cell

    def list_aggregates(self) -> Sequence[model.Aggregate]:
        """List all aggregates, the oldest first."""
        with self._database.reader() as session:
            return aggregates.load_all(session)

    def get_aggregate(self, aggregate_id: int, uuid: str | None = None) -> model.Aggregate:
        """Return one aggregate.

        :param uuid: must match, too, since a database may reuse an id
        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id and uuid
        """
        with self._database.reader() as session:
            aggregate = aggregates.load(session, aggregate_id)
        if uuid not in (None, aggregate.uuid):
            raise exception.AggregateNotFound(aggregate_id)
        return aggregate

    def aggregates_of_hosts(self, hosts: Collection[str]) -> Collection[int]:
        """Return the ids of the aggregates that hold any of the hosts."""
        with self._database.reader() as session:
            return aggregates.ids_of_hosts(session, hosts)

    def create_aggregate(self, name: str, availability_zone: str | None = None) -> model.Aggregate:
        """Create an aggregate without hosts.

        :raises nova_precache.exception.AggregateNameExists: another one has this name
        """
        return self._write_again(
            lambda session: aggregates.create(session, name, availability_zone)
        )

    def update_aggregate(
        self, aggregate_id: int, **changes: Unpack[aggregates.Changes]
    ) -> model.Aggregate:
        """Change the name, the availability zone, or both.

        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id
        :raises nova_precache.exception.AggregateNameExists: another one has this name
        :raises nova_precache.exception.InvalidAggregateAction: the zone is empty, or a host
            is in another one
        """
        return self._write_again(lambda session: aggregates.update(session, aggregate_id, changes))

    def delete_aggregate(self, aggregate_id: int) -> None:
        """Delete an aggregate without hosts.

        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id
        :raises nova_precache.exception.InvalidAggregateAction: it has hosts
        """
        self._write_again(lambda session: aggregates.delete(session, aggregate_id))

    def add_host(self, aggregate_id: int, host: str) -> model.Aggregate:
        """Add a host to an aggregate.

        :raises nova_precache.exception.ComputeHostNotFound: the host is mapped to no cell
        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id
        :raises nova_precache.exception.AggregateHostExists: it is there already
        :raises nova_precache.exception.InvalidHost: it is in another availability zone
        """
        return self._write_again(lambda session: _add_host(session, aggregate_id, host))

    def remove_host(self, aggregate_id: int, host: str) -> model.Aggregate:
        """Remove a host from an aggregate, whether it is still mapped to a cell or not.

        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id
        :raises nova_precache.exception.AggregateHostNotFound: the host is not in it
        """
        return self._write(lambda session: aggregates.remove_host(session, aggregate_id, host))

    def set_metadata(
        self, aggregate_id: int, metadata: Mapping[str, str | None]
    ) -> model.Aggregate:
        """Set each key to its value, or remove it if the value is None.

        :raises nova_precache.exception.AggregateNotFound: no aggregate has this id
        :raises nova_precache.exception.InvalidAggregateAction: the availability zone is
            empty, or a host is in another one
        """
        return self._write_again(
            lambda session: aggregates.set_metadata(session, aggregate_id, metadata)
        )

    def list_cells(self) -> Sequence[model.Cell]:
        """List all cells, disabled ones too, except cell0, which holds no hosts."""
        with self._database.reader() as session:
            return [self._fill_cell(cell) for cell in mappings.load_cells(session)]

    def get_cell(self, cell: str) -> model.Cell:
        """Return a cell by its uuid or its name.

        :raises nova_precache.exception.CellNotFound: no cell has this uuid or name
        """
        with self._database.reader() as session:
            return self._fill_cell(mappings.to_cell(mappings.load_cell(session, cell)))

    def create_cell(
        self,
        name: str,
        transport_url: str,
        database_connection: str = '',
        uuid: str | None = None,
    ) -> model.Cell:
        """Create a cell mapping.

        :raises nova_precache.exception.CellExists: another one has this name, uuid or broker
        """
        cell = model.Cell(
            uuid or uuidutils.generate_uuid(), name, transport_url, database_connection
        )
        return self._write_again(lambda session: mappings.create_cell(session, cell))

    def map_host(self, host: str, cell_uuid: str) -> None:
        """Map a host to its cell, unless it is mapped to it already.

        :raises nova_precache.exception.CellNotFound: no cell has this uuid
        :raises nova_precache.exception.AgentConflict: the host is in another cell
        :raises nova_precache.exception.HostNotMapped: Nova maps hosts, and has not mapped this one
        """
        with self._database.reader() as session:
            if mappings.is_mapped(session, host, cell_uuid):
                return
            if not self._writable:
                cell = mappings.load_cell(session, cell_uuid)
                raise exception.HostNotMapped(
                    f'Host {host} is not mapped to cell {cell.name or cell_uuid} in the database '
                    'of Nova; nova-manage cell_v2 discover_hosts maps it.'
                )
        self._write_again(lambda session: mappings.map_host(session, host, cell_uuid))

    def unmap_host(self, host: str) -> None:
        """Delete the cell mapping of a host, if it has one."""
        self._write(lambda session: mappings.unmap_host(session, host))

    def delete_cell(self, cell_uuid: str) -> None:
        """Delete a cell.

        :raises nova_precache.exception.CellNotFound: no cell has this uuid
        :raises nova_precache.exception.InUse: hosts are mapped to it
        """
        self._write_again(lambda session: mappings.delete_cell(session, cell_uuid))

    def cell_of_hosts(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map hosts to the uuids of their cells; unmapped hosts are absent."""
        with self._database.reader() as session:
            return mappings.cell_of_hosts(session, hosts)

    def page_of_hosts(
        self, limit: int, marker: str | None = None, cell_uuid: str | None = None
    ) -> Mapping[str, str]:
        """Map hosts, sorted by name and starting after the marker, to the uuids of their cells."""
        with self._database.reader() as session:
            return mappings.page_of_hosts(session, limit, marker, cell_uuid)

    def list_host_mappings(self) -> Sequence[tuple[str, model.Cell]]:
        """List every mapped host with its cell, sorted by host."""
        with self._database.reader() as session:
            return [(host, self._fill_cell(cell)) for host, cell in mappings.load_hosts(session)]

    def _write_again(self, work: Callable[[orm.Session], T]) -> T:
        """Write, and retry after a lost race, so that the checks see the other writer's rows."""
        for _ in range(_RACES - 1):
            try:
                return self._write(work)
            except (db_exception.DBDuplicateEntry, db_exception.DBReferenceError):
                continue
        return self._write(work)

    def _write(self, work: Callable[[orm.Session], T]) -> T:
        if not self._writable:
            raise exception.ReadOnlyInventory(
                'Aggregates, cells and host mappings are kept in the database of Nova; '
                'change them there.'
            )
        return self._database.write(work)


def _add_host(session: orm.Session, aggregate_id: int, host: str) -> model.Aggregate:
    mappings.refuse_unmapped(session, host)
    return aggregates.add_host(session, aggregate_id, host)
