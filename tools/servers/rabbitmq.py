# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ with an Erlang name server of its own."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import amqp

from nova_precache.standalone import process
from tools.servers import own_port

_PACKAGE = 'rabbitmq-server'
# The programs in PATH become another user, who could not write into our directory.
_PROGRAMS = '/usr/lib/rabbitmq/bin'
_NODE = 'precache@localhost'


class NameServer(own_port.OwnPort):
    """The Erlang name server that finds a RabbitMQ, in the foreground."""

    name = 'epmd'
    stop_signal = signal.SIGKILL  # it has no data

    def _install(self) -> pathlib.Path:
        return own_port.program('epmd', _PACKAGE)

    def _prepare(self, home: pathlib.Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home), '-address', process.HOST, '-port', str(self.port)]

    def _serves(self) -> bool:
        return own_port.accepts(self.port)


@dataclasses.dataclass(frozen=True)
class Login:
    """A user of a broker, and the virtual hosts the user may use."""

    name: str
    vhosts: tuple[str, ...]
    password: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), repr=False)


class RabbitMQ(own_port.OwnPort):
    """A broker with some virtual hosts and their users.

    :param logins: all of its users; each has at least one virtual host
    """

    name = 'RabbitMQ'
    # A clean stop takes long, and no data is needed later; while it starts it ignores other
    # signals.
    stop_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, directory: pathlib.Path, logins: Sequence[Login]) -> None:
        super().__init__(directory)
        self._logins = logins
        self._names = NameServer(self.directory / 'names')
        self._distribution = own_port.reserve()

    def start(self) -> None:
        self._names.start()
        self._names.wait()
        super().start()

    def stop(self) -> None:
        self.kill()
        self._names.stop()
        self._distribution.close()

    def kill(self) -> None:
        """Kill the node, as on a lost machine; durable data stays on its disk."""
        super().stop()

    def restart(self) -> None:
        """Start the killed node again and wait until it serves."""
        super().start()
        self.wait()

    def transport_url(self, login: Login, vhost: str) -> str:
        return f'rabbit://{login.name}:{login.password}@{process.HOST}:{self.port}/{vhost}'

    def make_vhost(self) -> str:
        """Create an empty virtual host for the first user and return its transport URL."""
        vhost = uuid.uuid4().hex
        self._add_vhost(vhost)
        return self.transport_url(self._logins[0], vhost)

    @contextlib.contextmanager
    def without_vhost(self, url: str) -> Iterator[None]:
        """Delete a virtual host and so close its connections; create it again afterwards."""
        vhost = url.rsplit('/', 1)[1]
        self.control('delete_vhost', vhost)
        try:
            yield
        finally:
            self._add_vhost(vhost)

    def permit(self, vhost: str) -> None:
        """Grant the first user all permissions for a virtual host."""
        self.control('set_permissions', '-p', vhost, self._logins[0].name, '.*', '.*', '.*')

    def forbid(self, vhost: str) -> None:
        """Revoke the permissions of the first user for a virtual host."""
        self.control('clear_permissions', '-p', vhost, self._logins[0].name)

    def control(self, command: str, *arguments: str) -> None:
        """Run a command of rabbitmqctl."""
        path = own_port.program('rabbitmqctl', _PACKAGE, _PROGRAMS)
        self._run([str(path), command, *arguments], f'rabbitmqctl {command}', self._variables())

    def listed(self, what: str, *columns: str) -> list[dict[str, Any]]:
        """Return what ``rabbitmqctl list_...`` lists, over all virtual hosts if it has them."""
        rows: list[dict[str, Any]] = json.loads(self._answer(f'list_{what}', *columns))
        return rows

    def status(self) -> dict[str, Any]:
        """Return what ``rabbitmqctl status`` shows."""
        shown: dict[str, Any] = json.loads(self._answer('status'))
        return shown

    def _answer(self, command: str, *arguments: str) -> str:
        path = own_port.program('rabbitmqctl', _PACKAGE, _PROGRAMS)
        return subprocess.run(
            [str(path), '--silent', '--formatter=json', command, *arguments],
            env={**os.environ, **self._variables()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=process.PREPARE_SECONDS,
            text=True,
        ).stdout

    def _add_vhost(self, vhost: str) -> None:
        self.control('add_vhost', vhost)
        self.permit(vhost)

    def _install(self) -> pathlib.Path:
        return own_port.program('rabbitmq-server', _PACKAGE, _PROGRAMS)

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
            'HOME': str(own),  # Erlang writes its cookie there
            'ERL_EPMD_PORT': str(self._names.port),
            'ERL_EPMD_ADDRESS': process.HOST,
            'RABBITMQ_NODENAME': _NODE,
            'RABBITMQ_DIST_PORT': str(self._distribution.getsockname()[1]),
            'RABBITMQ_CONFIG_FILE': str(own / 'rabbitmq.conf'),
            'RABBITMQ_CONF_ENV_FILE': os.devnull,
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(own / 'enabled_plugins'),
            'RABBITMQ_GENERATED_CONFIG_DIR': str(own / 'generated'),
            'RABBITMQ_LOG_BASE': str(own),
            'RABBITMQ_MNESIA_BASE': str(own / 'mnesia'),
            'RABBITMQ_SCHEMA_DIR': str(own / 'schema'),
            # Without our name server it would start one that outlives every process of ours.
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': '-start_epmd false',
            # Without a shell around the node: a kill would end the shell alone.
            'RUNNING_UNDER_SYSTEMD': 'true',
        }

    def _serves(self) -> bool:
        if not own_port.accepts(self.port):
            return False
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


def _password_hash(password: str) -> str:
    """Hash a password as RabbitMQ documents it: a salt, then the hash of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
