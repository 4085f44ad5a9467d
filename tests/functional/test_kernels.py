# SPDX-License-Identifier: Apache-2.0
"""Images that name a kernel and a ramdisk in a real Glance: cached completely, or not at all."""

import os
import uuid
from typing import Any

import pytest
import requests

from nova_precache.conductor import companions
from nova_precache.standalone.glance import GlanceServer
from nova_precache.wiring import compute as wiring_compute
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.functional.test_upgrades import ComputeOf11
from tests.service import Host, Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
# An x86 kernel that starts as a disk could, too: 0x55AA where an MBR has it.
KERNEL = b'MZ' + os.urandom(508) + b'\x55\xaaHdrS' + os.urandom(MIB)
RAMDISK = b'\x1f\x8b' + os.urandom(MIB // 2)
DATA = os.urandom(2 * MIB)
TOTAL = len(KERNEL) + len(RAMDISK) + len(DATA)


class Bootable:
    """An image and its companions, in the formats that have kernels."""

    def __init__(self, upload: UploadImage, **fields: Any) -> None:
        self.kernel = upload(KERNEL, 'aki', container_format='aki', **fields)
        self.ramdisk = upload(RAMDISK, 'ari', container_format='ari')
        self.image = upload(
            DATA,
            'ami',
            container_format='ami',
            kernel_id=self.kernel,
            ramdisk_id=self.ramdisk,
        )

    def is_on(self, host: Host) -> bool:
        parts = ((self.kernel, KERNEL), (self.ramdisk, RAMDISK), (self.image, DATA))
        paths = [host.base_path(each) for each, _ in parts]
        return all(path.exists() for path in paths) and all(
            path.read_bytes() == data for path, (_, data) in zip(paths, parts, strict=True)
        )


@pytest.fixture
def bootable(upload_image: UploadImage) -> Bootable:
    return Bootable(upload_image)


def _names(service: Service, host: Host) -> set[str]:
    """Return the images that the service lists on a host."""
    return {each['name'] for each in service.get(f'/hosts/{host.name}/images')['images']}


def _estimate(service: Service, *image_ids: str) -> dict[str, Any]:
    body = {'request': {'hosts': [service.hosts[0].name], 'images': list(image_ids)}}
    answer = requests.post(f'{service.precache_url}/estimate', json=body, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    [host] = answer.json()['estimate']['hosts']
    return dict(host)


def test_task_includes_kernel_and_ramdisk(
    start: Start, bootable: Bootable, gateway: site_link.Gateway
) -> None:
    service = start().service
    assert _estimate(service, bootable.image)['bytes_to_move'] == TOTAL
    assert _estimate(service, bootable.image)['space_needed_bytes'] == TOTAL
    aggregate_id = service.aggregate('edge')

    request = service.wait(service.cache(aggregate_id, bootable.image))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert request['bytes_done'] == request['bytes_total'] == 4 * TOTAL
    assert all(map(bootable.is_on, service.hosts))

    for host in service.hosts:
        for each in (bootable.kernel, bootable.ramdisk, bootable.image):
            os.utime(host.base_path(each), (1000, 1000))
    request = service.wait(service.cache(aggregate_id, bootable.image))
    assert request['counts'] == {'existing': 4}
    for host in service.hosts:
        for each in (bootable.kernel, bootable.ramdisk, bootable.image):
            assert host.base_path(each).stat().st_mtime > 1000
    assert len(gateway.served(bootable.kernel)) == len(gateway.served(bootable.image)) == 4


def test_image_without_kernel_not_cached(
    start: Start, bootable: Bootable, gateway: site_link.Gateway
) -> None:
    service = start().service
    host = service.hosts[0]
    aggregate_id = service.aggregate('edge', (host,))
    service.wait(service.cache(aggregate_id, bootable.image))
    image = host.base_path(bootable.image).name
    wait_until(lambda: image in _names(service, host), 'the image is told of')
    assert [each['state'] for each in _estimate(service, bootable.image)['images']] == ['cached']

    host.base_path(bootable.kernel).unlink()
    wait_until(lambda: image not in _names(service, host), 'the image is not told of')
    [estimated] = _estimate(service, bootable.image)['images']
    assert estimated['state'] == 'missing'

    request = service.wait(service.cache(aggregate_id, bootable.image))
    assert (request['counts'], request['bytes_done']) == ({'cached': 1}, len(KERNEL))
    assert len(gateway.served(bootable.image)) == 1
    wait_until(lambda: image in _names(service, host), 'the image is told of again')


def test_newly_named_kernel_fetched(
    start: Start, upload_image: UploadImage, glance: GlanceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, 'KEPT_SECONDS', 0)
    service = start().service
    host = service.hosts[0]
    aggregate_id = service.aggregate('edge', (host,))
    image_id, kernel_id = upload_image(DATA), upload_image(KERNEL, 'aki', container_format='aki')
    service.wait(service.cache(aggregate_id, image_id))
    requests.patch(
        f'{glance.url}/v2/images/{image_id}',
        json=[{'op': 'add', 'path': '/kernel_id', 'value': kernel_id}],
        headers={'Content-Type': 'application/openstack-images-v2.1-json-patch'},
        timeout=TIMEOUT_SECONDS,
    ).raise_for_status()

    request = service.wait(service.cache(aggregate_id, image_id))

    assert (request['counts'], request['bytes_done']) == ({'cached': 1}, len(KERNEL))
    assert host.base_path(kernel_id).read_bytes() == KERNEL


@pytest.mark.parametrize('kind', ['kernel_id', 'ramdisk_id'])
@pytest.mark.parametrize('value', ['missing', 'deactivated', 'malformed', 'itself'])
def test_image_without_companion_refused_unsaved(
    start: Start, upload_image: UploadImage, glance: GlanceServer, kind: str, value: str
) -> None:
    service = start().service
    image_id = str(uuid.uuid4())
    companion = upload_image(KERNEL, 'aki', container_format='aki')
    named = {
        'missing': str(uuid.uuid4()),
        'deactivated': companion,
        'malformed': 'vmlinuz',
        'itself': image_id,
    }[value]
    upload_image(DATA, id=image_id, **{kind: named})
    if value == 'deactivated':
        requests.post(
            f'{glance.url}/v2/images/{companion}/actions/deactivate', timeout=TIMEOUT_SECONDS
        )

    answer = service.ask(service.aggregate('edge'), image_id)

    assert answer.status_code == 400
    message = answer.json()['badRequest']['message']
    assert image_id in message
    assert kind in message
    assert service.get('/requests')['requests'] == []


@pytest.mark.parametrize('lost', ['kernel', 'ramdisk'])
def test_deleted_companion_fails_running_task(
    start: Start,
    bootable: Bootable,
    gateway: site_link.Gateway,
    glance: GlanceServer,
    lost: str,
) -> None:
    service = start(image_cache={'precache_max_attempts': 1}).service
    host = service.hosts[0]
    gateway.hold(MIB // 4, let_pass=2)
    request_id = service.cache(service.aggregate('edge', (host,)), bootable.image)
    wait_until(lambda: gateway.served(bootable.image), 'the image itself is on its way')
    companion = getattr(bootable, lost)
    requests.delete(
        f'{glance.url}/v2/images/{companion}', timeout=TIMEOUT_SECONDS
    ).raise_for_status()
    gateway.release()

    request = service.wait(request_id)

    assert request['counts'] == {'error': 1}
    [(_, reason)] = service.outcomes(request_id)
    assert f'Image {bootable.image} cannot be booted without its {lost}_id {companion}' in str(
        reason
    )
    assert not host.base_path(bootable.image).exists()
    # The conductor fails a task before it refuses the publication: then its host cleans up.
    wait_until(lambda: all('.' not in name for name in host.base_files()), 'no partial is left')


def test_older_compute_caches_only_kernelless_images(
    start: Start, bootable: Bootable, upload_image: UploadImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring_compute.manager, 'ComputeManager', ComputeOf11)
    service = start().service
    aggregate_id = service.aggregate('edge', service.hosts[:1])
    plain = upload_image(DATA)

    request_id = service.cache(aggregate_id, bootable.image, plain)

    assert service.wait(request_id)['counts'] == {'cached': 1, 'unsupported': 1}
    [(_, reason)] = service.outcomes(request_id) - {('cached', None)}
    assert 'cache_image 1.4' in str(reason)


def test_older_conductors_call_uses_note(
    start: Start, bootable: Bootable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions.CompanionLookup, 'get', lambda needs, image_id: None)
    service = start(upgrade_levels={'compute': '1.3'}).service
    host = service.hosts[0]
    aggregate_id = service.aggregate('edge', (host,))
    for counts in ({'cached': 1}, {'existing': 1}):
        request = service.wait(service.cache(aggregate_id, bootable.image))
        assert request['counts'] == counts
        assert bootable.is_on(host)

    host.base_path(bootable.ramdisk).unlink()
    request = service.wait(service.cache(aggregate_id, bootable.image))
    assert (request['counts'], request['bytes_done']) == ({'cached': 1}, len(RAMDISK))


def test_pin_keeps_kernel_and_counts_it(
    start: Start, bootable: Bootable, gateway: site_link.Gateway
) -> None:
    service = start(conductor={'pin_interval_seconds': 1}).service
    host = service.hosts[0]
    aggregate_id = service.aggregate('edge', (host,))
    body = {'pin': {'aggregate': aggregate_id, 'images': [bootable.image]}}
    made = requests.post(f'{service.precache_url}/pins', json=body, timeout=TIMEOUT_SECONDS)
    made.raise_for_status()
    pin_id = made.json()['pin']['id']

    def coverage() -> tuple[int, int]:
        told = service.get(f'/pins/{pin_id}')['pin']['coverage']
        return told['cached'], told['wanted']

    wait_until(lambda: coverage() == (1, 1), 'all is covered')
    assert bootable.is_on(host)
    gateway.hold()
    host.base_path(bootable.kernel).unlink()
    wait_until(lambda: coverage() == (0, 1), 'it is not covered without its kernel')
    gateway.release()
    wait_until(lambda: coverage() == (1, 1), 'it is covered again')
    assert bootable.is_on(host)
