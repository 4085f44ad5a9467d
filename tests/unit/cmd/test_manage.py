# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage, as an operator uses it."""

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import inventory
from nova_precache.cmd import manage
from nova_precache.db import agents, models, session
from tests.unit.conftest import LONG_AGO, open_database

Run = Callable[..., str]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'precache.sqlite'


@pytest.fixture
def config_file(tmp_path: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / 'nova-precache.conf'
    made.write_text(f'[database]\nconnection = sqlite:///{path}\n')
    return made


@pytest.fixture
def run(
    config_file: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """A function that runs the command in this process and gives what it prints."""
    monkeypatch.setattr('oslo_log.log.setup', lambda conf, product: None)

    def command(*arguments: str) -> str:
        argv = ['nova-precache-manage', '--config-file', str(config_file), *arguments]
        monkeypatch.setattr(sys, 'argv', argv)
        assert manage._main() == 0
        return capsys.readouterr().out

    return command


def _cells(table: str) -> list[list[str]]:
    """Read the rows of a printed table, its head first."""
    rows = [line for line in table.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def test_a_sync_makes_the_tables_and_can_be_repeated(run: Run, path: pathlib.Path) -> None:
    assert run('db', 'sync') == 'The database is up to date.\n'
    assert run('db', 'sync') == 'The database is up to date.\n'

    database = open_database(path)
    assert {'cache_requests', 'jobs', 'claims'} <= set(
        sa.inspect(database.engine).get_table_names()
    )
    database.dispose()


def test_a_created_cell_is_listed_without_who_logs_in(run: Run) -> None:
    run('db', 'sync')
    url = 'rabbit://user:s3cret@host1:5672/cell1'

    uuid = run('cell', 'create', '--name', 'cell1', '--transport-url', url).strip()

    assert _cells(run('cell', 'list')) == [
        ['Name', 'UUID', 'Transport URL', 'Disabled'],
        ['cell1', uuid, 'rabbit://host1:5672/cell1', 'False'],
    ]


def test_a_cell_has_the_uuid_that_was_asked_for(run: Run) -> None:
    run('db', 'sync')
    arguments = ('--name', 'cell1', '--transport-url', 'fake:///cell1', '--uuid', 'uuid-1')

    assert run('cell', 'create', *arguments) == 'uuid-1\n'


def test_a_second_cell_of_the_same_name_is_refused(run: Run) -> None:
    run('db', 'sync')
    run('cell', 'create', '--name', 'cell1', '--transport-url', 'rabbit://host1/')

    with pytest.raises(exception.CellExists):
        run('cell', 'create', '--name', 'cell1', '--transport-url', 'rabbit://host2/')

    assert len(_cells(run('cell', 'list'))) == 2


def test_hosts_are_listed_with_their_cell_and_whether_they_live(
    run: Run, path: pathlib.Path
) -> None:
    run('db', 'sync')
    database = open_database(path)
    stock, store = inventory.Inventory(database), agents.Agents(database, 60)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host in ('silent', 'up', 'never'):
        stock.map_host(host, cell.uuid)
    for host in ('silent', 'up'):
        store.register(model.Agent(host, f'agent-{host}', cell.uuid, driver='FakeDriver'))
    database.write(
        lambda s: s.execute(
            session.update(models.Agent)
            .where(models.Agent.host == 'silent')
            .values(seen_at=LONG_AGO)
        )
    )
    database.dispose()

    rows = _cells(run('host', 'list'))

    assert rows[0] == ['Host', 'Cell', 'State', 'Last report (UTC)', 'Driver']
    assert [(row[0], row[1], row[2], row[4]) for row in rows[1:]] == [
        ('never', 'cell1', 'down', 'None'),
        ('silent', 'cell1', 'down', 'FakeDriver'),
        ('up', 'cell1', 'up', 'FakeDriver'),
    ]
    assert rows[2][3] == str(LONG_AGO)


@pytest.mark.parametrize(
    'arguments',
    [
        ('host', 'list'),
        ('cell', 'list'),
        ('cell', 'create', '--name', 'cell1', '--transport-url', 'fake:///cell1'),
    ],
)
def test_a_database_that_was_never_synced_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(exception.ConfigError, match='run nova-precache-manage db sync'):
        run(*arguments)


def test_an_error_on_purpose_ends_the_command_with_one_line_and_no_trace(
    config_file: pathlib.Path, path: pathlib.Path
) -> None:
    database = open_database(path)
    with database.engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE request_specs (id INTEGER)'))
    database.dispose()
    code = 'from nova_precache.cmd import manage; manage.main()'

    ended = subprocess.run(
        [sys.executable, '-c', code, '--config-file', str(config_file), 'db', 'sync'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stdout == ''
    assert '[database] connection names a database of Nova' in ended.stderr
    assert 'Traceback' not in ended.stderr
