# SPDX-License-Identifier: Apache-2.0
"""A stock nova-api as a child process.

The same process serves a Placement, and a Neutron without networks.
"""

import pathlib
import socket
from collections.abc import Callable, Mapping, Sequence

from nova_precache.standalone import environment
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
# The commands of nova-manage in one process: each takes seconds to start.
_PREPARE = """\
import sys
configuration, computes, *hosts = sys.argv[1:]
from nova.cmd import manage  # before any other module of Nova: it chooses the threads
from nova import config, context, objects
config.parse_args(['nova-manage', f'--config-file={configuration}'])
objects.register_all()
manage.ApiDbCommands().sync()
cells = manage.CellV2Commands()
assert not cells.map_cell0()
assert manage.DbCommands().sync() in (None, 0)
assert not cells.create_cell(name='cell1')

everywhere = context.get_admin_context()
(cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if not c.is_cell0()]
for host in hosts:
    objects.HostMapping(everywhere, host=host, cell_mapping=cell).create()
if computes == 'recorded':
    with context.target_cell(everywhere, cell) as here:
        for host in hosts:
            service = dict(host=host, binary='nova-compute', topic='compute', report_count=0)
            objects.Service(here, **service).create()
            objects.ComputeNode(
                here, host=host, hypervisor_hostname=host, hypervisor_type='fake',
                hypervisor_version=1, vcpus=1, vcpus_used=0, memory_mb=1, memory_mb_used=0,
                local_gb=1, local_gb_used=0, cpu_info='',
            ).create()
"""
_ALONE = """\
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


class NovaApi(environment.PythonServer):
    """A nova-api; it creates the databases of its Nova.

    :param directory: an empty one, for its configuration and log
    :param hosts: the compute hosts, all in one cell
    :param configure: called when the port is known; writes ``nova.conf`` into the directory
    :param prepared: called when the databases exist
    :param validates_tokens: with Keystone; if not, a request names its caller in the headers that
        keystonemiddleware would set
    :param has_computes: False records a nova-compute for each host that does not exist
    """

    name = 'Nova-API'
    python_environment = nova.ENVIRONMENT

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[str],
        configure: Callable[[], None],
        prepared: Callable[[], None] = lambda: None,
        *,
        validates_tokens: bool = False,
        has_computes: bool = True,
    ) -> None:
        super().__init__(directory)
        self._hosts = hosts
        self._configure = configure
        self._prepared = prepared
        self._validates_tokens = validates_tokens
        self._has_computes = has_computes

    def _prepare(self, home: pathlib.Path) -> None:
        self._configure()
        (self.directory / 'placement.conf').write_text(
            _PLACEMENT_CONFIGURATION.format(data=self.directory)
        )
        pipeline = (home / 'etc' / 'nova' / 'api-paste.ini').read_text()
        if not self._validates_tokens:
            pipeline = pipeline.replace(' authtoken keystonecontext ', ' keystonecontext ')
        (self.directory / 'api-paste.ini').write_text(pipeline)
        self._run(
            [
                str(home / 'bin' / 'python'),
                *('-c', _PREPARE, str(self.directory / 'nova.conf')),
                'served' if self._has_computes else 'recorded',
                *self._hosts,
            ],
            'the preparation of the databases of Nova',
            self._variables(),
        )
        self._prepared()

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home / 'bin' / 'python'), '-c', _SERVE, str(listener.fileno())]

    def _variables(self) -> Mapping[str, str]:
        return {
            **nova.variables(self.directory),
            'OS_NOVA_CONFIG_DIR': str(self.directory),
            'OS_NOVA_CONFIG_FILES': '',
            'OS_PLACEMENT_CONFIG_DIR': str(self.directory),
        }


class NovaApiAlone(NovaApi):
    """A nova-api with compute hosts that have no nova-compute; its messages go nowhere.

    :param glance_url: used for images
    """

    def __init__(self, directory: pathlib.Path, hosts: Sequence[str], glance_url: str) -> None:
        super().__init__(directory, hosts, self._write_configuration, has_computes=False)
        self._glance_url = glance_url

    def _write_configuration(self) -> None:
        configuration = _ALONE.format(
            data=self.directory, url=self.url, glance_url=self._glance_url
        )
        (self.directory / 'nova.conf').write_text(configuration)
