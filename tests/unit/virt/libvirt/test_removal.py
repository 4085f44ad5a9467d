# SPDX-License-Identifier: Apache-2.0
"""Removal of an image from a host's cache, alone and beside boots."""

import contextlib
import os
import pathlib
import threading
import time
from concurrent import futures

import pytest

from nova_precache import exception, model, transfer_control
from nova_precache.cache import sweeper
from nova_precache.image import fake
from nova_precache.virt import libvirt
from nova_precache.virt.libvirt import driver as libvirt_driver
from tests import disk_images
from tests.service import wait_until
from tests.unit.virt.libvirt.conftest import MakeDriver
from tests.unit.virt.libvirt.test_imagebackend import base_path, guest_content, ignore

MIB = disk_images.MIB
DATA = disk_images.content(MIB)
BOOTS = 40


def names(instances_path: pathlib.Path) -> list[str]:
    return sorted(os.listdir(instances_path / '_base'))


def test_cached_image_removed(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image = make_driver(), images.add(DATA)
    driver.cache_image(images, image.id, ignore)
    taken_bytes = os.stat(base_path(instances_path, image)).st_blocks * 512
    removal = driver.remove_image(image.id)
    assert (removal.status, removal.freed_bytes) == ('removed', taken_bytes)
    assert names(instances_path) == []
    assert driver.cached_images() == []
    assert driver.remove_image(image.id) == model.ImageRemoval('absent')


def test_image_touched_in_future_removed(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image = make_driver(), images.add(DATA)
    driver.cache_image(images, image.id, ignore)
    in_an_hour = time.time() + 3600
    os.utime(base_path(instances_path, image), (in_an_hour, in_an_hour))
    assert driver.remove_image(image.id).status == 'removed'


def test_image_of_disk_stays(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image = make_driver(), images.add(DATA)
    disk = driver.create_root_disk(images, image.id, 'instance')
    assert driver.remove_image(image.id) == model.ImageRemoval('used', 'an instance uses it')
    assert guest_content(disk) == DATA
    os.unlink(disk.path)
    assert driver.remove_image(image.id).status == 'removed'


def test_image_used_by_sharing_host_stays(
    make_driver: MakeDriver, images: fake.FakeImageService
) -> None:
    """Both hosts have one instances path, as over NFS."""
    image = images.add(DATA)
    disk = make_driver().create_root_disk(images, image.id, 'instance-of-another-host')
    assert make_driver().remove_image(image.id).status == 'used'
    assert guest_content(disk) == DATA


def _leave_partial(
    driver: libvirt.LibvirtDriver, images: fake.FakeImageService, image: model.Image
) -> None:
    control = transfer_control.Control()
    with pytest.raises(exception.Paused):
        driver.cache_image(
            images, image.id, lambda _: control.stop(exception.Paused('later')), control
        )


def test_partial_download_removed_and_counted(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image = make_driver(), images.add(DATA)
    _leave_partial(driver, images, image)
    assert names(instances_path) != []
    removal = driver.remove_image(image.id)
    assert (removal.status, removal.reason, removal.names) == ('removed', None, ())
    assert removal.freed_bytes > 0
    assert names(instances_path) == []


def test_image_published_meanwhile_stays(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, other, image = make_driver(), make_driver(), images.add(DATA)
    _leave_partial(driver, images, image)
    discard = sweeper.Sweeper.discard_partial

    def publish_first(swept: sweeper.Sweeper, image_id: str) -> bool:
        other.cache_image(images, image_id, ignore)
        return discard(swept, image_id)

    monkeypatch.setattr(sweeper.Sweeper, 'discard_partial', publish_first)
    removal = driver.remove_image(image.id)
    assert (removal.status, removal.freed_bytes) == ('used', 0)
    assert os.path.getsize(base_path(instances_path, image)) == MIB


def test_removal_before_next_transfer_counts(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A boot begins to download the image as soon as its file is removed."""
    driver, other, image = make_driver(), make_driver(), images.add(DATA)
    driver.cache_image(images, image.id, ignore)
    path = pathlib.Path(base_path(instances_path, image))
    taken_bytes = os.stat(path).st_blocks * 512
    with contextlib.ExitStack() as stack:

        def begin_next(swept: sweeper.Sweeper, image_id: str) -> int:
            stack.enter_context(other._locks.hold(path.name))
            return 4096

        monkeypatch.setattr(sweeper.Sweeper, 'partial_bytes', begin_next)
        removal = driver.remove_image(image.id)
    assert removal == model.ImageRemoval('removed', None, taken_bytes, (path.name,))


def test_image_in_transfer_stays(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, other, image = make_driver(), make_driver(), images.add(DATA)
    removals: list[model.ImageRemoval] = []
    driver.cache_image(images, image.id, lambda _: removals.append(other.remove_image(image.id)))
    assert {each.status for each in removals} == {'used'}
    assert os.path.getsize(base_path(instances_path, image)) == MIB


def test_touched_image_stays_beside_nova(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image = make_driver(), images.add(DATA)
    driver.cache_image(images, image.id, ignore)
    (instances_path / 'compute_nodes').touch()
    assert driver.remove_image(image.id).status == 'used'
    path = base_path(instances_path, image)
    then = os.stat(path).st_mtime - libvirt_driver.NOVA_BOOT_SECONDS
    os.utime(path, (then, then))
    assert driver.remove_image(image.id).status == 'removed'


def test_backend_without_files_refuses(
    make_driver: MakeDriver, images: fake.FakeImageService
) -> None:
    with pytest.raises(exception.BackendUnsupported, match='images_type rbd'):
        make_driver(libvirt__images_type='rbd').remove_image(images.add(DATA).id)


@pytest.mark.parametrize('use_cow_images', [True, False])
def test_boots_survive_constant_removal(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    use_cow_images: bool,
) -> None:
    """Every boot gets a whole disk; afterwards a used image is there, and nothing else."""
    driver = make_driver(use_cow_images=use_cow_images)
    image = images.add(DATA)
    have_ended = threading.Event()
    statuses: set[str] = set()

    def remove(remover: libvirt.LibvirtDriver) -> None:
        while not have_ended.is_set():
            statuses.add(remover.remove_image(image.id).status)

    def boot(number: int) -> None:
        disk = driver.create_root_disk(images, image.id, f'instance-{number}')
        assert guest_content(disk) == DATA
        os.unlink(disk.path)

    removers = [threading.Thread(target=remove, args=(each,)) for each in (driver, make_driver())]
    for each in removers:
        each.start()
    try:
        with futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(boot, range(BOOTS)))
        wait_until(lambda: 'removed' in statuses, 'the unused image is removed')
        disk = driver.create_root_disk(images, image.id, 'last')
        if use_cow_images:
            statuses.clear()
            wait_until(lambda: 'used' in statuses, 'the used image is looked at')
    finally:
        have_ended.set()
        for each in removers:
            each.join()

    assert guest_content(disk) == DATA
    if use_cow_images:
        assert names(instances_path) == [os.path.basename(base_path(instances_path, image))]
    assert [each for each in names(instances_path) if '.' in each] == []
