# SPDX-License-Identifier: Apache-2.0
"""Cost of the same fleet with the conductor of a stock Nova, in its own environment.

Its computes answer at once, as our simulated ones do, and it tracks no results. They are in its
own process, or behind a broker.
"""

import dataclasses
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from nova_precache.standalone import process
from tools.servers import nova

_CONFIGURATION = """\
[DEFAULT]
host = conductor
transport_url = {transport_url}
[api_database]
connection = {api_database}
[database]
connection = {database}
[image_cache]
precache_concurrency = {parallel}
"""
_IN_MEMORY = 'fake:///'
_SCRIPT = """\
import json, os, pathlib, sys, time
configuration, directory, count, images, servers = sys.argv[1:]
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
assert not cells.create_cell(name='cell1', transport_url=config.CONF.transport_url)
everywhere = context.get_admin_context()
(cell,) = [c for c in objects.CellMappingList.get_all(everywhere) if not c.is_cell0()]
hosts = [f'compute-{number:05}' for number in range(1, int(count) + 1)]
now = timeutils.utcnow()
with sa.create_engine(config.CONF.api_database.connection).begin() as api:
    rows = [{'cell': cell.id, 'host': host} for host in hosts]
    api.execute(sa.text('INSERT INTO host_mappings (cell_id, host) VALUES (:cell, :host)'), rows)
with sa.create_engine(config.CONF.database.connection).begin() as database:
    rows = [{'host': host, 'uuid': uuidutils.generate_uuid(), 'now': str(now)} for host in hosts]
    database.execute(sa.text(
        'INSERT INTO services (host, `binary`, topic, report_count, disabled, forced_down,'
        ' deleted, version, uuid, created_at, updated_at, last_seen_up)'
        " VALUES (:host, 'nova-compute', 'compute', 1, 0, 0, 0, 66, :uuid, :now, :now, :now)"
    ), rows)
config.CONF.set_override('service_down_time', 86400)

from nova import rpc, servicegroup
from nova.compute import rpcapi
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
# The two attributes that caching uses.
in_memory = config.CONF.transport_url == 'fake:///'
conductor.compute_rpcapi = Computes() if in_memory else rpcapi.ComputeAPI()
conductor.servicegroup_api = servicegroup.API()
def run(some, ids):
    aggregate = objects.Aggregate(
        context=everywhere, id=1, uuid=uuidutils.generate_uuid(), name='fleet',
        hosts=list(some), metadata={})
    conductor.cache_images(everywhere, aggregate, ids)
def cpu(server):
    pid = json.loads(servers).get(server)
    if pid is None:
        return 0.0
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')
def clocks():
    return {
        'statements': statements[0], 'wall_seconds': time.monotonic(),
        'cpu_seconds': time.process_time(),
        'database_cpu_seconds': cpu('database'), 'broker_cpu_seconds': cpu('broker')}
run(hosts[:3], [uuidutils.generate_uuid()])  # one-time work
found = []
for number in json.loads(images):
    before = clocks()
    run(hosts, [uuidutils.generate_uuid() for _ in range(number)])
    after = clocks()
    found.append({
        'hosts': len(hosts), 'images': number,
        **{name: after[name] - before[name] for name in after}})
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Nova:
    """Cost of one request with stock Nova."""

    hosts: int
    images: int
    statements: int
    wall_seconds: float
    cpu_seconds: float
    database_cpu_seconds: float = 0.0
    broker_cpu_seconds: float = 0.0

    @property
    def cpu_ms_per_host(self) -> float:
        return self.cpu_seconds / self.hosts * 1000

    @property
    def statements_per_host(self) -> float:
        return self.statements / self.hosts


@dataclasses.dataclass(frozen=True)
class Site:
    """A broker with the computes, and empty databases.

    :ivar api_url: URL of the API database
    :ivar cell_url: URL of the cell's database
    :ivar parallel: ``[image_cache] precache_concurrency``
    :ivar servers: the processes of the database and the broker
    """

    transport_url: str
    api_url: str
    cell_url: str
    parallel: int
    servers: Mapping[str, int]


def measure(hosts: int, images: int) -> Nova:
    """Measure a request for images on some hosts, in one process.

    :raises nova_precache.standalone.environment.EnvironmentFailed: Nova cannot be installed
    """
    (found,) = _run(hosts, [images])
    return found


def measure_calls(hosts: int, images: Sequence[int], site: Site) -> list[Nova]:
    """Measure requests for some numbers of images, over the broker of a site.

    :raises nova_precache.standalone.environment.EnvironmentFailed: Nova cannot be installed
    """
    return _run(hosts, images, site)


def _run(hosts: int, images: Sequence[int], site: Site | None = None) -> list[Nova]:
    python = nova.ENVIRONMENT.ensure() / 'bin' / 'python'
    with tempfile.TemporaryDirectory(prefix='fleet-nova-') as name:
        directory = pathlib.Path(name)
        if site is None:
            files = (f'sqlite:///{name}/api.sqlite', f'sqlite:///{name}/cell.sqlite')
            site = Site(_IN_MEMORY, *files, parallel=1, servers={})
        configuration = directory / 'nova.conf'
        configuration.write_text(
            _CONFIGURATION.format(
                transport_url=site.transport_url,
                api_database=site.api_url,
                database=site.cell_url,
                parallel=site.parallel,
            )
        )
        nova.link_pymysql(directory)
        arguments = [str(configuration), name, str(hosts), json.dumps(images)]
        command = [str(python), '-W', 'ignore', '-c', _SCRIPT, *arguments]
        done = subprocess.run(
            process.dies_with_parent([*command, json.dumps(site.servers)], 'KILL'),
            env={**nova.variables(directory), 'PATH': '/usr/bin:/bin'},
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'Nova could not be measured: {process.last_lines(done.stderr)}')
    return [Nova(**each) for each in json.loads(done.stdout.splitlines()[-1])]
