# SPDX-License-Identifier: Apache-2.0
"""One connection to each cell's broker, made at its first use."""

import pytest

from nova_precache import exception, outages, rpc
from nova_precache.cells import inventory, models as cell_models, templates, transports
from tests.unit.conftest import World


class Broker:
    """Makes transports, and records their URLs."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.broken: set[str] = set()

    def connect(self, url: str, whose: str) -> rpc.Transport:
        if url in self.broken:
            raise exception.ConfigError('transport_url: InvalidTransportURL')
        self.made.append(url)

        class Transport(rpc.Transport):
            def __init__(self) -> None:
                super().__init__(
                    calling=None,
                    serving=None,
                    probing=None,
                    exchange=url,
                    hosts=1,
                    outage=outages.Outage(f'Broker {url} ({whose})'),
                )

        return Transport()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def cells(world: World, broker: Broker) -> transports.CellTransports:
    return transports.CellTransports(world.inventory, broker.connect)


def test_connections_are_lazy(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    assert cells.refresh() == [world.cell]
    assert broker.made == []


def test_cell_is_connected_once(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    first = cells.get(world.cell.uuid)

    assert cells.get(world.cell.uuid) is first
    assert broker.made == ['fake:///cell1']


def test_only_enabled_cells_with_broker_served(
    world: World, cells: transports.CellTransports
) -> None:
    off = world.inventory.create_cell('off', 'fake:///off')
    world.inventory.create_cell('without', '')
    world.change(cell_models.CellMapping, cell_models.CellMapping.uuid == off.uuid, disabled=True)

    assert [cell.name for cell in cells.refresh()] == ['cell1']


def test_unfillable_template_reported_once_without_blocking(
    world: World, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broken = world.inventory.create_cell('broken', 'rabbit://{hostname}/')
    filling = templates.Filling(transport_url='fake:///', database_connection=None)
    stock = inventory.Inventory(world.database, writable=False, fill_cell=filling.fill_cell)
    cells = transports.CellTransports(stock, broker.connect)

    assert cells.refresh() == cells.refresh() == [world.cell]
    [told] = [each for each in caplog.messages if 'is a template' in each]
    assert broken.uuid in told
    with pytest.raises(exception.ConfigError, match=r'cell broken cannot be reached.*\{hostname\}'):
        cells.get(broken.uuid)
    assert cells.get(world.cell.uuid).exchange == 'fake:///cell1'


def test_cell_without_url_not_called(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    without = world.inventory.create_cell('without', '')
    with pytest.raises(exception.ConfigError, match='has no transport URL'):
        cells.get(without.uuid)
    assert broker.made == []


def test_cell_added_later_found(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    cells.get(world.cell.uuid)
    added = world.inventory.create_cell('cell2', 'fake:///cell2')

    assert [cell.name for cell in cells.refresh()] == ['cell1', 'cell2']
    cells.get(added.uuid)
    assert broker.made == ['fake:///cell1', 'fake:///cell2']


def test_changed_url_reconnects_after_refresh(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    old = cells.get(world.cell.uuid)
    this = cell_models.CellMapping.uuid == world.cell.uuid
    world.change(cell_models.CellMapping, this, transport_url='fake:///moved')
    assert cells.get(world.cell.uuid) is old

    cells.refresh()

    assert cells.get(world.cell.uuid).exchange == 'fake:///moved'
    assert cells.get(world.cell.uuid) is cells.get(world.cell.uuid)
    assert broker.made == ['fake:///cell1', 'fake:///moved']
    assert 'moved' not in repr(cells._connected)


def test_unknown_cell_not_found(cells: transports.CellTransports) -> None:
    with pytest.raises(exception.CellNotFound):
        cells.get('none')


def test_wrong_url_is_retried(
    world: World, cells: transports.CellTransports, broker: Broker
) -> None:
    broker.broken.add('fake:///cell1')
    with pytest.raises(exception.ConfigError):
        cells.get(world.cell.uuid)
    broker.broken.clear()

    assert cells.get(world.cell.uuid).exchange == 'fake:///cell1'
