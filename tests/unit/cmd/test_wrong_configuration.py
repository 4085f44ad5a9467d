# SPDX-License-Identifier: Apache-2.0
"""Each command names the wrong option in one line, and prints its version."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import pytest
from oslo_config import cfg

from nova_precache import exception
from nova_precache.cmd import manage
from nova_precache.db.engine import schema
from tests.unit.conftest import open_database

COMMANDS = ('api', 'compute', 'conductor', 'manage', 'standalone', 'status')
PASSWORD = 's3cret'
NOWHERE = '/dev/null/nowhere'  # no process can create it
# Imports fail as where the modules are not installed.
_WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from nova_precache.cmd import {command}
sys.argv[0] = 'nova-precache-{command}'
{command}.main()
"""


def _run(
    command: str, *arguments: object, missing: tuple[str, ...] = (), home: object = NOWHERE
) -> subprocess.CompletedProcess[str]:
    code = _WITHOUT.format(missing=missing, command=command)
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, 'HOME': str(home), 'COLUMNS': '400'},  # no path is wrapped
    )


@pytest.mark.parametrize('command', COMMANDS)
def test_version_needs_no_configuration(command: str) -> None:
    ended = _run(command, '--version')

    assert (ended.returncode, ended.stderr) == (0, '')
    assert ended.stdout == f'{metadata.version("nova-precache")}\n'


@pytest.mark.parametrize('command', [each for each in COMMANDS if each != 'standalone'])
def test_help_names_default_files(tmp_path: pathlib.Path, command: str) -> None:
    directory = tmp_path / '.nova-precache'
    directory.mkdir()
    own = directory / f'nova-precache-{command}.conf'
    own.write_text('[DEFAULT]\n')

    said = ' '.join(_run(command, '--help', home=tmp_path).stdout.split()).replace('- ', '-')

    assert f'nova-precache-{command}.conf that exist in ~/.nova-precache, ~, /etc/nova-' in said
    assert f'now {own}.' in said
    assert f'nova-precache-{command}.conf.d that exist in' in said
    assert 'now none.' in said


def test_standalone_reads_only_given_files(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / 'nova-precache.conf.d'
    directory.mkdir()
    (directory / 'more.conf').write_text('[DEFAULT]\nconcurrency_backend = eventlet\n')

    said = ' '.join(_run('standalone', '--help', home=tmp_path).stdout.split())
    found = _run('standalone', '--config-dir', directory, home=tmp_path)
    ignored = _run('standalone', '--state-dir', '/dev/null/state', home=tmp_path)

    assert said.count('Default: none.') == 2
    assert 'concurrency_backend = eventlet' in found.stderr
    assert '--state-dir /dev/null/state cannot be used' in ignored.stderr


def _config(directory: pathlib.Path, text: str) -> pathlib.Path:
    path = directory / 'nova-precache.conf'
    path.write_text(text.format(directory=directory, password=PASSWORD))
    return path


DATABASES = [
    ('', (), 'is not set'),
    ('nonsense', (), 'cannot be used; check that it is a URL'),
    ('mysql+pymysql://u:{password}@h:port/x', (), 'cannot be used; check that it is a URL'),
    ('mysql+pymysql://u:a@{password}/b@127.0.0.1:1/x', (), 'its password is quoted'),
    ('oracle://u:{password}@h/x', (), "has the scheme 'oracle', but must begin with mysql+pymysql"),
    ('sqlite+other:///x', (), "has the scheme 'sqlite+other', but must begin with"),
    (
        'mysql+nosuch://u:{password}@h/x',
        (),
        "has the scheme 'mysql+nosuch', whose driver is unknown",
    ),
    (
        'mysql+pymysql://u:{password}@h/x',
        ('pymysql',),
        'needs the driver pymysql, which is not installed: install nova-precache[mysql]',
    ),
    (
        'mysql+mysqldb://u:{password}@h/x',
        ('MySQLdb',),
        'not installed: use mysql+pymysql:// and install nova-precache[mysql]',
    ),
    (
        'postgresql+psycopg://u:{password}@h/x',
        ('psycopg',),
        'needs the driver psycopg, which is not installed: install nova-precache[postgresql]',
    ),
    ('mysql+pymysql://u:{password}@127.0.0.1:1/x', (), "Can't connect to MySQL server on"),
    ('mysql+pymysql://u:{password}@no.invalid/x', (), "server on 'no.invalid'"),
    ('postgresql+psycopg://u:{password}@127.0.0.1:1/x', (), 'Connection refused'),
    (f'sqlite:///{NOWHERE}/x.sqlite', (), f'there is no directory {NOWHERE}'),
    ('sqlite:///{directory}', (), '{directory}: (sqlite3.OperationalError) unable to open'),
    ('sqlite:///{directory}/nova-precache.conf', (), 'nova-precache.conf: (sqlite3.DatabaseError)'),
]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs nova-precache-manage in this process and returns its error."""
    monkeypatch.setattr('oslo_log.log.setup', lambda conf, product: None)

    def run(conf: pathlib.Path, *arguments: str) -> str:
        argv = ['nova-precache-manage', '--config-file', str(conf), *arguments]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises((exception.PrecacheError, cfg.Error)) as refused:
            manage._main()
        return str(refused.value)

    return run


@pytest.mark.parametrize(('url', 'missing', 'why'), DATABASES)
def test_unusable_database_names_option(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
    url: str,
    missing: tuple[str, ...],
    why: str,
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    text = f'[database]\nconnection = {url}\nmax_retries = 1\nretry_interval = 0\n'

    said = refusal(_config(tmp_path, text), 'db', 'sync')

    assert '\n' not in said
    assert said.startswith('[database] connection ')
    assert why.format(directory=tmp_path) in said
    assert PASSWORD not in said


@pytest.mark.parametrize('command', ['api', 'conductor'])
def test_services_report_missing_driver(tmp_path: pathlib.Path, command: str) -> None:
    conf = _config(tmp_path, '[database]\nconnection = mysql+pymysql://u:{password}@h/x\n')

    ended = _run(command, '--config-file', conf, missing=('pymysql',))

    assert ended.returncode == 1
    assert ended.stderr == (
        '[database] connection needs the driver pymysql, which is not installed: install '
        'nova-precache[mysql]\n'
    )


@pytest.mark.parametrize('command', ['api', 'conductor', 'compute'])
@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('http://u:{password}@h/', "has the scheme 'http', but must begin with rabbit://"),
        ('rabbit://u:{password}/x@h/', 'cannot be parsed; is the password percent-encoded?'),
        ('rabbit://u:{password}@h:99999/', 'has a port outside 1 to 65535'),
    ],
)
def test_unusable_transport_url_names_option(
    tmp_path: pathlib.Path, command: str, url: str, why: str
) -> None:
    open_schema(tmp_path)
    text = (
        f'[DEFAULT]\nstate_path = {tmp_path}/state\ntransport_url = {url}\n'
        f'compute_driver = fake.FakeDriverWithCaching\n[api]\nauth_strategy = noauth2\n'
        f'[database]\nconnection = sqlite:///{tmp_path}/x.sqlite\n'
        '[glance]\nendpoint_override = http://127.0.0.1:1\n'
    )

    ended = _run(command, '--config-file', _config(tmp_path, text))

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f'[DEFAULT] transport_url {why}'
    assert 'Traceback' not in ended.stderr
    assert PASSWORD not in ended.stderr


def open_schema(directory: pathlib.Path) -> None:
    with open_database(directory / 'x.sqlite') as database:
        schema.sync(database)


def _later_release(directory: pathlib.Path) -> None:
    with open_database(directory / 'x.sqlite') as database:
        schema.sync(database)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE precache_alembic_version SET version_num = '9999'")


def _of_nova(directory: pathlib.Path) -> None:
    with (
        open_database(directory / 'x.sqlite') as database,
        database.engine.begin() as connection,
    ):
        connection.exec_driver_sql('CREATE TABLE request_specs (id INTEGER)')


@pytest.mark.parametrize(
    ('prepare', 'arguments', 'why'),
    [
        (_later_release, ('db', 'sync'), 'of a later release (revision 9999'),
        (_of_nova, ('db', 'sync'), '[database] connection names a database of Nova'),
        (lambda directory: None, ('cell', 'list'), 'run nova-precache-manage db sync'),
    ],
)
def test_wrong_schema_names_remedy(
    tmp_path: pathlib.Path,
    refusal: Callable[..., str],
    prepare: Callable[[pathlib.Path], None],
    arguments: tuple[str, ...],
    why: str,
) -> None:
    prepare(tmp_path)
    conf = _config(tmp_path, '[database]\nconnection = sqlite:///{directory}/x.sqlite\n')

    assert why in refusal(conf, *arguments)


@pytest.mark.parametrize(
    ('arguments', 'why'),
    [
        (('--config-file', '/proc/x.conf'), '/proc/x.conf'),
        (('--config-file', NOWHERE), NOWHERE),
        (('--config-dir', '/proc/x'), '/proc/x'),
        (('--config-dir', NOWHERE), NOWHERE),
        (('--config-file', '/dev'), "Is a directory: '/dev'"),
        (('--log-file', '/proc/x/x.log'), 'The log cannot be set up: [Errno 2] No such file'),
        (('--log-config-append', '/proc/x.yaml'), 'The log cannot be set up: '),
    ],
)
def test_unreadable_configuration_reported(arguments: tuple[str, ...], why: str) -> None:
    ended = _run('manage', *arguments, 'db', 'version')

    assert ended.returncode == 1
    assert why in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_wrong_number_names_its_option(tmp_path: pathlib.Path, refusal: Callable[..., str]) -> None:
    text = '[database]\nconnection = sqlite:///{directory}/x.sqlite\nmax_retries = often\n'

    assert 'max_retries' in refusal(_config(tmp_path, text), 'db', 'sync')


def test_commands_log_nothing_of_libraries(tmp_path: pathlib.Path) -> None:
    conf = _config(tmp_path, '[database]\nconnection = sqlite:///{directory}/x.sqlite\n')

    for arguments in (('db', 'sync'), ('db', 'version'), ('cell', 'list'), ('host', 'discover')):
        ended = _run('manage', '--config-file', conf, *arguments)

        assert (ended.returncode, ended.stderr) == (0, '')
