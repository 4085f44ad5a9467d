# SPDX-License-Identifier: Apache-2.0
"""Root disks: made from the cache, through the same download as a precache request."""

import os
import pathlib
import stat
import threading
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.cache import layout, populator
from nova_precache.image import fake
from nova_precache.inspection import qemu_img as qemu
from nova_precache.transfer_control import Control
from nova_precache.virt import driver
from nova_precache.virt.libvirt import usage
from tests import disk_images
from tests.service import wait_until
from tests.unit.virt.libvirt.conftest import MakeDriver
from tools.waiting import TIMEOUT_SECONDS

MIB = disk_images.MIB
DATA = disk_images.content(MIB)
EXPIRES_AT_ONCE: dict[str, object] = {'image_cache__remove_unused_original_minimum_age_seconds': 0}


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


def guest_content(disk: driver.RootDisk, size_bytes: int = MIB) -> bytes:
    """Read what a guest would read."""
    return disk_images.as_raw(pathlib.Path(disk.path), disk.format)[:size_bytes]


def base_path(instances_path: pathlib.Path, image: model.Image) -> str:
    return layout.CacheLayout(str(instances_path)).base_path(image.id)


def test_overlay_uses_raw_base_file(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    disk = make_driver().create_root_disk(images, image.id, 'instance', 4 * MIB)
    assert disk == driver.RootDisk(
        path=str(instances_path / 'instance' / 'disk'),
        format='qcow2',
        size_bytes=4 * MIB,
        backing_file=base_path(instances_path, image),
        image_existing=False,
    )
    info = qemu.QemuImg().info(disk.path, 'qcow2')
    assert (info.backing_file, info.virtual_size_bytes) == (disk.backing_file, 4 * MIB)
    assert guest_content(disk) == DATA
    assert os.listdir(instances_path / 'instance') == ['disk']
    assert stat.S_IMODE(os.stat(disk.path).st_mode) == 0o644


@pytest.mark.parametrize(
    'options',
    [
        {'libvirt__images_type': 'raw'},
        {'libvirt__images_type': 'flat'},
        {'use_cow_images': False},
    ],
)
def test_flat_disk_copy_keeps_holes(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    options: dict[str, object],
) -> None:
    image = images.add(DATA + bytes(8 * MIB))
    disk = make_driver(**options).create_root_disk(images, image.id, 'instance', 64 * MIB)
    assert (disk.format, disk.backing_file, disk.size_bytes) == ('raw', None, 64 * MIB)
    content = pathlib.Path(disk.path).read_bytes()
    assert content == DATA + bytes(63 * MIB)
    assert os.stat(disk.path).st_blocks * 512 < 2 * MIB
    assert os.listdir(instances_path / 'instance') == ['disk']


@pytest.mark.parametrize('size_bytes', [None, 0, MIB])
def test_disk_without_size_has_image_size(
    make_driver: MakeDriver, images: fake.FakeImageService, size_bytes: int | None
) -> None:
    image = images.add(DATA)
    disk = make_driver().create_root_disk(images, image.id, 'instance', size_bytes)
    assert disk.size_bytes == MIB


@pytest.mark.parametrize('options', [{}, {'use_cow_images': False}, {'force_raw_images': False}])
def test_disk_is_never_smaller_than_image(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    tmp_path: pathlib.Path,
    options: dict[str, object],
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2', '-c')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    with pytest.raises(exception.RootDiskTooSmall, match=r'at least 1\.0 MiB, not 0\.9 MiB'):
        make_driver(**options).create_root_disk(images, image.id, 'instance', MIB - 1)
    assert not (instances_path / 'instance').exists()


@pytest.mark.parametrize('images_type', ['qcow2', 'raw'])
def test_disk_uses_qcow2_without_force_raw(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    images_type: str,
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    made = make_driver(force_raw_images=False, libvirt__images_type=images_type)
    disk = made.create_root_disk(images, image.id, 'instance', 2 * MIB)
    assert guest_content(disk) == DATA
    if disk.backing_file:
        described = disk_images.qemu_img('info', '-f', 'qcow2', disk.path)
        assert 'backing file format: qcow2' in described


def test_warm_image_not_read_again(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    made = make_driver()
    made.cache_image(images, image.id, ignore)
    os.utime(base_path(instances_path, image), (1, 1))
    images.faults.unavailable = 99
    assert made.create_root_disk(images, image.id, 'instance').image_existing
    assert images.served_bytes == len(DATA)
    assert os.stat(base_path(instances_path, image)).st_mtime > 1_000_000_000


def test_boot_joins_running_precache(
    make_driver: MakeDriver, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    gate = images.faults.gate = fake.Gate(at_byte=MIB // 2)
    made = make_driver()
    cached: list[model.CacheResult] = []
    disks: list[driver.RootDisk] = []
    precache = threading.Thread(
        target=lambda: cached.append(made.cache_image(images, image.id, ignore))
    )
    boot = threading.Thread(
        target=lambda: disks.append(made.create_root_disk(images, image.id, 'instance'))
    )
    precache.start()
    gate.wait_reached()
    boot.start()
    gate.release()
    precache.join(TIMEOUT_SECONDS)
    boot.join(TIMEOUT_SECONDS)
    assert [result.existing for result in cached] == [False]
    assert [disk.image_existing for disk in disks] == [True]
    assert images.served_bytes == len(DATA)


def test_existing_disk_not_touched(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    made = make_driver()
    disk = pathlib.Path(made.create_root_disk(images, image.id, 'instance').path)
    before = disk.read_bytes()
    with pytest.raises(exception.RootDiskExists, match=str(disk)):
        made.create_root_disk(images, image.id, 'instance', 9 * MIB)
    assert disk.read_bytes() == before


def test_second_maker_of_disk_fails(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    made = make_driver()
    path = instances_path / 'instance' / 'disk'

    def come_first(progress: model.Progress) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'disk of another')

    with pytest.raises(exception.RootDiskExists):
        made.create_root_disk(images, image.id, 'instance', None, come_first)
    assert path.read_bytes() == b'disk of another'
    assert os.listdir(path.parent) == ['disk']


@pytest.mark.parametrize('name', ['', '.', '..', '_base', 'locks', 'a/b', '../x', '.hidden', 'a\n'])
def test_invalid_instance_name_refused(
    make_driver: MakeDriver, images: fake.FakeImageService, name: str
) -> None:
    with pytest.raises(exception.InvalidInput, match='instance'):
        make_driver().create_root_disk(images, images.add(DATA).id, name)
    assert images.opens == []


def test_failed_download_leaves_no_instance(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        make_driver().create_root_disk(images, image.id, 'instance')
    assert not (instances_path / 'instance').exists()


def test_uncopyable_disk_leaves_no_instance(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    make_driver().cache_image(images, image.id, ignore)
    full = make_driver(use_cow_images=False, image_cache__reserved_disk_bytes=1024**5)
    with pytest.raises(exception.NotEnoughSpace, match='needs'):
        full.create_root_disk(images, image.id, 'instance')
    assert not (instances_path / 'instance').exists()


def test_stop_during_copy_leaves_no_instance(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = images.add(DATA)
    boot, copying = Control(is_boot=True), tmp_path / 'copying'
    slow = tmp_path / 'bin' / 'cp'
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ntouch "$6"\ntouch {copying}\nexec sleep 600\n')
    slow.chmod(0o755)
    monkeypatch.setenv('PATH', f'{slow.parent}{os.pathsep}{os.environ["PATH"]}')

    def stop_the_copying() -> None:
        wait_until(copying.exists, 'the disk is being copied')
        boot.stop(exception.Cancelled('not wanted'))

    stopping = threading.Thread(target=stop_the_copying)
    stopping.start()
    with pytest.raises(exception.Cancelled):
        make_driver(use_cow_images=False).create_root_disk(
            images, image.id, 'instance', control=boot
        )
    stopping.join(TIMEOUT_SECONDS)
    assert not (instances_path / 'instance').exists()


def test_stopped_boot_does_not_begin(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(DATA)
    boot = Control(is_boot=True)
    boot.stop(exception.Cancelled('not wanted'))
    with pytest.raises(exception.Cancelled):
        make_driver().create_root_disk(images, image.id, 'instance', control=boot)
    assert images.opens == []
    assert not (instances_path / 'instance').exists()


def test_base_file_stays_while_disk_created(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = images.add(DATA)
    made = make_driver(**EXPIRES_AT_ONCE)
    create = qemu.QemuImg.create_overlay

    def create_between_rounds(*arguments: object) -> None:
        made.manage_image_cache()
        create(*arguments)  # type: ignore[arg-type]
        made.manage_image_cache()

    monkeypatch.setattr(qemu.QemuImg, 'create_overlay', create_between_rounds)
    disk = made.create_root_disk(images, image.id, 'instance')
    made.manage_image_cache()
    assert guest_content(disk) == DATA


def test_earlier_round_spares_new_base_file(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = images.add(DATA)
    looked, based = threading.Event(), threading.Event()
    look, create = usage.DiskUsage.backing_names, qemu.QemuImg.create_overlay

    def look_and_wait(disk_usage: usage.DiskUsage) -> frozenset[str]:
        found = look(disk_usage)
        looked.set()
        assert based.wait(TIMEOUT_SECONDS)
        return found

    def create_after_a_look(*arguments: object) -> None:
        a_round.start()
        assert looked.wait(TIMEOUT_SECONDS)
        create(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(usage.DiskUsage, 'backing_names', look_and_wait)
    monkeypatch.setattr(qemu.QemuImg, 'create_overlay', create_after_a_look)
    made = make_driver(**EXPIRES_AT_ONCE)
    a_round = threading.Thread(target=made.manage_image_cache)
    disk = made.create_root_disk(images, image.id, 'instance')
    based.set()
    a_round.join(TIMEOUT_SECONDS)
    assert guest_content(disk) == DATA


def remove_after_fills(
    monkeypatch: pytest.MonkeyPatch, instances_path: pathlib.Path, count: int
) -> None:
    """Remove the base file after each of the first fills of a cache."""
    fill = populator.CachePopulator.fill
    left = [None] * count

    def fill_then_remove(
        filler: populator.CachePopulator, images: fake.FakeImageService, image_id: str, *rest: Any
    ) -> model.CacheResult:
        filled = fill(filler, images, image_id, *rest)
        if left:
            left.pop()
            os.unlink(layout.CacheLayout(str(instances_path)).base_path(image_id))
        return filled

    monkeypatch.setattr(populator.CachePopulator, 'fill', fill_then_remove)


@pytest.mark.parametrize('use_cow_images', [True, False])
def test_removed_base_file_fetched_again(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    use_cow_images: bool,
) -> None:
    image = images.add(DATA)
    remove_after_fills(monkeypatch, instances_path, 2)
    disk = make_driver(use_cow_images=use_cow_images).create_root_disk(images, image.id, 'instance')
    assert guest_content(disk) == DATA
    assert len(images.opens) == 3


def test_always_removed_base_file_reported(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = images.add(DATA)
    remove_after_fills(monkeypatch, instances_path, 100)
    with pytest.raises(exception.StorageError, match='removed 5 times during the boot'):
        make_driver().create_root_disk(images, image.id, 'instance')
    assert not (instances_path / 'instance').exists()


def test_used_qcow2_stays_under_force_raw(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    """A raw file in its place would keep the instance from starting again."""
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    disk = make_driver(force_raw_images=False).create_root_disk(images, image.id, 'instance')
    with pytest.raises(exception.StorageError, match='backing file of a disk'):
        make_driver().cache_image(images, image.id, ignore)
    assert guest_content(disk) == DATA
    os.unlink(disk.path)
    assert not make_driver().cache_image(images, image.id, ignore).existing
