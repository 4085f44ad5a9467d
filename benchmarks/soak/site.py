# SPDX-License-Identifier: Apache-2.0
"""The parts of a soak: a small disk, images in a real Glance, computes that share a cache."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

from benchmarks import compute, images
from benchmarks.images import KIB, MIB
from nova_precache.cache import layout

DISK_BYTES = 1024 * MIB
_OPTIONS: compute.Options = {
    'image_cache': {
        'reserved_disk_bytes': 16 * MIB,
        'max_parallel_downloads': 3,
        'manager_interval': 60,
    },
    'glance': {'read_timeout_seconds': 3, 'num_retries': 1},
}


@dataclasses.dataclass(frozen=True)
class SoakImage:
    """An image in Glance, and the expected content of its base file."""

    name: str
    id: str
    expected: pathlib.Path
    sha256: str


# By name: size and data in bytes, and the options of its conversion from raw.
_IMAGES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    'raw-tiny': (64 * KIB, 64 * KIB, ()),
    'raw-odd': (5 * MIB + 12345, 5 * MIB, ()),
    'raw-small': (24 * MIB, 24 * MIB, ()),
    'raw-large': (160 * MIB, 160 * MIB, ()),
    'raw-sparse': (96 * MIB, 12 * MIB, ()),
    'qcow2-small': (8 * MIB, 8 * MIB, ('-O', 'qcow2')),
    'qcow2-large': (80 * MIB, 80 * MIB, ('-O', 'qcow2')),
    'qcow2-sparse': (128 * MIB, 16 * MIB, ('-O', 'qcow2')),
    'qcow2-compressed': (32 * MIB, 16 * MIB, ('-c', '-O', 'qcow2')),
    'vmdk-stream': (24 * MIB, 16 * MIB, ('-O', 'vmdk', '-o', 'subformat=streamOptimized')),
}


def upload_images(glance: images.Glance, directory: pathlib.Path) -> list[SoakImage]:
    """Create images of several formats and sizes and upload them."""
    directory.mkdir()
    made = []
    for seed, (name, (size, data, options)) in enumerate(_IMAGES.items()):
        expected = images.holes(directory / name, size, data, seed)
        uploaded = expected
        disk_format = options[options.index('-O') + 1] if options else 'raw'
        if options:
            uploaded = images.converted(expected, directory / f'{name}.converted', *options)
        with expected.open('rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        made.append(SoakImage(name, glance.upload(uploaded, disk_format), expected, digest))
        if options:
            uploaded.unlink()
    return made


def new_compute(store: pathlib.Path, glance_url: str, log: pathlib.Path) -> compute.Compute:
    return compute.Compute(store / 'instances', glance_url, log, _OPTIONS)


def cache_layout(store: pathlib.Path) -> layout.CacheLayout:
    return layout.CacheLayout(str(store / 'instances'))


class Disk:
    """The file system of the cache.

    :ivar is_own: it holds the cache alone, so it can be filled
    """

    def __init__(self, path: pathlib.Path, *, is_own: bool) -> None:
        self.path = path
        self.is_own = is_own
        self._ballast = path / 'ballast'

    def fill(self, left_bytes: int) -> None:
        """Fill the disk up to some free bytes."""
        if not self.is_own:
            return
        status = os.statvfs(self.path)
        size = status.f_bavail * status.f_frsize - left_bytes
        with self._ballast.open('wb') as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def new_disk(path: pathlib.Path, *, is_own: bool) -> Iterator[Disk]:
    """Mount a small file system, if this process is in a mount namespace of its own."""
    path.mkdir()
    if not is_own:
        yield Disk(path, is_own=False)
        return
    options = f'size={DISK_BYTES}'
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'soak', str(path)], check=True)
    try:
        yield Disk(path, is_own=True)
    finally:
        subprocess.run(['umount', '--lazy', str(path)], check=True)


def namespace_command() -> list[str] | None:
    """Return the command that runs another in a mount namespace, or None if none works."""
    for options in (['--mount'], ['--user', '--map-root-user', '--mount']):
        command = ['unshare', *options, '--propagation', 'private', '--']
        if shutil.which('unshare') is None:
            return None
        if subprocess.run([*command, 'true'], check=False, capture_output=True).returncode == 0:
            return command
    return None
