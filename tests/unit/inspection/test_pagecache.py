# SPDX-License-Identifier: Apache-2.0
"""What the page cache holds of real files, and what file systems do without it."""

import ctypes
import errno
import mmap
import os
import pathlib
import secrets

import pytest

from nova_precache.inspection import pagecache
from tests import disk_images
from tools.waiting import TimedOut, wait_until


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'file'


def refuse_direct(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode)

    monkeypatch.setattr(os, 'open', refusing)


def cached_pages(path: pathlib.Path) -> int:
    """Count the pages of a file in the page cache, as the kernel tells the file's owner."""
    with path.open('r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        found = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages
        )
        del start  # else the mapping cannot be closed
    assert found == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages)


def drop_pages(path: pathlib.Path) -> None:
    """Drop a file from the page cache, which keeps pages that another processor still uses."""

    def dropped() -> bool:
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_pages(path) == 0

    try:
        wait_until(dropped, 'no page is cached', timeout_seconds=10)
    except TimedOut:
        pytest.skip('this file system lives in memory')


def test_direct_write_probe_leaves_empty_file(path: pathlib.Path) -> None:
    assert pagecache.takes_direct_writes(str(path)) in (True, False)
    assert path.read_bytes() == b''


@pytest.mark.parametrize('number', [errno.EINVAL, errno.EOPNOTSUPP])
def test_filesystem_without_direct_writes_detected(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_direct(monkeypatch, number)
    assert not pagecache.takes_direct_writes(str(path))


def test_other_error_is_raised(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match='Input/output error'):
        pagecache.takes_direct_writes(str(path))


def test_refusing_disk_leaves_no_open_file(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def broken(path: str, flags: int, mode: int = 0o777) -> int:
        return real('/dev/full' if flags & os.O_DIRECT else path, flags & ~os.O_DIRECT, mode)

    before = len(os.listdir('/proc/self/fd'))
    with monkeypatch.context() as patched:
        patched.setattr(os, 'open', broken)
        assert not pagecache.takes_direct_writes(str(path))
    assert len(os.listdir('/proc/self/fd')) <= before


def test_written_pages_cached_and_dropped_not(path: pathlib.Path) -> None:
    disk_images.raw(path, 32 * disk_images.MIB)
    assert pagecache.is_mostly_cached(str(path))
    drop_pages(path)
    # Checking it does not load it.
    assert not any(pagecache.is_mostly_cached(str(path)) for _ in range(20))


@pytest.mark.parametrize('pages_before', [0, 1, 100])
def test_look_loads_only_its_samples(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, pages_before: int
) -> None:
    disk_images.raw(path, 32 * disk_images.MIB)
    drop_pages(path)
    with path.open('rb', buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(pages_before * mmap.PAGESIZE)
    before = cached_pages(path)

    # The first sample follows what looks like a sequential read.
    monkeypatch.setattr(secrets, 'randbelow', lambda _: pages_before * mmap.PAGESIZE)
    pagecache.is_mostly_cached(str(path))

    assert wait_until(lambda: cached_pages(path) - before, 'samples were loaded') <= 64


def test_empty_file_is_cached(path: pathlib.Path) -> None:
    path.touch()
    assert pagecache.is_mostly_cached(str(path))
