# SPDX-License-Identifier: Apache-2.0
"""Directories of a cache that vanish while it is in use: removed or unmounted."""

import os
import pathlib
import shutil
import uuid
from collections.abc import Callable

import pytest

from nova_precache import exception, model
from nova_precache.cache import locks
from nova_precache.image import fake
from tests import disk_images
from tests.unit.cache.conftest import Cache

pytestmark = pytest.mark.timeout(120)

DATA = disk_images.content(disk_images.MIB)
DIRECTORIES = [('_base',), ('locks',), ('_base', 'locks')]
removed = pytest.mark.parametrize('names', DIRECTORIES, ids='+'.join)


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


@pytest.fixture
def cache(cache: Cache) -> Cache:
    """A cache that was started as a driver starts it."""
    cache.store.store_id()
    return cache


def remove(cache: Cache, *names: str) -> None:
    for name in names:
        shutil.rmtree(pathlib.Path(cache.paths.instances_path, name))


def attempts(
    cache: Cache,
    images: fake.FakeImageService,
    image: model.Image,
    progress: model.ProgressCallback,
) -> None:
    """Cache an image in one attempt or two: the first may fail with a transient error."""
    failed: list[exception.CacheError] = []
    try:
        cache.filler.fill(images, image.id, progress)
    except exception.CacheError as exc:
        failed.append(exc)
    if failed:
        assert failed[0].retry is model.Retry.BACKOFF, failed
        cache.filler.fill(images, image.id, ignore)


def all_below(cache: Cache) -> list[str]:
    root = pathlib.Path(cache.paths.instances_path)
    return sorted(str(path.relative_to(root)) for path in root.rglob('*'))


@removed
def test_removed_directory_recreated_by_next_task(
    cache: Cache, images: fake.FakeImageService, names: tuple[str, ...]
) -> None:
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    remove(cache, *names)

    result = cache.filler.fill(images, image.id, ignore)

    assert result.existing == ('_base' not in names)
    assert cache.base_file(image.id).read_bytes() == DATA
    for path in (cache.paths.base_directory, cache.paths.lock_directory):
        assert os.stat(path).st_mode & 0o777 == 0o755


@removed
@pytest.mark.parametrize('status', ['downloading', 'verifying', 'converting'])
def test_removal_during_task_costs_one_attempt(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    names: tuple[str, ...],
    status: str,
) -> None:
    data = disk_images.qcow2_of(tmp_path / 'image', DATA).read_bytes()
    image = images.add(data, disk_format='qcow2')
    left = list(names)

    def remove_once(progress: model.Progress) -> None:
        if progress.status == status and left:
            remove(cache, *left)
            left.clear()

    attempts(cache, images, image, remove_once)

    assert not left
    assert cache.base_file(image.id).read_bytes()[: len(DATA)] == DATA
    assert cache.suffixes() == []


@removed
def test_removal_before_publish_costs_one_attempt(
    cache: Cache,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:
    image = images.add(DATA)
    publish = cache.store.publish

    def remove_then_publish(path: str, image_id: str) -> None:
        monkeypatch.setattr(cache.store, 'publish', publish)
        remove(cache, *names)
        publish(path, image_id)

    monkeypatch.setattr(cache.store, 'publish', remove_then_publish)
    attempts(cache, images, image, ignore)
    assert cache.base_file(image.id).read_bytes() == DATA


def unmount(cache: Cache) -> None:
    remove(cache, '_base', 'locks')
    os.unlink(cache.paths.store_id_path)


def mount_another(cache: Cache) -> None:
    unmount(cache)
    pathlib.Path(cache.paths.store_id_path).write_text(str(uuid.uuid4()))


def damage(cache: Cache) -> None:
    remove(cache, '_base', 'locks')
    pathlib.Path(cache.paths.store_id_path).write_text('no uuid')


def forget_where(cache: Cache) -> None:
    shutil.rmtree(cache.paths.instances_path)


USES: dict[str, Callable[[Cache], object]] = {
    'a task': lambda cache: cache.filler.fill(fake.FakeImageService(), str(uuid.uuid4()), ignore),
    'a sweep': lambda cache: cache.sweeper.sweep(),
    'a purge': lambda cache: cache.sweeper.discard_partial('image'),
    'a look': lambda cache: cache.store.base_files(),
    'a report': lambda cache: cache.space.cache_bytes(),
}


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('vanish', [unmount, mount_another, damage, forget_where])
def test_unproven_mount_creates_nothing(
    cache: Cache, use: str, vanish: Callable[[Cache], None]
) -> None:
    vanish(cache)
    before = all_below(cache)
    with pytest.raises(exception.StorageError) as refusal:
        USES[use](cache)
    assert cache.paths.base_directory in str(refusal.value)
    assert all_below(cache) == before
    with pytest.raises(exception.StorageError, match=r'not recreated: .*store-id'):
        cache.store.check_mounted()
    assert all_below(cache) == before


@pytest.mark.parametrize('vanish', [unmount, forget_where])
def test_removed_store_id_stays_absent(cache: Cache, vanish: Callable[[Cache], None]) -> None:
    vanish(cache)
    with pytest.raises(exception.StorageError, match='No such file'):
        cache.store.store_id()
    assert all_below(cache) == []


def test_cache_without_store_id_keeps_working(cache: Cache, images: fake.FakeImageService) -> None:
    os.unlink(cache.paths.store_id_path)
    image = images.add(DATA)
    assert not cache.filler.fill(images, image.id, ignore).existing
    assert not os.path.exists(cache.paths.store_id_path)


def test_lock_waiter_creates_nothing_while_unmounted(cache: Cache) -> None:
    image_locks = locks.ImageLocks(cache.paths.lock_directory, cache.store.check_mounted)
    unmount(cache)
    with pytest.raises(exception.StorageError, match='not recreated'), image_locks.hold('name'):
        pass
    assert all_below(cache) == []


def test_returned_mount_used_again(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    path = pathlib.Path(cache.paths.instances_path)
    path.rename(path.with_name('elsewhere'))
    path.mkdir()
    with pytest.raises(exception.StorageError):
        cache.filler.fill(images, image.id, ignore)
    path.rmdir()
    path.with_name('elsewhere').rename(path)
    assert not cache.filler.fill(images, image.id, ignore).existing
