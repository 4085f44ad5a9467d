# SPDX-License-Identifier: Apache-2.0
"""The API and a conductor in this process, with its threads, and computes played by the test.

The computes are not the real ones, which have native threads whatever the others have.
"""

import dataclasses
import pathlib
import threading
import uuid
from collections.abc import Iterator

import pytest
from oslo_config import cfg

from nova_precache import conf as options, context, model, rpc
from nova_precache.cells import inventory
from nova_precache.compute import rpcapi as compute_rpcapi
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.db.engine import schema, session
from nova_precache.standalone import glance as glance_server
from nova_precache.wiring import (
    api as wiring_api,
    conductor as wiring_conductor,
    process as wiring_process,
)
from tests import service
from tests.conftest import UploadImage
from tools.waiting import TIMEOUT_SECONDS

HOSTS = tuple(f'host{number}' for number in range(6))
LIMIT = 4
CACHED = model.ImageOutcome(model.TaskStatus.CACHED, bytes_done=4, bytes_total=4)


class Computes(rpc.Endpoint):
    """Every compute of the cell; calls are answered once ``may_answer`` is set."""

    def __init__(self, conductor: conductor_rpcapi.ConductorReporter) -> None:
        self._conductor = conductor
        self._condition = threading.Condition()
        self.working = 0
        self.most_at_once = 0
        self.may_answer = threading.Event()

    def cache_image(
        self, ctxt: context.RequestContext, job_id: str, epoch: int, **arguments: object
    ) -> model.Json | None:
        if not self._conductor.begin_job(job_id, epoch, True):
            return None
        with self._condition:
            self.working += 1
            self.most_at_once = max(self.most_at_once, self.working)
            self._condition.notify_all()
        downloading = model.Progress(model.TaskStatus.DOWNLOADING, 2, 4)
        self._conductor.report_progress(job_id, epoch, 1, downloading)
        assert self.may_answer.wait(TIMEOUT_SECONDS)
        with self._condition:
            self.working -= 1
        return CACHED.to_wire()

    def wait_working(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.working == count, TIMEOUT_SECONDS)


@dataclasses.dataclass
class ControlPlane:
    """The API client and the computes of a running control plane."""

    service: service.Service
    computes: Computes


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[session.Database]:
    made = session.connect(_configure(tmp_path, 'http://127.0.0.1:1'))
    schema.sync(made)
    yield made
    made.dispose()


@pytest.fixture
def control_plane(
    tmp_path: pathlib.Path, database: session.Database, glance: glance_server.GlanceServer
) -> Iterator[ControlPlane]:
    conf = _configure(tmp_path, glance.url)
    inventory.Inventory(database).create_cell('cell1', f'fake:///{tmp_path.name}-cell1')
    conductor = wiring_conductor.new_conductor(conf, database)
    api = wiring_api.new_server(conf, database)
    conductor.start()
    api.start()
    transport = rpc.connect(conf, f'fake:///{tmp_path.name}-cell1')
    reporter = conductor_rpcapi.ConductorReporter(transport, None, TIMEOUT_SECONDS)
    computes = Computes(reporter)
    servers = [rpc.Server(transport, compute_rpcapi.TOPIC, host, [computes]) for host in HOSTS]
    for host, server in zip(HOSTS, servers, strict=True):
        reporter.register(_state(host))
        server.start()
    base = f'http://127.0.0.1:{api.port}'
    hosts = tuple(service.Host(host, 'cell1', '') for host in HOSTS)
    try:
        yield ControlPlane(service.Service(f'{base}/v2.1', f'{base}/v1', hosts), computes)
    finally:
        computes.may_answer.set()
        api.stop()
        conductor.stop()
        for server in servers:
            server.stop()


def _configure(directory: pathlib.Path, image_url: str) -> cfg.ConfigOpts:
    path = directory / 'nova-precache.conf'
    path.write_text(
        f"""\
[DEFAULT]
transport_url = fake:///{directory.name}-api
service_down_time = {TIMEOUT_SECONDS}
[api]
auth_strategy = noauth2
bind_host = 127.0.0.1
bind_port = 0
[conductor]
poll_interval_seconds = 0.2
progress_write_interval_seconds = 0.1
[database]
connection = sqlite:///{directory}/precache.sqlite
[glance]
endpoint_override = {image_url}
[image_cache]
precache_concurrency = {LIMIT}
"""
    )
    return options.new(config_files=[str(path)])


def _state(host: str) -> model.Json:
    return {
        'host': host,
        'agent_id': str(uuid.uuid4()),
        'boot_id': str(uuid.uuid4()),
        'version': wiring_process.version(),
        'driver': 'Played',
        'capabilities': {},
        'store_id': host,
        'cache_bytes': 0,
        'free_bytes': 1024**4,
    }


def test_limit_bounds_parallel_hosts(
    control_plane: ControlPlane, upload_image: UploadImage
) -> None:
    image_id = upload_image(b'data')
    doors, computes = control_plane.service, control_plane.computes

    request_id = doors.cache(doors.aggregate('rollout'), image_id)
    computes.wait_working(LIMIT)
    service.wait_until(
        lambda: doors.request(request_id)['counts'].get('downloading') == LIMIT,
        'the progress of each call was written while the calls wait',
    )
    computes.may_answer.set()
    request = doors.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': len(HOSTS)})
    assert computes.most_at_once == LIMIT


def test_waiting_call_does_not_block_api(
    control_plane: ControlPlane, upload_image: UploadImage
) -> None:
    doors, computes = control_plane.service, control_plane.computes
    first = doors.cache(doors.aggregate('first', doors.hosts[:1]), upload_image(b'data'))
    computes.wait_working(1)

    second = doors.cache(doors.aggregate('second', doors.hosts[1:2]), upload_image(b'data'))
    computes.wait_working(2)

    assert {doors.request(each)['status'] for each in (first, second)} == {'running'}
    computes.may_answer.set()
    assert {doors.wait(each)['status'] for each in (first, second)} == {'completed'}
