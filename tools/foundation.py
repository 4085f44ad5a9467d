# SPDX-License-Identifier: Apache-2.0
"""The base of each deployment on one machine: the servers around the service, and its processes.

Each part is a process that dies with its parent. All files are below one directory, which only
its owner may read: some contain passwords.
"""

import abc
import contextlib
import dataclasses
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests
import yaml

from nova_precache.standalone import process
from tools import waiting
from tools.servers import databases, keystone as keystone_server, rabbitmq
from tools.servers.glance import GlanceUnderKeystone

BINARIES = pathlib.Path(sys.executable).parent
CLOUD = 'precache'
CONDUCTORS = ('conductor1', 'conductor2')
# The policy for Glance permits it to read all images, and no other action.
ROLE = 'image_precacher'
_GLANCE_POLICY = pathlib.Path(__file__).parents[1] / 'etc' / 'glance' / 'image-precacher.yaml'
STOP_SECONDS = 30

GENERAL = """\
[DEFAULT]
host = {name}
state_path = {state_path}
transport_url = {url}
report_interval = 2
use_stderr = true
"""
CONTROL = """\
[conductor]
poll_interval_seconds = 1
heartbeat_write_interval_seconds = 1

[database]
connection = {connection}

[glance]
{image_credentials}
{authtoken}"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A compute host, which is a process on this machine."""

    name: str
    cell: str
    directory: pathlib.Path

    @property
    def instances_path(self) -> pathlib.Path:
        return self.directory / 'instances'


class Api(process.ServerProcess):
    """The API under gunicorn."""

    name = 'API'

    def __init__(self, directory: pathlib.Path, configuration: pathlib.Path) -> None:
        super().__init__(directory)
        self._configuration = configuration

    def _install(self) -> pathlib.Path:
        return BINARIES

    def _prepare(self, home: pathlib.Path) -> None:
        """Do nothing: its configuration exists, and contains no port."""

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [
            str(home / 'gunicorn'),
            f'--bind=fd://{listener.fileno()}',
            '--workers=1',
            '--threads=16',
            # Longer than the pause of a client between two requests: a POST on a connection
            # that is being closed is lost.
            '--keep-alive=75',
            '--graceful-timeout=5',
            # Its path is per user: a second gunicorn would take over the first one's socket.
            '--no-control-socket',
            'nova_precache.wsgi.api:application',
        ]

    def _variables(self) -> Mapping[str, str]:
        return {'NOVA_PRECACHE_CONFIG_FILE': str(self._configuration)}


class Foundation(abc.ABC):
    """Starts the parts in order and stops them in reverse.

    :param directory: an empty one, closed to other users
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[Host],
        logins: Mapping[str, rabbitmq.Login],
        accounts: Sequence[databases.Account] = (),
    ) -> None:
        self.directory = directory
        self.hosts = hosts
        self._logins = logins
        self._rabbitmq = rabbitmq.RabbitMQ(directory / 'rabbitmq', list(logins.values()))
        self._account = databases.Account('nova_precache', ('nova_precache',))
        self.mariadb = databases.MariaDB(
            directory / 'mariadb',
            accounts=[self._account, *accounts],
            settings={'innodb-buffer-pool-size': '32M'},
        )
        self.keystone = keystone_server.KeystoneServer(made(directory / 'keystone'))
        self._api = Api(directory, directory / 'api.conf')
        self._servers = contextlib.ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    _glance_type: type[GlanceUnderKeystone] = GlanceUnderKeystone

    @abc.abstractmethod
    def start(self) -> None:
        """Start everything and return when each host serves.

        :raises nova_precache.standalone.process.ServerFailed: a part did not come up; what did
            is left to ``stop``
        :raises nova_precache.standalone.environment.EnvironmentFailed: one is not installed
        """

    @abc.abstractmethod
    def parts(self) -> list[tuple[str, str]]:
        """List the running parts, with their address or the cell of their host."""

    @property
    def api_url(self) -> str:
        return self._api.url

    @property
    def clouds(self) -> pathlib.Path:
        """The file by which the openstack client logs in as the operator."""
        return self.directory / 'clouds.yaml'

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which the openstack client uses the deployment."""
        return {'OS_CLIENT_CONFIG_FILE': str(self.clouds), 'OS_CLOUD': CLOUD}

    def stop(self) -> None:
        """Stop all processes, the servers last."""
        self._stop_children()
        self._servers.close()

    def token(self) -> str:
        """Log in as the operator."""
        return self.keystone.token(self.operator)

    def get(self, token: str, path: str) -> dict[str, Any]:
        """Get a resource of /v1."""
        answer = requests.get(
            f'{self.api_url}/v1{path}',
            headers={'X-Auth-Token': token},
            timeout=30,
            allow_redirects=False,
        )
        answer.raise_for_status()
        return dict(answer.json())

    # Servers

    def _start_servers(self) -> None:
        """Start the servers that the service needs; create its users and the operator."""
        for server in (self._rabbitmq, self.mariadb, self.keystone):
            self._start_server(server)
        self.glance = self._glance_type(self.directory / 'glance', self.keystone, _GLANCE_POLICY)
        self._start_server(self.glance)
        self.image_url = self.glance.url
        self._service_user = self.keystone.make_user(
            'service', project='service', name='nova-precache'
        )
        self._image_user = self.keystone.make_user(
            ROLE, project='service', name='nova-precache-images'
        )
        self.operator = self.keystone.make_user('admin', project='operators', name='operator')
        self.mariadb.wait()
        self._rabbitmq.wait()

    def _start_server(self, server: process.ServerProcess) -> None:
        self._servers.callback(server.stop)
        server.start()

    def _server_parts(self) -> list[tuple[str, str]]:
        return [
            ('Keystone', self.keystone.url),
            ('Glance', self.glance.url),
            ('RabbitMQ', f'{process.HOST}:{self._rabbitmq.port}'),
            ('MariaDB', f'{process.HOST}:{self.mariadb.port}'),
        ]

    def _register(self, compute_url: str) -> None:
        """Register all services in the catalog, and write the client's login of the operator."""
        self.keystone.register('image', self.image_url)
        self.keystone.register('compute', compute_url)
        self.keystone.register('image-precache', f'{self.api_url}/v1')
        cloud = {
            'auth': {
                'auth_url': self.keystone.url,
                'username': self.operator.name,
                'password': self.operator.password,
                'project_name': self.operator.project,
                'user_domain_id': 'default',
                'project_domain_id': 'default',
            },
            'region_name': keystone_server.REGION,
        }
        self.clouds.write_text(yaml.safe_dump({'clouds': {CLOUD: cloud}}))

    # Configuration

    def _control(self, more: str) -> str:
        """Return the configuration of API and conductors, without that of each process."""
        control = CONTROL.format(
            connection=self.mariadb.account_url(self._account, *self._account.databases),
            authtoken=self.keystone.authtoken(self._service_user, token_cache_seconds=300),
            image_credentials=self.keystone.credentials(self._image_user),
        )
        return f'{more}\n{control}'

    def _write(self, name: str, login: str, vhost: str, rest: str) -> None:
        url = self._rabbitmq.transport_url(self._logins[login], vhost)
        (self.directory / f'{name}.conf').write_text(
            GENERAL.format(name=name, state_path=self.directory / name, url=url) + rest
        )

    # Processes of the service

    def _start_all(self, kind: str, names: Sequence[str], sign: Callable[[str], str]) -> None:
        """Start some processes in parallel and wait until each has logged a sign that it is up."""
        for name in names:
            self._spawn(kind, name)
        for name in names:
            self._wait_for_log(name, sign(name))

    def _start_conductors(self) -> None:
        self._start_all('conductor', CONDUCTORS, lambda name: ' runs')

    def _spawn(self, kind: str, name: str) -> None:
        with self._log(name).open('wb') as log:
            self._children[name] = subprocess.Popen(
                self._command(kind, name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o022 if kind == 'compute' else -1,  # as in its shipped unit
            )

    def _command(self, kind: str, name: str) -> list[str]:
        command = [str(BINARIES / f'nova-precache-{kind}'), '--config-file']
        command.append(str(self.directory / f'{name}.conf'))
        # At once: the servers that it would sign off from die as well.
        return process.dies_with_parent(command, 'KILL')

    def _stop_children(self) -> None:
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            process.stop(child, seconds=STOP_SECONDS)
        self._children.clear()

    def _log(self, name: str) -> pathlib.Path:
        return self.directory / f'{name}.log'

    def _wait_for_log(self, name: str, sign: str) -> None:
        log = self._log(name)
        waiting.wait_for_child(
            name,
            self._children[name],
            lambda: sign in log.read_text(errors='replace'),
            log,
        )


def made(directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir()
    return directory
