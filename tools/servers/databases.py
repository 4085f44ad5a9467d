# SPDX-License-Identifier: Apache-2.0
"""Temporary databases: SQLite files, and MariaDB and PostgreSQL in directories of their own.

The administrator reaches a server through a socket that only its owner can open.
"""

import abc
import contextlib
import dataclasses
import getpass
import os
import pathlib
import secrets
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import psutil
import sqlalchemy as sa

from nova_precache.standalone import process
from tools.servers import own_port
from tools.waiting import wait_until_frozen

SQLITE, MARIADB, POSTGRESQL = KINDS = ('sqlite', 'mariadb', 'postgresql')
_POSTGRES = 'postgres'


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files of a server that serves on its port over TLS alone."""

    certificate: str
    key: str


class Databases(abc.ABC):
    """Creates empty databases and drops each of them afterwards."""

    @abc.abstractmethod
    def empty(self, name: str | None = None) -> contextlib.AbstractContextManager[str]:
        """Create a database and return its URL.

        :param name: a new one if not given
        """


class Files(Databases):
    """SQLite files in a directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def empty(self, name: str | None = None) -> Iterator[str]:
        name = name or uuid.uuid4().hex
        yield f'sqlite:///{self._directory / name}.sqlite'
        for file in self._directory.glob(f'{name}*'):
            file.unlink()


class DatabaseServer(own_port.OwnPort, Databases):
    """A server with a socket for its administrator; it can be killed and frozen.

    :param tls: serve on the port over TLS alone
    """

    _first: ClassVar[str]
    _drop: ClassVar[str]

    def __init__(self, directory: pathlib.Path, tls: Tls | None = None) -> None:
        super().__init__(directory)
        self._tls = tls
        # The path of a socket must be short.
        self._socket_directory = tempfile.mkdtemp(prefix='precache-')

    @property
    @abc.abstractmethod
    def _socket(self) -> str:
        """Path of the socket."""

    @abc.abstractmethod
    def _admin_url(self, database: str) -> str:
        """Return the URL of a database for the administrator, through the socket."""

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._socket_directory, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server; committed data stays on its disk."""
        super().stop()

    def restart(self) -> None:
        """Start the killed server and wait until it serves."""
        self.start()
        self.wait()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Freeze the server; its machine still accepts data for it."""
        assert self._process is not None
        frozen: list[psutil.Process] = []
        try:
            server = psutil.Process(self._process.pid)
            self._freeze(server, frozen)
            for child in server.children(recursive=True):  # a frozen server starts no others
                self._freeze(child, frozen)
            yield
        finally:
            for each in frozen:
                each.resume()

    def _freeze(self, running: psutil.Process, frozen: list[psutil.Process]) -> None:
        running.suspend()
        frozen.append(running)
        wait_until_frozen(running.pid)

    @contextlib.contextmanager
    def empty(self, name: str | None = None) -> Iterator[str]:
        name = name or f'test_{uuid.uuid4().hex}'
        self.execute(f'CREATE DATABASE {name}')
        yield self._admin_url(name)
        self.execute(self._drop.format(name))

    def execute(self, statement: str) -> None:
        """Execute a statement as the administrator."""
        engine = sa.create_engine(self._admin_url(self._first), isolation_level='AUTOCOMMIT')
        try:
            with engine.connect() as connection:
                connection.execute(sa.text(statement))
        finally:
            engine.dispose()

    def _serves(self) -> bool:
        # PyMySQL does not close the socket of a refused connection.
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(self._socket) != 0:
                return False
        try:
            self.execute('SELECT 1')
        except sa.exc.OperationalError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class Account:
    """A user of a MariaDB who logs in over the port, and the databases the user owns."""

    name: str
    databases: tuple[str, ...]
    password: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), repr=False)


class MariaDB(DatabaseServer):
    """A MariaDB.

    :param accounts: created at the start, with their databases
    :param settings: more options of the server
    """

    name = 'MariaDB'
    stop_signal = signal.SIGKILL  # a clean stop takes long, and the data is not needed later
    _first = 'mysql'
    _drop = 'DROP DATABASE {}'

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        accounts: Sequence[Account] = (),
        settings: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(directory, tls)
        self._accounts = accounts
        self._settings = settings or {}

    def account_url(self, account: Account, database: str) -> str:
        """Return the URL of a database for one of the accounts, over the port."""
        return (
            f'mysql+pymysql://{account.name}:{account.password}@{process.HOST}:{self.port}'
            f'/{database}?charset=utf8mb4'
        )

    def _admin_url(self, database: str) -> str:
        # PyMySQL prepares TLS for each connection, which takes longer than to connect.
        options = f'unix_socket={self._socket}&charset=utf8mb4&ssl_disabled=true'
        return f'mysql+pymysql://root@localhost/{database}?{options}'

    @property
    def _socket(self) -> str:
        return f'{self._socket_directory}/socket'

    def _install(self) -> pathlib.Path:
        return own_port.program('mariadbd', 'mariadb-server', '/usr/sbin')

    def _prepare(self, home: pathlib.Path) -> None:
        if (self.directory / 'data').exists():
            return
        (self.directory / 'tmp').mkdir(parents=True, exist_ok=True)
        install = own_port.program('mariadb-install-db', 'mariadb-server')
        options = ['--skip-test-db', '--auth-root-authentication-method=normal']
        self._run([str(install), *self._options(), *options], 'mariadb-install-db')
        (self.directory / 'init.sql').write_text(''.join(self._initial_statements()))

    def _initial_statements(self) -> Iterator[str]:
        # No one logs in without a password but root, through the socket.
        yield (
            'DELETE FROM mysql.global_priv'
            " WHERE User = '' OR User = 'root' AND Host <> 'localhost';\n"
        )
        yield 'FLUSH PRIVILEGES;\n'
        for account in self._accounts:
            user = f"'{account.name}'@'{process.HOST}'"
            yield f"CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{account.password}';\n"
            for database in account.databases:
                yield f'CREATE DATABASE IF NOT EXISTS {database} CHARACTER SET utf8mb4;\n'
                yield f'GRANT ALL ON {database}.* TO {user};\n'

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        settings = {
            'socket': self._socket,
            'pid-file': f'{self.directory}/mariadb.pid',
            'bind-address': process.HOST,
            'port': str(self.port),
            'skip-name-resolve': '1',
            'init-file': f'{self.directory}/init.sql',
            # Committed data is lost only with the whole machine.
            'innodb-flush-log-at-trx-commit': '2',
            **self._settings,
        }
        if self._tls:
            settings['ssl-cert'] = self._tls.certificate
            settings['ssl-key'] = self._tls.key
            settings['require-secure-transport'] = '1'
        return [str(home), *self._options(), *_options(settings)]

    def _options(self) -> list[str]:
        """Return the options of the server and of its installation; the first must be first."""
        return [
            '--no-defaults',
            f'--datadir={self.directory / "data"}',
            f'--tmpdir={self.directory / "tmp"}',
            f'--user={getpass.getuser()}',
        ]


class PostgreSQL(DatabaseServer):
    """A PostgreSQL; as root it runs as the user of Debian's package."""

    name = 'PostgreSQL'
    stop_signal = signal.SIGQUIT  # at once: the data is not needed later
    _first = 'postgres'
    _drop = 'DROP DATABASE {} WITH (FORCE)'

    @property
    def _socket(self) -> str:
        return f'{self._socket_directory}/.s.PGSQL.{self.port}'

    def _admin_url(self, database: str) -> str:
        return (
            f'postgresql+psycopg://{_owner()}@/{database}'
            f'?host={self._socket_directory}&port={self.port}'
        )

    def _install(self) -> pathlib.Path:
        return _postgresql_programs()

    def _prepare(self, home: pathlib.Path) -> None:
        if (self.directory / 'data').exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, self._socket_directory):
            shutil.chown(directory, _owner())
        if self._tls:
            self._copy_tls(self._tls)
        options = ['-U', _owner(), '-A', 'trust', '-N', '-E', 'UTF8', '--locale', 'C']
        command = [str(home / 'initdb'), '-D', str(self.directory / 'data'), *options]
        self._run(self._as_owner(command), 'initdb')

    def _copy_tls(self, tls: Tls) -> None:
        """Copy the files, which only the owner of the server may be able to read."""
        for name, source in (('cert', tls.certificate), ('key', tls.key)):
            copy = pathlib.Path(shutil.copy(source, self.directory / f'tls.{name}'))
            copy.chmod(0o600)
            shutil.chown(copy, _owner())
        rules = self.directory / 'rules'
        rules.write_text('local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n')
        shutil.chown(rules, _owner())

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        settings = {
            'unix_socket_directories': self._socket_directory,
            'port': str(self.port),  # also part of the socket's name
            'listen_addresses': '',
            'fsync': 'off',
            'deadlock_timeout': '100ms',
        }
        if self._tls:
            settings['listen_addresses'] = process.HOST
            settings['ssl'] = 'on'
            settings['ssl_cert_file'] = f'{self.directory}/tls.cert'
            settings['ssl_key_file'] = f'{self.directory}/tls.key'
            settings['hba_file'] = f'{self.directory}/rules'
        data = ['-D', str(self.directory / 'data')]
        command = [str(home / 'postgres'), *data, *_options(settings)]
        # The kernel cancels the signal of the parent's death when the user changes.
        return self._as_owner(process.dies_with_parent(command, 'QUIT'))

    def _as_owner(self, command: Sequence[str]) -> list[str]:
        user = ['--reuid', _POSTGRES, '--regid', _POSTGRES, '--init-groups', '--']
        as_user = ['setpriv', *user] if os.geteuid() == 0 else []
        return ['env', f'--chdir={self.directory}', *as_user, *command]


def _owner() -> str:
    return _POSTGRES if os.geteuid() == 0 else getpass.getuser()  # it refuses to run as root


def _options(settings: Mapping[str, str]) -> list[str]:
    return [f'--{name}={value}' for name, value in settings.items()]


def _postgresql_programs() -> pathlib.Path:
    """Return the directory of the programs, which Debian does not put into PATH."""
    installed = pathlib.Path('/usr/lib/postgresql').glob('*/bin')
    newest_first = sorted(installed, key=lambda each: float(each.parent.name), reverse=True)
    return own_port.program('initdb', 'postgresql', *map(str, newest_first)).resolve().parent


SERVERS: dict[str, type[DatabaseServer]] = {MARIADB: MariaDB, POSTGRESQL: PostgreSQL}
