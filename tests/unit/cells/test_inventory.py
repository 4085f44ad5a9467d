# SPDX-License-Identifier: Apache-2.0
"""The inventory where the API's tests do not reach: cells, host mappings, races, scale."""

import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova_precache import conf as options, exception
from nova_precache.cells import aggregates, inventory as cells_inventory, mappings, models
from nova_precache.db.engine import session


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[session.Database]:
    conf = options.new(config_files=[])
    conf.set_override('connection', f'sqlite:///{tmp_path}/inventory.sqlite', 'database')
    made = session.connect(conf)
    models.InventoryBase.metadata.create_all(made.engine)
    yield made
    made.dispose()


@pytest.fixture
def inventory(database: session.Database) -> cells_inventory.Inventory:
    return cells_inventory.Inventory(database)


def test_cell_found_by_uuid_and_name(inventory: cells_inventory.Inventory) -> None:
    one = inventory.create_cell('cell1', 'rabbit://u:secret@one/', uuid='c1')
    two = inventory.create_cell('cell2', 'rabbit://u:secret@two/')
    assert inventory.list_cells() == [one, two]
    assert inventory.get_cell('c1') == inventory.get_cell('cell1') == one
    assert inventory.get_cell(two.uuid) == two
    assert 'secret' not in repr(inventory.list_cells())
    with pytest.raises(exception.CellNotFound, match='cell3'):
        inventory.get_cell('cell3')


def test_uuid_matches_only_its_cell(inventory: cells_inventory.Inventory) -> None:
    inventory.create_cell('c2', 'fake:///1', uuid='c1')
    inventory.create_cell('other', 'fake:///2', uuid='c2')
    assert inventory.get_cell('c2').name == 'other'


@pytest.mark.parametrize(
    ('name', 'url', 'uuid'),
    [
        ('cell1', 'rabbit://two/', None),
        ('cell2', 'rabbit://one/', None),
        ('cell2', 'rabbit://two/', 'c1'),
    ],
)
def test_cells_have_unique_name_broker_uuid(
    inventory: cells_inventory.Inventory, name: str, url: str, uuid: str | None
) -> None:
    inventory.create_cell('cell1', 'rabbit://one/', uuid='c1')
    with pytest.raises(exception.CellExists):
        inventory.create_cell(name, url, uuid=uuid)
    assert len(inventory.list_cells()) == 1


@pytest.mark.parametrize(
    'url',
    [
        'rabbit://other:secret@one:5672,two:5673/',
        'rabbit://u:p@two:5673,u:p@one/',
        'rabbit://u:p@ONE',
        'rabbit://u:s@cret@one/%2F',
        'rabbit://u:p@two:5673/?ssl=1',
    ],
)
def test_broker_uniqueness_ignores_spelling(inventory: cells_inventory.Inventory, url: str) -> None:
    inventory.create_cell('cell1', 'rabbit://u:p@one,u:p@two:5673/')
    with pytest.raises(exception.CellExists, match='broker'):
        inventory.create_cell('cell2', url)


@pytest.mark.parametrize(
    'url', ['rabbit://u:p@one:5673/', 'rabbit://u:p@one/v', 'rabbit://u:p@three/', 'rabbit://[:x/']
)
def test_port_vhost_and_name_distinguish_brokers(
    inventory: cells_inventory.Inventory, url: str
) -> None:
    inventory.create_cell('cell1', 'rabbit://u:p@one,u:p@two:5673/')
    inventory.create_cell('cell2', url)
    assert len(inventory.list_cells()) == 2


def test_in_memory_cells_may_share_url(inventory: cells_inventory.Inventory) -> None:
    inventory.create_cell('cell1', 'fake:///')
    inventory.create_cell('cell2', 'fake:///')
    assert [cell.name for cell in inventory.list_cells()] == ['cell1', 'cell2']


def test_cell0_is_left_out(inventory: cells_inventory.Inventory) -> None:
    inventory.create_cell('cell0', 'none:///', uuid=mappings.CELL0_UUID)
    assert inventory.list_cells() == []


def test_repeated_registration_maps_host_once(
    inventory: cells_inventory.Inventory,
) -> None:
    cell = inventory.create_cell('cell1', 'fake:///')
    inventory.map_host('host1', cell.uuid)
    inventory.map_host('host1', cell.uuid)
    assert inventory.list_host_mappings() == [('host1', cell)]


def test_host_does_not_change_cell(inventory: cells_inventory.Inventory) -> None:
    one, two = (
        inventory.create_cell('cell1', 'fake:///'),
        inventory.create_cell('cell2', 'fake:///'),
    )
    inventory.map_host('host1', one.uuid)
    with pytest.raises(exception.AgentConflict, match='host1'):
        inventory.map_host('host1', two.uuid)
    assert inventory.cell_of_hosts(['host1']) == {'host1': one.uuid}


def test_host_of_unknown_cell_refused(inventory: cells_inventory.Inventory) -> None:
    with pytest.raises(exception.CellNotFound):
        inventory.map_host('host1', 'c1')


def test_many_hosts_looked_up_at_once(inventory: cells_inventory.Inventory) -> None:
    one, two = (
        inventory.create_cell('cell1', 'fake:///'),
        inventory.create_cell('cell2', 'fake:///'),
    )
    hosts = [f'host{number}' for number in range(1201)]
    for host in hosts[:1200:100]:
        inventory.map_host(host, one.uuid)
    inventory.map_host('host1200', two.uuid)
    found = inventory.cell_of_hosts([*hosts, 'host0'])
    assert len(found) == 13
    assert found['host1100'] == one.uuid
    assert found['host1200'] == two.uuid
    assert inventory.cell_of_hosts([]) == {}


def test_nova_inventory_maps_no_hosts(
    inventory: cells_inventory.Inventory, database: session.Database
) -> None:
    cell = inventory.create_cell('cell1', 'fake:///')
    inventory.map_host('host1', cell.uuid)
    read_only = cells_inventory.Inventory(database, writable=False)
    read_only.map_host('host1', cell.uuid)
    with pytest.raises(exception.HostNotMapped, match='host2 is not mapped to cell cell1'):
        read_only.map_host('host2', cell.uuid)
    with pytest.raises(exception.AgentConflict):
        read_only.map_host('host1', 'another-cell')
    with pytest.raises(exception.ReadOnlyInventory):
        read_only.create_cell('cell2', 'fake:///')
    assert [host for host, _ in read_only.list_host_mappings()] == ['host1']


def test_host_of_missing_cell_can_leave(
    inventory: cells_inventory.Inventory, database: session.Database
) -> None:
    cell = inventory.create_cell('cell1', 'fake:///')
    inventory.map_host('host1', cell.uuid)
    aggregate = inventory.create_aggregate('edge')
    inventory.add_host(aggregate.id, 'host1')
    database.write(lambda writer: writer.query(models.HostMapping).delete())
    assert inventory.remove_host(aggregate.id, 'host1').hosts == ()


def test_host_joins_aggregates_of_one_zone(inventory: cells_inventory.Inventory) -> None:
    inventory.map_host('host1', inventory.create_cell('cell1', 'fake:///').uuid)
    for name, zone in (('a', 'az1'), ('b', 'az1'), ('c', None)):
        inventory.add_host(inventory.create_aggregate(name, zone).id, 'host1')
    assert [aggregate.hosts for aggregate in inventory.list_aggregates()] == [('host1',)] * 3


def at_once(work: Callable[[int], object], times: int = 8) -> list[object]:
    """Run the work in threads that start together; return results and errors."""
    barrier, results = threading.Barrier(times), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            results.append(work(number))
        except exception.PrecacheError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == times
    return results


def test_concurrent_creation_has_one_winner(inventory: cells_inventory.Inventory) -> None:
    results = at_once(lambda number: inventory.create_aggregate('edge'))
    lost = [result for result in results if isinstance(result, exception.AggregateNameExists)]
    assert len(lost) == 7
    assert len(inventory.list_aggregates()) == 1


def test_concurrent_host_addition_has_one_winner(inventory: cells_inventory.Inventory) -> None:
    inventory.map_host('host1', inventory.create_cell('cell1', 'fake:///').uuid)
    aggregate = inventory.create_aggregate('edge')
    results = at_once(lambda number: inventory.add_host(aggregate.id, 'host1'))
    lost = [result for result in results if isinstance(result, exception.AggregateHostExists)]
    assert len(lost) == 7
    assert inventory.get_aggregate(aggregate.id).hosts == ('host1',)


def test_concurrent_agents_map_host_once(inventory: cells_inventory.Inventory) -> None:
    cell = inventory.create_cell('cell1', 'fake:///')
    assert at_once(lambda number: inventory.map_host('host1', cell.uuid)) == [None] * 8
    assert inventory.list_host_mappings() == [('host1', cell)]


@pytest.mark.parametrize('which', ['name', 'host', 'metadata'])
def test_race_loser_sees_conflicting_row(
    inventory: cells_inventory.Inventory, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """As on a server database, where reading takes no lock."""
    inventory.map_host('host1', inventory.create_cell('cell1', 'fake:///').uuid)
    taken = inventory.create_aggregate('edge')
    blind = [True]

    def overtaken(original: Any, seen: Any) -> Any:
        def look(*args: Any, **kwargs: Any) -> Any:
            return seen if blind and blind.pop() else original(*args, **kwargs)

        return look

    if which == 'name':
        look = overtaken(aggregates._refuse_taken, None)
        monkeypatch.setattr(aggregates, '_refuse_taken', look)
        with pytest.raises(exception.AggregateNameExists):
            inventory.create_aggregate('edge')
    elif which == 'host':
        stale = inventory.get_aggregate(taken.id)
        inventory.add_host(taken.id, 'host1')
        monkeypatch.setattr(aggregates, 'load', overtaken(aggregates.load, stale))
        with pytest.raises(exception.AggregateHostExists):
            inventory.add_host(taken.id, 'host1')
    else:
        stale = inventory.get_aggregate(taken.id)
        inventory.delete_aggregate(taken.id)
        monkeypatch.setattr(aggregates, 'load', overtaken(aggregates.load, stale))
        with pytest.raises(exception.AggregateNotFound):
            inventory.set_metadata(taken.id, {'a': 'b'})
    assert not blind


def test_reused_aggregate_id_not_confused(
    inventory: cells_inventory.Inventory,
) -> None:
    old = inventory.create_aggregate('old')
    inventory.delete_aggregate(old.id)
    new = inventory.create_aggregate('new')
    assert new.id == old.id

    assert inventory.get_aggregate(new.id, new.uuid).name == 'new'
    with pytest.raises(exception.AggregateNotFound):
        inventory.get_aggregate(old.id, old.uuid)
