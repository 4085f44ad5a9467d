# SPDX-License-Identifier: Apache-2.0
"""Whatever can be checked before a download is checked before it."""

import os
import pathlib
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from nova_precache import exception, model
from nova_precache.cache import layout
from nova_precache.image import fake
from tests import disk_images
from tests.unit.cache.conftest import Cache

pytestmark = pytest.mark.usefixtures('qemu_img')

DATA = disk_images.content(1024**2)


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


def _bind(path: pathlib.Path) -> None:
    """Bind a socket, whose name must be short."""
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f'/proc/self/fd/{here}/{path.name}')
        os.close(here)


PLACES: dict[str, Callable[[pathlib.Path], object]] = {
    'a directory': lambda path: path.mkdir(),
    'a directory with files': lambda path: (path / 'in' / 'it').mkdir(parents=True),
    'a FIFO': os.mkfifo,
    'a socket': _bind,
    'a link to nothing': lambda path: path.symlink_to('nothing'),
    'a link to a directory': lambda path: path.symlink_to('.'),
}


@pytest.mark.parametrize('make', PLACES.values(), ids=PLACES.keys())
def test_occupied_name_detected_and_kept(
    cache: Cache, images: fake.FakeImageService, make: Callable[[pathlib.Path], object]
) -> None:
    image = images.add(DATA)
    make(cache.base_file(image.id))
    with pytest.raises(exception.PlaceTaken, match='which the image cannot replace') as refused:
        cache.filler.fill(images, image.id, ignore)
    assert refused.value.retry == model.Retry.NEVER
    assert images.opens == []
    assert cache.names() == [layout.base_name(image.id)]


def test_unreplaceable_file_is_detected(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    path = cache.base_file(image.id)
    path.touch()
    made = subprocess.run(['chattr', '+i', path], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip('the file system knows no such file')
    try:
        with pytest.raises(exception.PlaceTaken, match='cannot be replaced'):
            cache.filler.fill(images, image.id, ignore)
    finally:
        subprocess.run(['chattr', '-i', path], check=True)
    assert images.opens == []


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Return a function that limits the file size of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_oversized_file_is_detected(
    cache: Cache, images: fake.FakeImageService, file_limit: Callable[[int], None]
) -> None:
    image = images.add(DATA)
    file_limit(len(DATA) // 2)
    with pytest.raises(exception.NotEnoughSpace, match='File too large'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []
    assert cache.names() == []


def test_oversized_converted_file_detected(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    file_limit: Callable[[int], None],
) -> None:
    source = disk_images.qcow2_of(tmp_path / 'image.qcow2', DATA).read_bytes()
    image = images.add(source, disk_format='qcow2', virtual_size=64 * 1024**2)
    file_limit(16 * 1024**2)
    with pytest.raises(exception.NotEnoughSpace, match='File too large'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []
    assert cache.names() == []


def test_missing_qemu_img_detected(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.add(DATA)
    monkeypatch.setenv('PATH', '/nonexistent')
    with pytest.raises(exception.ConversionFailed, match='qemu-img is not installed'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []


@pytest.mark.parametrize('force_raw', [True, False])
@pytest.mark.parametrize(
    ('container_format', 'disk_format', 'named'),
    [
        *((packed, 'raw', packed) for packed in ('compressed', 'docker', 'ova')),
        *((packed, 'qcow2', packed) for packed in ('compressed', 'docker', 'ova')),
        *((part, part, part) for part in ('aki', 'ari')),
        ('bare', 'aki', 'aki'),
        ('ari', 'raw', 'ari'),
    ],
)
def test_unbootable_image_is_detected(
    cache: Cache,
    images: fake.FakeImageService,
    container_format: str,
    disk_format: str,
    named: str,
    force_raw: bool,
) -> None:
    cache = cache if force_raw else Cache(cache.paths, force_raw=False)
    image = images.add(DATA, container_format=container_format, disk_format=disk_format)
    with pytest.raises(exception.UnbootableImage, match=f'{image.id} .*{named}') as refused:
        cache.filler.fill(images, image.id, ignore)
    assert refused.value.retry == model.Retry.NEVER
    assert images.opens == []
    assert cache.names() == []


@pytest.mark.parametrize('force_raw', [True, False])
@pytest.mark.parametrize('disk_format', [None, 'ploop', 'unknown', 'compressed'])
def test_unbootable_disk_format_detected(
    cache: Cache, images: fake.FakeImageService, disk_format: str | None, force_raw: bool
) -> None:
    cache = cache if force_raw else Cache(cache.paths, force_raw=False)
    image = images.add(DATA, disk_format=disk_format)
    with pytest.raises(exception.UnsafeImage, match=f'disk_format {disk_format}'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []
    assert cache.names() == []


@pytest.mark.parametrize('force_raw', [True, False])
@pytest.mark.parametrize(
    ('container_format', 'disk_format'),
    [
        *((name, 'raw') for name in ('bare', 'ovf', 'ami', None, 'one-of-this-site')),
        ('ami', 'ami'),
        ('ovf', 'ami'),
    ],
)
def test_bootable_image_cached_with_any_container(
    cache: Cache,
    images: fake.FakeImageService,
    container_format: str | None,
    disk_format: str,
    force_raw: bool,
) -> None:
    cache = cache if force_raw else Cache(cache.paths, force_raw=False)
    image = images.add(DATA, container_format=container_format, disk_format=disk_format)
    assert not cache.filler.fill(images, image.id, ignore).existing


def test_exhausted_names_are_detected(
    tmp_path: pathlib.Path, images: fake.FakeImageService
) -> None:
    """The journal and the partial file get a name, the converted file does not."""
    path = tmp_path / 'small'
    path.mkdir()
    # The root, instances_path's two directories, the lock file, the journal, the partial file.
    command = ['mount', '-t', 'tmpfs', '-o', 'nr_inodes=6', 'tmpfs', str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip('a file system cannot be mounted here')
    try:
        cache = Cache(layout.CacheLayout(str(path)))
        source = disk_images.qcow2_of(tmp_path / 'image.qcow2', DATA).read_bytes()
        image = images.add(source, disk_format='qcow2')
        with pytest.raises(exception.NotEnoughSpace, match='No space left'):
            cache.filler.fill(images, image.id, ignore)
        assert images.opens == []
        assert cache.names() == []
    finally:
        subprocess.run(['umount', str(path)], check=True)
