# SPDX-License-Identifier: Apache-2.0
"""A database of Nova is opened without changing it; any other database is refused.

MariaDB, and a database that Nova has made, are in the integration tests.
"""

import pathlib

import pytest
import sqlalchemy as sa
from oslo_config import cfg

from nova_precache import conf as options, exception
from nova_precache.cells import inventory, models, novadb
from nova_precache.db.engine import session


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'nova api?.sqlite'


@pytest.fixture
def conf(tmp_path: pathlib.Path, path: pathlib.Path) -> cfg.ConfigOpts:
    made = options.new(config_files=[])
    made.set_override('connection', f'sqlite:///{tmp_path}/own.sqlite', 'database')
    quoted = str(path).replace('?', '%3F')
    made.set_override('connection', f'sqlite:///{quoted}', 'api_database')
    return made


@pytest.fixture
def theirs(path: pathlib.Path) -> inventory.Inventory:
    """An inventory like Nova's: in a file without the journal mode of ours."""
    engine = sa.create_engine(sa.URL.create('sqlite', database=str(path)))
    models.InventoryBase.metadata.create_all(engine)
    with engine.begin() as connection:
        cell = sa.insert(models.CellMapping).values(uuid='c1', name='cell1', transport_url='{path}')
        connection.execute(cell)
        connection.execute(sa.insert(models.HostMapping).values(host='host1', cell_id=1))
    engine.dispose()


@pytest.mark.usefixtures('theirs')
def test_opened_database_read_only(conf: cfg.ConfigOpts, path: pathlib.Path) -> None:
    before = path.read_bytes()
    database = novadb.connect(conf)
    with pytest.raises(exception.DatabaseUnavailable):
        database.write(lambda writer: writer.execute(sa.delete(models.HostMapping)))
    with pytest.raises(sa.exc.OperationalError, match='readonly'), database.engine.begin() as raw:
        raw.execute(sa.text('CREATE TABLE ours (id INTEGER)'))
    database.dispose()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures('theirs')
def test_hosts_and_cells_come_from_nova(conf: cfg.ConfigOpts) -> None:
    conf.set_override('template_transport_url', 'rabbit://h/the-path', 'api_database')
    with session.connect(conf) as own:
        stock = novadb.open_inventory(conf, own)
        assert stock.get_cell('c1').transport_url == 'the-path'
        assert stock.cell_of_hosts(['host1', 'host2']) == {'host1': 'c1'}
        stock.map_host('host1', 'c1')
        with pytest.raises(exception.HostNotMapped, match='host2 is not mapped to cell cell1'):
            stock.map_host('host2', 'c1')
        with pytest.raises(exception.ReadOnlyInventory, match='database of Nova'):
            stock.create_cell('cell2', 'fake:///')


def test_own_inventory_without_nova_database(conf: cfg.ConfigOpts) -> None:
    conf.clear_override('connection', 'api_database')
    with session.connect(conf) as own:
        models.InventoryBase.metadata.create_all(own.engine)
        cell = novadb.open_inventory(conf, own).create_cell('cell1', 'fake:///{path}')
        assert inventory.Inventory(own).list_cells() == [cell]


def test_missing_file_not_created(conf: cfg.ConfigOpts, path: pathlib.Path) -> None:
    conf.set_override('max_retries', 0, 'api_database')
    with pytest.raises(exception.ConfigError, match=r'^\[api_database\] connection cannot be used'):
        novadb.connect(conf)
    assert not path.exists()


def test_database_without_inventory_refused(conf: cfg.ConfigOpts, path: pathlib.Path) -> None:
    path.touch()
    with pytest.raises(exception.ConfigError, match='table aggregates is missing'):
        novadb.connect(conf)


def test_own_database_not_accepted(conf: cfg.ConfigOpts) -> None:
    conf.set_override('connection', conf.database.connection, 'api_database')
    with pytest.raises(exception.ConfigError, match='not that of Nova'):
        novadb.connect(conf)
