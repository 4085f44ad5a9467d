# SPDX-License-Identifier: Apache-2.0
"""What is known of an image while it arrives, and what that costs."""

import pathlib
import time

import pytest

from nova_precache import exception
from nova_precache.inspection import formats, qemu_img, watch
from tests import disk_images, image_corpus

GIB = 1024**3


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'image'


@pytest.fixture
def inspector() -> formats.ImageInspector:
    return formats.ImageInspector(qemu_img.QemuImg(), ('streamOptimized', 'monolithicSparse'))


@pytest.fixture
def sizes() -> list[int]:
    return []


def feed(watching: watch.ImageWatch, data: bytes) -> None:
    """Feed the start of a large image."""
    watching.feed(memoryview(data.ljust(watch.MAX_BYTES, b'\0')))


@pytest.mark.parametrize('disk_format', ['ploop', 'qed', 'luks', '', None])
def test_unsupported_format_refused_before_download(
    inspector: formats.ImageInspector, sizes: list[int], disk_format: str | None
) -> None:
    with pytest.raises(exception.UnsafeImage, match=f'{disk_format} is not supported'):
        inspector.watch(disk_format, sizes.append)


@pytest.mark.usefixtures('qemu_img')
@pytest.mark.parametrize(
    ('row', 'size_bytes'),
    [
        ('qcow2', disk_images.MIB),
        ('vmdk', disk_images.MIB),
        ('vmdk with footer', disk_images.MIB),
        ('vhdx', disk_images.MIB),
        ('vdi', disk_images.MIB),
        ('vhd', disk_images.MIB),
    ],
)
def test_disk_size_reported_once_when_known(
    inspector: formats.ImageInspector,
    path: pathlib.Path,
    sizes: list[int],
    row: str,
    size_bytes: int,
) -> None:
    case = image_corpus.CASES[row]
    watching = inspector.watch(case.content, sizes.append)
    feed(watching, case.make(path).read_bytes())
    watching.feed(memoryview(bytes(disk_images.MIB)))
    assert sizes == [size_bytes]


@pytest.mark.usefixtures('qemu_img')
def test_vhd_size_is_minimum_for_qemu(
    inspector: formats.ImageInspector, path: pathlib.Path, sizes: list[int]
) -> None:
    disk_images.converted(path, 'vpc', '-o', 'subformat=dynamic', size_bytes=3 * disk_images.MIB)
    feed(inspector.watch('vhd', sizes.append), path.read_bytes())
    found = inspector.inspect(str(path), 'vhd').virtual_size_bytes
    assert sizes
    assert 3 * disk_images.MIB <= sizes[0] <= found


@pytest.mark.parametrize('make', [disk_images.raw, disk_images.gpt])
def test_raw_disk_size_not_reported(
    inspector: formats.ImageInspector,
    path: pathlib.Path,
    sizes: list[int],
    make: image_corpus.Make,
) -> None:
    feed(inspector.watch('raw', sizes.append), make(path).read_bytes())
    assert sizes == []


@pytest.mark.usefixtures('qemu_img')
def test_refused_size_stops_download(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    disk_images.qemu_img('create', '-f', 'qcow2', str(path), '40G')

    def refuse(size_bytes: int) -> None:
        raise exception.NotEnoughSpace(f'{size_bytes} bytes')

    with pytest.raises(exception.NotEnoughSpace, match=str(40 * GIB)):
        feed(inspector.watch('qcow2', refuse), path.read_bytes())


@pytest.mark.usefixtures('qemu_img')
def test_restart_begins_at_first_byte(
    inspector: formats.ImageInspector, path: pathlib.Path, sizes: list[int]
) -> None:
    """A size that was reported is not reported again, but a different one is."""
    small = disk_images.converted(path, 'qcow2').read_bytes()
    large = disk_images.converted(path, 'qcow2', size_bytes=2 * disk_images.MIB).read_bytes()
    watching = inspector.watch('qcow2', sizes.append)
    for data in (small, small, large):
        watching.feed(memoryview(data[:100_000]))
        watching.restart()
        feed(watching, data)
        watching.restart()
    assert sizes == [disk_images.MIB, 2 * disk_images.MIB]
    with pytest.raises(exception.UnsafeImage, match='the content is raw'):
        feed(watching, b'')


@pytest.mark.parametrize('disk_format', ['raw', 'qcow2'])
def test_watch_ends_at_known_size(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str
) -> None:
    """Compared with the half second to hash as much, this is invisible."""
    watching = inspector.watch(disk_format, lambda size_bytes: None)
    if disk_format == 'qcow2':
        path.write_bytes(b'QFI\xfb\0\0\0\3'.ljust(24, b'\0') + bytes(512))
        feed(watching, path.read_bytes())
    piece = memoryview(bytearray(disk_images.MIB))
    watching.feed(piece)
    before = time.thread_time()
    for _ in range(1024):
        watching.feed(piece)
    assert watching._recogniser is None
    assert time.thread_time() - before < 0.2


def test_endless_header_left_to_file_inspection(
    inspector: formats.ImageInspector, sizes: list[int]
) -> None:
    """The tables of a VHDX may be anywhere."""
    data = bytearray(b'vhdxfile'.ljust(watch.MAX_BYTES, b'\0'))
    region = bytes.fromhex('06a27c8b90479a4bb8fe575f050f886e') + (1 << 40).to_bytes(8, 'little')
    data[192 * 1024 : 192 * 1024 + 4] = b'regi'
    data[192 * 1024 + 8] = 1
    data[192 * 1024 + 16 : 192 * 1024 + 16 + len(region)] = region
    watching = inspector.watch('vhdx', sizes.append)
    watching.feed(memoryview(data))
    assert watching._recogniser is None
    assert sizes == []
