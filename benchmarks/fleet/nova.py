# SPDX-License-Identifier: Apache-2.0
"""Cost of the same fleet with the conductor of a stock Nova, in its own environment.

Its computes answer at once, as our simulated ones do, and it tracks no results.
"""

import dataclasses
import json
import pathlib
import subprocess
import tempfile

from nova_precache.standalone import process
from tools.servers import nova

_CONFIGURATION = """\
[DEFAULT]
host = conductor
[api_database]
connection = sqlite:///{directory}/api.sqlite
[database]
connection = sqlite:///{directory}/cell.sqlite
"""
_SCRIPT = """\
import json, sys, time
configuration, directory, count, images = sys.argv[1:]
from nova.cmd import manage  # before any other module of Nova: it chooses the threads
import sqlalchemy as sa
from oslo_utils import timeutils, uuidutils
from nova import config, context, objects
config.parse_args(['nova-manage', f'--config-file={configuration}'])
objects.register_all()
manage.ApiDbCommands().sync()
cells = manage.CellV2Commands()
assert not cells.map_cell0(f'sqlite:///{directory}/cell0.sqlite')
assert manage.DbCommands().sync() in (None, 0)
assert not cells.create_cell(name='cell1', transport_url='fake:///')
everywhere = context.get_admin_context()
(cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if not c.is_cell0()]
hosts = [f'compute-{number:05}' for number in range(1, int(count) + 1)]
now = timeutils.utcnow()
with sa.create_engine(f'sqlite:///{directory}/api.sqlite').begin() as api:
    rows = [{'cell': cell.id, 'host': host} for host in hosts]
    api.execute(sa.text('INSERT INTO host_mappings (cell_id, host) VALUES (:cell, :host)'), rows)
with sa.create_engine(f'sqlite:///{directory}/cell.sqlite').begin() as database:
    rows = [{'host': host, 'uuid': uuidutils.generate_uuid(), 'now': str(now)} for host in hosts]
    database.execute(sa.text(
        'INSERT INTO services (host, "binary", topic, report_count, disabled, forced_down,'
        ' deleted, version, uuid, created_at, updated_at, last_seen_up)'
        " VALUES (:host, 'nova-compute', 'compute', 1, 0, 0, 0, 66, :uuid, :now, :now, :now)"
    ), rows)
config.CONF.set_override('service_down_time', 86400)

from nova import rpc, servicegroup
from nova.conductor import manager
rpc.init(config.CONF)

statements = [0]
def note(*given):
    statements[0] += 1
sa.event.listen(sa.Engine, 'before_cursor_execute', note)

class Computes:
    def cache_images(self, ctxt, host, image_ids):
        return {image: 'cached' for image in image_ids}

conductor = manager.ComputeTaskManager.__new__(manager.ComputeTaskManager)
conductor.compute_rpcapi = Computes()  # the two attributes that caching uses
conductor.servicegroup_api = servicegroup.API()
ids = [uuidutils.generate_uuid() for _ in range(int(images))]
def run(some):
    aggregate = objects.Aggregate(
        context=everywhere, id=1, uuid=uuidutils.generate_uuid(), name='fleet',
        hosts=list(some), metadata={})
    conductor.cache_images(everywhere, aggregate, ids)
run(hosts[:3])  # one-time work
statements[0] = 0
began, began_cpu = time.monotonic(), time.process_time()
run(hosts)
print(json.dumps({
    'hosts': len(hosts), 'images': int(images), 'statements': statements[0],
    'wall_seconds': time.monotonic() - began, 'cpu_seconds': time.process_time() - began_cpu}))
"""


@dataclasses.dataclass(frozen=True)
class Nova:
    """Cost of one request with stock Nova."""

    hosts: int
    images: int
    statements: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def cpu_ms_per_host(self) -> float:
        return self.cpu_seconds / self.hosts * 1000

    @property
    def statements_per_host(self) -> float:
        return self.statements / self.hosts


def measure(hosts: int, images: int) -> Nova:
    """Measure a request for images on some hosts.

    :raises nova_precache.standalone.environment.EnvironmentFailed: Nova cannot be installed
    """
    python = nova.ENVIRONMENT.ensure() / 'bin' / 'python'
    with tempfile.TemporaryDirectory(prefix='fleet-nova-') as name:
        directory = pathlib.Path(name)
        configuration = directory / 'nova.conf'
        configuration.write_text(_CONFIGURATION.format(directory=directory))
        arguments = [str(configuration), name, str(hosts), str(images)]
        done = subprocess.run(
            process.dies_with_parent(
                [str(python), '-W', 'ignore', '-c', _SCRIPT, *arguments], 'KILL'
            ),
            env={'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true', 'PATH': '/usr/bin:/bin'},
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'Nova could not be measured: {process.last_lines(done.stderr)}')
    return Nova(**json.loads(done.stdout.splitlines()[-1]))
