# SPDX-License-Identifier: Apache-2.0
"""A cache in a temporary directory."""

import os
import pathlib
import subprocess
import sys

import pytest

from nova_precache.cache import filler, layout, locks, store
from nova_precache.download import engine, retry
from nova_precache.image import fake
from nova_precache.inspection import convert, formats, qemu_img

# Another process that takes the lock as Nova does, says so, and holds it until told.
_HOLDER = """
import sys
from oslo_concurrency import lockutils
with lockutils.lock(sys.argv[2], 'nova-', external=True, lock_path=sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def held_by_another_process(directory: str | pathlib.Path, name: str) -> subprocess.Popen[str]:
    """Have a lock held until the process is talked to."""
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
    """A cache as a driver puts it together."""

    def __init__(
        self, paths: layout.CacheLayout, *, force_raw: bool = True, reserved_bytes: int = 0
    ) -> None:
        self.paths = paths
        self.backing_files: set[str] = set()
        self.locks = locks.ImageLocks(paths.lock_directory)
        self.store = store.CacheStore(paths, force_raw=force_raw, reserved_bytes=reserved_bytes)
        self.store.prepare()
        qemu = qemu_img.QemuImg()
        inspector = formats.ImageInspector(qemu, ['streamOptimized', 'monolithicSparse'])
        self.filler = filler.CacheFiller(
            store=self.store,
            image_locks=self.locks,
            downloader=engine.Downloader(
                resume=retry.ResumePolicy(max_opens=2, sleep=lambda seconds: None)
            ),
            inspector=inspector,
            converter=convert.Converter(qemu, inspector),
            force_raw=force_raw,
            is_backing=self.backing_files.__contains__,
        )

    def names(self) -> list[str]:
        """List the directory of base files."""
        return sorted(os.listdir(self.paths.base_directory))

    def base_file(self, image_id: str) -> pathlib.Path:
        return pathlib.Path(self.paths.base_path(image_id))


@pytest.fixture
def cache(paths: layout.CacheLayout) -> Cache:
    return Cache(paths)
