# SPDX-License-Identifier: Apache-2.0
"""Partial files: written with their holes, resumed, removed."""

import errno
import fcntl
import itertools
import mmap
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from nova_precache import exception, model
from nova_precache.cache import layout, partials
from tests import disk_images
from tests.unit.cache.conftest import Cache, Refusal, cached_bytes
from tools.waiting import TIMEOUT_SECONDS

KIB = 1024
MIB = 1024**2
DATA = disk_images.content(MIB)
OTHER_DATA = disk_images.content(MIB, seed=2)


def image_of(data: bytes = DATA, **fields: object) -> model.Image:
    known = {'id': 'image', 'status': 'active', 'size': len(data), 'hash_algo': 'sha512'}
    return model.Image(**{**known, 'hash_value': 'ab' * 64, **fields})  # type: ignore[arg-type]


IMAGE = image_of()


def put(
    partial: partials.Partial, data: bytes, offset_bytes: int = 0, piece_bytes: int = 64 * KIB
) -> None:
    """Write data as an engine does, with buffers that hold other bytes behind it."""
    for start in range(0, len(data), piece_bytes):
        piece = data[start : start + piece_bytes]
        partial.write(in_pages(piece + b'left from before'), len(piece), offset_bytes + start)


def in_pages(data: bytes) -> mmap.mmap:
    """Return data in page-aligned memory, as an engine has it."""
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


def leave(cache: Cache, data: bytes = DATA, image: model.Image = IMAGE) -> None:
    """Leave a partial file behind, to be resumed."""
    with cache.partials.open(image) as partial:
        put(partial, data)
        partial.keep()


def take(cache: Cache, image: model.Image = IMAGE) -> bytes:
    """Return the kept bytes of an image."""
    with cache.partials.open(image) as partial:
        buffer = bytearray(partial.kept_bytes + 10)
        count = partial.read_kept(memoryview(buffer), 0)
        assert count == partial.kept_bytes
        assert partial.passed_bytes == partial.kept_bytes
        assert os.path.getsize(partial.path) == partial.kept_bytes
        return bytes(buffer[:count])


def test_bytes_written_at_their_offset(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA, piece_bytes=100_001)
        partial.finish(len(DATA))
        assert pathlib.Path(partial.path).read_bytes() == DATA
        assert sorted(cache.suffixes()) == ['journal', 'part']


def test_partial_has_mode_of_base_files(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        assert os.stat(partial.path).st_mode & 0o777 == 0o644


def test_short_writes_are_continued(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, 'pwrite', lambda fd, data, at: write(fd, data[:7000], at))
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA)
        assert pathlib.Path(partial.path).read_bytes() == DATA


def test_whole_pages_bypass_page_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    written = note_writes(monkeypatch)
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[:100_000])
        put(partial, DATA[100_000:100_100], 100_000)
        put(partial, DATA[100_100:], 100_100)
        assert pathlib.Path(partial.path).read_bytes() == DATA
    assert written[:3] == [(64 * KIB, True), (32 * KIB, True), (100_000 - 96 * KIB, False)]
    assert not any(is_direct for _, is_direct in written[3:]), 'these begin amid a page'


def test_reread_bytes_use_page_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    written = note_writes(monkeypatch)
    with cache.partials.open(IMAGE, keep_pages=True) as partial:
        put(partial, DATA)
    assert written == [(64 * KIB, False)] * 16


def test_page_cache_share_is_small(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    written = note_writes(monkeypatch)
    with cache.partials.open(IMAGE, keep_pages=True) as partial:
        put(partial, DATA, piece_bytes=MIB)
        assert pathlib.Path(partial.path).read_bytes() == DATA
    assert written == [(256 * KIB, False)] * 4


def test_unaligned_disk_uses_page_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    written = note_writes(monkeypatch, refuse_direct=True)
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA)
        assert pathlib.Path(partial.path).read_bytes() == DATA
    assert written == [(64 * KIB, False)] * 16


def test_filesystem_without_direct_io_works(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really_open(path, flags, mode)

    monkeypatch.setattr(os, 'open', refuse)
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA)
        assert pathlib.Path(partial.path).read_bytes() == DATA


def note_writes(
    monkeypatch: pytest.MonkeyPatch, *, refuse_direct: bool = False
) -> list[tuple[int, bool]]:
    """Record how many bytes each write takes, and whether it bypasses the page cache."""
    noted = []
    write = os.pwrite

    def note(descriptor: int, data: memoryview, at: int) -> int:
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        if is_direct and refuse_direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if data[:1] != b'{':  # a line of the journal
            noted.append((len(data), is_direct))
        return write(descriptor, data, at)

    monkeypatch.setattr(os, 'pwrite', note)
    return noted


@pytest.mark.parametrize('seed', range(5))
def test_only_zero_blocks_become_holes(cache: Cache, seed: int) -> None:
    chance = random.Random(seed)
    blocks = [chance.choice([bytes(4096), chance.randbytes(4096)]) for _ in range(200)]
    data = b''.join(blocks) + bytes(chance.randrange(5000))
    with cache.partials.open(image_of(data)) as partial:
        put(partial, data, piece_bytes=chance.choice([4096, 5000, 64 * KIB, MIB]))
        partial.finish(len(data))
        assert pathlib.Path(partial.path).read_bytes() == data


@pytest.mark.parametrize(
    ('buffer', 'length', 'offset_bytes', 'ranges'),
    [
        (b'x' * 8192, 8192, 0, [(0, 8192)]),
        (bytes(8192), 8192, 0, []),
        (b'x' * 4096 + bytes(4096), 8192, 0, [(0, 4096)]),
        (bytes(4096) + b'x', 4097, 0, [(4096, 4097)]),
        (b'x' + bytes(8190) + b'x', 8192, 0, [(0, 8192)]),
        (b'x' * 4096 + bytes(4096) + b'x' * 4096, 12288, 4096, [(0, 4096), (8192, 12288)]),
        # The blocks are those of the file; a partial block at either end is data.
        (bytes(8192), 8192, 1, [(0, 4095), (8191, 8192)]),
        (bytes(4096), 4096, 4095, [(0, 4096)]),
        # Bytes in the buffer beyond the length do not matter.
        (bytes(4096), 4095, 0, [(0, 4095)]),
        (b'x' * 10, 0, 0, []),
    ],
)
def test_data_and_holes_distinguished(
    buffer: bytes, length: int, offset_bytes: int, ranges: list[tuple[int, int]]
) -> None:
    assert list(partials.data_ranges(bytearray(buffer), length, offset_bytes)) == ranges


# A buffer of two pages, the second one protected, with zeros but for one byte.
_LOOK_AT_THE_LAST_BLOCK = """
import ctypes, mmap
from nova_precache.cache import partials
buffer = mmap.mmap(-1, 2 * mmap.PAGESIZE)
whole = (ctypes.c_char * len(buffer)).from_buffer(buffer)
guard = ctypes.c_void_p(ctypes.addressof(whole) + mmap.PAGESIZE)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0  # PROT_NONE
buffer[mmap.PAGESIZE - 1] = 1
print(list(partials.data_ranges(buffer, mmap.PAGESIZE, 0)))
"""


def test_scan_stays_within_buffer() -> None:
    looked = subprocess.run(
        [sys.executable, '-c', _LOOK_AT_THE_LAST_BLOCK], capture_output=True, text=True, check=False
    )
    assert (looked.returncode, looked.stdout) == (0, '[(0, 4096)]\n'), looked.stderr


def test_sparse_image_uses_space_of_data(cache: Cache) -> None:
    with partials.Partials(cache.paths).open(image_of(size=1024 * MIB)) as partial:
        zeros, data = bytearray(MIB), bytearray(DATA)
        for at in range(512):
            partial.write(data if at == 100 else zeros, MIB, at * MIB)
        assert partial.passed_bytes == 512 * MIB
        partial.keep()
        partial.finish(1024 * MIB)
        status = os.stat(partial.path)
    assert status.st_size == 1024 * MIB
    assert MIB <= status.st_blocks * 512 <= 2 * MIB


def test_kept_partial_is_resumed(cache: Cache) -> None:
    leave(cache, DATA[:300_000])
    with cache.partials.open(IMAGE) as partial:
        assert partial.kept_bytes == 300_000
        put(partial, DATA[300_000:], 300_000)
        partial.finish(len(DATA))
        assert pathlib.Path(partial.path).read_bytes() == DATA


def test_trailing_hole_is_kept(cache: Cache) -> None:
    leave(cache, DATA + bytes(MIB), image_of(size=3 * MIB))
    assert take(cache, image_of(size=3 * MIB)) == DATA + bytes(MIB)


def test_kept_bytes_read_in_pieces(cache: Cache) -> None:
    leave(cache, DATA[:10_000])
    with cache.partials.open(IMAGE) as partial:
        buffer = bytearray(4000)
        found = [(partial.read_kept(memoryview(buffer), at), bytes(buffer)) for at in (0, 8000)]
        assert [(count, data[:count]) for count, data in found] == [
            (4000, DATA[:4000]),
            (2000, DATA[8000:10_000]),
        ]
        assert partial.read_kept(memoryview(buffer), 10_000) == 0


def test_unsynced_tail_cut_off(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[:100_000])
        partial.keep()
        put(partial, DATA[100_000:200_000], 100_000)
    assert cache.file_of('part').stat().st_size == 200_000
    assert take(cache) == DATA[:100_000]


def test_bytes_synced_and_noted_during_download(cache: Cache) -> None:
    """256 KiB are due; a write waits if the previous ones are not recorded yet."""
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[: 512 * KIB])
    assert take(cache) == DATA[: 512 * KIB]


def test_slow_bytes_noted_after_seconds(cache: Cache) -> None:
    now = 0.0
    rules = partials.SyncRules(sync_seconds=5, clock=lambda: now)
    with partials.Partials(cache.paths, rules).open(IMAGE) as partial:
        put(partial, DATA[:1000])
        now = 4.9
        put(partial, DATA[1000:2000], 1000)
        assert b'synced' not in cache.file_of('journal').read_bytes()
        now = 5
        put(partial, DATA[2000:3000], 2000)
    assert take(cache) == DATA[:3000]


def test_restart_discards_all(cache: Cache) -> None:
    leave(cache, DATA[:500_000])
    with cache.partials.open(IMAGE) as partial:
        partial.restart()
        assert (partial.kept_bytes, partial.passed_bytes) == (0, 0)
        assert os.path.getsize(partial.path) == 0
        put(partial, bytes(8192) + b'other')
        assert pathlib.Path(partial.path).read_bytes() == bytes(8192) + b'other'
    assert take(cache) == b''


@pytest.mark.parametrize(
    'other',
    [
        image_of(size=len(DATA) + 1),
        image_of(size=None),
        image_of(hash_value='cd' * 64),
        image_of(hash_algo='sha256'),
        image_of(checksum='ab' * 16),
        image_of(hash_algo=None, hash_value=None),
    ],
)
def test_other_image_not_resumed(cache: Cache, other: model.Image) -> None:
    leave(cache)
    assert take(cache, other) == b''
    assert cache.names() == []


def test_image_without_hash_not_resumed(cache: Cache) -> None:
    image = image_of(hash_algo=None, hash_value=None)
    leave(cache, DATA, image)
    assert take(cache, image) == b''


@pytest.mark.parametrize(
    ('suffix', 'change'),
    [
        ('journal', lambda path: path.write_text('not a journal\n')),
        ('journal', lambda path: path.write_text('')),
        ('journal', lambda path: path.unlink()),
        ('part', lambda path: path.unlink()),
        ('part', lambda path: os.truncate(path, len(DATA) - 1)),
    ],
)
def test_untrusted_partial_not_resumed(
    cache: Cache, suffix: str, change: Callable[[pathlib.Path], object]
) -> None:
    leave(cache)
    change(cache.file_of(suffix))
    assert take(cache) == b''


def test_longest_partial_wins_and_others_go(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as first, cache.partials.open(IMAGE) as second:
        put(first, DATA[:1000])
        put(second, DATA[:2000])
        with cache.partials.open(IMAGE) as third:
            put(third, DATA[:500])
            for each in (first, second, third):
                each.keep()
            assert len(cache.names()) == 6
    assert take(cache) == DATA[:2000]
    assert len(cache.names()) == 2


def test_partial_of_other_lock_holder_stays(cache: Cache) -> None:
    """Nova's cache manager may unlink the lock file, and then two hold the lock."""
    leave(cache)
    with cache.partials.open(IMAGE) as ours, cache.partials.open(IMAGE) as theirs:
        assert (ours.kept_bytes, theirs.kept_bytes) == (len(DATA), 0)
        assert ours.path != theirs.path
        cache.partials.clear(IMAGE.id)
        assert len(cache.names()) == 4


def test_partials_of_other_images_stay(cache: Cache) -> None:
    leave(cache, DATA, image_of(id='other'))
    leave(cache)
    cache.partials.clear(IMAGE.id)
    assert take(cache, image_of(id='other')) == DATA


def test_clear_removes_all_of_image(cache: Cache) -> None:
    leave(cache)
    cache.file_of('part').with_suffix('.converted').write_bytes(b'half')
    cache.partials.clear(IMAGE.id)
    assert cache.names() == []


def test_unresumable_partial_removed_on_exit(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[:1000])
        pathlib.Path(partial.converted_path).write_bytes(b'half')
        assert sorted(cache.suffixes()) == ['converted', 'journal', 'part']
    assert cache.names() == []


def test_half_conversion_removed_on_exit(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA)
        partial.keep()
        pathlib.Path(partial.converted_path).write_bytes(b'half')
    assert sorted(cache.suffixes()) == ['journal', 'part']


def test_half_conversion_removed_on_resume(cache: Cache) -> None:
    leave(cache)
    cache.file_of('part').with_suffix('.converted').write_bytes(b'half')
    assert take(cache) == DATA
    assert 'converted' not in cache.suffixes()


def test_swept_new_journal_recreated(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = partials.journals.Journal.own.__func__  # type: ignore[attr-defined]

    def sweep_first(path: str) -> object:
        monkeypatch.undo()
        assert cache.sweeper.sweep() == 1
        return lock(partials.journals.Journal, path)

    monkeypatch.setattr(partials.journals.Journal, 'own', sweep_first)
    with cache.partials.open(IMAGE) as partial:
        assert os.path.exists(partial.path)
        assert len(cache.names()) == 2


@pytest.mark.parametrize(
    ('number', 'error'),
    [(errno.EIO, exception.StorageError), (errno.ENOSPC, exception.NotEnoughSpace)],
)
@pytest.mark.parametrize('name', ['pwrite', 'ftruncate', 'fdatasync'])
def test_refused_write_reported_and_not_noted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str, number: int, error: type[Exception]
) -> None:
    refusal = Refusal(monkeypatch, name, number)
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[:1000])
        partial.keep()
        refusal.is_on = True
        with pytest.raises(error, match=os.strerror(number)):
            put(partial, DATA[1000:], 1000)
        refusal.is_on = False
    assert take(cache) == DATA[:1000]


def test_unsynced_bytes_are_never_noted(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write once, and treats the pages as clean from then on."""
    refusal = Refusal(monkeypatch, 'fdatasync', errno.EIO)
    with cache.partials.open(IMAGE) as partial:
        refusal.is_on = True
        put(partial, DATA[:300_000], piece_bytes=300_000)
        for use in (partial.keep, partial.keep, partial.restart, lambda: partial.finish(300_000)):
            with pytest.raises(exception.StorageError, match='Input/output error'):
                use()
            refusal.is_on = False
    assert take(cache) == b''


def test_error_at_close_is_harmless(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may report a failed write only then."""
    close = os.close

    def refuse(descriptor: int) -> None:
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        close(descriptor)
        if path.endswith('.part'):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[:1000])
        partial.keep()
        monkeypatch.setattr(os, 'close', refuse)
    assert take(cache) == DATA[:1000]


def test_writer_continues_during_sync(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronise = os.fdatasync
    goes_on = threading.Event()

    def slow(descriptor: int) -> None:
        if threading.current_thread().name == 'image-sync':
            assert goes_on.wait(TIMEOUT_SECONDS)
        synchronise(descriptor)

    with cache.partials.open(IMAGE) as partial:
        monkeypatch.setattr(os, 'fdatasync', slow)
        put(partial, DATA[: 511 * KIB])
        assert b'synced' not in cache.file_of('journal').read_bytes()
        goes_on.set()
    assert take(cache) == DATA[: 256 * KIB]


def test_unstartable_thread_not_awaited(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, 'start', refuse)
    with (
        pytest.raises(RuntimeError, match='new thread'),
        cache.partials.open(IMAGE) as partial,
    ):
        put(partial, DATA)
    assert cache.names() == []


def test_failed_cleanup_logged_and_harmless(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leave(cache)
    refusal = Refusal(monkeypatch, 'unlink', errno.EROFS)
    refusal.is_on = True
    cache.partials.clear(IMAGE.id)
    refusal.is_on = False
    assert 'Read-only file system' in caplog.text
    assert take(cache) == DATA


def test_missing_directory_faults_storage(cache: Cache) -> None:
    os.rmdir(cache.paths.base_directory)
    with (
        pytest.raises(exception.StorageError, match='No such file or directory'),
        cache.partials.open(IMAGE),
    ):
        pass


def test_no_file_stays_open(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> int:
        return len(os.listdir('/proc/self/fd'))

    before = opened()
    leave(cache)
    take(cache)
    leave(cache, DATA, image_of(hash_value='cd' * 64))
    refusal = Refusal(monkeypatch, 'ftruncate', errno.EIO)
    refusal.is_on = True
    with pytest.raises(exception.StorageError), cache.partials.open(IMAGE):
        pass
    refusal.is_on = False
    cache.partials.clear(IMAGE.id)
    assert opened() <= before


# A server that has imported everything forks quickly, and has no threads.
_processes = multiprocessing.get_context('forkserver')
_processes.set_forkserver_preload([__name__])


def write_until_killed(instances_path: str, name: str, after: int) -> None:
    """Write until killed at the n-th call of a system operation."""
    calls = itertools.count()
    real = getattr(os, name)

    def deadly(*arguments: object) -> object:
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, name, deadly)
    with Cache(layout.CacheLayout(instances_path)).partials.open(IMAGE) as partial:
        put(partial, DATA)
        partial.restart()
        put(partial, OTHER_DATA)
        partial.keep()


@pytest.mark.parametrize(
    ('name', 'after'),
    [
        *(('pwrite', after) for after in range(0, 40, 3)),
        *(('ftruncate', after) for after in range(12)),
        *(('fdatasync', after) for after in range(12)),
    ],
)
def test_killed_process_leaves_image_prefix(cache: Cache, name: str, after: int) -> None:
    process = _processes.Process(
        target=write_until_killed, args=(cache.paths.instances_path, name, after)
    )
    process.start()
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    kept = take(cache)
    assert kept in {DATA[: len(kept)], OTHER_DATA[: len(kept)]}
    assert len(kept) % (256 * KIB) == 0
    cache.partials.clear(IMAGE.id)
    assert cache.names() == []


@pytest.mark.usefixtures('drops_pages')
@pytest.mark.parametrize(('keep_pages', 'least', 'most'), [(False, 0, 0), (True, MIB, MIB)])
def test_pages_leave_cache_unless_reread(
    cache: Cache, keep_pages: bool, least: int, most: int
) -> None:
    with cache.partials.open(IMAGE, keep_pages=keep_pages) as partial:
        put(partial, DATA)
        partial.keep()
        assert least <= cached_bytes(partial.path) <= most
        # The kept bytes that are read leave the page cache again, too.
    with cache.partials.open(IMAGE) as partial:
        partial.read_kept(memoryview(bytearray(MIB)), 0)
        assert cached_bytes(partial.path) == 0
