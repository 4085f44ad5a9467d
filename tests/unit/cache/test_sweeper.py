# SPDX-License-Identifier: Apache-2.0
"""Unfinished downloads are swept, unless another attempt can resume them."""

import contextlib
import errno
import os
import pathlib
from typing import Any

import pytest

from nova_precache.cache import journal, layout
from tests.unit.cache.conftest import Cache, Refusal, held_by_another_process

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'


def leave(
    cache: Cache, *, synced_bytes: int = 10, part: bool = True, hash_value: str | None = 'ab'
) -> list[str]:
    """Leave a partial file with its journal, and give their names."""
    path = cache.paths.new_partial_path(IMAGE_ID, 'journal')
    identity = journal.Identity(IMAGE_ID, 100, 'sha512', hash_value, None)
    created = journal.Journal.create(path, identity)
    assert created is not None
    with contextlib.closing(created):
        if synced_bytes:
            created.note(synced_bytes)
    if part:
        pathlib.Path(layout.sibling(path, 'part')).write_bytes(bytes(20))
    suffixes = ['journal', 'part'] if part else ['journal']
    return [os.path.basename(layout.sibling(path, suffix)) for suffix in suffixes]


def test_young_resumable_downloads_survive_sweep(cache: Cache) -> None:
    kept = leave(cache)
    assert cache.sweeper.sweep() == 0
    assert cache.names() == kept


@pytest.mark.parametrize(
    ('left', 'swept'),
    [
        ({'synced_bytes': 0}, 2),
        ({'part': False}, 1),
        ({'hash_value': None}, 2),
    ],
)
def test_unresumable_files_are_swept(cache: Cache, left: dict[str, Any], swept: int) -> None:
    leave(cache, **left)
    assert cache.sweeper.sweep() == swept
    assert cache.names() == []


def test_download_with_unknown_journal_swept(cache: Cache) -> None:
    name, _ = leave(cache)
    pathlib.Path(cache.paths.path_of(name)).write_text('another release wrote this\n')
    assert cache.sweeper.sweep() == 2
    assert cache.names() == []


@pytest.mark.parametrize(('age_seconds', 'swept'), [(99, 0), (101, 2)])
def test_abandoned_download_swept_at_its_age(
    paths: layout.CacheLayout, age_seconds: float, swept: int
) -> None:
    cache = Cache(paths, clock=lambda: 1_000_000)
    for name in leave(cache):
        os.utime(paths.path_of(name), (1_000_000 - age_seconds,) * 2)
    assert cache.sweeper.sweep() == swept


def test_download_age_counts_from_last_note(paths: layout.CacheLayout) -> None:
    cache = Cache(paths, clock=lambda: 1_000_000)
    journal_name, part_name = leave(cache)
    os.utime(paths.path_of(part_name), (1_000_000, 1_000_000))
    os.utime(paths.path_of(journal_name), (1, 1))
    assert cache.sweeper.sweep() == 2


@pytest.mark.parametrize(('data', 'swept'), [(b'data', 2), (b'QFI\xfb', 0), (b'', 0)])
def test_download_of_cached_image_swept(cache: Cache, data: bytes, swept: int) -> None:
    leave(cache)
    cache.base_file(IMAGE_ID).write_bytes(data)
    assert cache.sweeper.sweep() == swept


def test_half_conversion_swept_and_download_stays(cache: Cache) -> None:
    kept = leave(cache)
    converted = cache.file_of('part').with_suffix('.converted')
    converted.write_bytes(b'half')
    assert cache.sweeper.sweep() == 1
    assert cache.names() == kept


@pytest.mark.parametrize('suffix', ['part', 'converted', 'expired'])
def test_only_our_files_without_journal_swept(cache: Cache, suffix: str) -> None:
    stale = pathlib.Path(cache.paths.new_partial_path(IMAGE_ID, suffix))
    base = cache.base_file(IMAGE_ID)
    of_nova = base.with_name(f'{base.name}.part')
    for path in (stale, base, of_nova):
        path.write_bytes(b'data')
    assert cache.sweeper.sweep() == 1
    assert cache.names() == sorted([base.name, of_nova.name])


def test_files_of_locked_image_not_swept(cache: Cache) -> None:
    running = leave(cache, synced_bytes=0)
    with cache.locks.hold(layout.base_name(IMAGE_ID)):
        assert cache.sweeper.sweep() == 0
    assert cache.names() == running
    assert cache.sweeper.sweep() == 2


def test_file_being_written_not_swept(cache: Cache) -> None:
    """Nova's cache manager may unlink it, and a new one is free."""
    running = leave(cache, synced_bytes=0)
    owned = journal.Journal.own(str(cache.file_of('journal')))
    assert owned is not None
    with contextlib.closing(owned):
        assert cache.sweeper.sweep() == 0
        assert cache.names() == running
    assert cache.sweeper.sweep() == 2


def test_unsweepable_image_does_not_block_others(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    name, _ = leave(cache, synced_bytes=0)
    unreadable = f'{"0" * 40}{name[40:]}'
    os.mkdir(cache.paths.path_of(unreadable))
    assert cache.sweeper.sweep() == 2
    assert cache.names() == [unreadable]
    assert 'Is a directory' in caplog.text


def test_only_partials_of_image_discarded(cache: Cache) -> None:
    leave(cache)
    cache.file_of('part').with_suffix('.converted').write_bytes(b'half')
    pathlib.Path(cache.paths.new_partial_path(IMAGE_ID, 'part')).write_bytes(b'no journal')
    other = pathlib.Path(cache.paths.new_partial_path('other', 'part'))
    base = cache.base_file('whole')
    for path in (other, base):
        path.write_bytes(b'data')

    assert cache.sweeper.discard_partial(IMAGE_ID)

    assert cache.names() == sorted([other.name, base.name])
    assert cache.sweeper.discard_partial(IMAGE_ID), 'nothing is left'


def test_base_file_not_discarded(cache: Cache) -> None:
    cache.base_file(IMAGE_ID).write_bytes(b'data')
    assert cache.sweeper.discard_partial(IMAGE_ID)
    assert cache.base_file(IMAGE_ID).read_bytes() == b'data'


def test_partial_in_use_not_discarded(cache: Cache) -> None:
    kept = leave(cache)
    holder = held_by_another_process(cache.paths.lock_directory, layout.base_name(IMAGE_ID))
    try:
        assert not cache.sweeper.discard_partial(IMAGE_ID)
        assert cache.names() == kept
    finally:
        holder.communicate('done')
    assert cache.sweeper.discard_partial(IMAGE_ID)
    assert cache.names() == []


def test_partial_being_written_not_discarded(cache: Cache) -> None:
    running = leave(cache)
    owned = journal.Journal.own(str(cache.file_of('journal')))
    assert owned is not None
    with contextlib.closing(owned):
        assert not cache.sweeper.discard_partial(IMAGE_ID)
        assert cache.names() == running
    assert cache.sweeper.discard_partial(IMAGE_ID)


def test_unremovable_partial_not_discarded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(cache)
    refusal = Refusal(monkeypatch, 'unlink', errno.EROFS)
    refusal.is_on = True
    assert not cache.sweeper.discard_partial(IMAGE_ID)
