# SPDX-License-Identifier: Apache-2.0
"""The whole service in one process: an API, a conductor, and computes in cells.

All state is in one directory; a restart with the same directory continues from it. Brokers are
in memory, the database is SQLite, the image service is a real Glance.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import socket
import uuid
from collections.abc import Iterator, Sequence

import fasteners
import yaml
from oslo_config import cfg

from nova_precache import (
    concurrency,
    conf as configuration,
    exception,
    files,
    metrics,
    model,
    service_reporter,
)
from nova_precache.cells import inventory
from nova_precache.compute import agent, metrics as compute_metrics
from nova_precache.conductor import service as conductor_service
from nova_precache.db.engine import schema, session
from nova_precache.standalone import glance
from nova_precache.wiring import (
    api as wiring_api,
    common,
    compute as wiring_compute,
    conductor as wiring_conductor,
    process as wiring_process,
)
from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)

ADDRESS = '127.0.0.1'
TOKEN = 'admin'  # noqa: S105 - noauth2 takes any
REGISTER_SECONDS = 60.0
_LAST_PORT = 65535
_PORT_MAX_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Shape:
    """The parts to run.

    :ivar image_url: of the image service; None: start a Glance
    :ivar config_files: files that take precedence over that of standalone
    :ivar config_dirs: directories of files that take precedence over these
    """

    state_dir: pathlib.Path
    port: int = 8774
    cells: int = 2
    hosts_per_cell: int = 2
    image_url: str | None = None
    config_files: Sequence[str] = ()
    config_dirs: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class StandaloneHost:
    """One of the compute hosts of this process."""

    name: str
    cell: str


class Standalone:
    """Starts the parts in order and stops them in reverse."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._state_dir = shape.state_dir.resolve()
        self._lock = fasteners.InterProcessLock(str(self._state_dir / 'lock'))
        self._glance: glance.GlanceServer | None = None
        self._database: session.Database | None = None
        self._exposed: metrics.Exposition | None = None
        self._conductor: conductor_service.Conductor | None = None
        self._agents: list[agent.ComputeAgent] = []
        self._api: server.HttpServer | None = None
        self._reporters: list[service_reporter.ServiceReporter] = []
        self._hosts = [
            StandaloneHost(f'{cell}-compute{number}', cell)
            for cell in self._cells()
            for number in range(1, shape.hosts_per_cell + 1)
        ]

    @property
    def ready_file(self) -> pathlib.Path:
        return self._state_dir / 'standalone.json'

    @property
    def agents(self) -> Sequence[agent.ComputeAgent]:
        """The computes of this process."""
        return self._agents

    def start(self) -> None:
        """Start all parts, then write ``standalone.json``.

        :raises nova_precache.exception.PrecacheError: a part cannot start; the others are
            stopped
        """
        self._take_state_dir()
        try:
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all running parts; the state directory keeps all data."""
        self.ready_file.unlink(missing_ok=True)
        concurrency.stop_all(self._reporters)
        if self._api is not None:
            self._api.stop()
        if self._conductor is not None:
            self._conductor.stop_claiming()
        concurrency.stop_all(self._agents)
        if self._conductor is not None:
            self._conductor.stop()
        if self._exposed is not None:
            self._exposed.stop()
        if self._database is not None:
            self._database.dispose()
        if self._glance is not None:
            self._glance.stop()
        if self._lock.acquired:
            self._lock.release()

    def _take_state_dir(self) -> None:
        with self._used_state_dir():
            # Other users of the machine must not read private images of Glance.
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.open_lock(self._lock)
            is_ours = self._lock.acquire(blocking=False)
        if not is_ours:
            raise exception.ConfigError(f'--state-dir {self._state_dir} is in use')
        self.ready_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _used_state_dir(self) -> Iterator[None]:
        """Translate errors of the operating system."""
        try:
            yield
        except OSError as exc:
            raise exception.ConfigError(
                f'--state-dir {self._state_dir} cannot be used: {exc.filename}: {exc.strerror}'
            ) from exc

    def _start_parts(self) -> None:
        conf_path = self._write_conf(self._start_image_service())
        conf = self._read_conf(conf_path)
        self._database = session.connect(conf)
        schema.sync(self._database)
        self._map_cells(self._database)
        self._exposed = wiring_process.exposition(conf)
        self._exposed.start()
        self._conductor = wiring_conductor.new_conductor(conf, self._database, self._exposed)
        self._conductor.start()
        self._start_agents(conf_path, self._exposed)
        api = wiring_api.new_server(conf, self._database)
        api.start()
        self._api = api
        for binary in (model.Binary.CONDUCTOR, model.Binary.API):
            reporter = common.new_reporter(conf, self._database, binary)
            reporter.start()
            self._reporters.append(reporter)
        self._write_clouds(conf, api.port)
        self._write_ready(conf, conf_path, api.port)
        LOG.info('Standalone is ready at http://%s:%d', ADDRESS, api.port)

    def _start_image_service(self) -> str:
        if self._shape.image_url is not None:
            return self._shape.image_url
        self._glance = glance.GlanceServer(self._state_dir / 'glance', port=self._glance_port())
        self._glance.start()
        return self._glance.url

    def _glance_port(self) -> int:
        """Return the port of an earlier run, which clients may have stored, or a new one."""
        kept = self._state_dir / 'glance.port'
        try:
            port = int(files.read(kept, _PORT_MAX_BYTES))
        except (OSError, ValueError):
            port = 0
        if not 0 < port <= _LAST_PORT:
            port = _free_port()
            with self._used_state_dir():
                files.replace_whole(kept, f'{port}\n')
        return port

    def _cells(self) -> list[str]:
        return [f'cell{number}' for number in range(1, self._shape.cells + 1)]

    def _map_cells(self, database: session.Database) -> None:
        cells = inventory.Inventory(database)
        known = {cell.name for cell in cells.list_cells()}
        for name in self._cells():
            if name not in known:
                cells.create_cell(name, transport_url=f'fake:///{self._exchange(name)}')

    def _exchange(self, name: str) -> str:
        """Return an exchange name unique to this state directory: a process shares exchanges."""
        return f'{uuid.uuid5(uuid.NAMESPACE_URL, str(self._state_dir))}-{name}'

    def _start_agents(self, conf_path: pathlib.Path, exposed: metrics.Exposition) -> None:
        computes = compute_metrics.ComputeMetrics(exposed.registry)
        for host in self._hosts:
            conf = self._read_conf(conf_path)
            conf.set_override('host', host.name)
            conf.set_override('transport_url', f'fake:///{self._exchange(host.cell)}')
            compute = wiring_compute.new_agent(conf, computes, exposed.health)
            compute.start()
            self._agents.append(compute)
        for compute in self._agents:
            if not compute.wait_registered(REGISTER_SECONDS):
                raise exception.ConfigError(
                    f'Host {compute.host} was not registered in {REGISTER_SECONDS:g} s; see the log'
                )

    def _read_conf(self, path: pathlib.Path) -> cfg.ConfigOpts:
        return configuration.new(
            config_files=[str(path), *self._shape.config_files],
            config_dirs=self._shape.config_dirs,
        )

    def _write_conf(self, image_url: str) -> pathlib.Path:
        path = self._state_dir / 'nova-precache.conf'
        text = f"""\
# Written at each start.
[DEFAULT]
transport_url = fake:///{self._exchange('api')}
state_path = {self._state_dir}/hosts/$host
[api]
auth_strategy = noauth2
bind_host = {ADDRESS}
bind_port = {self._shape.port}
[conductor]
claim_lease_seconds = 10
poll_interval_seconds = 1
[database]
connection = sqlite:///{self._state_dir}/nova-precache.sqlite
[glance]
endpoint_override = {image_url}
"""
        with self._used_state_dir():
            files.replace_whole(path, text)
        return path

    def _write_clouds(self, conf: cfg.ConfigOpts, port: int) -> None:
        base = f'http://{ADDRESS}:{port}'
        cloud = {
            'auth_type': 'none',
            'auth': {'endpoint': f'{base}/v2.1'},
            'compute_endpoint_override': f'{base}/v2.1',
            'image_precache_endpoint_override': f'{base}/v1',
            'image_endpoint_override': conf.glance.endpoint_override,
        }
        with self._used_state_dir():
            files.replace_whole(
                self._state_dir / 'clouds.yaml', yaml.safe_dump({'clouds': {'precache': cloud}})
            )

    def _write_ready(self, conf: cfg.ConfigOpts, conf_path: pathlib.Path, port: int) -> None:
        ready = {
            'compute_url': f'http://{ADDRESS}:{port}/v2.1',
            'precache_url': f'http://{ADDRESS}:{port}/v1',
            'image_url': conf.glance.endpoint_override,
            'token': TOKEN,
            'conf': str(conf_path),
            'hosts': [
                {
                    'name': host.name,
                    'cell': host.cell,
                    'instances_path': str(self._state_dir / 'hosts' / host.name / 'instances'),
                }
                for host in self._hosts
            ],
        }
        with self._used_state_dir():
            files.replace_whole(self.ready_file, json.dumps(ready, indent=2) + '\n')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])
