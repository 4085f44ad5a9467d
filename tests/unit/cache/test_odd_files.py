# SPDX-License-Identifier: Apache-2.0
"""Files that another process puts into a cache block nothing and redirect no write."""

import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable

import pytest

from nova_precache import exception, model
from nova_precache.cache import boot_signal, layout
from nova_precache.image import fake
from nova_precache.virt.libvirt import usage
from tests import disk_images, odd_files
from tests.unit.cache.conftest import Cache, held_by_another_process
from tests.unit.cache.test_partials import DATA, IMAGE, leave

# A read of a FIFO would block for ever.
pytestmark = pytest.mark.timeout(60)

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'

irregular = pytest.mark.parametrize('kind', odd_files.IRREGULAR)


def nothing(progress: model.Progress) -> None:
    pass


@pytest.fixture
def image(images: fake.FakeImageService) -> model.Image:
    return images.add(disk_images.content(64 * 1024), id=IMAGE_ID)


@pytest.fixture
def fill(
    cache: Cache, images: fake.FakeImageService, image: model.Image
) -> Callable[[], model.CacheResult]:
    """Return a function that caches the image."""
    return lambda: cache.filler.fill(images, image.id, nothing)


def precious(path: pathlib.Path) -> bool:
    """Return whether the other file, if there is one, is unchanged."""
    other = path.with_name(f'{path.name}-of-somebody-else')
    return not other.exists() or other.read_text() == 'precious'


@irregular
def test_object_at_store_id_named(cache: Cache, kind: str) -> None:
    path = pathlib.Path(cache.paths.store_id_path)
    odd_files.IRREGULAR[kind](path)
    with pytest.raises(exception.StorageError) as refusal:
        cache.store.store_id()
    assert str(refusal.value).startswith(f'Reading {path}: it is a')
    assert os.path.lexists(path)
    assert precious(path)


@pytest.mark.parametrize('damage', odd_files.DAMAGED)
def test_invalid_store_id_replaced_once(cache: Cache, damage: str) -> None:
    path = pathlib.Path(cache.paths.store_id_path)
    odd_files.DAMAGED[damage](path)
    made = cache.store.store_id()
    assert str(uuid.UUID(made)) == made
    assert cache.store.store_id() == made == Cache(cache.paths).store.store_id()
    assert precious(path)


def lock_path(cache: Cache) -> pathlib.Path:
    return pathlib.Path(cache.paths.lock_directory, f'nova-{layout.base_name(IMAGE_ID)}')


@irregular
def test_object_at_lock_fails_with_path(
    cache: Cache, kind: str, fill: Callable[[], model.CacheResult]
) -> None:
    path = lock_path(cache)
    odd_files.IRREGULAR[kind](path)
    with pytest.raises(exception.StorageError) as refusal:
        fill()
    assert f'with {path}: it is a' in str(refusal.value)
    assert refusal.value.retry is model.Retry.BACKOFF
    assert os.path.lexists(path)
    assert precious(path)
    path.rmdir() if kind == 'a directory' else path.unlink()
    assert not fill().existing


@irregular
def test_object_at_lock_spares_other_sweeps(
    cache: Cache, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    left = [cache.paths.new_partial_path(each, 'part') for each in (IMAGE_ID, 'another')]
    for path in left:
        pathlib.Path(path).touch()
    odd_files.IRREGULAR[kind](lock_path(cache))
    assert cache.sweeper.sweep() == 1
    assert cache.names() == [os.path.basename(left[0])]
    (line,) = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert str(lock_path(cache)) in line


def test_lock_of_other_process_never_replaced(cache: Cache) -> None:
    with held_by_another_process(cache.paths.lock_directory, layout.base_name(IMAGE_ID)) as other:
        held = os.stat(lock_path(cache))
        with cache.locks.try_hold(layout.base_name(IMAGE_ID)) as is_held:
            assert not is_held
        assert os.path.samestat(os.stat(lock_path(cache)), held)
        other.communicate('')


@irregular
def test_object_at_boots_file_named_once(
    cache: Cache, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = pathlib.Path(cache.paths.lock_directory, boot_signal.FILE_NAME)
    odd_files.IRREGULAR[kind](path)
    waiting = boot_signal.WaitingBoots(cache.paths.lock_directory, clock=iter(range(100)).__next__)
    for _ in range(3):
        with waiting.wait():
            assert not waiting.any_waiting()
    (line,) = caplog.messages
    assert f'{path}: it is a' in line
    assert precious(path)


@irregular
def test_object_at_journal_blocks_no_image(
    cache: Cache, kind: str, fill: Callable[[], model.CacheResult]
) -> None:
    path = pathlib.Path(cache.paths.new_partial_path(IMAGE_ID, 'journal'))
    odd_files.IRREGULAR[kind](path)
    assert not fill().existing
    cache.sweeper.sweep()
    assert os.path.lexists(path) == (kind == 'a directory')  # no unlink removes that
    assert precious(path)


@irregular
def test_object_at_partial_not_resumed(cache: Cache, kind: str) -> None:
    leave(cache)
    part = cache.file_of('part')
    part.unlink()
    odd_files.IRREGULAR[kind](part)
    with cache.partials.open(IMAGE) as partial:
        assert partial.kept_bytes == 0
    assert precious(part)


def test_hard_linked_partial_not_resumed(cache: Cache, tmp_path: pathlib.Path) -> None:
    leave(cache)
    kept = tmp_path / 'backup'
    os.link(cache.file_of('part'), kept)
    with cache.partials.open(IMAGE) as partial:
        assert partial.kept_bytes == 0
    assert kept.read_bytes() == DATA


def test_hard_linked_journal_not_resumed(cache: Cache, tmp_path: pathlib.Path) -> None:
    leave(cache)
    kept = tmp_path / 'backup'
    os.link(cache.file_of('journal'), kept)
    text = kept.read_bytes()
    with cache.partials.open(IMAGE) as partial:
        assert partial.kept_bytes == 0
    assert kept.read_bytes() == text


@pytest.mark.parametrize('damage', odd_files.DAMAGED)
def test_journal_with_foreign_content_swept(cache: Cache, damage: str) -> None:
    path = pathlib.Path(cache.paths.new_partial_path(IMAGE_ID, 'journal'))
    odd_files.DAMAGED[damage](path)
    cache.sweeper.sweep()
    assert not path.exists()
    assert precious(path)


@pytest.mark.parametrize('kind', ['a FIFO', 'a socket', 'a dangling symbolic link'])
def test_object_at_base_file_not_hit(
    cache: Cache, kind: str, fill: Callable[[], model.CacheResult]
) -> None:
    path = cache.base_file(IMAGE_ID)
    odd_files.IRREGULAR[kind](path)
    assert not cache.store.is_hit(IMAGE_ID)
    with pytest.raises(exception.PlaceTaken, match=f'^{path} is '):
        fill()
    assert not path.is_file()


@pytest.mark.parametrize('kind', ['a FIFO', 'a directory', 'a socket', 'a link to a device'])
def test_non_file_not_inspected(cache: Cache, kind: str) -> None:
    path = cache.base_file(IMAGE_ID)
    odd_files.IRREGULAR[kind](path)
    with pytest.raises(exception.StorageError, match=f'Reading {path}: it is a'):
        cache.inspector.inspect_base(str(path))


def test_links_do_not_break_cache_size(cache: Cache) -> None:
    for number, put in enumerate((odd_files.LOOP, odd_files.DANGLING, os.mkfifo)):
        put(pathlib.Path(cache.paths.path_of(str(number))))
    cache.base_file(IMAGE_ID).write_bytes(os.urandom(8192))
    assert cache.space.cache_bytes() >= 8192


@pytest.mark.parametrize('kind', ['a FIFO', 'a directory', 'a socket'])
def test_object_at_disk_info_ends_scan(cache: Cache, kind: str) -> None:
    instance = pathlib.Path(cache.paths.instances_path, 'instance')
    instance.mkdir()
    odd_files.IRREGULAR[kind](instance / 'disk.info')
    with pytest.raises(exception.StorageError, match=f'disk.info: it is {kind}'):
        usage.DiskUsage(cache.paths).backing_names()
    shutil.rmtree(instance)
    assert not usage.DiskUsage(cache.paths).backing_names()
