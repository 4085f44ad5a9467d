# SPDX-License-Identifier: Apache-2.0
"""Throw-away database servers: on sockets of their own, in directories of their own.

What a server keeps goes with it, and no server outlives the tests, not even when they are
killed.
"""

import abc
import contextlib
import getpass
import os
import pathlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from nova_precache.standalone import process
from tests.conftest import require_server
from tests.service import wait_until

SQLITE, MARIADB, POSTGRESQL = KINDS = ('sqlite', 'mariadb', 'postgresql')
_POSTGRES = 'postgres'


class Server(abc.ABC):
    """Gives empty databases, each of which is gone afterwards."""

    @abc.abstractmethod
    def empty(self) -> contextlib.AbstractContextManager[str]:
        """Make a database and give its URL."""


class Files(Server):
    """SQLite, which is no server at all."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        name = uuid.uuid4().hex
        yield f'sqlite:///{self._directory / name}.sqlite'
        for file in self._directory.glob(f'{name}*'):
            file.unlink()


class Socket(Server):
    """A server that is reached through a socket.

    :param url: of its databases, with a place for the name
    :param first: the database that is always there
    """

    def __init__(self, url: str, first: str, drop: str) -> None:
        self._url = url
        self._first = first
        self._drop = drop

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        name = f'test_{uuid.uuid4().hex}'
        self._execute(f'CREATE DATABASE {name}')
        yield self._url.format(name)
        self._execute(self._drop.format(name))

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._url.format(self._first), isolation_level='AUTOCOMMIT')
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()


@contextlib.contextmanager
def sqlite() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        yield Files(pathlib.Path(directory))


@contextlib.contextmanager
def mariadb() -> Iterator[Server]:
    programs = [shutil.which(name) for name in ('mariadb-install-db', 'mariadbd')]
    require_server('MariaDB', None not in programs, 'apt-get install mariadb-server')
    install, serve = map(str, programs)
    with _directory() as directory:
        data, user = f'--datadir={directory / "data"}', f'--user={getpass.getuser()}'
        _run([install, '--no-defaults', data, user, '--skip-test-db'], directory)
        settings = {
            'socket': f'{directory}/socket',
            'tmpdir': str(directory),
            'innodb-flush-log-at-trx-commit': '0',
        }
        options = [data, user, '--skip-networking', '--skip-grant-tables', *_options(settings)]
        with _running([serve, '--no-defaults', *options], 'KILL', directory):
            yield Socket(
                f'mysql+pymysql://root@localhost/{{}}?unix_socket={directory}/socket'
                '&charset=utf8mb4',
                'mysql',
                'DROP DATABASE {}',
            )


@contextlib.contextmanager
def postgresql() -> Iterator[Server]:
    programs = _postgresql_programs()
    require_server('PostgreSQL', programs is not None, 'apt-get install postgresql')
    owner = _POSTGRES if os.geteuid() == 0 else getpass.getuser()  # as root it refuses to run
    with _directory() as directory:
        shutil.chown(directory, owner)
        data = ['-D', str(directory / 'data')]
        made_so = ['-U', owner, '-A', 'trust', '-N', '-E', 'UTF8', '--locale', 'C']
        _run([*_as_owner(), f'{programs}/initdb', *data, *made_so], directory)
        settings = {
            'unix_socket_directories': str(directory),
            'listen_addresses': '',
            'fsync': 'off',
            'deadlock_timeout': '100ms',
        }
        command = [f'{programs}/postgres', *data, *_options(settings)]
        with _running(command, 'QUIT', directory, _as_owner()):
            yield Socket(
                f'postgresql+psycopg://{owner}@/{{}}?host={directory}',
                'postgres',
                'DROP DATABASE {} WITH (FORCE)',
            )


@contextlib.contextmanager
def _directory() -> Iterator[pathlib.Path]:
    """Make one with a short name: that of a socket may not be long."""
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


def _run(command: Sequence[str], directory: pathlib.Path) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=directory)


@contextlib.contextmanager
def _running(
    command: list[str], last_signal: str, directory: pathlib.Path, user: Sequence[str] = ()
) -> Iterator[None]:
    """Run a server, in the end and when its parent is gone no more.

    :param user: becomes the user first: the signal is forgotten when that changes
    """
    with _log(directory).open('wb') as log:
        server = subprocess.Popen(
            [*user, *process.dies_with_parent(command, last_signal)],
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    try:
        wait_until(lambda: 'ready ' in _log(directory).read_text(), 'the database server serves')
        yield
    finally:
        server.terminate()
        try:
            server.wait(process.STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _log(directory: pathlib.Path) -> pathlib.Path:
    return directory / 'log'


def _options(settings: Mapping[str, str]) -> list[str]:
    return [f'--{name}={value}' for name, value in settings.items()]


def _postgresql_programs() -> pathlib.Path | None:
    """Find where they are, which Debian keeps out of PATH."""
    found = shutil.which('initdb')
    if found is not None:
        return pathlib.Path(found).resolve().parent
    installed = pathlib.Path('/usr/lib/postgresql').glob('*/bin/initdb')
    return max((each.parent for each in installed), default=None, key=_version)


def _version(programs: pathlib.Path) -> float:
    return float(programs.parent.name)


def _as_owner() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ['setpriv', '--reuid', _POSTGRES, '--regid', _POSTGRES, '--init-groups', '--']


START = {SQLITE: sqlite, MARIADB: mariadb, POSTGRESQL: postgresql}
