# SPDX-License-Identifier: Apache-2.0
"""What counts as cached, how files appear, and how expired ones are removed."""

import concurrent.futures
import os
import pathlib
import stat
import uuid
from collections.abc import Callable

import pytest

from nova_precache import exception
from nova_precache.cache import layout, store
from tests.unit.cache.conftest import Cache, cached_bytes

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'
MIB = 1024**2
DAY_SECONDS = 86400


def mode(path: str | pathlib.Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_directories_have_modes_of_nova(cache: Cache) -> None:
    assert mode(cache.paths.base_directory) == 0o755
    assert mode(cache.paths.lock_directory) == 0o755


@pytest.mark.parametrize(
    ('data', 'hit_when_raw', 'hit_otherwise'),
    [
        (b'anything', True, True),
        (b'', False, False),
        (b'QFI\xfb\x00\x00\x00\x03', False, True),
        (b'KDMV\x01', False, True),
        (b'# Disk DescriptorFile\n', False, True),
        (b'Q', True, True),
    ],
)
def test_hit_is_usable_by_boot(
    cache: Cache, data: bytes, hit_when_raw: bool, hit_otherwise: bool
) -> None:
    cache.base_file(IMAGE_ID).write_bytes(data)
    assert cache.store.is_hit(IMAGE_ID) is hit_when_raw
    assert Cache(cache.paths, force_raw=False).store.is_hit(IMAGE_ID) is hit_otherwise


def test_directory_or_absent_file_misses(cache: Cache) -> None:
    assert not cache.store.is_hit(IMAGE_ID)
    cache.base_file(IMAGE_ID).mkdir()
    assert not cache.store.is_hit(IMAGE_ID)


def test_file_vanishing_during_check_misses(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.base_file(IMAGE_ID)
    path.write_bytes(b'data')
    look = os.stat

    def look_then_remove(looked_at: str) -> os.stat_result:
        found = look(looked_at)
        monkeypatch.setattr(os, 'stat', look)
        path.unlink()
        return found

    monkeypatch.setattr(os, 'stat', look_then_remove)
    assert not cache.store.is_hit(IMAGE_ID)


def test_touch_makes_file_young(cache: Cache) -> None:
    path = cache.base_file(IMAGE_ID)
    path.write_bytes(b'data')
    os.utime(path, (1, 1))
    assert cache.store.touch(IMAGE_ID)
    assert path.stat().st_mtime > 1_000_000_000


def test_missing_file_cannot_be_touched(cache: Cache) -> None:
    assert not cache.store.touch(IMAGE_ID)
    assert cache.names() == []


def test_untouchable_file_reported_but_usable(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """libvirt changes the owner of base files."""

    def refuse(path: str) -> None:
        raise PermissionError(1, 'Operation not permitted', path)

    monkeypatch.setattr(os, 'utime', refuse)
    path = cache.base_file(IMAGE_ID)
    path.write_bytes(b'data')
    with pytest.raises(exception.NotOurs, match=f'^present, but cannot be kept: .*{path}'):
        cache.store.touch(IMAGE_ID)
    assert caplog.messages == []
    assert cache.store.touch(IMAGE_ID, is_boot=True)
    assert f'{path}' in caplog.text


def old_file(cache: Cache, data: bytes = b'data') -> store.BaseFile:
    path = cache.base_file(IMAGE_ID)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    [file] = cache.store.base_files()
    return file


def test_listing_has_ages_and_disk_sizes(cache: Cache) -> None:
    pathlib.Path(cache.paths.path_of('swap_512')).write_bytes(b'swap')
    file = old_file(cache, os.urandom(MIB))
    assert (file.name, file.age_seconds(now=11)) == (layout.base_name(IMAGE_ID), 10)
    assert file.bytes_on_disk == cache.base_file(IMAGE_ID).stat().st_blocks * 512


def test_unchanged_listed_file_removed(cache: Cache) -> None:
    file = old_file(cache)
    assert cache.store.remove_unchanged(file)
    assert cache.names() == []
    assert not cache.store.remove_unchanged(file)


def test_file_changed_since_listing_stays(cache: Cache) -> None:
    path = cache.base_file(IMAGE_ID)
    file = old_file(cache)
    cache.store.touch(IMAGE_ID)
    assert not cache.store.remove_unchanged(file)

    file = old_file(cache)
    replacement = path.with_name('replacement')
    replacement.write_bytes(b'new')
    os.utime(replacement, (1, 1))
    replacement.rename(path)
    assert not cache.store.remove_unchanged(file)
    assert path.read_bytes() == b'new'


def test_last_moment_touch_saves_file(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old_file(cache)
    touched: list[bool] = []
    _around_rename(monkeypatch, before=lambda: touched.append(cache.store.touch(IMAGE_ID)))
    assert not cache.store.remove_unchanged(file)
    assert touched == [True]
    assert cache.names() == [file.name]
    assert cache.base_file(IMAGE_ID).read_bytes() == b'data'


def test_late_touch_finds_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old_file(cache)
    touched: list[bool] = []
    _around_rename(monkeypatch, after=lambda: touched.append(cache.store.touch(IMAGE_ID)))
    assert cache.store.remove_unchanged(file)
    assert touched == [False]
    assert cache.names() == []


def test_touch_misses_set_aside_file(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel found the file before it was renamed, and set its time after the last check."""
    file = old_file(cache)
    touch = os.utime

    def touch_then_remove(path: str) -> None:
        monkeypatch.setattr(os, 'utime', touch)
        assert cache.store.remove_unchanged(file)

    monkeypatch.setattr(os, 'utime', touch_then_remove)
    assert not cache.store.touch(IMAGE_ID)


def _around_rename(
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Run callbacks before and after the next rename."""
    rename = os.rename

    def renaming(source: str, target: str) -> None:
        monkeypatch.setattr(os, 'rename', rename)
        before()
        rename(source, target)
        after()

    monkeypatch.setattr(os, 'rename', renaming)


def test_killed_rounds_set_aside_files_swept(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        """Ends the process."""

    def kill() -> None:
        raise KilledError

    file = old_file(cache)
    _around_rename(monkeypatch, after=kill)
    with pytest.raises(KilledError):
        cache.store.remove_unchanged(file)
    assert [name.endswith('.expired') for name in cache.names()] == [True]
    assert cache.sweeper.sweep() == 1
    assert cache.names() == []


def finished(cache: Cache, data: bytes = b'new') -> str:
    """Make a file that is ready to be published."""
    path = cache.paths.new_partial_path(IMAGE_ID, 'part')
    pathlib.Path(path).write_bytes(data)
    return path


def test_publish_replaces_existing_file(cache: Cache) -> None:
    cache.base_file(IMAGE_ID).write_bytes(b'old')
    cache.store.publish(finished(cache), IMAGE_ID)
    assert cache.names() == [layout.base_name(IMAGE_ID)]
    assert cache.base_file(IMAGE_ID).read_bytes() == b'new'


def test_failed_publish_faults_storage(cache: Cache) -> None:
    cache.base_file(IMAGE_ID).mkdir()
    with pytest.raises(exception.StorageError, match='Is a directory'):
        cache.store.publish(finished(cache), IMAGE_ID)
    assert cache.base_file(IMAGE_ID).is_dir()


@pytest.mark.usefixtures('drops_pages')
def test_published_file_leaves_page_cache(cache: Cache) -> None:
    path = finished(cache, os.urandom(MIB))
    assert cached_bytes(path) == MIB
    cache.store.publish(path, IMAGE_ID)
    assert cached_bytes(cache.base_file(IMAGE_ID)) == 0


def test_file_synced_before_and_after_rename(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished(cache)
    steps: list[str] = []
    synchronise, rename = os.fsync, os.rename

    def noting_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        synchronise(descriptor)

    def noting_rename(source: str, target: str) -> None:
        steps.append('rename')
        rename(source, target)

    monkeypatch.setattr(os, 'fsync', noting_fsync)
    monkeypatch.setattr(os, 'rename', noting_rename)
    cache.store.publish(path, IMAGE_ID)
    assert steps == [path, 'rename', cache.paths.base_directory]


def test_store_id_is_stable_and_shared(cache: Cache) -> None:
    stores = [store.CacheStore(cache.paths) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda item: item.store_id(), stores))
    assert len(found) == 1
    assert uuid.UUID(found.pop())
    assert sorted(os.listdir(cache.paths.instances_path)) == [
        '.nova-precache-store-id',
        '_base',
        'locks',
    ]


def test_missing_cache_faults_storage(cache: Cache) -> None:
    os.rmdir(cache.paths.base_directory)
    for use in (cache.store.check_mounted, cache.space.free_bytes, cache.space.cache_bytes):
        with pytest.raises(exception.StorageError, match='No such file or directory'):
            use()


def test_file_vanishing_during_listing_omitted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image_id in ('a', 'b'):
        cache.base_file(image_id).write_bytes(b'data')
    listed = os.listdir(cache.paths.base_directory)
    cache.base_file('a').unlink()
    monkeypatch.setattr(os, 'listdir', lambda path: listed)
    [file] = cache.store.base_files()
    assert (file.name, file.size_bytes) == (layout.base_name('b'), 4)


def test_store_time_is_file_time(cache: Cache) -> None:
    asked = store.CacheStore(cache.paths)
    before = asked.now()
    path = cache.base_file('image')
    path.write_bytes(b'data')
    assert before <= path.stat().st_mtime <= asked.now()
    assert cache.names() == [path.name], 'asking makes no file'


@pytest.mark.parametrize(
    ('differences', 'lags', 'warnings'),
    [
        ([0, 1, -3, 4.9], [0, 0, 0, 0], 0),
        (
            [DAY_SECONDS, DAY_SECONDS + 1, DAY_SECONDS - 2],
            [DAY_SECONDS, DAY_SECONDS, DAY_SECONDS],
            1,
        ),
        ([-DAY_SECONDS, -DAY_SECONDS + 4], [-DAY_SECONDS, -DAY_SECONDS], 1),
        ([DAY_SECONDS, DAY_SECONDS + 60, 0], [DAY_SECONDS, DAY_SECONDS + 60, 0], 3),
    ],
)
def test_clock_difference_warned_on_change(
    cache: Cache,
    differences: list[float],
    lags: list[float],
    warnings: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ahead = iter(differences)
    measured = store.CacheStore(cache.paths, clock=lambda: 1e9, host_now=lambda: 1e9 + next(ahead))
    assert [measured.measure_lag() for _ in differences] == lags
    assert len(caplog.messages) == warnings
