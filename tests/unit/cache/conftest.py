# SPDX-License-Identifier: Apache-2.0
"""A cache in a temporary directory."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from nova_precache.cache import layout, locks, partials, populator, space, store, sweeper
from nova_precache.download import engine, rate_limit, retry
from nova_precache.image import fake
from nova_precache.inspection import convert, formats, qemu_img

MAX_PARALLEL = 8
# Small enough that tiny images use all of it, however slow the disk is.
SYNC_RULES = partials.SyncRules(
    write_back_bytes=64 * 1024, sync_bytes=256 * 1024, sync_seconds=3600
)

# Another process that takes the lock as Nova does, reports it, and holds it until told.
_HOLDER = """
import sys
from oslo_concurrency import lockutils
with lockutils.lock(sys.argv[2], 'nova-', external=True, lock_path=sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def held_by_another_process(directory: str | pathlib.Path, name: str) -> subprocess.Popen[str]:
    """Hold a lock in another process until it reads from its input."""
    process = subprocess.Popen(
        [sys.executable, '-c', _HOLDER, str(directory), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == 'held\n'
    return process


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> layout.CacheLayout:
    return layout.CacheLayout(str(tmp_path / 'instances'))


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


class Cache:
    """A cache, wired as a driver does it."""

    def __init__(
        self,
        paths: layout.CacheLayout,
        *,
        force_raw: bool = True,
        reserved_bytes: int = 0,
        max_virtual_size_bytes: int = 0,
        allow_unverified: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.paths = paths
        self.backing_files: set[str] = set()
        self.locks = locks.ImageLocks(paths.lock_directory)
        self.store = store.CacheStore(
            paths,
            force_raw=force_raw,
            clock=clock,
        )
        self.space = space.CacheSpace(paths, reserved_bytes)
        self.sweeper = sweeper.Sweeper(self.store, self.locks, partial_max_age_seconds=100)
        self.store.prepare()
        self.partials = partials.Partials(paths, SYNC_RULES)
        self.pace = rate_limit.HostRateLimit(max_parallel=MAX_PARALLEL)
        qemu = qemu_img.QemuImg()
        self.inspector = formats.ImageInspector(qemu, ['streamOptimized', 'monolithicSparse'])
        self.filler = populator.CachePopulator(
            store=self.store,
            space=self.space,
            image_locks=self.locks,
            downloader=engine.Downloader(
                allow_unverified=allow_unverified,
                resume=retry.ResumePolicy(max_opens=2, first_delay_seconds=0),
                pace=self.pace,
            ),
            inspector=self.inspector,
            converter=convert.Converter(qemu, self.inspector),
            pace=self.pace,
            force_raw=force_raw,
            is_backing=self.backing_files.__contains__,
            max_virtual_size_bytes=max_virtual_size_bytes,
            sync_rules=SYNC_RULES,
        )

    def names(self) -> list[str]:
        """List the directory of base files."""
        return sorted(os.listdir(self.paths.base_directory))

    def suffixes(self) -> list[str]:
        """List the kinds of partial files present."""
        return [name.rpartition('.')[2] for name in self.names() if '.' in name]

    def file_of(self, suffix: str) -> pathlib.Path:
        """Return the only partial file of a kind."""
        [name] = [name for name in self.names() if name.endswith(f'.{suffix}')]
        return pathlib.Path(self.paths.path_of(name))

    def base_file(self, image_id: str) -> pathlib.Path:
        return pathlib.Path(self.paths.base_path(image_id))


@pytest.fixture
def cache(paths: layout.CacheLayout) -> Cache:
    return Cache(paths)


def cached_bytes(path: str | os.PathLike[str]) -> int:
    """Return how many bytes of a file are in the page cache."""
    result = subprocess.run(
        ['fincore', '--bytes', '--noheadings', '--output', 'RES', str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.skip(f'the page cache cannot be looked at here: {result.stderr.strip()}')
    return int(result.stdout)


@pytest.fixture
def drops_pages(cache: Cache) -> None:
    """Skip on a file system that is nothing but page cache."""
    probe = pathlib.Path(cache.paths.instances_path, 'probe')
    with probe.open('wb') as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes(probe):
        pytest.skip('this file system lives in the page cache')


class Refusal:
    """Makes a system call fail while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
        self.is_on = False
        self._error = OSError(number, os.strerror(number))
        self._real = getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments: object) -> object:
        if self.is_on:
            raise self._error
        return self._real(*arguments)
