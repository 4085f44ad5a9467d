# SPDX-License-Identifier: Apache-2.0
"""A deployment on one machine: Keystone, Glance, RabbitMQ, MariaDB, and the service in cells.

Every part is a process of its own that dies with its parent. All files are below one
directory, which only its owner may read: passwords are in some of them.
"""

import contextlib
import dataclasses
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests
import yaml

from nova_precache import conf as options
from nova_precache.cells import inventory
from nova_precache.db import schema, session
from nova_precache.standalone import process
from tests import keystone as keystone_server
from tests.keystone_clients import GlanceUnderKeystone, credentials
from tools import servers

BINARIES = pathlib.Path(sys.executable).parent
CLOUD = 'precache'
CONDUCTORS = ('conductor1', 'conductor2')
CELLS = ('cell1', 'cell2')
CONTROL = 'control'
# What the service user may do beside asking Keystone about tokens: see the images of all.
ROLE = 'image_precacher'
_GLANCE_POLICY = f'"context_is_admin": "role:admin or role:{ROLE}"\n'
START_SECONDS = 120
STOP_SECONDS = 30
POLL_SECONDS = 0.1

_GENERAL = """\
[DEFAULT]
host = {name}
state_path = {state_path}
transport_url = {url}
report_interval = 2
use_stderr = true
"""
_CONTROL = """\
[conductor]
poll_interval_seconds = 1
heartbeat_write_interval_seconds = 1

[database]
connection = {connection}

[image_cache]
precache_concurrency = 2

[glance]
{credentials}
[keystone_authtoken]
www_authenticate_uri = {keystone_url}
service_token_roles_required = true
{credentials}"""
# It needs neither a database nor Keystone: Glance's address comes with each call.
_COMPUTE = """\
compute_driver = libvirt.LibvirtDriver

[image_cache]
reserved_disk_bytes = 0
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A compute host, which is a process here."""

    name: str
    cell: str
    directory: pathlib.Path

    @property
    def instances_path(self) -> pathlib.Path:
        return self.directory / 'instances'


class Api(process.ServerProcess):
    """The API as a foreign WSGI server serves it: gunicorn."""

    name = 'API'

    def __init__(self, directory: pathlib.Path, configuration: pathlib.Path) -> None:
        super().__init__(directory)
        self._configuration = configuration

    def _install(self) -> pathlib.Path:
        return BINARIES

    def _prepare(self, home: pathlib.Path) -> None:
        """Nothing: its configuration is there, and names no port."""

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [
            str(home / 'gunicorn'),
            f'--bind=fd://{listener.fileno()}',
            '--workers=1',
            '--threads=16',
            # Longer than a client thinks between two requests: one on a connection that
            # is just being closed is lost, and a POST is not repeated.
            '--keep-alive=75',
            '--graceful-timeout=5',
            # Its place is one per user: a second one would take the first one's.
            '--no-control-socket',
            'nova_precache.wsgi.api:application',
        ]

    def _variables(self) -> Mapping[str, str]:
        return {'NOVA_PRECACHE_CONFIG_FILE': str(self._configuration)}


class Deployment:
    """Starts the parts in their order, and stops them in reverse.

    :param directory: an empty one, closed to other users
    :param computes: how many hosts; they are dealt out to two cells
    """

    def __init__(self, directory: pathlib.Path, computes: int) -> None:
        self.directory = directory
        self.hosts = [_host(directory, number) for number in range(computes)]
        control = servers.Login(CONTROL, (CONTROL, *CELLS))
        self._logins = {CONTROL: control, **{cell: servers.Login(cell, (cell,)) for cell in CELLS}}
        self._rabbitmq = servers.RabbitMQ(directory / 'rabbitmq', self._logins.values())
        self._mariadb = servers.MariaDB(directory / 'mariadb', 'nova_precache')
        self.keystone = keystone_server.KeystoneServer(_made(directory / 'keystone'))
        self._api = Api(directory, directory / 'api.conf')
        self._servers = contextlib.ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def api_url(self) -> str:
        return self._api.url

    @property
    def clouds(self) -> pathlib.Path:
        """The file by which the openstack client logs in as the operator."""
        return self.directory / 'clouds.yaml'

    @property
    def environment(self) -> dict[str, str]:
        """Give the variables by which the openstack client finds all of it."""
        return {'OS_CLIENT_CONFIG_FILE': str(self.clouds), 'OS_CLOUD': CLOUD}

    def start(self) -> None:
        """Start everything and return when each host serves.

        :raises nova_precache.standalone.process.ServerFailed: a part did not come up; what did
            is left to ``stop``
        :raises nova_precache.standalone.environment.EnvironmentFailed: one is not installed
        """
        for server in (self._rabbitmq, self._mariadb, self.keystone):
            self._start_server(server)
        self._start_glance()
        self._service_user = self.keystone.make_user(
            'service', ROLE, project='service', name='nova-precache'
        )
        self.operator = self.keystone.make_user('admin', project='operators', name='operator')
        self._mariadb.wait()
        self._rabbitmq.wait()
        self._configure()
        self._make_database()
        self._start_service()
        self._register()

    def stop(self) -> None:
        """Stop whatever runs, the servers last."""
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            process.stop(child, seconds=STOP_SECONDS)
        self._servers.close()

    def token(self) -> str:
        """Log in as the operator."""
        return self.keystone.token(self.operator)

    def get(self, token: str, path: str) -> dict[str, Any]:
        """Ask /v1 for something."""
        answer = requests.get(
            f'{self.api_url}/v1{path}', headers={'X-Auth-Token': token}, timeout=30
        )
        answer.raise_for_status()
        return dict(answer.json())

    def parts(self) -> list[tuple[str, str]]:
        """Name what runs, and where it answers or where its host is."""
        return [
            ('Keystone', self.keystone.url),
            ('Glance', self.glance.url),
            ('RabbitMQ', f'{process.HOST}:{self._rabbitmq.port}'),
            ('MariaDB', f'{process.HOST}:{self._mariadb.port}'),
            ('nova-precache API (gunicorn)', self.api_url),
            *((name, '') for name in CONDUCTORS),
            *((f'compute {host.name}', host.cell) for host in self.hosts),
        ]

    def _start_server(self, server: process.ServerProcess) -> None:
        self._servers.callback(server.stop)
        server.start()

    def _start_glance(self) -> None:
        self.glance = GlanceUnderKeystone(self.directory / 'glance', self.keystone, _GLANCE_POLICY)
        self._start_server(self.glance)

    # Configuration

    def _configure(self) -> None:
        control = self._control()
        for name in ('api', *CONDUCTORS):
            self._write(name, CONTROL, CONTROL, control)
        for host in self.hosts:
            self._write(host.name, host.cell, host.cell, _COMPUTE)

    def _control(self) -> str:
        return _CONTROL.format(
            connection=self._mariadb.connection,
            credentials=credentials(self.keystone, self._service_user),
            keystone_url=self.keystone.url,
        )

    def _write(self, name: str, login: str, vhost: str, rest: str) -> None:
        url = self._rabbitmq.transport_url(self._logins[login], vhost)
        (self.directory / f'{name}.conf').write_text(
            _GENERAL.format(name=name, state_path=self.directory / name, url=url) + rest
        )

    def _make_database(self) -> None:
        """Make the tables and the cells.

        Not by command: a cell's transport URL, with its password, would be an argument.
        """
        path = self.directory / 'conductor1.conf'
        database = session.connect(options.new(config_files=[str(path)]))
        try:
            schema.sync(database)
            cells = inventory.Inventory(database)
            for cell in CELLS:
                cells.create_cell(cell, self._rabbitmq.transport_url(self._logins[CONTROL], cell))
        finally:
            database.dispose()

    def _register(self) -> None:
        """Have the catalog name all services, and tell the client who the operator is."""
        self.keystone.register('image', self.glance.url)
        self.keystone.register('compute', f'{self.api_url}/v2.1')
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

    # Processes of the service

    def _start_service(self) -> None:
        # First, so that a compute's first words are heard.
        self._start_all('conductor', CONDUCTORS, lambda name: ' runs')
        self._start_all(
            'compute',
            [host.name for host in self.hosts],
            lambda name: f'Host {name} is registered and serves',
        )
        self._start_server(self._api)

    def _start_all(self, kind: str, names: Sequence[str], sign: Callable[[str], str]) -> None:
        """Start some processes at once, and wait until each has logged the sign that it is up."""
        for name in names:
            self._spawn(kind, name)
        for name in names:
            self._wait_for_log(name, sign(name))

    def _spawn(self, kind: str, name: str) -> None:
        command = [str(BINARIES / f'nova-precache-{kind}'), '--config-file']
        command.append(str(self.directory / f'{name}.conf'))
        with self._log(name).open('wb') as log:
            self._children[name] = subprocess.Popen(
                # At once, since all that it would say goodbye to dies as well.
                process.dies_with_parent(command, 'KILL'),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _log(self, name: str) -> pathlib.Path:
        return self.directory / f'{name}.log'

    def _wait_for_log(self, name: str, sign: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while sign not in self._log(name).read_text(errors='replace'):
            if self._children[name].poll() is not None or time.monotonic() > deadline:
                raise process.ServerFailed(
                    f'{name} did not come up:\n{process.tail(self._log(name))}'
                )
            pause.wait(POLL_SECONDS)


def _host(directory: pathlib.Path, number: int) -> Host:
    cell = CELLS[number % len(CELLS)]
    name = f'{cell}-compute{number // len(CELLS) + 1}'
    return Host(name, cell, directory / name)


def _made(directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir()
    return directory
