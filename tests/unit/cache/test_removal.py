# SPDX-License-Identifier: Apache-2.0
"""Removal of an image on request: what goes with it, and what keeps it."""

import os
import pathlib
from collections.abc import Callable, Collection

import pytest

from nova_precache import exception, model
from nova_precache.cache import expiry, layout
from tests.unit.cache.conftest import Cache, held_by_another_process
from tests.unit.cache.test_expiry import NOW, RULES, put

ORIGINAL = layout.base_name('image')
RESIZED = f'{ORIGINAL}_20'
KERNEL, RAMDISK = layout.base_name('kernel'), layout.base_name('ramdisk')


class Remover:
    """Removes from a cache at ``NOW``, with files used as a test says."""

    def __init__(self, cache: Cache) -> None:
        self.used: Callable[[], Collection[str]] = tuple
        self._expirer = expiry.CacheExpirer(
            store=cache.store,
            image_locks=cache.locks,
            rules=RULES,
            used_names=lambda: self.used(),  # noqa: PLW0108 - a test replaces it
            clock=lambda: NOW,
        )

    def __call__(
        self, image_id: str = 'image', kept: Collection[str] = (), min_age_seconds: float = 0
    ) -> model.ImageRemoval:
        return self._expirer.remove(image_id, kept, min_age_seconds)


@pytest.fixture
def remover(cache: Cache) -> Remover:
    return Remover(cache)


def needs(cache: Cache, image_id: str, *companions: str) -> None:
    """Cache an image and its companions, with a note."""
    put(cache, layout.base_name(image_id), 1)
    for each in companions:
        put(cache, layout.base_name(each), 1)
    cache.store.note(layout.base_name(image_id), [model.Companion(each) for each in companions])


def test_young_image_removed_with_copies(cache: Cache, remover: Remover) -> None:
    path = put(cache, ORIGINAL, 1, os.urandom(8192))
    put(cache, RESIZED, 1, os.urandom(4096))
    other = put(cache, layout.base_name('other'), 1)
    freed_bytes = (path.stat().st_blocks + pathlib.Path(f'{path}_20').stat().st_blocks) * 512

    removal = remover()

    assert (removal.status, removal.reason) == ('removed', None)
    assert removal.freed_bytes == freed_bytes > 0
    assert set(removal.names) == {ORIGINAL, RESIZED}
    assert cache.names() == [other.name]


def test_missing_image_is_absent(cache: Cache, remover: Remover) -> None:
    other = put(cache, layout.base_name('other'), 1)
    assert remover() == model.ImageRemoval('absent')
    assert cache.names() == [other.name]


@pytest.mark.parametrize('used', [ORIGINAL, RESIZED])
def test_used_image_stays_whole(cache: Cache, remover: Remover, used: str) -> None:
    put(cache, ORIGINAL, 10**6)
    put(cache, RESIZED, 10**6)
    remover.used = lambda: {used}
    assert remover() == model.ImageRemoval('used', 'an instance uses it')
    assert cache.names() == [ORIGINAL, RESIZED]


def test_disk_created_after_look_keeps_image(cache: Cache, remover: Remover) -> None:
    """It appears between the first look and the lock of the file."""
    put(cache, ORIGINAL, 1)
    looks = iter([(), {ORIGINAL}])
    remover.used = lambda: next(looks)
    assert remover() == model.ImageRemoval('used', 'a boot or a transfer uses it now')
    assert cache.names() == [ORIGINAL]


def test_image_touched_after_look_stays(cache: Cache, remover: Remover) -> None:
    path = put(cache, ORIGINAL, 1)

    def touched() -> Collection[str]:
        os.utime(path)
        return ()

    remover.used = touched
    assert remover().status == 'used'
    assert cache.names() == [ORIGINAL]


def test_locked_image_stays(cache: Cache, remover: Remover) -> None:
    put(cache, ORIGINAL, 1)
    with held_by_another_process(cache.paths.lock_directory, ORIGINAL) as nova:
        assert remover() == model.ImageRemoval('used', 'a boot or a transfer uses it now')
        nova.communicate()
    assert remover().status == 'removed'


def test_unreadable_disk_keeps_image(cache: Cache, remover: Remover) -> None:
    put(cache, ORIGINAL, 1)

    def unreadable() -> Collection[str]:
        raise exception.StorageError('The header of disk cannot be read')

    remover.used = unreadable
    with pytest.raises(exception.StorageError, match='header'):
        remover()
    assert cache.names() == [ORIGINAL]


def test_recently_touched_image_stays(cache: Cache, remover: Remover) -> None:
    put(cache, ORIGINAL, 29)
    assert remover(min_age_seconds=30) == model.ImageRemoval(
        'used', 'it was touched 29 s ago, and a boot of nova-compute may need it for 30 s'
    )
    put(cache, ORIGINAL, 30)
    assert remover(min_age_seconds=30).status == 'removed'


def test_companions_removed_with_image(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel', 'ramdisk')
    removal = remover()
    assert removal.status == 'removed'
    assert set(removal.names) == {ORIGINAL, KERNEL, RAMDISK}
    assert cache.names() == []


def test_shared_kernel_stays(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel', 'ramdisk')
    needs(cache, 'other', 'kernel')
    assert set(remover().names) == {ORIGINAL, RAMDISK}
    other = layout.base_name('other')
    assert cache.names() == sorted([KERNEL, other, f'{other}.companions'])


def test_used_or_kept_companions_stay(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel', 'ramdisk')
    remover.used = lambda: {RAMDISK}
    removal = remover(kept=['kernel'])
    assert (removal.status, removal.names) == ('removed', (ORIGINAL,))
    assert cache.names() == sorted([KERNEL, RAMDISK])


def test_needed_kernel_stays(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel')
    assert remover('kernel') == model.ImageRemoval(
        'used', f'images in this cache need it as kernel or ramdisk: {ORIGINAL}'
    )
    assert KERNEL in cache.names()


def test_unneeded_kernel_removed(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel')
    cache.base_file('image').unlink()
    assert remover('kernel').status == 'removed'
    assert KERNEL not in cache.names()


def test_images_naming_each_other_removed(cache: Cache, remover: Remover) -> None:
    needs(cache, 'image', 'kernel')
    needs(cache, 'kernel', 'ramdisk')
    assert set(remover().names) == {ORIGINAL, KERNEL, RAMDISK}
    assert cache.names() == []
