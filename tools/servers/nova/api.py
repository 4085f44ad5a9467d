# SPDX-License-Identifier: Apache-2.0
"""A stock nova-api as a child process, to be asked what our API is asked.

A Placement answers in the same process, and a Neutron without any network; there is no
compute service: messages go nowhere.
Callers are who they say they are: they send the headers that keystonemiddleware would
set.
"""

import pathlib
import socket
from collections.abc import Mapping, Sequence

from nova_precache.standalone import process
from tools.servers import nova

_SERVE = """\
import json, socket, sys
listener = socket.socket(fileno=int(sys.argv.pop()))
import waitress
from nova.wsgi import osapi_compute
from placement.wsgi import api as placement

def serve(environ, start_response):
    path = environ['PATH_INFO']
    if path.startswith('/neutron/'):
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [json.dumps({path.rpartition('/')[2]: []}).encode()]
    if not path.startswith('/placement'):
        return osapi_compute.application(environ, start_response)
    environ['SCRIPT_NAME'] = '/placement'
    environ['PATH_INFO'] = path.removeprefix('/placement')
    return placement.application(environ, start_response)

waitress.serve(serve, sockets=[listener], threads=8)
"""
# As an operator does it with nova-manage, but in one process: each takes seconds to start.
_PREPARE = """\
import sys
configuration, cell0, *hosts = sys.argv[1:]
from nova import config, context, objects
from nova.cmd import manage
config.parse_args(['nova-manage', f'--config-file={configuration}'])
objects.register_all()
manage.ApiDbCommands().sync()
cells = manage.CellV2Commands()
assert not cells.map_cell0(cell0)
assert manage.DbCommands().sync() in (None, 0)
assert not cells.create_cell(name='cell1')

everywhere = context.get_admin_context()
(cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if not c.is_cell0()]
with context.target_cell(everywhere, cell) as here:
    for host in hosts:
        service = dict(host=host, binary='nova-compute', topic='compute', report_count=0)
        objects.Service(here, **service).create()
        objects.ComputeNode(
            here, host=host, hypervisor_hostname=host, hypervisor_type='fake',
            hypervisor_version=1, vcpus=1, vcpus_used=0, memory_mb=1, memory_mb_used=0,
            local_gb=1, local_gb_used=0, cpu_info='',
        ).create()
        objects.HostMapping(everywhere, host=host, cell_mapping=cell).create()
"""
_CONFIGURATION = """\
[DEFAULT]
transport_url = fake:/
state_path = {data}

[database]
connection = sqlite:///{data}/cell1.sqlite

[api_database]
connection = sqlite:///{data}/api.sqlite

[glance]
endpoint_override = {glance_url}

[placement]
auth_type = admin_token
token = none
endpoint = {url}/placement
endpoint_override = {url}/placement
"""
_PLACEMENT_CONFIGURATION = """\
[api]
auth_strategy = noauth2

[placement_database]
connection = sqlite:///{data}/placement.sqlite
sync_on_startup = true
"""


class NovaApi(process.ServerProcess):
    """A nova-api with compute hosts that have no compute service behind them.

    :param directory: an empty one, for its configuration, databases and log
    :param hosts: the compute hosts, all of one cell
    :param glance_url: where it looks images up
    """

    name = 'Nova-API'

    def __init__(self, directory: pathlib.Path, hosts: Sequence[str], glance_url: str) -> None:
        super().__init__(directory)
        self._hosts = hosts
        self._glance_url = glance_url

    def _install(self) -> pathlib.Path:
        return nova.ENVIRONMENT.ensure()

    def _prepare(self, home: pathlib.Path) -> None:
        configuration = self.directory / 'nova.conf'
        configuration.write_text(
            _CONFIGURATION.format(data=self.directory, url=self.url, glance_url=self._glance_url)
        )
        (self.directory / 'placement.conf').write_text(
            _PLACEMENT_CONFIGURATION.format(data=self.directory)
        )
        # The pipeline as it is shipped, but for the one filter that asks Keystone.
        shipped = (home / 'etc' / 'nova' / 'api-paste.ini').read_text()
        pipeline = shipped.replace(' authtoken keystonecontext ', ' keystonecontext ')
        (self.directory / 'api-paste.ini').write_text(pipeline)
        cell0 = f'sqlite:///{self.directory}/cell0.sqlite'
        command = [str(home / 'bin' / 'python'), '-c', _PREPARE, str(configuration), cell0]
        self._run([*command, *self._hosts], 'the preparation of the databases of Nova')

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home / 'bin' / 'python'), '-c', _SERVE, str(listener.fileno())]

    def _variables(self) -> Mapping[str, str]:
        return {
            'OS_NOVA_CONFIG_DIR': str(self.directory),
            'OS_NOVA_CONFIG_FILES': '',
            'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true',
            'OS_PLACEMENT_CONFIG_DIR': str(self.directory),
        }
