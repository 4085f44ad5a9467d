# SPDX-License-Identifier: Apache-2.0
"""Images reach the hosts of an aggregate, once each, whole, and in a bootable form."""

import hashlib
import os
import pathlib
import stat
import subprocess

from nova_precache import conf as configuration
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images as wiring_images
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2


def _make_qcow2(directory: pathlib.Path, size_mib: int = 8) -> tuple[pathlib.Path, pathlib.Path]:
    """Make a qcow2 with data; return it and its conversion by qemu-img."""
    source, image, raw = (directory / name for name in ('source', 'image.qcow2', 'image.raw'))
    source.write_bytes(os.urandom(size_mib * MIB))
    subprocess.run(
        ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-c', str(source), str(image)],
        check=True,
    )
    subprocess.run(
        ['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', str(image), str(raw)], check=True
    )
    return image, raw


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_qcow2_cached_in_two_cells(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway, tmp_path: pathlib.Path
) -> None:
    image, raw = _make_qcow2(tmp_path)
    image_id = upload_image(image, disk_format='qcow2')
    service = start().service

    request_id = service.cache(service.aggregate('rollout'), image_id)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert {host.cell for host in service.hosts} == {'cell1', 'cell2'}
    for host in service.hosts:
        base = host.base_path(image_id)
        assert _digest(base) == _digest(raw)
        assert host.base_files() == [base.name]
        assert stat.S_IMODE(base.stat().st_mode) == 0o644
    assert len(gateway.served(image_id)) == 4
    assert request['bytes_done'] == request['bytes_total'] == 4 * image.stat().st_size


def test_repeated_request_finds_images_existing(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    aggregate_id = service.aggregate('rollout')
    service.wait(service.cache(aggregate_id, image_id))
    for host in service.hosts:
        os.utime(host.base_path(image_id), (1000, 1000))

    request = service.wait(service.cache(aggregate_id, image_id))

    assert (request['status'], request['counts']) == ('completed', {'existing': 4})
    assert len(gateway.served(image_id)) == 4
    for host in service.hosts:
        assert host.base_path(image_id).stat().st_mtime > 1000


def test_running_request_shows_bytes_and_states(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = start().service
    gateway.hold(at_byte=2 * MIB)

    request_id = service.cache(service.aggregate('rollout', service.hosts[:1]), image_id)
    task = wait_until(
        lambda: next((t for t in service.tasks(request_id) if t['bytes_done'] > 0), None),
        'bytes of the task are shown',
    )

    assert (task['status'], task['attempts']) == ('downloading', 1)
    assert 0 < task['bytes_done'] <= 2 * MIB + 65536
    assert task['bytes_total'] == 4 * MIB
    assert service.request(request_id)['status'] == 'running'
    gateway.release()
    assert service.wait(request_id)['counts'] == {'cached': 1}


def test_requests_for_same_image_share_transfer(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    aggregate_id = service.aggregate('rollout', service.hosts[:1])
    gateway.hold()
    first = service.cache(aggregate_id, image_id)
    gateway.wait_for(1)

    second = service.cache(aggregate_id, image_id)
    wait_until(
        lambda: [t['status'] for t in service.tasks(second)] == ['downloading'],
        'the second request shows the transfer that it joined',
    )
    gateway.release()

    assert service.wait(first)['counts'] == {'cached': 1}
    assert service.wait(second)['counts'] == {'cached': 1}
    assert len(gateway.served(image_id)) == 1


def test_limit_keeps_two_hosts_busy(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    images = [upload_image(os.urandom(MIB)) for _ in range(3)]
    service = start(image_cache={'precache_concurrency': 2}).service
    aggregate_id = service.aggregate('rollout')
    gateway.hold()

    requests = [service.cache(aggregate_id, image_id) for image_id in images]
    gateway.wait_for(2)
    assert len(gateway.running()) == 2
    gateway.release()

    assert [service.wait(each)['counts'] for each in requests] == [{'cached': 4}] * 3
    assert gateway.most_at_once == 2
    assert [len(gateway.served(image_id)) for image_id in images] == [4] * 3


def test_boot_joins_download_of_precache(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    started = start()
    host = started.service.hosts[0]
    gateway.hold()
    request_id = started.service.cache(started.service.aggregate('one', (host,)), image_id)
    gateway.wait_for(1)

    manage = ['nova-precache-manage', '--config-file', started.conf]
    disk_options = ['root-disk', 'create', '--instance', 'vm-1', '--size-gib', '1']
    boot = subprocess.Popen(
        [*manage, *disk_options, '--host', host.name, '--image', image_id],
        stdout=subprocess.PIPE,
        text=True,
    )
    gateway.release()
    disk, _ = boot.communicate(timeout=TIMEOUT_SECONDS)

    assert boot.returncode == 0
    assert started.service.wait(request_id)['counts'] == {'cached': 1}
    assert len(gateway.served(image_id)) == 1
    info = subprocess.run(
        ['qemu-img', 'info', '--output=json', disk.strip()], check=True, capture_output=True
    )
    assert str(host.base_path(image_id)).encode() in info.stdout


def test_warm_boot_skips_image_service(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    started = start()
    host = started.service.hosts[0]
    started.service.wait(started.service.cache(started.service.aggregate('one', (host,)), image_id))
    conf = configuration.new(config_files=[started.conf])
    conf.set_override('host', host.name)
    gateway.refuse = 503

    driver = virt_driver.load_driver('libvirt.LibvirtDriver', conf)
    disk = driver.create_root_disk(wiring_images.of_service(conf), image_id, 'vm-1', None)

    assert pathlib.Path(disk.path).exists()
    assert len(gateway.downloads) == 1
