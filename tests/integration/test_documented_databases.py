# SPDX-License-Identifier: Apache-2.0
"""The documentation's commands and statements for databases, run on real servers."""

import pathlib
import subprocess
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from nova_precache.cells import models
from tests.conftest import running_databases
from tools import documentation
from tools.documentation import Block
from tools.servers import databases
from tools.waiting import TIMEOUT_SECONDS

READ = ('aggregates', 'aggregate_hosts', 'aggregate_metadata', 'cell_mappings', 'host_mappings')


def _blocks(kind: str) -> list[Block]:
    return [each for each in documentation.run_by('database') if each.arguments[0] == kind]


def _statements(block: Block) -> list[str]:
    return [each.strip() for each in block.text.split(';') if each.strip()]


@pytest.fixture(scope='module')
def mariadb() -> Iterator[databases.DatabaseServer]:
    with running_databases(databases.MARIADB) as server:
        assert isinstance(server, databases.DatabaseServer)
        yield server


@pytest.fixture(scope='module')
def postgresql() -> Iterator[databases.DatabaseServer]:
    with running_databases(databases.POSTGRESQL) as server:
        assert isinstance(server, databases.DatabaseServer)
        yield server


def _make_tables(url: str) -> None:
    """Make Nova's tables that are read, and one that is not."""
    engine = sa.create_engine(url)
    models.InventoryBase.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE services (id int)'))
        connection.execute(sa.text('CREATE TABLE secrets (id int)'))
    engine.dispose()


def _can_read(url: sa.URL, *tables: str) -> list[str]:
    engine = sa.create_engine(url)
    readable = []
    with engine.connect() as connection:
        for table in tables:
            try:
                connection.execute(sa.text(f'SELECT count(*) FROM {table}'))  # noqa: S608
            except sa.exc.DBAPIError:
                connection.rollback()
            else:
                readable.append(table)
    engine.dispose()
    return readable


def test_mariadb_inventory_user_reads_only_needed(
    mariadb: databases.DatabaseServer,
) -> None:
    with mariadb.empty('nova_api') as api, mariadb.empty('nova_cell1') as cell:
        _make_tables(api)
        _make_tables(cell)
        for block in _blocks('mariadb'):
            for statement in _statements(block):
                mariadb.execute(statement)

        login = {'username': 'precache_ro', 'password': 'password'}
        read = _can_read(sa.make_url(api).set(**login), *READ, 'services', 'secrets')
        read_in_cell = _can_read(sa.make_url(cell).set(**login), 'services', 'secrets')
        mariadb.execute("DROP USER 'precache_ro'@'%'")

    assert tuple(read) == READ
    assert read_in_cell == ['services']


def test_postgresql_inventory_user_reads_only_needed(
    postgresql: databases.DatabaseServer,
) -> None:
    (block,) = [each for each in _blocks('postgresql') if each.language == 'sql']
    with postgresql.empty('nova_api') as api:
        _make_tables(api)
        engine = sa.create_engine(api)
        with engine.begin() as connection:
            for statement in _statements(block):
                connection.execute(sa.text(statement))

        login = {'username': 'precache_ro', 'password': 'password'}
        read = _can_read(sa.make_url(api).set(**login), *READ, 'services', 'secrets')
        with engine.begin() as connection:
            connection.execute(sa.text('DROP OWNED BY precache_ro'))
            connection.execute(sa.text('DROP USER precache_ro'))
        engine.dispose()

    assert tuple(read) == READ


def test_postgresql_user_owns_service_database(
    postgresql: databases.DatabaseServer, tmp_path: pathlib.Path
) -> None:
    (block,) = [each for each in _blocks('postgresql') if each.language == 'shell']
    with postgresql.empty() as url:
        server = sa.make_url(url)
    variables = {
        'PATH': '/usr/bin:/bin',
        'PGHOST': str(server.query['host']),
        'PGPORT': str(server.query['port']),
        'PGUSER': str(server.username),
    }

    ran = subprocess.run(
        ['bash', '-euc', block.text],
        input='secret\nsecret\n',
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # without a terminal, where it would ask
        timeout=TIMEOUT_SECONDS,
    )

    assert ran.returncode == 0, ran.stderr
    engine = sa.create_engine(server.set(username='precache', database='nova_precache'))
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE tried (id int)'))
    engine.dispose()
