# SPDX-License-Identifier: Apache-2.0
"""An image that names a kernel and a ramdisk is in the cache with them, or not at all."""

import concurrent.futures
import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from nova_precache import exception, model, transfer_control
from nova_precache.cache import layout, notes, populator
from nova_precache.image import fake
from tests import disk_images
from tests.service import wait_until
from tests.unit.cache.conftest import Cache, held_by_another_process
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.usefixtures('qemu_img')

KIB = 1024
DATA = disk_images.content(KIB**2)
# What an inspector would refuse, or convert: a kernel is stored unchanged.
KERNEL = b'QFI\xfb' + disk_images.content(300 * KIB)
RAMDISK = b'KDMV' + disk_images.content(200 * KIB)


@dataclasses.dataclass(frozen=True)
class Bootable:
    """An image in the image service, with its kernel and ramdisk."""

    image: model.Image
    kernel: model.Image
    ramdisk: model.Image

    @property
    def all(self) -> tuple[model.Image, ...]:
        return self.image, self.kernel, self.ramdisk

    @property
    def needed(self) -> tuple[model.Companion, ...]:
        return (
            model.Companion(self.kernel.id, len(KERNEL)),
            model.Companion(self.ramdisk.id, len(RAMDISK)),
        )


@pytest.fixture
def bootable(images: fake.FakeImageService) -> Bootable:
    kernel = images.add(KERNEL, disk_format='aki', container_format='aki')
    ramdisk = images.add(RAMDISK, disk_format='ari', container_format='ari')
    image = images.add(
        DATA,
        disk_format='ami',
        container_format='ami',
        kernel_id=kernel.id,
        ramdisk_id=ramdisk.id,
    )
    return Bootable(image, kernel, ramdisk)


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


def fill(
    cache: Cache,
    images: fake.FakeImageService,
    image: model.Image,
    needed: Sequence[model.Companion] | None = None,
    **more: Any,
) -> model.CacheResult:
    return cache.filler.fill(images, image.id, more.pop('progress', ignore), needed=needed, **more)


def base_names(cache: Cache) -> set[str]:
    """Return the files that a boot would find, without those that only we read."""
    return {name for name in cache.names() if layout.is_base_name(name)}


def listed(cache: Cache) -> set[str]:
    """Return what the host reports as its images."""
    return {file.name for file in cache.store.images()}


def age(cache: Cache, *images: model.Image) -> None:
    for image in images:
        os.utime(cache.base_file(image.id), (1000, 1000))


def is_young(cache: Cache, image: model.Image) -> bool:
    return cache.base_file(image.id).stat().st_mtime > 1000


@pytest.mark.parametrize('force_raw', [True, False])
def test_companions_cached_unconverted_beside_image(
    paths: layout.CacheLayout, images: fake.FakeImageService, bootable: Bootable, force_raw: bool
) -> None:
    cache = Cache(paths, force_raw=force_raw)
    result = fill(cache, images, bootable.image)

    total = len(DATA) + len(KERNEL) + len(RAMDISK)
    assert result == model.CacheResult(existing=False, bytes_done=total, bytes_total=total)
    assert cache.base_file(bootable.image.id).read_bytes() == DATA
    assert cache.base_file(bootable.kernel.id).read_bytes() == KERNEL
    assert cache.base_file(bootable.ramdisk.id).read_bytes() == RAMDISK
    assert layout.base_name(bootable.image.id) in listed(cache)


def test_converted_image_keeps_raw_kernel(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    kernel = images.add(KERNEL, disk_format='aki', container_format='aki')
    qcow2 = disk_images.converted(tmp_path / 'image', 'qcow2').read_bytes()
    image = images.add(qcow2, disk_format='qcow2', kernel_id=kernel.id)
    fill(cache, images, image)
    assert not cache.base_file(image.id).read_bytes().startswith(b'QFI')
    assert cache.base_file(kernel.id).read_bytes() == KERNEL


def test_progress_sums_all_parts_and_grows(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    told: list[model.Progress] = []
    fill(cache, images, bootable.image, progress=told.append)
    done = [progress.bytes_done for progress in told]
    total = len(DATA) + len(KERNEL) + len(RAMDISK)
    assert done == sorted(done)
    assert done[-1] == total
    assert {progress.bytes_total for progress in told} == {total}


def test_image_published_after_companions(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    order: list[set[str]] = []
    fill(cache, images, bootable.image, progress=lambda now: order.append(base_names(cache)))
    kernel, ramdisk = (layout.base_name(each.id) for each in (bootable.kernel, bootable.ramdisk))
    assert set() in order
    assert order[-1] == {kernel, ramdisk}
    assert layout.base_name(bootable.image.id) in base_names(cache)


def test_hit_touches_all_parts_offline(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    fill(cache, images, bootable.image)
    age(cache, bootable.image, bootable.kernel, bootable.ramdisk)
    images.faults.unavailable = 1000
    for needed in (None, bootable.needed):
        assert fill(cache, images, bootable.image, needed).existing
    assert all(is_young(cache, each) for each in bootable.all)


@pytest.mark.parametrize('missing', ['kernel', 'ramdisk', 'image'])
@pytest.mark.parametrize('is_told', [True, False])
def test_only_missing_part_fetched(
    cache: Cache,
    images: fake.FakeImageService,
    bootable: Bootable,
    missing: str,
    is_told: bool,
) -> None:
    fill(cache, images, bootable.image)
    lost: model.Image = getattr(bootable, missing)
    cache.base_file(lost.id).unlink()
    age(cache, *(each for each in bootable.all if each != lost))
    images.opens.clear()

    result = fill(cache, images, bootable.image, bootable.needed if is_told else None)

    assert not result.existing
    assert result.bytes_total == lost.size
    assert images.opens == [(lost.id, 0)]
    assert all(is_young(cache, each) for each in bootable.all)


def test_nova_image_complete_once_kernel_arrives(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    cache.base_file(bootable.image.id).write_bytes(DATA)
    assert not fill(cache, images, bootable.image, bootable.needed).existing
    assert [each for each, _ in images.opens] == [bootable.kernel.id, bootable.ramdisk.id]
    assert fill(cache, images, bootable.image, bootable.needed).existing


def test_complete_nova_image_noted(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    for image, data in zip(bootable.all, (DATA, KERNEL, RAMDISK), strict=True):
        cache.base_file(image.id).write_bytes(data)
    assert fill(cache, images, bootable.image, bootable.needed).existing
    assert images.opens == []
    cache.base_file(bootable.ramdisk.id).unlink()
    assert layout.base_name(bootable.image.id) not in listed(cache)
    assert not fill(cache, images, bootable.image).existing


def test_kernel_interrupted_by_nova_refetched(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    """Nova writes a kernel in place, so a partial one can have the final name."""
    fill(cache, images, bootable.image)
    cache.base_file(bootable.kernel.id).write_bytes(KERNEL[:1000])
    assert not fill(cache, images, bootable.image, bootable.needed).existing
    assert cache.base_file(bootable.kernel.id).read_bytes() == KERNEL


def test_newly_named_kernel_fetched(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    plain = images.add(DATA)
    fill(cache, images, plain)
    assert fill(cache, images, plain, ()).existing

    images.update(plain.id, kernel_id=bootable.kernel.id)
    assert not fill(cache, images, plain, bootable.needed[:1]).existing
    assert cache.base_file(bootable.kernel.id).read_bytes() == KERNEL
    assert fill(cache, images, plain).existing

    images.update(plain.id, kernel_id=None)
    cache.base_file(bootable.kernel.id).unlink()
    assert fill(cache, images, plain, ()).existing
    assert fill(cache, images, plain).existing
    assert base_names(cache) == {layout.base_name(plain.id)} == set(cache.names())


@pytest.mark.parametrize(
    'note', [b'', b'no JSON', b'{}', b'[{"id": 5}]', b'[' * 3000, b'[1, 2, 3]']
)
def test_damaged_note_is_repaired(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable, note: bytes
) -> None:
    fill(cache, images, bootable.image)
    name = layout.base_name(bootable.image.id)
    pathlib.Path(cache.paths.note_path(name)).write_bytes(note)
    assert name not in listed(cache)
    images.opens.clear()
    full = Cache(cache.paths, reserved_bytes=2**60)  # nothing is downloaded, so no space is needed
    assert fill(full, images, bootable.image).existing
    assert images.opens == []
    assert cache.store.noted(name) == bootable.needed


@pytest.mark.parametrize('kind', ['kernel_id', 'ramdisk_id'])
@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ('delete', 'could not be found'),
        ({'status': 'deactivated'}, 'is deactivated'),
        ({'size': 0}, 'has no data'),
        ({'container_format': 'compressed'}, 'has container_format compressed'),
    ],
)
def test_unusable_companion_refused_before_download(
    cache: Cache,
    images: fake.FakeImageService,
    bootable: Bootable,
    kind: str,
    change: Any,
    reason: str,
) -> None:
    companion = bootable.kernel if kind == 'kernel_id' else bootable.ramdisk
    if change == 'delete':
        images.delete(companion.id)
    else:
        images.update(companion.id, **change)
    pattern = f'Image {bootable.image.id} .*{kind} {companion.id}: .*{reason}'
    with pytest.raises(exception.CacheError, match=pattern) as caught:
        fill(cache, images, bootable.image)
    assert caught.value.retry == model.Retry.NEVER
    assert (images.opens, cache.names()) == ([], [])


@pytest.mark.parametrize('value', ['', 'None', 'x' * 70000, '../etc', 'http://glance/images/1', 5])
@pytest.mark.parametrize('kind', ['kernel_id', 'ramdisk_id'])
def test_malformed_companion_refused_by_name(
    cache: Cache, images: fake.FakeImageService, kind: str, value: Any
) -> None:
    image = images.add(DATA, **{kind: value})
    with pytest.raises(exception.ImageGone, match=f'Image {image.id} .* {kind}: .*') as caught:
        fill(cache, images, image)
    assert len(str(caught.value)) < 300
    assert (images.opens, cache.names()) == ([], [])


def test_image_not_its_own_kernel(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.update(image.id, kernel_id=image.id)
    with pytest.raises(exception.ImageGone, match='cannot be its own kernel'):
        fill(cache, images, image)
    assert (images.opens, cache.names()) == ([], [])


class AnySpelling(fake.FakeImageService):
    """Finds ids in any spelling, as Glance does on a case-insensitive database."""

    def show(self, image_id: str) -> model.Image:
        return super().show(image_id.lower())


def test_kernel_stored_under_canonical_id(
    cache: Cache,
) -> None:
    images = AnySpelling()
    kernel = images.add(KERNEL)
    image = images.add(DATA, kernel_id=kernel.id.upper())
    fill(cache, images, image)
    assert cache.base_file(kernel.id).read_bytes() == KERNEL
    assert fill(cache, images, image, [model.Companion(kernel.id, len(KERNEL))]).existing

    images.update(image.id, kernel_id=image.id.upper())
    cache.base_file(kernel.id).unlink()
    with pytest.raises(exception.ImageGone, match='cannot be its own kernel'):
        fill(cache, images, image)


def test_nokernel_means_no_companions(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.update(bootable.image.id, kernel_id='nokernel')
    fill(cache, images, bootable.image)
    assert cache.names() == [layout.base_name(bootable.image.id)]


def test_same_kernel_and_ramdisk_fetched_once(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.update(bootable.image.id, ramdisk_id=bootable.kernel.id)
    assert fill(cache, images, bootable.image).bytes_total == len(DATA) + len(KERNEL)


def test_companions_of_kernel_ignored(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.update(bootable.kernel.id, kernel_id=bootable.image.id, ramdisk_id='nonsense')
    images.faults.cuts = [100 * KIB]  # so that it is also looked up to be resumed
    fill(cache, images, bootable.image)
    assert base_names(cache) == {layout.base_name(each.id) for each in bootable.all}


def test_mutual_companions_do_not_deadlock(cache: Cache, images: fake.FakeImageService) -> None:
    first, second = images.add(DATA), images.add(DATA)
    images.update(first.id, kernel_id=second.id)
    images.update(second.id, kernel_id=first.id)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        filling = [threads.submit(fill, cache, images, each) for each in (first, second)]
        for each in filling:
            each.result(TIMEOUT_SECONDS)
    assert base_names(cache) == {layout.base_name(each.id) for each in (first, second)}


def test_shared_kernel_fetched_once(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    other = images.add(DATA, kernel_id=bootable.kernel.id)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        filling = [threads.submit(fill, cache, images, each) for each in (bootable.image, other)]
        moved = sum(each.result(TIMEOUT_SECONDS).bytes_done for each in filling)
    assert [each for each, _ in images.opens].count(bootable.kernel.id) == 1
    assert moved == 2 * len(DATA) + len(KERNEL) + len(RAMDISK)


def test_kernel_fetched_by_nova_awaited(
    cache: Cache,
    images: fake.FakeImageService,
    bootable: Bootable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = layout.base_name(bootable.kernel.id)
    nova = held_by_another_process(cache.paths.lock_directory, name)
    shown = threading.Event()
    show = images.show
    monkeypatch.setattr(images, 'show', lambda image_id: (show(image_id), shown.set())[0])
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        filling = thread.submit(fill, cache, images, bootable.image)
        assert shown.wait(TIMEOUT_SECONDS)
        cache.base_file(bootable.kernel.id).write_bytes(KERNEL)
        nova.communicate()
        filling.result(TIMEOUT_SECONDS)
    assert bootable.kernel.id not in [each for each, _ in images.opens]


def test_full_disk_detected_before_any_download(
    paths: layout.CacheLayout,
    images: fake.FakeImageService,
    bootable: Bootable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Cache(paths)
    full = Cache(paths, reserved_bytes=400 * KIB)
    total = len(DATA) + len(KERNEL) + len(RAMDISK)
    monkeypatch.setattr(full.space, 'free_bytes', lambda: total)
    with pytest.raises(exception.NotEnoughSpace, match='needs'):
        fill(full, images, bootable.image)
    assert (images.opens, cache.names()) == ([], [])


def test_interrupted_part_resumes_and_others_stay(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.faults.cuts = [100 * KIB] * 2
    with pytest.raises(exception.DownloadInterrupted):
        fill(cache, images, bootable.image)
    assert sorted(cache.suffixes()) == ['journal', 'part']
    images.faults.cuts = [len(KERNEL), len(RAMDISK), 300 * KIB, 300 * KIB]
    with pytest.raises(exception.DownloadInterrupted):
        fill(cache, images, bootable.image)
    assert base_names(cache) == {
        layout.base_name(each.id) for each in (bootable.kernel, bootable.ramdisk)
    }
    result = fill(cache, images, bootable.image)
    assert result.bytes_total == len(DATA)
    assert sorted({each for each, _ in images.opens}) == sorted(each.id for each in bootable.all)
    assert next(offset for each, offset in images.opens if each == bootable.kernel.id) == 0
    assert cache.base_file(bootable.image.id).read_bytes() == DATA


def test_kernel_with_wrong_hash_not_published(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        fill(cache, images, bootable.image)
    assert cache.names() == []


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        (lambda images, each: images.delete(each.kernel.id), exception.ImageGone),
        (
            lambda images, each: images.update(each.ramdisk.id, status='deactivated'),
            exception.ImageGone,
        ),
        (
            lambda images, each: images.update(each.image.id, ramdisk_id=None),
            exception.ImageMismatch,
        ),
    ],
)
def test_withdrawn_companion_keeps_image_unpublished(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable, change: Any, error: Any
) -> None:
    def withdraw(progress: model.Progress) -> None:
        if progress.bytes_done == progress.bytes_total and not withdrawn:
            withdrawn.append(True)
            change(images, bootable)

    withdrawn: list[bool] = []
    with pytest.raises(error, match=bootable.image.id):
        fill(cache, images, bootable.image, progress=withdraw)
    assert layout.base_name(bootable.image.id) not in cache.names()
    assert cache.suffixes() == []


def test_removed_kernel_keeps_image_unpublished(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    def remove(progress: model.Progress) -> None:
        if progress.bytes_done == progress.bytes_total:
            cache.base_file(bootable.kernel.id).unlink(missing_ok=True)

    with pytest.raises(exception.StorageError, match='was removed during the transfer'):
        fill(cache, images, bootable.image, progress=remove)
    assert layout.base_name(bootable.image.id) not in cache.names()
    images.opens.clear()
    fill(cache, images, bootable.image)
    assert base_names(cache) == {layout.base_name(each.id) for each in bootable.all}
    assert images.opens == [(bootable.kernel.id, 0)], 'the image itself was kept'


def test_companions_reported_whatever_their_prefix(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    fill(cache, images, bootable.image)
    assert listed(cache) == {layout.base_name(each.id) for each in bootable.all}
    for companion in (bootable.kernel, bootable.ramdisk):
        cache.base_file(companion.id).unlink()
        assert layout.base_name(bootable.image.id) not in listed(cache)
        fill(cache, images, bootable.image)


def test_companions_touched_during_image_download(
    cache: Cache,
    images: fake.FakeImageService,
    bootable: Bootable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(populator, 'TOUCH_SECONDS', 0)
    young: list[bool] = []

    def grow_old(progress: model.Progress) -> None:
        if progress.bytes_done > len(KERNEL) + len(RAMDISK):
            young.append(is_young(cache, bootable.kernel))
            age(cache, bootable.kernel)

    fill(cache, images, bootable.image, progress=grow_old)
    assert young
    assert all(young)


def test_unreadable_note_omits_only_its_image(
    cache: Cache,
    images: fake.FakeImageService,
    bootable: Bootable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = images.add(DATA)
    for image in (plain, bootable.image):
        fill(cache, images, image)

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, 'Permission denied', path)

    monkeypatch.setattr(notes, 'read', refuse)
    assert layout.base_name(plain.id) in listed(cache)
    assert layout.base_name(bootable.image.id) not in listed(cache)
    assert fill(cache, images, bootable.image, bootable.needed).existing


def test_boot_waiting_for_kernel_raises_priority(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    images.faults.gate = gate = fake.Gate()
    reins = transfer_control.Control()
    name = layout.base_name(bootable.kernel.id)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        filling = threads.submit(fill, cache, images, bootable.image, control=reins)
        gate.wait_reached()
        assert not reins.is_urgent

        def boot() -> None:
            with cache.locks.hold(name, transfer_control.Control(is_boot=True)):
                assert cache.base_file(bootable.kernel.id).exists()

        booting = threads.submit(boot)
        wait_until(lambda: reins.is_urgent, 'the download is hastened')
        gate.release()
        booting.result(TIMEOUT_SECONDS)
        assert not filling.result(TIMEOUT_SECONDS).existing


def test_boot_finds_companions_by_note(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    fill(cache, images, bootable.image)
    cache.base_file(bootable.kernel.id).unlink()
    boot = transfer_control.Control(is_boot=True)
    assert not fill(cache, images, bootable.image, control=boot).existing
    assert cache.base_file(bootable.kernel.id).read_bytes() == KERNEL


def test_note_removed_after_its_image(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    fill(cache, images, bootable.image)
    name = layout.base_name(bootable.image.id)
    note = pathlib.Path(cache.paths.note_path(name))
    unwritten = note.with_name(f'{note.name}.{"0" * 32}')
    unwritten.write_text('[')
    cache.sweeper.sweep()
    assert json.loads(note.read_text())[0]['id'] == bootable.kernel.id
    assert not unwritten.exists()
    cache.base_file(bootable.image.id).unlink()
    cache.sweeper.sweep()
    assert not note.exists()


def test_note_stays_while_image_filled(
    cache: Cache, images: fake.FakeImageService, bootable: Bootable
) -> None:
    name = layout.base_name(bootable.image.id)
    cache.store.note(name, bootable.needed)
    with cache.locks.hold(name):
        cache.sweeper.sweep()
    assert cache.store.noted(name) == bootable.needed


# A server that has imported everything forks quickly, and has no threads.
_processes = multiprocessing.get_context('forkserver')
_processes.set_forkserver_preload([__name__])

_IDS = [f'155d900f-4e14-4e4c-a73d-069cbf4541e{digit}' for digit in range(3)]


def add_known(images: fake.FakeImageService) -> model.Image:
    """Add the same images in each process."""
    image_id, kernel_id, ramdisk_id = _IDS
    images.add(KERNEL, id=kernel_id)
    images.add(RAMDISK, id=ramdisk_id)
    return images.add(DATA, id=image_id, kernel_id=kernel_id, ramdisk_id=ramdisk_id)


def fill_until_killed(instances_path: str, name: str, after: int) -> None:
    """Fill the cache until killed at the n-th call of a system operation."""
    calls, real = itertools.count(), getattr(os, name)

    def deadly(*arguments: Any, **more: Any) -> Any:
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(os, name, deadly)
    images = fake.FakeImageService()
    fill(Cache(layout.CacheLayout(instances_path)), images, add_known(images))


@pytest.mark.parametrize(
    ('name', 'after'),
    [(name, after) for name in ('rename', 'fsync') for after in range(4)],
)
def test_killed_process_leaves_no_partial_set(
    cache: Cache, images: fake.FakeImageService, name: str, after: int
) -> None:
    image = add_known(images)
    process = _processes.Process(
        target=fill_until_killed, args=(cache.paths.instances_path, name, after)
    )
    process.start()
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    whole = {layout.base_name(each) for each in _IDS}
    assert layout.base_name(image.id) not in base_names(cache) or base_names(cache) == whole

    cache.sweeper.sweep()
    fill(cache, images, image)

    for image_id, data in zip(_IDS, (DATA, KERNEL, RAMDISK), strict=True):
        assert cache.base_file(image_id).read_bytes() == data
    cache.sweeper.sweep()
    assert set(cache.names()) == {*whole, f'{layout.base_name(image.id)}.companions'}
