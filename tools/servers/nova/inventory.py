# SPDX-License-Identifier: Apache-2.0
"""A nova_api database as nova-manage creates it, filled and read by Nova's own objects.

No service of Nova runs.
"""

import json
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tools.servers import nova

_SCRIPT = """\
import json, sys
from nova.cmd import manage  # before any other module of Nova: it chooses the threads
from nova import config, context, objects
from oslo_serialization import jsonutils

configuration, asked = sys.argv[1:]
asked = json.loads(asked)
config.parse_args(['nova-manage', f'--config-file={configuration}'])
objects.register_all()
everywhere = context.get_admin_context()


def prepare(cells, aggregates):
    manage.ApiDbCommands().sync()
    commands = manage.CellV2Commands()
    assert not commands.map_cell0('sqlite://')
    for name, cell in cells.items():
        hosts = cell.pop('hosts')
        if cell.pop('by_command'):
            assert not commands.create_cell(name=name, **cell)
        else:  # one that nova-manage refuses
            objects.CellMapping(everywhere, name=name, **cell).create()
        map_hosts(name, hosts)
    for name, (metadata, hosts) in aggregates.items():
        aggregate = objects.Aggregate(everywhere, name=name, metadata=metadata)
        aggregate.create()
        for host in hosts:
            objects.aggregate._host_add_to_db(everywhere, aggregate.id, host)


def map_hosts(cell, hosts):
    (cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if c.name == cell]
    for host in hosts:
        objects.HostMapping(everywhere, host=host, cell_mapping=cell).create()


def show():
    cells = objects.CellMappingList.get_all(everywhere)
    mappings = objects.HostMappingList.get_all(everywhere)
    aggregates = objects.AggregateList.get_all(everywhere)
    return {
        'cells': [
            {
                name: getattr(cell, name)
                for name in ('uuid', 'name', 'transport_url', 'database_connection', 'disabled')
            }
            for cell in cells if not cell.is_cell0()
        ],
        'hosts': {each.host: each.cell_mapping.uuid for each in mappings},
        'aggregates': [
            {
                name: getattr(aggregate, name)
                for name in ('id', 'uuid', 'name', 'hosts', 'metadata', 'created_at')
            }
            for aggregate in aggregates
        ],
    }


def fill(pairs):
    return [objects.CellMapping._format_url(template, url) for template, url in pairs]


answers = [globals()[name](**arguments) for name, arguments in asked]
print('\\n' + jsonutils.dumps(answers))
"""
_CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}
state_path = {directory}

[database]
connection = {cell_database}

[api_database]
connection = {connection}
"""


class NovaInventory:
    """The API database of a Nova that has no services.

    :param directory: an empty one
    :param connection: URL of the empty database
    :param transport_url: fills in the templates of the cells, as ``cell_database`` does
    """

    def __init__(
        self, directory: pathlib.Path, connection: str, transport_url: str, cell_database: str
    ) -> None:
        self._directory = directory
        self._python = nova.ENVIRONMENT.ensure() / 'bin' / 'python'
        self._configuration = directory / 'nova.conf'
        self._configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                connection=connection,
                transport_url=transport_url,
                cell_database=cell_database,
            )
        )
        nova.link_pymysql(directory)

    def ask(self, *asked: tuple[str, Mapping[str, Any]]) -> Sequence[Any]:
        """Call functions of the script by name and arguments; it takes seconds to start."""
        done = subprocess.run(
            [self._python, '-c', _SCRIPT, self._configuration, json.dumps(asked)],
            env={**os.environ, **nova.variables(self._directory)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return list(json.loads(done.stdout.splitlines()[-1]))
