# SPDX-License-Identifier: Apache-2.0
"""Beside a stock Nova, with none of our agents on its hosts: its own nova-computes cache images."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests as http
import sqlalchemy as sa
import webob
from prometheus_client import parser as prometheus

from nova_precache import conf as options
from nova_precache.db.engine import schema, session as db_session
from nova_precache.standalone import glance as glance_server, process
from nova_precache.wiring import api as wiring_api
from tests import nova_cloud
from tests.conftest import UploadImage
from tests.integration.conftest import BIN
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

KIB = 1024
FIRST, SECOND = 'nova-host1', 'nova-host2'
_CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}
state_path = {data}
long_rpc_timeout = 600
rpc_response_timeout = 15
service_down_time = 600

[api]
auth_strategy = noauth2

[api_database]
connection = sqlite:///{nova}/api.sqlite

[conductor]
claim_lease_seconds = 15
poll_interval_seconds = 0.2

[database]
connection = sqlite:///{data}/precache.sqlite

[metrics]
port = {metrics_port}

[glance]
endpoint_override = {glance_url}

[image_cache]
compute_backend = nova
precache_concurrency = 2
retry_delay_seconds = 1
"""

Json = dict[str, Any]


@dataclasses.dataclass
class Beside:
    """Our API in this process, and a conductor in another, which can be killed."""

    stock: nova_cloud.NovaCloud
    directory: pathlib.Path
    database: db_session.Database
    application: Callable[..., Any]
    metrics_port: int
    _conductor: subprocess.Popen[bytes] | None = None

    def start_conductor(self) -> None:
        command = [str(BIN / 'nova-precache-conductor')]
        command.append(f'--config-file={self.directory / "precache.conf"}')
        with (self.directory / 'conductor.log').open('ab') as log:
            self._conductor = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'), stdout=log, stderr=log
            )

    def kill_conductor(self) -> None:
        assert self._conductor is not None
        self._conductor.kill()
        self._conductor.wait()

    def counted_hosts(self) -> dict[str, float]:
        """The number of hosts by state, as in the conductor's Prometheus metrics."""
        url = f'http://127.0.0.1:{self.metrics_port}/metrics'
        return {
            sample.labels['state']: sample.value
            for family in prometheus.text_string_to_metric_families(
                http.get(url, timeout=TIMEOUT_SECONDS).text
            )
            for sample in family.samples
            if sample.name == 'nova_precache_conductor_hosts'
        }

    def let_calls_be_over(self) -> None:
        """End every lost call by moving its times into the past."""
        past = {'past': datetime.datetime(2001, 1, 1)}  # noqa: DTZ001 - as the database keeps it
        with self.database.engine.begin() as connection:
            for table, column in (('stock_calls', 'over_at'), ('jobs', 'next_attempt_at')):
                connection.execute(sa.text(f'UPDATE {table} SET {column} = :past'), past)  # noqa: S608

    def call(self, method: str, path: str, body: Json | None = None) -> webob.Response:
        request = webob.Request.blank(path, method=method)
        if body is not None:
            request.json = body
        return request.get_response(self.application)

    def cache(self, aggregate_id: int, *images: str, **more: Any) -> str:
        """Ask for images; return the path of the request."""
        body = {'request': {'aggregate': aggregate_id, 'images': list(images), **more}}
        answer = self.call('POST', '/v1/requests', body)
        assert answer.status_int == 202, answer.text
        return f'/v1/requests/{answer.json["request"]["id"]}'

    def cache_on(self, hosts: Sequence[str], image: str) -> str:
        """Ask for an image on hosts; return the path of the request."""
        answer = self.call(
            'POST', '/v1/requests', {'request': {'hosts': list(hosts), 'images': [image]}}
        )
        assert answer.status_int == 202, answer.text
        return f'/v1/requests/{answer.json["request"]["id"]}'

    @contextlib.contextmanager
    def cell(
        self, name: str, transport_url: str, database_connection: str, host: str
    ) -> Iterator[None]:
        """Map one more cell with a host in Nova for a while."""
        inventory = sa.create_engine(f'sqlite:///{self.stock.databases}/api.sqlite')
        mapping = {
            'uuid': str(uuid.uuid4()),
            'name': name,
            'url': transport_url,
            'database': database_connection,
        }
        try:
            with inventory.begin() as nova:
                nova.execute(
                    sa.text(
                        'INSERT INTO cell_mappings (uuid, name, transport_url, '
                        'database_connection, disabled) '
                        'VALUES (:uuid, :name, :url, :database, 0)'
                    ),
                    mapping,
                )
                nova.execute(
                    sa.text(
                        'INSERT INTO host_mappings (host, cell_id) '
                        'SELECT :host, id FROM cell_mappings WHERE uuid = :uuid'
                    ),
                    {'host': host, 'uuid': mapping['uuid']},
                )
            yield
        finally:
            with inventory.begin() as nova:
                nova.execute(
                    sa.text('DELETE FROM host_mappings WHERE host = :host'), {'host': host}
                )
                nova.execute(sa.text('DELETE FROM cell_mappings WHERE uuid = :uuid'), mapping)
            inventory.dispose()

    def tasks(self, path: str) -> dict[str, Json]:
        return {task['host']: task for task in self.call('GET', f'{path}/tasks').json['tasks']}

    def outcomes(self, path: str) -> dict[str, tuple[str, str | None]]:
        """Wait for the end of a request, and return the outcome of each host."""
        final = {'completed', 'partial', 'failed', 'cancelled'}
        wait_until(
            lambda: self.call('GET', path).json['request']['status'] in final,
            f'{path} has ended; logs in {self.directory}',
        )
        return {host: (task['status'], task['reason']) for host, task in self.tasks(path).items()}

    def wait_for(self, path: str, host: str, reason: str) -> Json:
        """Wait until a task waits for its next attempt, for this reason."""

        def waits() -> Json | None:
            task = self.tasks(path).get(host, {})
            is_so = task.get('status') == 'retry_wait' and reason in task['reason']
            return task if is_so else None

        found: Json = wait_until(waits, f'{host} waits; logs in {self.directory}')
        return found


@pytest.fixture(scope='module')
def beside(
    stock: nova_cloud.NovaCloud,
    glance: glance_server.GlanceServer,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Beside]:
    metrics_port = free_port()
    directory = tmp_path_factory.mktemp('beside')
    configuration = directory / 'precache.conf'
    configuration.write_text(
        _CONFIGURATION.format(
            transport_url=stock.transport_url,
            nova=stock.databases,
            data=directory,
            glance_url=glance.url,
            metrics_port=metrics_port,
        )
    )
    conf = options.new([f'--config-file={configuration}'])
    database = db_session.connect(conf)
    schema.sync(database)
    application = wiring_api.application(conf, database)
    made = Beside(stock, directory, database, application, metrics_port)
    made.start_conductor()
    yield made
    made.kill_conductor()
    database.dispose()


def test_nova_computes_cache_images(beside: Beside, upload_image: UploadImage) -> None:
    aggregate_id = beside.stock.aggregate('agentless')
    good = upload_image(os.urandom(KIB))
    refused = upload_image(os.urandom(KIB), name=nova_cloud.REFUSED)

    path = beside.cache(aggregate_id, good)
    assert set(beside.outcomes(path).values()) == {('cached', None)}
    assert {task['bytes_done'] for task in beside.tasks(path).values()} == {KIB}
    again = beside.cache(aggregate_id, good)
    assert set(beside.outcomes(again).values()) == {('existing', None)}
    assert {task['bytes_done'] for task in beside.tasks(again).values()} == {0}

    failing = beside.cache(aggregate_id, refused)
    beside.wait_for(failing, FIRST, 'nova-compute reported an error; see its log')
    assert beside.call('POST', f'{failing}/action', {'cancel': None}).status_int == 202
    assert {status for status, _ in beside.outcomes(failing).values()} == {'cancelled'}

    rate = {'request': {'aggregate': aggregate_id, 'images': [good], 'max_rate_bytes': 1}}
    assert beside.call('POST', '/v1/requests', rate).status_int == 400


def test_nova_computes_cache_kernel_separately(beside: Beside, upload_image: UploadImage) -> None:
    aggregate_id = beside.stock.aggregate('kernels')
    kernel, refused = (
        upload_image(os.urandom(KIB), 'aki', container_format='aki', name=name)
        for name in ('kernel', nova_cloud.REFUSED)
    )
    good, bad = (upload_image(os.urandom(KIB), kernel_id=each) for each in (kernel, refused))

    path = beside.cache(aggregate_id, good)
    assert set(beside.outcomes(path).values()) == {('cached', None)}
    assert {task['bytes_done'] for task in beside.tasks(path).values()} == {2 * KIB}
    assert beside.stock.has_cached(FIRST, kernel)
    again = beside.cache(aggregate_id, good)
    assert set(beside.outcomes(again).values()) == {('existing', None)}

    failing = beside.cache(aggregate_id, bad)
    reason = f'kernel or ramdisk {refused}: nova-compute reported an error; see its log'
    beside.wait_for(failing, FIRST, reason)
    assert beside.call('POST', f'{failing}/action', {'cancel': None}).status_int == 202
    assert {status for status, _ in beside.outcomes(failing).values()} == {'cancelled'}


def test_unreachable_cell_delays_no_other_host(
    beside: Beside, upload_image: UploadImage, free_port: Callable[[], int]
) -> None:
    nowhere = f'127.0.0.1:{free_port()}'
    with beside.cell('gone', f'rabbit://nova@{nowhere}/', f'mysql://nova@{nowhere}/nova', 'lost'):
        path = beside.cache_on([FIRST, 'lost', SECOND], upload_image(os.urandom(KIB)))
        outcomes = beside.outcomes(path)

    status, reason = outcomes.pop('lost')
    assert (status, str(reason).startswith('cell ')) == ('error', True)
    assert "cell gone's database is unreachable" in str(reason)
    assert outcomes == {FIRST: ('cached', None), SECOND: ('cached', None)}


def test_hosts_uncallable_by_nova_skipped(beside: Beside, upload_image: UploadImage) -> None:
    aggregate_id = beside.stock.aggregate('off')
    disabled = {'status': 'disabled', 'disabled_reason': 'its fans are being cleaned'}
    with (
        beside.stock.compute_set(FIRST, disabled, {'status': 'enabled'}),
        beside.stock.compute_set(SECOND, {'forced_down': True}, {'forced_down': False}),
    ):
        outcomes = beside.outcomes(beside.cache(aggregate_id, upload_image(os.urandom(KIB))))
        hosts = beside.call('GET', '/v1/hosts').json['hosts']
        page = beside.call('GET', f'/v1/hosts?status=down&limit=1&marker={FIRST}').json['hosts']
        off = {'up': 0, 'down': 2, 'unknown': 0}
        wait_until(lambda: beside.counted_hosts() == off, 'both are counted as down')

    reasons = {
        FIRST: 'host disabled: its fans are being cleaned',
        SECOND: 'host down: it is forced down',
    }
    assert outcomes == {host: ('skipped', reason) for host, reason in reasons.items()}
    assert {host['host']: host['reason'] for host in hosts} == reasons
    assert {host['status'] for host in hosts} == {'down'}
    assert page == [host for host in hosts if host['host'] == SECOND]
    assert {(host['driver'], host['free_bytes']) for host in hosts} == {(None, None)}


def test_host_called_after_lost_call_ends(beside: Beside, upload_image: UploadImage) -> None:
    """Its nova-compute hangs, and runs the call that it received when it resumes."""
    aggregate_id = beside.stock.aggregate('hanging')
    images = [upload_image(os.urandom(KIB)) for _ in range(2)]
    with beside.stock.frozen(FIRST):
        lost = beside.cache(aggregate_id, images[0])
        task = beside.wait_for(lost, FIRST, 'no answer from nova-compute')
        assert beside.tasks(lost)[SECOND]['status'] == 'cached'

        beside.kill_conductor()  # all its state is in the database
        beside.start_conductor()
        other = beside.cache(aggregate_id, images[1])
        beside.wait_for(other, FIRST, 'an earlier call got no answer')
        still = beside.tasks(lost)[FIRST]
        counted = {'reason': None, 'eta_seconds': None}  # they count the seconds
        assert {**still, **counted} == {**task, **counted}
        assert not beside.stock.has_cached(FIRST, images[0])

    wait_until(lambda: beside.stock.has_cached(FIRST, images[0]), 'the lost call is done')
    beside.let_calls_be_over()

    assert beside.outcomes(lost)[FIRST] == ('existing', None)
    assert beside.tasks(lost)[FIRST]['attempts'] == 2
    assert beside.outcomes(other)[FIRST] == ('cached', None)
    assert beside.tasks(other)[FIRST]['attempts'] == 1
