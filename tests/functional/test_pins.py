# SPDX-License-Identifier: Apache-2.0
"""A pinned image is on every host of its aggregate, whatever joins, vanishes or grows old."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from nova_precache import conf as configuration, model
from nova_precache.cells import inventory
from nova_precache.compute import agent
from nova_precache.conductor import pins as keeping
from nova_precache.db import agents, caches, pins
from nova_precache.db.engine import session
from nova_precache.standalone import glance as glance_server
from nova_precache.wiring import common, compute as wiring_compute, images as wiring_images
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started, starting
from tests.service import Host, Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
HOUR_SECONDS = 3600
OFTEN = {'pin_interval_seconds': 0.5}
NEVER = {'pin_interval_seconds': 100000}


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A pin in a running service."""

    service: Service
    id: str
    aggregate_id: int
    image_id: str

    def now(self) -> model.Json:
        return dict(self.service.get(f'/pins/{self.id}')['pin'])

    def requests(self) -> list[model.Json]:
        """The requests of the pin, oldest first."""
        return list(self.service.get(f'/requests?pin={self.id}&sort_dir=asc')['requests'])

    def outcomes(self) -> list[tuple[str, str]]:
        """The host and status of each task of the pin's requests."""
        return [
            (task['host'], task['status'])
            for request in self.requests()
            for task in self.service.tasks(request['id'])
        ]

    def fetched(self) -> list[str]:
        """The names of the hosts that fetched the image.

        A host that has not reported it by the next round is asked again, and has it already.
        """
        return sorted(host for host, status in self.outcomes() if status == 'cached')

    def wait_warm(self, *hosts: Host) -> None:
        """Wait until the hosts have the image and no request of the pin is active."""
        names = sorted(host.name for host in hosts)

        def is_warm() -> bool:
            told = self.service.get(f'/images/{self.image_id}/hosts')['hosts']
            is_done = all(each['status'] == 'completed' for each in self.requests())
            return sorted(each['host'] for each in told) == names and is_done

        wait_until(is_warm, f'{names} have the image')


def _pin(service: Service, image_id: str, *hosts: Host) -> Pinned:
    aggregate_id = service.aggregate(f'pinned-{image_id}', hosts)
    body = {'pin': {'aggregate': aggregate_id, 'images': [image_id]}}
    answer = requests.post(f'{service.precache_url}/pins', json=body, timeout=TIMEOUT_SECONDS)
    assert answer.status_code == 201, answer.text
    return Pinned(service, answer.json()['pin']['id'], aggregate_id, image_id)


def _ask_for_later(service: Service, image_id: str) -> str:
    """Make a request that waits for years, in the project of the pins."""
    body = {
        'hosts': [service.hosts[0].name],
        'images': [image_id],
        'not_before': '2099-01-01T00:00:00Z',
    }
    answer = requests.post(
        f'{service.precache_url}/requests', json={'request': body}, timeout=TIMEOUT_SECONDS
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()['request']['id'])


@contextlib.contextmanager
def _another_host(started: Started, name: str) -> Iterator[Host]:
    """Run another compute in the first cell."""
    conf = configuration.new(config_files=[started.conf])
    with _database(started) as database:
        cell = inventory.Inventory(database).get_cell('cell1')
    conf.set_override('host', name)
    conf.set_override('transport_url', cell.transport_url)
    compute: agent.ComputeAgent = wiring_compute.new_agent(conf)
    compute.start()
    try:
        assert compute.wait_registered(60)
        yield Host(name, cell.name, conf.instances_path)
    finally:
        compute.stop()


@contextlib.contextmanager
def _database(started: Started) -> Iterator[session.Database]:
    database = session.connect(configuration.new(config_files=[started.conf]))
    try:
        yield database
    finally:
        database.dispose()


def _wait_heard(database: session.Database) -> None:
    """Wait until all cells are heard: until then, a look leaves out the hosts of the others."""
    wait_until(lambda: not pins.Pins(database).unheard_cells(), 'the cells are heard')


def _reconciler(started: Started, database: session.Database, name: str) -> keeping.Reconciler:
    conf = configuration.new(config_files=[started.conf])
    return keeping.Reconciler(
        conductor_id=name,
        request_store=common.request_store(conf, database),
        pin_store=pins.Pins(database),
        cache_store=caches.Caches(database),
        aggregates=inventory.Inventory(database),
        alive=agents.Agents(database, 60),
        images=wiring_images.of_service(conf),
        rules=keeping.PinRules(60, 10, 24 * HOUR_SECONDS),
        wake=lambda: None,
    )


@dataclasses.dataclass(frozen=True)
class Running:
    """A service that checks pins often, and its link to Glance; tests share it."""

    started: Started
    gateway: site_link.Gateway

    @property
    def service(self) -> Service:
        return self.started.service


@pytest.fixture(scope='module')
def running(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp('pins')
    with site_link.Gateway(glance.url) as link, starting(directory, link.url) as begin:
        yield Running(begin(conductor=OFTEN), link)


@pytest.fixture
def image_id(upload_image: UploadImage) -> str:
    return upload_image(os.urandom(MIB))


def test_joining_host_warmed_unasked(running: Running, image_id: str) -> None:
    service = running.service
    pin = _pin(service, image_id, *service.hosts)
    pin.wait_warm(*service.hosts)
    assert len(running.gateway.served(image_id)) == 4

    with _another_host(running.started, 'cell1-compute9') as fifth:
        added = service.post(
            f'/os-aggregates/{pin.aggregate_id}/action', {'add_host': {'host': fifth.name}}
        )
        added.raise_for_status()
        pin.wait_warm(*service.hosts, fifth)

        assert fifth.base_path(image_id).stat().st_size == MIB
        assert (pin.now()['status'], pin.now()['reason']) == ('active', None)

    assert len(running.gateway.served(image_id)) == 5
    assert pin.fetched() == sorted(host.name for host in (*service.hosts, fifth))


def test_deleted_file_comes_back(running: Running, image_id: str) -> None:
    service = running.service
    host, other = service.hosts[:2]
    pin = _pin(service, image_id, host, other)
    pin.wait_warm(host, other)

    host.base_path(image_id).unlink()
    wait_until(host.base_path(image_id).exists, 'the file has come back')

    pin.wait_warm(host, other)
    assert pin.fetched() == sorted([host.name, host.name, other.name])
    assert len(running.gateway.served(image_id)) == 3


def test_deleted_image_ends_pin_stays_cached(
    running: Running, image_id: str, glance: glance_server.GlanceServer
) -> None:
    service = running.service
    host = service.hosts[0]
    pin = _pin(service, image_id, host)
    pin.wait_warm(host)

    requests.delete(
        f'{glance.url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS
    ).raise_for_status()
    wait_until(lambda: pin.now()['status'] == 'ended', 'the pin has ended')

    ended = pin.now()
    assert list(ended['images_gone']) == [image_id]
    assert ended['reason'] == f'no image is available: {ended["images_gone"][image_id]}'
    assert host.base_path(image_id).exists()


def test_file_touched_before_expiry(running: Running, image_id: str) -> None:
    service = running.service
    host = service.hosts[0]
    aggregate_id = service.aggregate(f'rollout-{image_id}', (host,))
    service.wait(service.cache(aggregate_id, image_id))
    then = time.time() - 13 * HOUR_SECONDS
    os.utime(host.base_path(image_id), (then, then))
    wait_until(lambda: service.age_seconds(image_id) > 12 * HOUR_SECONDS, 'the host tells so')

    pin = _pin(service, image_id, host)
    wait_until(
        lambda: host.base_path(image_id).stat().st_mtime > then + HOUR_SECONDS,
        'the file has been touched',
    )

    pin.wait_warm(host)
    assert pin.outcomes() == [(host.name, 'existing')]
    assert len(running.gateway.served(image_id)) == 1


def test_pin_filled_by_slots_despite_quota(
    start: Start, image_id: str, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    limits = {'precache_concurrency': 1, 'max_active_requests_per_project': 1}
    started = start(conductor=OFTEN, image_cache=limits)
    service = started.service
    with _database(started) as database:
        _wait_heard(database)
    waiting = _ask_for_later(service, upload_image(os.urandom(MIB)))
    pin = _pin(service, image_id, *service.hosts)

    pin.wait_warm(*service.hosts)
    assert service.request(waiting)['status'] in model.REQUEST_ACTIVE

    asked = [request['hosts'] for request in pin.requests()]
    assert asked[0] == [host.name for host in service.hosts[:2]]
    assert max(len(hosts) for hosts in asked) == 2
    assert gateway.most_at_once == 1
    assert len(gateway.served(image_id)) == 4


def test_concurrent_conductors_make_one_request(
    start: Start, image_id: str, gateway: site_link.Gateway
) -> None:
    started = start(conductor=NEVER)
    service = started.service
    pin = _pin(service, image_id, *service.hosts)
    barrier = threading.Barrier(2)
    with _database(started) as database:
        _wait_heard(database)  # there is only one look
        keepers = [_reconciler(started, database, name) for name in ('c1', 'c2')]

        def look(keeper: keeping.Reconciler) -> None:
            barrier.wait()
            keeper.run()

        threads = [threading.Thread(target=look, args=(keeper,)) for keeper in keepers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    pin.wait_warm(*service.hosts)
    [request] = pin.requests()
    assert request['hosts'] == [host.name for host in service.hosts]
    assert request['counts'] == {'cached': 4}
    assert len(gateway.served(image_id)) == 4


def test_ended_pin_requests_nothing_more(
    running: Running, image_id: str, upload_image: UploadImage
) -> None:
    service = running.service
    host = service.hosts[0]
    pin = _pin(service, image_id, host)
    other = upload_image(os.urandom(MIB))
    pin.wait_warm(host)

    answer = requests.delete(f'{service.precache_url}/pins/{pin.id}', timeout=TIMEOUT_SECONDS)
    assert answer.status_code == 204, answer.text
    checked_at = pin.now()['checked_at']
    host.base_path(image_id).unlink()
    _pin(service, other, host).wait_warm(host)

    assert (pin.now()['status'], pin.now()['checked_at']) == ('ended', checked_at)
    assert pin.fetched() == [host.name]
