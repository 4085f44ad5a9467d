# SPDX-License-Identifier: Apache-2.0
"""The service beside a stock Nova: with Nova's inventory, behind the proxy rule."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nova_precache import conf as options
from nova_precache.db.engine import schema, session
from nova_precache.standalone import process
from tools import foundation
from tools.foundation import CONDUCTORS, Host
from tools.servers import databases, nginx, rabbitmq
from tools.servers.nova.cloud import StockNova

HOSTS = ('compute1', 'compute2')
CONTROL = 'control'
NOVA = 'nova'
READER = 'precache_ro'
# The tables of Nova's databases that doc/source/beside-nova.rst lets the service read.
READABLE = {
    'nova_api': (
        'aggregates',
        'aggregate_hosts',
        'aggregate_metadata',
        'cell_mappings',
        'host_mappings',
    ),
    'nova': ('services',),
}
_CONTROL = """
[api]
public_endpoint = {public_endpoint}

[api_database]
connection = {nova_api}

[image_cache]
compute_backend = {backend}
precache_concurrency = 2
"""
# nova-compute removes old images.
_AGENT = """\
instances_path = {instances_path}

[glance]
allowed_endpoints = {glance_url}

[image_cache]
reserved_disk_bytes = 0
remove_unused_base_images = false
"""


class BesideNova(foundation.Foundation):
    """A cloud with a Nova of one cell, and the service added to it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._owner = databases.Account(NOVA, ('nova_api', 'nova', 'nova_cell0'))
        self._reader = databases.Account(READER, ())
        super().__init__(
            directory,
            [Host(name, 'cell1', directory / name) for name in HOSTS],
            {CONTROL: rabbitmq.Login(CONTROL, (CONTROL,)), NOVA: rabbitmq.Login(NOVA, (NOVA,))},
            [self._owner, self._reader],
        )

    _new_nova: Callable[..., StockNova] = StockNova

    def start(self) -> None:
        """Start the cloud and the API of the service, without conductors and agents."""
        self._start_servers()
        self._start_nova()
        self._permit_reading()
        self._configure('nova')
        self._make_database()
        self._start_server(self._api)
        self.proxy = nginx.Nginx(
            self.directory / 'nginx', _address(self.nova.url), _address(self.api_url)
        )
        self._start_server(self.proxy)
        self.proxy.wait()
        self._register(f'{self.proxy.url}/v2.1')

    def parts(self) -> list[tuple[str, str]]:
        return [
            *self._server_parts(),
            ('nova-api, with a Placement', self.nova.url),
            ('nova-conductor', ''),
            *((f'nova-compute {host.name}', host.cell) for host in self.hosts),
            ('nginx: the endpoint in the catalog', self.proxy.url),
            ('nova-precache API (gunicorn)', self.api_url),
        ]

    def work_without_agents(self) -> None:
        """Start conductors that cache images through the nova-computes."""
        self._start_conductors()

    def work_with_agents(self) -> None:
        """Restart the service with an agent beside each nova-compute."""
        self._stop_children()
        self._api.stop()
        self._configure('agent')
        # First, so that an agent's first report is received.
        self._start_conductors()
        self._start_agents(self.hosts)
        self._start_server(self._api)

    def served(self) -> dict[str, list[str]]:
        """Return the requests to the endpoint so far, by the service that answered them."""
        upstreams = {_address(self.nova.url): 'Nova', _address(self.api_url): 'nova-precache'}
        found: dict[str, list[str]] = {name: [] for name in upstreams.values()}
        for upstream, asked in self.proxy.served():
            found[upstreams[upstream]].append(asked)
        return found

    def dump(self) -> Mapping[str, Any]:
        """Return the rows of Nova's API database by table."""
        engine = sa.create_engine(self.mariadb.account_url(self._owner, 'nova_api'))
        with engine.connect() as connection:
            metadata = sa.MetaData()
            metadata.reflect(connection)
            dumped = {
                name: [tuple(row) for row in connection.execute(sa.select(table))]
                for name, table in metadata.tables.items()
            }
        engine.dispose()
        return dumped

    def _permit_reading(self) -> None:
        """Grant the reader its tables, which must exist."""
        for database, tables in READABLE.items():
            for table in tables:
                self.mariadb.execute(
                    f"GRANT SELECT ON {database}.{table} TO '{READER}'@'{process.HOST}'"
                )

    def _start_agents(self, hosts: Sequence[Host]) -> None:
        self._start_all(
            'compute',
            [agent_of(host) for host in hosts],
            lambda name: f'Host {name.removesuffix("-agent")} is registered and serves',
        )

    def _start_nova(self) -> None:
        user = self.keystone.make_user('service', project='service', name='nova')
        self.nova = self._new_nova(
            self.directory,
            [host.name for host in self.hosts],
            transport_url=self._rabbitmq.transport_url(self._logins[NOVA], NOVA),
            glance_url=self.image_url,
            databases=(
                self.mariadb.account_url(self._owner, 'nova_api'),
                self.mariadb.account_url(self._owner, 'nova'),
            ),
            authtoken=self.keystone.authtoken(user),
        )
        self._servers.callback(self.nova.stop)
        self.nova.start()
        self.nova.wait({'X-Auth-Token': self.token()})

    def _configure(self, backend: str) -> None:
        nova_api = self.mariadb.account_url(self._reader, 'nova_api')
        control = self._control(
            _CONTROL.format(nova_api=nova_api, backend=backend, public_endpoint=self.api_url)
        )
        for name in ('api', *CONDUCTORS):
            self._write(name, CONTROL, CONTROL, control)
        for host in self.hosts:
            agent = _AGENT.format(instances_path=host.instances_path, glance_url=self.image_url)
            self._write(agent_of(host), NOVA, NOVA, agent)
            path = self.directory / f'{agent_of(host)}.conf'
            # Its files are named after the agent; the host is Nova's.
            path.write_text(
                path.read_text().replace(f'host = {agent_of(host)}\n', f'host = {host.name}\n', 1)
            )

    def _make_database(self) -> None:
        path = self.directory / 'conductor1.conf'
        database = session.connect(options.new(config_files=[str(path)]))
        try:
            schema.sync(database)
        finally:
            database.dispose()


def agent_of(host: Host) -> str:
    """Return the name of the agent of a host."""
    return f'{host.name}-agent'


def _address(url: str) -> str:
    return url.removeprefix('http://')
