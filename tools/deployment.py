# SPDX-License-Identifier: Apache-2.0
"""A deployment on one machine: Keystone, Glance, RabbitMQ, MariaDB, and the service in cells."""

import pathlib

from nova_precache import conf as options
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from tools import foundation
from tools.foundation import CONDUCTORS, Host
from tools.servers import rabbitmq

CELLS = ('cell1', 'cell2')
CONTROL = 'control'
_CONTROL = """
[image_cache]
precache_concurrency = 2
"""
# It needs neither a database nor Keystone. A call names Glance, which must be this one.
_COMPUTE = """\
compute_driver = libvirt.LibvirtDriver

[glance]
allowed_endpoints = {glance_url}

[image_cache]
reserved_disk_bytes = 0
"""


class Deployment(foundation.Foundation):
    """The service with an inventory of its own.

    :param computes: number of hosts, in turn of two cells
    """

    def __init__(self, directory: pathlib.Path, computes: int) -> None:
        control = rabbitmq.Login(CONTROL, (CONTROL, *CELLS))
        super().__init__(
            directory,
            [_host(directory, number) for number in range(computes)],
            {CONTROL: control, **{cell: rabbitmq.Login(cell, (cell,)) for cell in CELLS}},
        )

    def start(self) -> None:
        self._start_servers()
        self._configure()
        self._make_database()
        self._start_service()
        self._register(f'{self.api_url}/v2.1')

    def parts(self) -> list[tuple[str, str]]:
        return [
            *self._server_parts(),
            ('nova-precache API (gunicorn)', self.api_url),
            *((name, '') for name in CONDUCTORS),
            *((f'compute {host.name}', host.cell) for host in self.hosts),
        ]

    def _configure(self) -> None:
        control = self._control(_CONTROL)
        for name in ('api', *CONDUCTORS):
            self._write(name, CONTROL, CONTROL, control)
        for host in self.hosts:
            compute = _COMPUTE.format(glance_url=self.image_url)
            self._write(host.name, host.cell, host.cell, compute)

    def _make_database(self) -> None:
        """Create the tables and the cells.

        A command would have the transport URL of a cell, with its password, as an argument.
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

    def _start_service(self) -> None:
        # First, so that a compute's first report is received.
        self._start_conductors()
        self._start_all(
            'compute',
            [host.name for host in self.hosts],
            lambda name: f'Host {name} is registered and serves',
        )
        self._start_server(self._api)


def _host(directory: pathlib.Path, number: int) -> Host:
    cell = CELLS[number % len(CELLS)]
    name = f'{cell}-compute{number // len(CELLS) + 1}'
    return Host(name, cell, directory / name)
