# SPDX-License-Identifier: Apache-2.0
"""Images are removed from the caches of a running service, beside its transfers and boots."""

import os
import pathlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import pytest
import requests

from nova_precache import conf as configuration, model
from nova_precache.standalone import glance as glance_server
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images as wiring_images
from tests import disk_images, gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Started, starting
from tests.openstack import Site
from tests.service import Host, Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
BOOTS = 30
# The API promises 15 s; the rest is for a busy machine. Without a limit it would wait for ever.
ANSWER_SECONDS = 60.0


@pytest.fixture(scope='module')
def link(glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    with site_link.Gateway(glance.url) as opened:
        yield opened


@pytest.fixture(scope='module')
def started(link: site_link.Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A service whose computes report changes of their caches late by themselves."""
    with starting(tmp_path_factory.mktemp('removal'), link.url) as begin:
        yield begin(DEFAULT={'report_interval': 20}, conductor={'pin_interval_seconds': 10000})


@pytest.fixture
def service(started: Started) -> Service:
    return started.service


@pytest.fixture
def image_id(upload_image: UploadImage) -> str:
    return upload_image(os.urandom(MIB))


def delete(service: Service, host: Host, image_id: str) -> requests.Response:
    url = f'{service.precache_url}/hosts/{host.name}/images/{image_id}'
    return requests.delete(url, timeout=TIMEOUT_SECONDS)


def remove(service: Service, host: Host, image_id: str) -> model.Json:
    answer = delete(service, host, image_id)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()['removal'])


def holding(service: Service, image_id: str) -> list[str]:
    return [each['host'] for each in service.get(f'/images/{image_id}/hosts')['hosts']]


def cache(service: Service, image_id: str, *hosts: Host) -> None:
    """Cache an image, and wait until it is reported."""
    request = service.wait(service.cache(service.aggregate(uuid.uuid4().hex, hosts), image_id))
    assert request['status'] == 'completed', request
    names = sorted(host.name for host in hosts)
    wait_until(lambda: holding(service, image_id) == names, 'the hosts have reported it')


def make_driver(started: Started, host: Host) -> tuple[virt_driver.ComputeDriver, Any]:
    """Make the driver of a boot on a host, and its image service."""
    conf = configuration.new(config_files=[started.conf])
    conf.set_override('host', host.name)
    conf.set_override('instances_path', host.instances_path)
    driver = virt_driver.load_driver('libvirt.LibvirtDriver', conf)
    return driver, wiring_images.of_service(conf)


def test_removed_image_no_longer_listed(service: Service, image_id: str) -> None:
    first, second = service.hosts[:2]
    cache(service, image_id, first, second)
    taken_bytes = first.base_path(image_id).stat().st_blocks * 512

    removal = remove(service, first, image_id)

    assert removal == {
        'host': first.name,
        'image_id': image_id,
        'status': 'removed',
        'reason': None,
        'freed_bytes': taken_bytes,
    }
    assert holding(service, image_id) == [second.name]
    names = [each['name'] for each in service.get(f'/hosts/{first.name}/images')['images']]
    assert first.base_path(image_id).name not in names
    assert not first.base_path(image_id).exists()
    assert second.base_path(image_id).exists()
    assert remove(service, first, image_id)['status'] == 'absent'


def test_pinned_image_stays(service: Service, image_id: str) -> None:
    host = service.hosts[0]
    cache(service, image_id, host)
    aggregate = f'pinned-{uuid.uuid4().hex}'
    service.aggregate(aggregate, (host,))
    pins = f'{service.precache_url}/pins'
    body = {'pin': {'aggregate': aggregate, 'images': [image_id]}}
    pin = requests.post(pins, json=body, timeout=TIMEOUT_SECONDS).json()['pin']['id']

    removal = remove(service, host, image_id)

    assert (removal['status'], removal['reason']) == (
        'pinned',
        f'pin {pin} keeps it on aggregate {aggregate}',
    )
    assert host.base_path(image_id).exists()
    requests.delete(f'{pins}/{pin}', timeout=TIMEOUT_SECONDS).raise_for_status()
    assert remove(service, host, image_id)['status'] == 'removed'


def test_image_of_instance_stays(started: Started, image_id: str) -> None:
    service, host = started.service, started.service.hosts[0]
    cache(service, image_id, host)
    driver, images = make_driver(started, host)
    disk = driver.create_root_disk(images, image_id, f'vm-{uuid.uuid4().hex}')
    assert remove(service, host, image_id)['status'] == 'used'
    os.unlink(disk.path)
    assert remove(service, host, image_id)['status'] == 'removed'


def test_image_in_transfer_stays(service: Service, link: site_link.Gateway, image_id: str) -> None:
    host = service.hosts[0]
    link.hold()
    request_id = service.cache(service.aggregate(uuid.uuid4().hex, (host,)), image_id)
    try:
        wait_until(lambda: link.served(image_id), 'its download has begun')
        removal = remove(service, host, image_id)
        assert removal['status'] == 'used'
        assert removal['reason'].startswith(f'request {request_id} wants it on host {host.name}: ')
    finally:
        link.release()
    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert remove(service, host, image_id)['status'] == 'removed'


def test_unknown_host_is_refused(service: Service, image_id: str) -> None:
    answer = delete(service, Host('nowhere', 'cell1', ''), image_id)
    assert (answer.status_code, answer.json()['itemNotFound']['message']) == (
        404,
        'Compute host nowhere could not be found.',
    )


def test_boots_get_whole_images_during_removals(
    started: Started, link: site_link.Gateway, upload_image: UploadImage
) -> None:
    """The API removes the image all the time while instances boot from it."""
    service, host = started.service, started.service.hosts[1]
    data = disk_images.content(MIB)
    image_id = upload_image(data)
    driver, images = make_driver(started, host)
    have_ended = threading.Event()
    statuses: list[str] = []

    def keep_removing() -> None:
        while not have_ended.is_set():
            statuses.append(remove(service, host, image_id)['status'])

    def boot(number: int) -> None:
        disk = driver.create_root_disk(images, image_id, f'boot-{number}')
        found = disk_images.as_raw(pathlib.Path(disk.path), disk.format)
        assert found[:MIB] == data
        os.unlink(disk.path)
        tried = len(statuses) + 1
        wait_until(lambda: len(statuses) > tried, 'another removal was tried')

    with futures.ThreadPoolExecutor(3) as pool:
        removing = pool.submit(keep_removing)
        try:
            list(pool.map(boot, range(BOOTS)))
        finally:
            have_ended.set()
        removing.result()

    assert 'removed' in statuses
    assert set(statuses) <= {'removed', 'absent', 'used'}
    assert (
        len(link.served(image_id)) == statuses.count('removed') + host.base_path(image_id).exists()
    )
    assert [each for each in host.base_files() if '.' in each] == []


def test_dead_conductor_answered_in_time(
    link: site_link.Gateway, tmp_path: pathlib.Path, image_id: str
) -> None:
    with starting(tmp_path, link.url) as begin:
        other = begin(DEFAULT={'report_interval': 20, 'service_down_time': 3600})
        other.standalone._conductor.stop()
        begun = time.monotonic()
        answer = delete(other.service, other.service.hosts[0], image_id)
        assert time.monotonic() - begun < ANSWER_SECONDS
    assert answer.status_code == 503
    assert 'No conductor has answered within' in answer.json()['serviceUnavailable']['message']


def test_command_removes_from_aggregate(
    started: Started, image_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = started.service
    first, second, outside = service.hosts[:3]
    cache(service, image_id, first, outside)
    aggregate = f'edge-{uuid.uuid4().hex}'
    service.aggregate(aggregate, (first, second))
    rows = Site(service, started.conf, capsys)(
        *('precache', 'cache', 'remove', image_id, '--aggregate', aggregate)
    )
    assert [(row['Host'], row['Status']) for row in rows] == [(first.name, 'removed')]
    assert holding(service, image_id) == [outside.name]


def test_command_removes_from_named_hosts(
    started: Started, image_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = started.service
    first, second = service.hosts[:2]
    cache(service, image_id, first)
    rows = Site(service, started.conf, capsys)(
        *('precache', 'cache', 'remove', image_id, '--host', first.name, '--host', second.name)
    )
    assert [(row['Host'], row['Status']) for row in rows] == [
        (first.name, 'removed'),
        (second.name, 'absent'),
    ]
