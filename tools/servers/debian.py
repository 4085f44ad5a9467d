# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ and MariaDB as Debian has them, each on a port and in a directory of its own.

Neither touches what the packages set up, and neither outlives who started it.
"""

import abc
import base64
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import ClassVar

import amqp
import sqlalchemy as sa

from nova_precache.standalone import process

POLL_SECONDS = 0.2


def new_password() -> str:
    return secrets.token_hex(16)


class OwnPort(process.ServerProcess):
    """A server that opens its port by itself.

    ``start`` returns before it serves, so that several can start at once; ``wait`` says when.
    """

    def wait(self) -> None:
        """Wait until it serves.

        :raises nova_precache.standalone.process.ServerFailed: it ended, or takes too long
        """
        deadline = time.monotonic() + process.START_SECONDS
        pause = threading.Event()
        while not self._serves():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise process.ServerFailed(
                    f'{self.name} did not come up:\n{process.tail(self.log)}'
                )
            pause.wait(POLL_SECONDS)

    @abc.abstractmethod
    def _serves(self) -> bool:
        """Tell whether it answers by now."""

    def _listen(self) -> socket.socket:
        return reserve(self.port)

    def _wait_until_it_answers(self) -> None:
        """Not yet: see ``wait``."""

    def _variables(self) -> Mapping[str, str]:
        return {}


def reserve(port: int = 0) -> socket.socket:
    """Keep a port from being given to anybody by chance, until the socket is closed.

    Who opens it by its number can, since nobody listens on this socket.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((process.HOST, port))
    return reserved


class NameServer(OwnPort):
    """The Erlang name server that a RabbitMQ is found by, in the foreground."""

    name = 'epmd'
    stop_signal = signal.SIGKILL  # it keeps nothing

    def _install(self) -> pathlib.Path:
        return _program('epmd', 'rabbitmq-server')

    def _prepare(self, home: pathlib.Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home), '-address', process.HOST, '-port', str(self.port)]

    def _serves(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((process.HOST, self.port)) == 0


@dataclasses.dataclass(frozen=True)
class Login:
    """Who logs in to a broker, and which virtual hosts are theirs."""

    name: str
    vhosts: tuple[str, ...]
    password: str = dataclasses.field(default_factory=new_password, repr=False)


class RabbitMQ(OwnPort):
    """A broker with some virtual hosts, and those who may use them.

    :param logins: everybody; there is no other user
    """

    name = 'RabbitMQ'
    # Nothing in it is to be kept, it takes its time to stop, and while it starts it does not
    # listen to any other.
    stop_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, directory: pathlib.Path, logins: Iterable[Login]) -> None:
        super().__init__(directory)
        self._logins = tuple(logins)
        self._names = NameServer(self.directory / 'names')
        self._distribution = reserve()

    def start(self) -> None:
        self._names.start()
        self._names.wait()
        super().start()

    def stop(self) -> None:
        super().stop()
        self._names.stop()
        self._distribution.close()

    def transport_url(self, login: Login, vhost: str) -> str:
        return f'rabbit://{login.name}:{login.password}@{process.HOST}:{self.port}/{vhost}'

    def _install(self) -> pathlib.Path:
        # The one in PATH becomes another user, who could not write into our directory.
        return _program('rabbitmq-server', 'rabbitmq-server', '/usr/lib/rabbitmq/bin')

    def _prepare(self, home: pathlib.Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        definitions = self.directory / 'definitions.json'
        definitions.write_text(json.dumps(self._definitions()))
        (self.directory / 'rabbitmq.conf').write_text(
            f'listeners.tcp.1 = {process.HOST}:{self.port}\n'
            f'load_definitions = {definitions}\n'
            'log.console = true\nlog.console.level = warning\nlog.file = false\n'
        )
        (self.directory / 'enabled_plugins').write_text('[].\n')

    def _definitions(self) -> dict[str, list[dict[str, str]]]:
        vhosts = sorted({vhost for login in self._logins for vhost in login.vhosts})
        everything = {'configure': '.*', 'write': '.*', 'read': '.*'}
        return {
            'vhosts': [{'name': vhost} for vhost in vhosts],
            'users': [
                {
                    'name': login.name,
                    'password_hash': _password_hash(login.password),
                    'hashing_algorithm': 'rabbit_password_hashing_sha256',
                    'tags': '',
                }
                for login in self._logins
            ],
            'permissions': [
                {'user': login.name, 'vhost': vhost, **everything}
                for login in self._logins
                for vhost in login.vhosts
            ],
        }

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home)]

    def _variables(self) -> Mapping[str, str]:
        own = self.directory
        return {
            'HOME': str(own),  # where Erlang makes its cookie
            'ERL_EPMD_PORT': str(self._names.port),
            'ERL_EPMD_ADDRESS': process.HOST,
            'RABBITMQ_NODENAME': 'precache@localhost',
            'RABBITMQ_DIST_PORT': str(self._distribution.getsockname()[1]),
            'RABBITMQ_CONFIG_FILE': str(own / 'rabbitmq.conf'),
            'RABBITMQ_CONF_ENV_FILE': os.devnull,
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(own / 'enabled_plugins'),
            'RABBITMQ_GENERATED_CONFIG_DIR': str(own / 'generated'),
            'RABBITMQ_LOG_BASE': str(own),
            'RABBITMQ_MNESIA_BASE': str(own / 'mnesia'),
            'RABBITMQ_SCHEMA_DIR': str(own / 'schema'),
            # Where ours is gone it would start one that outlives everybody.
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': '-start_epmd false',
            # Without the shell before it, which dies alone when it is killed.
            'RUNNING_UNDER_SYSTEMD': 'true',
        }

    def _serves(self) -> bool:
        login = self._logins[0]
        client = amqp.Connection(
            f'{process.HOST}:{self.port}',
            userid=login.name,
            password=login.password,
            virtual_host=login.vhosts[0],
            connect_timeout=5,
        )
        try:
            with client:
                return True
        except (OSError, amqp.AMQPError):
            return False


class MariaDB(OwnPort):
    """A database server with one empty database, and one user who owns it.

    :param database: name of both
    """

    name = 'MariaDB'

    def __init__(self, directory: pathlib.Path, database: str) -> None:
        super().__init__(directory)
        self._database = database
        self._password = new_password()

    @property
    def connection(self) -> str:
        return (
            f'mysql+pymysql://{self._database}:{self._password}@{process.HOST}:{self.port}'
            f'/{self._database}?charset=utf8mb4'
        )

    def _install(self) -> pathlib.Path:
        return _program('mariadbd', 'mariadb-server', '/usr/sbin')

    def _prepare(self, home: pathlib.Path) -> None:
        (self.directory / 'tmp').mkdir(parents=True, exist_ok=True)
        install = _program('mariadb-install-db', 'mariadb-server')
        self._run(
            [str(install), *self._options(), '--skip-test-db', '--skip-name-resolve'],
            'mariadb-install-db',
        )
        account = f"'{self._database}'@'{process.HOST}'"
        (self.directory / 'init.sql').write_text(
            f'CREATE DATABASE {self._database} CHARACTER SET utf8mb4;\n'
            f"CREATE USER {account} IDENTIFIED BY '{self._password}';\n"
            f'GRANT ALL ON {self._database}.* TO {account};\n'
        )

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [
            str(home),
            *self._options(),
            # In the directory of the data: the whole path may be too long for a socket.
            '--socket=mariadb.sock',
            f'--pid-file={self.directory}/mariadb.pid',
            f'--init-file={self.directory}/init.sql',
            f'--bind-address={process.HOST}',
            f'--port={self.port}',
            '--skip-name-resolve',
            '--innodb-buffer-pool-size=32M',
        ]

    def _options(self) -> list[str]:
        """Give what must come first, and who it runs as where that must be said."""
        options = [
            '--no-defaults',
            f'--datadir={self.directory}/data',
            f'--tmpdir={self.directory / "tmp"}',
        ]
        return [*options, '--user=root'] if os.geteuid() == 0 else options

    def _serves(self) -> bool:
        engine = sa.create_engine(self.connection)
        try:
            with engine.connect():
                return True
        except sa.exc.OperationalError:
            return False
        finally:
            engine.dispose()


def _password_hash(password: str) -> str:
    """Hash a password as RabbitMQ documents it: the salt, then the hash of both."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _program(name: str, package: str, *directories: str) -> pathlib.Path:
    """Find a program, first where a package keeps it, then in PATH."""
    found = shutil.which(name, path=os.pathsep.join(directories)) or shutil.which(name)
    if found is None:
        raise process.ServerFailed(f'{name} is missing: apt-get install {package}')
    return pathlib.Path(found)
