# SPDX-License-Identifier: Apache-2.0
"""The inventory of all hosts' caches can be queried and follows their changes."""

import os
from typing import Any

import pytest

from nova_precache import conf as options, context, exception, model, rpc, transfer_control
from nova_precache.cache import layout
from nova_precache.cells import inventory as cells
from nova_precache.compute import cache_reporter, rpcapi as compute_rpcapi
from nova_precache.db.engine import session
from nova_precache.image import fake as fake_images
from nova_precache.virt import libvirt
from tests import disk_images
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.service import Host, Service, wait_until
from tests.unit.cache.conftest import held_by_another_process
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2


@pytest.fixture(autouse=True)
def _disks_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_reporter, 'RECOUNT_SECONDS', 0)


def _images(service: Service, host: Host) -> dict[str, dict[str, Any]]:
    found = service.get(f'/hosts/{host.name}/images')['images']
    return {image['name']: image for image in found}


def _hosts_of(service: Service, image_id: str) -> set[str]:
    return {each['host'] for each in service.get(f'/images/{image_id}/hosts')['hosts']}


def _driver(host: Host) -> libvirt.LibvirtDriver:
    """Make a driver on the directory of a host, as another process would."""
    conf = options.new([], [])
    conf.set_override('instances_path', host.instances_path)
    return libvirt.LibvirtDriver(conf)


def test_image_shown_on_hosts_until_removed(start: Start, upload_image: UploadImage) -> None:
    data = disk_images.content(2 * MIB)
    image_id = upload_image(data)
    service = start().service
    service.wait(service.cache(service.aggregate('rollout'), image_id))
    name, host = layout.base_name(image_id), service.hosts[0]

    everywhere = {each.name for each in service.hosts}
    wait_until(lambda: _hosts_of(service, image_id) == everywhere, 'every host told of it')
    known = _images(service, host)[name]
    assert (known['image_id'], known['size_bytes'], known['used_by']) == (image_id, len(data), 0)

    # The image is cached, so the image service is not asked.
    _driver(host).create_root_disk(fake_images.FakeImageService(), image_id, 'instance')
    wait_until(lambda: _images(service, host)[name]['used_by'] == 1, 'a disk is based on it')

    os.unlink(host.base_path(image_id))
    wait_until(lambda: name not in _images(service, host), 'it is known to be gone')
    assert _hosts_of(service, image_id) == everywhere - {host.name}


def _leave_unfinished(host: Host) -> str:
    """Interrupt a download on a host, and return the image's id."""
    images = fake_images.FakeImageService()
    image = images.add(disk_images.content(4 * MIB))
    stopping = transfer_control.Control()

    def stop(progress: model.Progress) -> None:
        if progress.bytes_done >= 2 * MIB:
            stopping.stop(exception.ShuttingDown('stops'))

    with pytest.raises(exception.ShuttingDown):
        _driver(host).cache_image(images, image.id, stop, stopping)
    assert len(host.base_files()) == 2
    return image.id


def _compute_of(started: Started, host: Host) -> compute_rpcapi.ComputeAPI:
    """Return a client of the host's cell, like a conductor's."""
    conf = options.new([], [started.conf])
    database = session.connect(conf)
    [cell] = [each for each in cells.Inventory(database).list_cells() if each.name == host.cell]
    database.dispose()
    transport = rpc.connect(conf, cell.transport_url)
    return compute_rpcapi.ComputeAPI(transport, None, 0, TIMEOUT_SECONDS, TIMEOUT_SECONDS)


def test_running_compute_discards_unused_partial(
    start: Start,
) -> None:
    started = start()
    host = started.service.hosts[0]
    computes, ctxt = _compute_of(started, host), context.admin_context()
    image_id = _leave_unfinished(host)

    with held_by_another_process(f'{host.instances_path}/locks', layout.base_name(image_id)) as by:
        assert not computes.forget_image(ctxt, host.name, image_id)
        by.communicate('done')
    assert len(host.base_files()) == 2
    assert _images(started.service, host) == {}, 'it is not in the cache'

    assert computes.forget_image(ctxt, host.name, image_id)
    assert host.base_files() == []
