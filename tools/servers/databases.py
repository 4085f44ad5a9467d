# SPDX-License-Identifier: Apache-2.0
"""Throw-away database servers: on sockets of their own, in directories of their own.

What a server keeps goes with it, and no server outlives the tests, not even when they are
killed.
"""

import abc
import contextlib
import dataclasses
import getpass
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import psutil
import sqlalchemy as sa

from nova_precache.standalone import process
from tests.conftest import require_server
from tests.service import wait_until

SQLITE, MARIADB, POSTGRESQL = KINDS = ('sqlite', 'mariadb', 'postgresql')
_POSTGRES = 'postgres'
_POSTGRES_PORT = 5432  # by which a socket is named, too


@dataclasses.dataclass(frozen=True)
class Tls:
    """What a server has that serves on a port of 127.0.0.1, too, and there over TLS alone."""

    port: int
    certificate: str
    key: str


class Server(abc.ABC):
    """Gives empty databases, each of which is gone afterwards."""

    @abc.abstractmethod
    def empty(self, name: str | None = None) -> contextlib.AbstractContextManager[str]:
        """Make a database, of a name where that matters, and give its URL."""


class Files(Server):
    """SQLite, which is no server at all."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def empty(self, name: str | None = None) -> Iterator[str]:
        name = name or uuid.uuid4().hex
        yield f'sqlite:///{self._directory / name}.sqlite'
        for file in self._directory.glob(f'{name}*'):
            file.unlink()


class Socket(Server):
    """A server that is reached through a socket, and can be away for a while.

    :param url: of its databases, with a place for the name
    :param first: the database that is always there
    """

    def __init__(self, running: '_Running', url: str, first: str, drop: str) -> None:
        self._running = running
        self._url = url
        self._first = first
        self._drop = drop

    def kill(self) -> None:
        """Have it end at once; what was committed stays on its disk."""
        self._running.kill()

    def restart(self) -> None:
        self._running.start()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Have it do nothing, while its machine goes on taking what is sent to it."""
        self._running.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._running.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def empty(self, name: str | None = None) -> Iterator[str]:
        name = name or f'test_{uuid.uuid4().hex}'
        self.execute(f'CREATE DATABASE {name}')
        yield self._url.format(name)
        self.execute(self._drop.format(name))

    def execute(self, statement: str) -> None:
        """Do what only who owns the server may."""
        engine = sa.create_engine(self._url.format(self._first), isolation_level='AUTOCOMMIT')
        try:
            with engine.connect() as connection:
                connection.execute(sa.text(statement))
        finally:
            engine.dispose()


@contextlib.contextmanager
def sqlite() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        yield Files(pathlib.Path(directory))


@contextlib.contextmanager
def mariadb(tls: Tls | None = None) -> Iterator[Server]:
    programs = [shutil.which(name) for name in ('mariadb-install-db', 'mariadbd')]
    require_server('MariaDB', None not in programs, 'apt-get install mariadb-server')
    install, serve = map(str, programs)
    with _directory() as directory:
        data, user = f'--datadir={directory / "data"}', f'--user={getpass.getuser()}'
        made_so = ['--skip-test-db', '--auth-root-authentication-method=normal']
        _run([install, '--no-defaults', data, user, *made_so], directory)
        settings = {
            'socket': f'{directory}/socket',
            'tmpdir': str(directory),
            # Nothing is lost but with the whole machine.
            'innodb-flush-log-at-trx-commit': '2',
            **(_mariadb_tls(tls) if tls else {'skip-networking': '1'}),
        }
        options = [data, user, *_options(settings)]
        with _Running([serve, '--no-defaults', *options], signal.SIGKILL, directory) as running:
            yield Socket(
                running,
                f'mysql+pymysql://root@localhost/{{}}?unix_socket={directory}/socket'
                '&charset=utf8mb4',
                'mysql',
                'DROP DATABASE {}',
            )


@contextlib.contextmanager
def postgresql(tls: Tls | None = None) -> Iterator[Server]:
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
            **(_postgresql_tls(tls, directory, owner) if tls else {}),
        }
        command = [f'{programs}/postgres', *data, *_options(settings)]
        with _Running(command, signal.SIGQUIT, directory, _as_owner()) as running:
            yield Socket(
                running,
                f'postgresql+psycopg://{owner}@/{{}}?host={directory}'
                f'&port={tls.port if tls else _POSTGRES_PORT}',
                'postgres',
                'DROP DATABASE {} WITH (FORCE)',
            )


def _mariadb_tls(tls: Tls) -> Mapping[str, str]:
    return {
        'bind-address': '127.0.0.1',
        'port': str(tls.port),
        'ssl-cert': tls.certificate,
        'ssl-key': tls.key,
        'require-secure-transport': '1',
    }


def _postgresql_tls(tls: Tls, directory: pathlib.Path, owner: str) -> Mapping[str, str]:
    """Copy what only the owner of the server may be able to read."""
    settings = {'listen_addresses': '127.0.0.1', 'port': str(tls.port), 'ssl': 'on'}
    for name, source in (('cert', tls.certificate), ('key', tls.key)):
        copy = pathlib.Path(shutil.copy(source, directory / f'tls.{name}'))
        copy.chmod(0o600)
        shutil.chown(copy, owner)
        settings[f'ssl_{name}_file'] = str(copy)
    rules = directory / 'rules'
    rules.write_text('local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n')
    shutil.chown(rules, owner)
    return {**settings, 'hba_file': str(rules)}


@contextlib.contextmanager
def _directory() -> Iterator[pathlib.Path]:
    """Make one with a short name: that of a socket may not be long."""
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


def _run(command: Sequence[str], directory: pathlib.Path) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=directory)


class _Running:
    """Runs a server, in the end and when its parent is gone no more.

    :param last_signal: ends it at once
    :param user: becomes the user first: the signal is forgotten when that changes
    """

    def __init__(
        self,
        command: list[str],
        last_signal: signal.Signals,
        directory: pathlib.Path,
        user: Sequence[str] = (),
    ) -> None:
        self._last_signal = last_signal
        name = last_signal.name.removeprefix('SIG')
        self._command = [*user, *process.dies_with_parent(command, name)]
        self._directory = directory

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        process.stop(self._server)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        log = self._directory / 'log'
        with log.open('wb') as output:
            self._server = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                start_new_session=True,
            )
        wait_until(lambda: 'ready ' in log.read_text(), 'the database server serves')

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all processes that it has started."""
        server = psutil.Process(self._server.pid)
        for each in (server, *server.children(recursive=True)):
            each.send_signal(number)

    def kill(self) -> None:
        self._server.send_signal(self._last_signal)
        self._server.wait()


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
