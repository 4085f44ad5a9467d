# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage, as an operator uses it."""

import contextlib
import datetime
import io
import os
import pathlib
import pty
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import inventory, mappings
from nova_precache.cmd import manage
from nova_precache.cmd.manage_commands import brokers
from nova_precache.db import agents, caches, host_removal
from nova_precache.db.engine import models, session
from tests.unit.cells.conftest import CellDatabase
from tests.unit.conftest import LONG_AGO, open_database, open_world
from tools.waiting import TIMEOUT_SECONDS

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
    """Return a function that runs the command in this process and returns its output."""
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


def test_repeatable_sync_creates_tables(run: Run, path: pathlib.Path) -> None:
    assert run('db', 'sync') == 'The database is up to date.\n'
    assert run('db', 'sync') == 'The database is up to date.\n'

    database = open_database(path)
    assert {'cache_requests', 'jobs', 'claims'} <= set(
        sa.inspect(database.engine).get_table_names()
    )
    database.dispose()


def test_created_cell_listed_without_credentials(run: Run) -> None:
    run('db', 'sync')
    url = 'rabbit://user:s3cret@host1:5672/cell1'

    uuid = run('cell', 'create', '--name', 'cell1', '--transport-url', url).strip()

    assert _cells(run('cell', 'list')) == [
        ['Name', 'UUID', 'Transport URL', 'Disabled'],
        ['cell1', uuid, 'rabbit://host1:5672/cell1', 'False'],
    ]


def test_cell_gets_given_uuid(run: Run) -> None:
    run('db', 'sync')
    asked = uuid.uuid4()
    arguments = ('--name', 'cell1', '--transport-url', 'rabbit://host1/', '--uuid', asked.hex)

    assert run('cell', 'create', *arguments) == f'{asked}\n'


def test_second_cell_of_same_name_refused(run: Run) -> None:
    run('db', 'sync')
    run('cell', 'create', '--name', 'cell1', '--transport-url', 'rabbit://host1/')

    with pytest.raises(exception.CellExists):
        run('cell', 'create', '--name', 'cell1', '--transport-url', 'rabbit://host2/')

    assert len(_cells(run('cell', 'list'))) == 2


def test_standalone_cell_stays_in_memory(
    run: Run, site: session.Database, config_file: pathlib.Path
) -> None:
    with config_file.open('a') as more:
        more.write('[DEFAULT]\ntransport_url = fake:///api\n')

    run('cell', 'create', '--name', 'cell1', '--transport-url', 'fake:///cell1')

    assert [cell.name for cell in inventory.Inventory(site).list_cells()] == ['cell1']


def test_hosts_listed_with_cell_and_state(run: Run, path: pathlib.Path) -> None:
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


def test_agentless_hosts_listed_from_cells(
    run: Run, site: session.Database, config_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with config_file.open('a') as more:
        more.write('[image_cache]\ncompute_backend = nova\n')
    stock, novas = inventory.Inventory(site), CellDatabase(tmp_path / 'nova_cell1.sqlite')
    novas.add('off', disabled=True)
    novas.add('up')
    for name, url, hosts in (('cell1', novas.url, ('off', 'up')), ('cell2', '', ('quiet',))):
        cell = stock.create_cell(name, f'fake:///{name}', url)
        for host in hosts:
            stock.map_host(host, cell.uuid)

    rows = _cells(run('host', 'list'))
    novas.close()

    assert [(*row[:3], row[4]) for row in rows[1:]] == [
        ('off', 'cell1', 'down', 'None'),
        ('quiet', 'cell2', 'unknown', 'None'),
        ('up', 'cell1', 'up', 'None'),
    ]
    assert [row[3] == 'None' for row in rows[1:]] == [False, True, False]


@pytest.mark.parametrize(
    'arguments',
    [
        ('host', 'list'),
        ('cell', 'list'),
        ('cell', 'create', '--name', 'cell1', '--transport-url', 'rabbit://host1/'),
    ],
)
def test_unsynced_database_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(exception.ConfigError, match='run nova-precache-manage db sync'):
        run(*arguments)


def test_database_error_reported_in_one_line(run: Run, site: session.Database) -> None:
    with site.engine.begin() as connection:
        connection.execute(sa.text('DROP TABLE agents'))

    with pytest.raises(exception.PrecacheError, match='no such table: agents') as failed:
        run('host', 'discover')

    assert '\n' not in str(failed.value)


def test_expected_error_ends_without_traceback(
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
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stdout == ''
    assert '[database] connection names a database of Nova' in ended.stderr
    assert 'Traceback' not in ended.stderr


@pytest.fixture
def site(run: Run, path: pathlib.Path) -> Iterator[session.Database]:
    """A synced database."""
    run('db', 'sync')
    database = open_database(path)
    yield database
    database.dispose()


def _host(database: session.Database, host: str, cell_uuid: str, *, is_up: bool) -> None:
    """Add a mapped host whose agent has reported an image, now or long ago."""
    inventory.Inventory(database).map_host(host, cell_uuid)
    agents.Agents(database, 60).register(model.Agent(host, f'agent-{host}', cell_uuid))
    image = model.CachedImage(host, 'a' * 40, None, 1, 1, LONG_AGO)
    caches.Caches(database).record([caches.Report(host, [image], full=True)])
    if not is_up:
        silent = session.update(models.Agent).where(models.Agent.host == host)
        database.write(lambda s: s.execute(silent.values(seen_at=LONG_AGO)))


def _left(database: session.Database, host: str) -> tuple[bool, bool, int]:
    """Return whether a host is mapped, whether it has an agent, and how many files it reported."""
    mapped = inventory.Inventory(database).cell_of_hosts([host])
    known = agents.Agents(database, 60).get([host])
    return host in mapped, host in known, len(caches.Caches(database).of_host(host))


def test_only_removed_host_deleted(run: Run, site: session.Database) -> None:
    cell = inventory.Inventory(site).create_cell('cell1', 'fake:///cell1')
    for host in ('gone', 'other'):
        _host(site, host, cell.uuid, is_up=False)

    assert run('host', 'delete', 'gone') == 'Host gone is deleted.\n'

    assert _left(site, 'gone') == (False, False, 0)
    assert _left(site, 'other') == (True, True, 1)
    with pytest.raises(exception.ComputeHostNotFound):
        run('host', 'delete', 'gone')


def test_unprintable_name_shown_escaped_and_deletable(run: Run, site: session.Database) -> None:
    evil = '../../evil\n\x1b[31m'
    cell = inventory.Inventory(site).create_cell('cell1', 'fake:///cell1')
    _host(site, evil, cell.uuid, is_up=False)

    assert '../../evil\\n\\x1b[31m' in run('host', 'list')
    assert run('host', 'delete', evil) == 'Host ../../evil\\n\\x1b[31m is deleted.\n'
    assert _left(site, evil) == (False, False, 0)


def test_host_with_live_agent_not_deleted(run: Run, site: session.Database) -> None:
    cell = inventory.Inventory(site).create_cell('cell1', 'fake:///cell1')
    _host(site, 'alive', cell.uuid, is_up=True)

    with pytest.raises(exception.InUse, match=r'Host alive is up \(last report: '):
        run('host', 'delete', 'alive')
    with pytest.raises(exception.InUse, match='has reported recently'):  # since the check
        host_removal.Departures(site, 60).forget('alive')

    assert _left(site, 'alive') == (True, True, 1)


def test_host_in_aggregate_not_deleted(run: Run, site: session.Database) -> None:
    stock = inventory.Inventory(site)
    _host(site, 'gone', stock.create_cell('cell1', 'fake:///cell1').uuid, is_up=False)
    aggregate = stock.create_aggregate('edge')
    stock.add_host(aggregate.id, 'gone')

    with pytest.raises(exception.InUse, match=rf'is in the aggregates with id {aggregate.id}:'):
        run('host', 'delete', 'gone')

    assert _left(site, 'gone') == (True, True, 1)


def test_running_work_protects_host_and_cell(run: Run, site: session.Database) -> None:
    site_of_tests = open_world(site)
    _host(site, 'gone', site_of_tests.cell.uuid, is_up=False)
    site_of_tests.planned(['gone'], ['image-1'])

    with pytest.raises(exception.InUse, match='Host gone has 1 jobs in progress'):
        run('host', 'delete', 'gone')
    with pytest.raises(exception.InUse, match='Cell cell1 has 1 jobs in progress'):
        run('cell', 'delete', 'cell1', '--force')

    assert _left(site, 'gone') == (True, True, 1)


def test_unmapped_live_agents_mapped(run: Run, site: session.Database) -> None:
    stock = inventory.Inventory(site)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host, is_up in (('known', True), ('lost', True), ('silent', False)):
        _host(site, host, cell.uuid, is_up=is_up)
    for host in ('lost', 'silent'):
        stock.unmap_host(host)

    said = run('host', 'discover')

    assert said == 'Host lost is mapped to cell cell1.\nHosts mapped: 1\n'
    assert set(stock.cell_of_hosts(['known', 'lost', 'silent'])) == {'known', 'lost'}
    assert run('host', 'discover') == 'Hosts mapped: 0\n'


def test_orphaned_agent_blocks_no_other(
    run: Run, site: session.Database, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = inventory.Inventory(site)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    agents.Agents(site, 60).register(model.Agent('astray', 'agent-1', 'no-such-cell'))
    agents.Agents(site, 60).register(model.Agent('lost', 'agent-2', cell.uuid))

    with pytest.raises(AssertionError):  # it exits with 1
        run('host', 'discover')

    said = capsys.readouterr()
    assert said.err == 'Host astray is not mapped: Cell no-such-cell has no mapping.\n'
    assert said.out == 'Host lost is mapped to cell cell1.\nHosts mapped: 1\n'


@pytest.mark.parametrize('named_by', ['name', 'uuid'])
def test_empty_cell_is_deleted(run: Run, site: session.Database, named_by: str) -> None:
    stock = inventory.Inventory(site)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    other = stock.create_cell('cell2', 'fake:///cell2')

    said = run('cell', 'delete', getattr(cell, named_by))

    assert said == f'Cell cell1 ({cell.uuid}) is deleted.\n'
    assert stock.list_cells() == [other]
    with pytest.raises(exception.CellNotFound):
        run('cell', 'delete', cell.uuid)


def test_force_deletes_cell_of_dead_hosts(run: Run, site: session.Database) -> None:
    stock = inventory.Inventory(site)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    _host(site, 'gone', cell.uuid, is_up=False)
    _host(site, 'living', cell.uuid, is_up=True)

    with pytest.raises(exception.InUse, match='has 2 hosts, such as gone: delete them first'):
        run('cell', 'delete', 'cell1')
    with pytest.raises(exception.InUse, match='Host living is up'):
        run('cell', 'delete', 'cell1', '--force')
    assert _left(site, 'gone') == (True, True, 1)

    silent = session.update(models.Agent).values(seen_at=LONG_AGO)
    site.write(lambda s: s.execute(silent))
    run('cell', 'delete', 'cell1', '--force')

    assert stock.list_cells() == []
    assert _left(site, 'gone') == _left(site, 'living') == (False, False, 0)


URL = 'rabbit://user:s3cret@broker:5672/cell1'


def _type(monkeypatch: pytest.MonkeyPatch, given: bytes) -> None:
    """Replace standard input by this text."""
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(given), encoding='utf-8'))


@pytest.mark.parametrize('ending', ['', '\n', '\r\n'])
def test_transport_url_read_from_stdin(
    run: Run, site: session.Database, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    _type(monkeypatch, f'{URL}{ending}'.encode())

    said = run('cell', 'create', '--name', 'cell1', '--transport-url', '-')

    (cell,) = inventory.Inventory(site).list_cells()
    assert (cell.name, cell.transport_url) == ('cell1', URL)
    assert said == f'{cell.uuid}\n'


def test_default_cell_uses_configured_broker(
    run: Run, site: session.Database, config_file: pathlib.Path
) -> None:
    with config_file.open('a') as more:
        more.write(f'[DEFAULT]\ntransport_url = {URL}\n')

    run('cell', 'create', '--name', 'cell1')

    assert [cell.transport_url for cell in inventory.Inventory(site).list_cells()] == [URL]


def test_transport_url_prompted_without_echo(
    site: session.Database, config_file: pathlib.Path
) -> None:
    terminal, its_other_end = pty.openpty()
    script = 'from nova_precache.cmd import manage; manage.main()'
    arguments = ('cell', 'create', '--name', 'cell1', '--transport-url', '-')
    process = subprocess.Popen(
        [sys.executable, '-c', script, '--config-file', str(config_file), *arguments],
        stdin=its_other_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # or it prompts at the terminal that runs the tests
    )
    try:
        assert process.stderr is not None
        prompt = process.stderr.read(len(brokers.PROMPT)).decode()
        os.write(terminal, f'{URL}\n'.encode())
        said, complained = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(its_other_end)
    os.set_blocking(terminal, False)
    with contextlib.suppress(BlockingIOError, OSError):  # the latter: no data, and it is closed
        assert b's3cret' not in os.read(terminal, 1000)
    os.close(terminal)

    (cell,) = inventory.Inventory(site).list_cells()
    assert (prompt, cell.transport_url) == (brokers.PROMPT, URL)
    assert said.decode() == f'{cell.uuid}\n'
    assert b's3cret' not in complained


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('', 'is empty'),
        ('rabbit://user:pass/word@host/', 'cannot be parsed; is the password percent-encoded?'),
        ('rabbit://[host/', 'cannot be parsed; is the password percent-encoded?'),
        ('rabbit://user:pass@host:port/', 'cannot be parsed; is the password percent-encoded?'),
        ('user:pass@host', 'cannot be parsed; is the password percent-encoded?'),
        ('rabbit://user:pass word@host/', 'contains white space'),
        (
            '{scheme}://user:pass@{hostname}/',
            'is a template ({hostname}, {scheme}), as only the cells of Nova can have',
        ),
        ('http://user:pass@host/', "has the scheme 'http', but must begin with rabbit://"),
        ('kafka://user:pass@host/', "has the scheme 'kafka', but must begin with rabbit://"),
        ('amqp://user:pass@host/', "has the scheme 'amqp', but must begin with rabbit://"),
        ('rabbit://user:pass@host:65536/', 'has a port outside 1 to 65535'),
        ('rabbit://user:pass@host:0/', 'has a port outside 1 to 65535'),
        ('rabbit://user:pass@:5672/', 'has no host name before a port or a user'),
        ('rabbit://', 'names no host'),
        ('rabbit:///cell1', 'names no host'),
        ('fake:///cell1', 'is in the memory of one process; it must name a broker'),
    ],
)
def test_unusable_transport_url_refused_and_hidden(
    run: Run, site: session.Database, url: str, why: str
) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        run('cell', 'create', '--name', 'cell1', '--transport-url', url)

    assert str(refused.value) == f'--transport-url {why}'
    assert 'pass' not in str(refused.value).replace('the password', '')
    assert inventory.Inventory(site).list_cells() == []


@pytest.mark.parametrize(
    ('given', 'why'),
    [
        (b'', 'expects the URL as one line'),
        (b'\n', 'expects the URL as one line'),
        (f'{URL}\nmysql://user:s3cret@db/\n'.encode(), 'expects the URL as one line'),
        (b'rabbit://user:s3cret\xff@broker/\n', 'expects the URL as one line'),
        (
            b'rabbit://user:s3cret/@broker/\n',
            'cannot be parsed; is the password percent-encoded?',
        ),
    ],
)
def test_stdin_without_transport_url_refused(
    run: Run, site: session.Database, monkeypatch: pytest.MonkeyPatch, given: bytes, why: str
) -> None:
    _type(monkeypatch, given)

    with pytest.raises(exception.InvalidInput) as refused:
        run('cell', 'create', '--name', 'cell1', '--transport-url', '-')

    assert str(refused.value).startswith(f'--transport-url - {why}')
    assert 's3cret' not in str(refused.value)
    assert inventory.Inventory(site).list_cells() == []


@pytest.mark.parametrize(
    ('configured', 'why'),
    [
        ('', '--transport-url is not given, and [DEFAULT] transport_url is not set'),
        (
            'transport_url =',
            '[DEFAULT] transport_url is empty',
        ),
        (
            'transport_url = rabbit://user:s3cret/@broker/',
            '[DEFAULT] transport_url cannot be parsed; is the password percent-encoded?',
        ),
    ],
)
def test_configuration_without_transport_url_refused(
    run: Run, site: session.Database, config_file: pathlib.Path, configured: str, why: str
) -> None:
    with config_file.open('a') as more:
        more.write(f'[DEFAULT]\n{configured}\n')

    with pytest.raises(exception.InvalidInput) as refused:
        run('cell', 'create', '--name', 'cell1')

    assert str(refused.value) == why
    assert inventory.Inventory(site).list_cells() == []


@pytest.mark.parametrize(
    ('arguments', 'why'),
    [
        (('--name', ''), '--name must have 1 to 255 characters'),
        (('--name', 'c' * 256), '--name must have 1 to 255 characters'),
        (('--name', 'cell\n1'), '--name must have printable characters only'),
        (('--name', 'cell1', '--uuid', 'cell-1'), "--uuid 'cell-1' is not a UUID"),
        (
            ('--name', 'cell1', '--uuid', mappings.CELL0_UUID),
            '--uuid is that of cell0, which has no hosts',
        ),
    ],
)
def test_unstorable_cell_name_refused(
    run: Run, site: session.Database, arguments: tuple[str, ...], why: str
) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        run('cell', 'create', *arguments, '--transport-url', URL)

    assert str(refused.value) == why
    assert inventory.Inventory(site).list_cells() == []


def test_long_ended_requests_purged(run: Run, site: session.Database) -> None:
    site_of_tests = open_world(site)
    old, ended, running = (site_of_tests.planned([host], ['image-1']) for host in 'abc')
    for request, days in ((old, 31), (ended, 1)):
        done = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        which = models.CacheRequest.id == request.id
        site_of_tests.change(models.CacheRequest, which, finished_at=done.replace(tzinfo=None))

    def left() -> set[str]:
        return {request.id for request in site_of_tests.requests.list()}

    assert run('db', 'purge') == 'Requests purged: 1\n'  # by [image_cache] request_retention_days
    assert left() == {ended.id, running.id}
    assert run('db', 'purge', '--age-days', '0') == 'Requests purged: 1\n'
    assert left() == {running.id}


@pytest.mark.parametrize('days', ['-1', '1.5', 'all', '', '100000'])
def test_invalid_age_in_days_refused(run: Run, days: str) -> None:
    with pytest.raises(SystemExit):
        run('db', 'purge', f'--age-days={days}')


def test_schema_revision_is_shown(run: Run, path: pathlib.Path) -> None:
    before = run('db', 'version')
    run('db', 'sync')
    after = run('db', 'version')

    newest = before.removeprefix('none (this release has ').removesuffix(')\n')
    assert after == f'{newest} (this release has {newest})\n'
    assert newest.isdigit()


@pytest.mark.parametrize(
    'arguments',
    [
        ('cell', 'create', '--name', 'cell2', '--transport-url', 'rabbit://host2/'),
        ('cell', 'delete', 'cell1'),
        ('host', 'delete', 'gone'),
    ],
)
def test_nova_inventory_read_only(
    run: Run, site: session.Database, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    stock = inventory.Inventory(site)
    stock.create_cell('cell1', 'fake:///cell1')
    _host(site, 'gone', stock.create_cell('cell3', 'fake:///cell3').uuid, is_up=False)
    novas = inventory.Inventory(site, writable=False)
    monkeypatch.setattr('nova_precache.cells.novadb.open_inventory', lambda conf, own: novas)

    with pytest.raises(exception.ReadOnlyInventory, match='kept in the database of Nova'):
        run(*arguments)

    assert _left(site, 'gone') == (True, True, 1)
    assert len(stock.list_cells()) == 2
