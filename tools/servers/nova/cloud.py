# SPDX-License-Identifier: Apache-2.0
"""A whole stock Nova on a real broker: API, conductor, Placement and nova-computes.

Its images are those of the Glance that it is given. Callers are who they say they
are, as with :mod:`tools.servers.nova.api`.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import kombu
import requests

from nova_precache.standalone import process
from tests.service import wait_until
from tools.servers import nova
from tools.servers.nova import api

CALLER = {
    'X-User-Id': 'e3a1c7b2f0d94a58b6c0d1e2f3a4b5c6',
    'X-Project-Id': 'a9b8c7d6e5f4430291827364554637fe',
    'X-Roles': 'admin',
    'X-Auth-Token': 'the-token-of-the-caller',
    'OpenStack-API-Version': 'compute 2.81',
}
REFUSED = 'refused-by-the-driver'
CENTRAL = 'central'
CACHED = 'the driver has'

_PLACEMENT_CONFIGURATION = """\
[api]
auth_strategy = noauth2

[placement_database]
connection = sqlite:///{data}/placement.sqlite
sync_on_startup = true
"""
# As an operator does it with nova-manage, but in one process: each takes seconds to start.
_PREPARE = """\
import sys
configuration, cell0, *hosts = sys.argv[1:]
from nova.cmd import manage  # before anything else of Nova: it chooses the threads
from nova import config, context, objects
config.parse_args(['nova-manage', f'--config-file={configuration}'])
objects.register_all()
manage.ApiDbCommands().sync()
cells = manage.CellV2Commands()
assert not cells.map_cell0(cell0 or None)
assert manage.DbCommands().sync() in (None, 0)
assert not cells.create_cell(name='cell1')
everywhere = context.get_admin_context()
(cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if not c.is_cell0()]
for host in hosts:
    objects.HostMapping(everywhere, host=host, cell_mapping=cell).create()
"""
# Nova loads drivers from its own package alone.
COMPUTE = """\
import sys
from nova.cmd import compute
import nova.virt
nova.virt.__path__.append(sys.argv.pop(1))
compute.main()
"""
# The fake driver caches whatever it is asked for; this one refuses some by their name.
_DRIVER = f"""\
from nova.image import glance
from nova.virt import fake


class Driver(fake.FakeDriverWithCaching):
    def cache_image(self, context, image_id):
        if glance.API().get(context, image_id)['name'] == '{REFUSED}':
            raise RuntimeError('refused by its name')
        is_new = super().cache_image(context, image_id)
        print('{CACHED}', image_id, flush=True)
        return is_new
"""
_CONFIGURATION = """\
[DEFAULT]
host = {host}
state_path = {own}
instances_path = {own}/instances
transport_url = {transport_url}
compute_driver = precache_test_driver.Driver
report_interval = 1

[conductor]
workers = 1

[glance]
endpoint_override = {glance_url}

[oslo_concurrency]
lock_path = {own}

[placement]
auth_type = admin_token
token = admin
endpoint = {url}/placement
endpoint_override = {url}/placement

[notifications]
notification_format = both

[oslo_messaging_notifications]
driver = messagingv2
"""
# Which computes do without.
_DATABASES = """
[database]
connection = sqlite:///{data}/cell1.sqlite

[api_database]
connection = sqlite:///{data}/api.sqlite
"""


class Api(api.NovaApi):
    """The API of a cloud, and its Placement; it makes the databases of all.

    :param configure: writes the configuration of all, once the port of this is known
    :param prepared: called when the databases are there
    :param cell0: its database; empty: Nova's choice, beside ``[database] connection``
    :param asks_keystone: False: callers are who they say they are
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[str],
        configure: Callable[[], None],
        prepared: Callable[[], None],
        *,
        cell0: str,
        asks_keystone: bool = False,
    ) -> None:
        super().__init__(directory, hosts, '')
        self._configure = configure
        self._prepared = prepared
        self._cell0 = cell0
        self._asks_keystone = asks_keystone

    def _prepare(self, home: pathlib.Path) -> None:
        self._configure()
        (self.directory / 'placement.conf').write_text(
            _PLACEMENT_CONFIGURATION.format(data=self.directory)
        )
        pipeline = (home / 'etc' / 'nova' / 'api-paste.ini').read_text()
        if not self._asks_keystone:
            pipeline = pipeline.replace(' authtoken keystonecontext ', ' keystonecontext ')
        (self.directory / 'api-paste.ini').write_text(pipeline)
        configuration = str(self.directory / 'nova.conf')
        command = [str(home / 'bin' / 'python'), '-c', _PREPARE, configuration, self._cell0]
        self._run(
            [*command, *self._hosts],
            'the preparation of the databases of Nova',
            self._variables(),
        )
        self._prepared()


@dataclasses.dataclass
class NovaCloud:
    """One cell of stock Nova in an empty directory of its own.

    :param directory: its ``central`` part is of API, conductor and Placement
    :param transport_url: of an empty virtual host of RabbitMQ, for everything
    :param hosts: the compute hosts, which no other cloud may have had
    """

    directory: pathlib.Path
    transport_url: str
    glance_url: str
    hosts: Sequence[str] = ('nova-host1', 'nova-host2')
    _processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._home = nova.ENVIRONMENT.ensure()
        self._central = self.directory / CENTRAL
        self._api = Api(
            self._central,
            self.hosts,
            self._configure,
            self._start_conductor,
            cell0=f'sqlite:///{self._central}/cell0.sqlite',
        )

    @property
    def databases(self) -> pathlib.Path:
        """Where the databases are, ``api.sqlite`` and ``cell1.sqlite``."""
        return self._central

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything, and return when every compute host is up and mapped."""
        (self.directory / 'precache_test_driver.py').write_text(_DRIVER)
        self._central.mkdir()
        self._api.start()
        for host in self.hosts:
            self._spawn(host, host, 'python', '-c', COMPUTE, str(self.directory))
        wait_until(self._are_up, f'the computes are up; logs in {self.directory}')

    def stop(self) -> None:
        """Stop everything; what has no data of its own is killed, which takes no time."""
        for name in list(self._processes):
            self.kill(name)
        self._api.stop()

    def kill(self, name: str) -> None:
        """Kill the nova-compute of a host, or ``nova-conductor``, as a lost machine would."""
        killed = self._processes.pop(name)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Have a process do nothing for a while, as on a machine that hangs."""
        os.killpg(self._processes[name].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._processes[name].pid, signal.SIGCONT)

    @contextlib.contextmanager
    def compute_set(self, host: str, off: Any, on: Any) -> Iterator[None]:
        """Change the nova-compute of a host as an operator would, and change it back."""
        [service] = self.get(f'/os-services?binary=nova-compute&host={host}')['services']
        path = f'{self._api.url}/v2.1/os-services/{service["id"]}'
        requests.put(path, json=off, headers=CALLER, timeout=60).raise_for_status()
        try:
            yield
        finally:
            requests.put(path, json=on, headers=CALLER, timeout=60).raise_for_status()

    def get(self, path: str) -> Any:
        answer = requests.get(f'{self._api.url}/v2.1{path}', headers=CALLER, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> requests.Response:
        """Ask the compute API as an admin."""
        answer = requests.post(f'{self._api.url}/v2.1{path}', json=body, headers=CALLER, timeout=60)
        answer.raise_for_status()
        return answer

    def aggregate(self, name: str, hosts: Sequence[str] | None = None) -> int:
        """Make an aggregate of some hosts, all unless said."""
        made = self.post('/os-aggregates', {'aggregate': {'name': name}}).json()
        aggregate_id = int(made['aggregate']['id'])
        for host in self.hosts if hosts is None else hosts:
            self.post(f'/os-aggregates/{aggregate_id}/action', {'add_host': {'host': host}})
        return aggregate_id

    def cache(self, aggregate_id: int, *image_ids: str) -> None:
        body = {'cache': [{'id': image_id} for image_id in image_ids]}
        self.post(f'/os-aggregates/{aggregate_id}/images', body)

    def has_cached(self, host: str, image_id: str) -> bool:
        """Tell whether the driver of a host was ever asked for an image, and has it."""
        return f'{CACHED} {image_id}' in (self.directory / f'{host}.log').read_text()

    def is_up(self, host: str) -> bool:
        """Tell whether Nova takes the compute of a host to be alive."""
        services = self.get(f'/os-services?binary=nova-compute&host={host}')['services']
        return any(service['state'] == 'up' for service in services)

    def _are_up(self) -> bool:
        return all(self.is_up(host) and listens(self.transport_url, host) for host in self.hosts)

    def _configure(self) -> None:
        self._write(CENTRAL, _CONFIGURATION + _DATABASES)
        for host in self.hosts:
            self._write(host, _CONFIGURATION)

    def _write(self, host: str, configuration: str) -> None:
        own = self.directory / host
        (own / 'instances').mkdir(parents=True)
        (own / 'nova.conf').write_text(
            configuration.format(
                data=self._central,
                own=own,
                host=host,
                transport_url=self.transport_url,
                glance_url=self.glance_url,
                url=self._api.url,
            )
        )

    def _start_conductor(self) -> None:
        self._spawn('nova-conductor', CENTRAL, 'nova-conductor')

    def _spawn(self, name: str, host: str, program: str, *arguments: str) -> None:
        configuration = self.directory / host / 'nova.conf'
        command = [str(self._home / 'bin' / program), *arguments]
        with (self.directory / f'{name}.log').open('ab') as log:
            self._processes[name] = subprocess.Popen(
                process.dies_with_parent([*command, f'--config-file={configuration}'], 'TERM'),
                env={**os.environ, 'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true'},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def listens(transport_url: str, host: str) -> bool:
    """Tell whether a nova-compute can be called; its record is there before, and says "up"."""
    url = transport_url.replace('rabbit://', 'amqp://')
    with kombu.Connection(url) as connection:  # type: ignore[attr-defined,no-untyped-call]
        try:
            queue = connection.channel().queue_declare(f'compute.{host}', passive=True)
        except connection.channel_errors:
            return False
    return bool(queue.consumer_count)
