# SPDX-License-Identifier: Apache-2.0
"""What expires and what stays: decided on a listing, done on real files."""

import os
import pathlib
from collections.abc import Collection

import pytest

from nova_precache import exception
from nova_precache.cache import expiry, layout, store
from tests.unit.cache.conftest import Cache, held_by_another_process

NOW = 1_700_000_000.0
RULES = expiry.ExpiryRules(original_age_seconds=1000, resized_age_seconds=100)
ORIGINAL = layout.base_name('image')
RESIZED = f'{ORIGINAL}_20'


def listed(name: str, age_seconds: float) -> store.BaseFile:
    return store.BaseFile(name, 1, int((NOW - age_seconds) * 1e9), 512, 512)


def put(cache: Cache, name: str, age_seconds: float, data: bytes = b'data') -> pathlib.Path:
    path = pathlib.Path(cache.paths.path_of(name))
    path.write_bytes(data)
    os.utime(path, (NOW - age_seconds,) * 2)
    return path


class Round:
    """One round over a cache at ``NOW``."""

    def __init__(self, cache: Cache, rules: expiry.ExpiryRules = RULES) -> None:
        self.used: Collection[str] | exception.CacheError = ()
        self.looked = 0
        self._expirer = expiry.CacheExpirer(
            store=cache.store,
            image_locks=cache.locks,
            rules=rules,
            used_names=self._used_names,
            clock=lambda: NOW,
        )

    def _used_names(self) -> Collection[str]:
        self.looked += 1
        if isinstance(self.used, exception.CacheError):
            raise self.used
        return self.used

    def run(self) -> tuple[str, ...]:
        return self._expirer.run().removed


@pytest.mark.parametrize(
    ('name', 'age_seconds', 'verdict', 'reason'),
    [
        (ORIGINAL, 1001, 'expired', '1001 s old, expires at 1000 s'),
        (ORIGINAL, 1000, 'expired', '1000 s old, expires at 1000 s'),
        (ORIGINAL, 999, 'kept', '999 s old, expires at 1000 s'),
        (ORIGINAL, -5000, 'kept', '-5000 s old, expires at 1000 s'),
        (RESIZED, 101, 'expired', '101 s old, expires at 100 s'),
        (RESIZED, 99, 'kept', '99 s old, expires at 100 s'),
    ],
)
def test_unused_file_expires_by_kind(
    name: str, age_seconds: float, verdict: str, reason: str
) -> None:
    file = listed(name, age_seconds)
    assert expiry.decide([file], (), NOW, RULES) == [
        expiry.Decision(file, expiry.ExpiryVerdict(verdict), reason)
    ]


@pytest.mark.parametrize('name', [ORIGINAL, RESIZED])
def test_used_file_stays_at_any_age(name: str) -> None:
    [decision] = expiry.decide([listed(name, 10**9)], {name}, NOW, RULES)
    assert (decision.verdict, decision.reason) == ('used', 'a disk is based on it')


def test_original_and_resized_used_separately() -> None:
    files = [listed(ORIGINAL, 5000), listed(RESIZED, 5000)]
    assert [each.verdict for each in expiry.decide(files, {RESIZED}, NOW, RULES)] == [
        'expired',
        'used',
    ]


def test_disabled_removal_keeps_old_files() -> None:
    rules = expiry.ExpiryRules(1000, 100, remove=False)
    [decision] = expiry.decide([listed(ORIGINAL, 5000)], (), NOW, rules)
    assert decision.verdict == 'kept'
    assert decision.reason.endswith('but removal is disabled')


def test_round_removes_unused_and_reports_size(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, ORIGINAL, 1001, os.urandom(8192))
    young = put(cache, layout.base_name('young'), 999)
    old_resized = put(cache, RESIZED, 101)
    caplog.set_level('INFO')

    assert set(Round(cache).run()) == {ORIGINAL, old_resized.name}

    assert cache.names() == [young.name]
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith('Removed unused base files, ')
    assert ORIGINAL in message


def test_round_without_removal_is_silent(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    put(cache, ORIGINAL, 1)
    caplog.set_level('INFO')
    assert Round(cache).run() == ()
    assert caplog.records == []


def test_touched_image_stays(cache: Cache) -> None:
    touched, untouched = (put(cache, layout.base_name(each), 10**6) for each in 'ab')
    cache.store.touch('a')
    assert Round(cache).run() == (untouched.name,)
    assert cache.names() == [touched.name]


def test_age_starts_without_last_disk(cache: Cache) -> None:
    path = put(cache, ORIGINAL, 10**6)
    a_round = Round(cache)
    a_round.used = {ORIGINAL}
    assert a_round.run() == ()
    assert path.stat().st_mtime > NOW

    a_round.used = ()
    assert a_round.run() == ()
    os.utime(path, (NOW - 1000,) * 2)
    assert a_round.run() == (ORIGINAL,)


def test_used_files_marked_without_removal(cache: Cache) -> None:
    used, unused = (put(cache, layout.base_name(each), 10**6) for each in 'ab')
    a_round = Round(cache, expiry.ExpiryRules(1000, 100, remove=False))
    a_round.used = {used.name}
    assert a_round.run() == ()
    assert used.stat().st_mtime > NOW
    assert unused.stat().st_mtime == NOW - 10**6


def test_locked_file_stays(cache: Cache) -> None:
    put(cache, ORIGINAL, 5000)
    put(cache, RESIZED, 5000)
    with cache.locks.hold(ORIGINAL):
        assert Round(cache).run() == (RESIZED,)
    assert cache.names() == [ORIGINAL]
    assert Round(cache).run() == (ORIGINAL,)


def test_file_locked_by_nova_stays(cache: Cache) -> None:
    put(cache, ORIGINAL, 5000)
    with held_by_another_process(cache.paths.lock_directory, ORIGINAL) as nova:
        assert Round(cache).run() == ()
        nova.communicate()
    assert Round(cache).run() == (ORIGINAL,)


def test_unreadable_disk_ends_round(cache: Cache) -> None:
    path = put(cache, ORIGINAL, 5000)
    a_round = Round(cache)
    a_round.used = exception.StorageError('The header of disk cannot be read')
    with pytest.raises(exception.StorageError, match='header'):
        a_round.run()
    assert path.stat().st_mtime == NOW - 5000


def test_unmounted_cache_ends_round(cache: Cache) -> None:
    os.rmdir(cache.paths.base_directory)
    with pytest.raises(exception.StorageError, match='No such file or directory'):
        Round(cache).run()


def test_disks_read_once_per_round(cache: Cache) -> None:
    a_round = Round(cache)
    a_round.run()
    assert a_round.looked == 0
    put(cache, ORIGINAL, 1)
    put(cache, RESIZED, 5000)
    a_round.run()
    assert a_round.looked == 1


@pytest.mark.parametrize(
    'name',
    [
        'swap_512',
        'ephemeral_20_40d1d2c',
        f'{ORIGINAL}_sm',
        f'{ORIGINAL}_',
        f'{ORIGINAL}_20_20',
        f'{ORIGINAL}.part',
        f'{ORIGINAL}.converted',
        f'{ORIGINAL}\n',
        ORIGINAL.upper(),
        ORIGINAL[1:],
        'somebody-elses',
    ],
)
def test_foreign_file_stays(cache: Cache, name: str) -> None:
    put(cache, name, 10**9)
    assert Round(cache).run() == ()
    assert cache.names() == [name]


def test_partial_files_stay(cache: Cache) -> None:
    path = pathlib.Path(cache.paths.new_partial_path('image', 'part'))
    put(cache, path.name, 10**9)
    assert Round(cache).run() == ()
    assert cache.names() == [path.name]


def test_directory_stays_and_link_removed(cache: Cache, tmp_path: pathlib.Path) -> None:
    directory, link, dangling = (cache.base_file(each) for each in ('directory', 'link', 'none'))
    target = tmp_path / 'target'
    target.write_bytes(b'data')
    directory.mkdir()
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / 'nowhere')
    for path in (directory, target):
        os.utime(path, (1, 1))
    assert Round(cache).run() == (link.name,)
    assert cache.names() == sorted([directory.name, dangling.name])
    assert target.read_bytes() == b'data'


def test_foreign_users_file_expires_unless_used(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That disk's maker could not update the file's time, but held the lock."""
    path = put(cache, ORIGINAL, 5000)
    monkeypatch.setattr(os, 'geteuid', lambda: path.stat().st_uid + 1)
    a_round = Round(cache)
    looks = iter([(), {ORIGINAL}, (), ()])
    monkeypatch.setattr(a_round._expirer, '_used_names', lambda: next(looks))
    assert a_round.run() == ()
    assert a_round.run() == (ORIGINAL,)


def test_unremovable_file_does_not_block_others(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sorted(put(cache, layout.base_name(each), 5000) for each in 'ab')
    rename = os.rename

    def refuse(source: str, target: str) -> None:
        if source == str(first):
            raise PermissionError(1, 'Operation not permitted', source)
        rename(source, target)

    monkeypatch.setattr(os, 'rename', refuse)
    assert Round(cache).run() == (second.name,)
    assert cache.names() == [first.name]
    assert f'Cannot touch or remove base file {first.name}: Removing {first}' in caplog.text
