# SPDX-License-Identifier: Apache-2.0
"""Good and hostile images through a whole driver: what is published, what remains, at what cost."""

import functools
import os
import pathlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from nova_precache import conf as precache_conf, exception, model
from nova_precache.cache import layout
from nova_precache.image import fake
from nova_precache.virt import libvirt
from tests import disk_images, image_corpus

LARGE_BYTES = 16 * disk_images.MIB
# How much of a large image may be read before it is refused.
EARLY_BYTES = 4 * disk_images.MIB

pytestmark = pytest.mark.usefixtures('qemu_img')


class Host:
    """A compute, its cache and an image service."""

    def __init__(self, directory: pathlib.Path, **options: object) -> None:
        self.images = fake.FakeImageService()
        self._directory = directory / 'instances'
        conf = precache_conf.new([], [])
        conf.set_override('instances_path', str(self._directory))
        for name, value in {'reserved_disk_bytes': 0, 'idle_priority': False, **options}.items():
            conf.set_override(name, value, 'image_cache')
        self._driver = libvirt.LibvirtDriver(conf)
        self._driver.init_host()

    def cache(self, data: bytes, disk_format: str) -> str | None:
        """Cache an image; return the reason of a failure, or None."""
        image = self.images.add(data, disk_format=disk_format)
        try:
            self._driver.cache_image(self.images, image.id, lambda progress: None)
        except exception.CacheError as exc:
            return str(exc) if exc.retry == model.Retry.NEVER else f'to be tried again: {exc}'
        return None

    def take_published(self) -> list[bytes]:
        """Return and remove the content of the directory, which must be base files only."""
        found = sorted((self._directory / '_base').iterdir())
        known = set(map(layout.base_name, self.images._images))
        assert {path.name for path in found} <= known
        contents = [path.read_bytes() for path in found]
        for path in found:
            path.unlink()
        return contents


@pytest.fixture(scope='module')
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp('host'), max_virtual_size_bytes=LARGE_BYTES)


@pytest.fixture(scope='module', params=image_corpus.CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[pathlib.Path]:
    path = tmp_path_factory.mktemp('image') / 'image'
    yield image_corpus.CASES[name].make(path)
    path.unlink()


def claims(name: str) -> list[str]:
    """The formats that the table claims for an image, and a false one."""
    told = list(image_corpus.CASES[name].verdicts)
    return told + [each for each in image_corpus.DISK_FORMATS if each not in told][:1]


def test_image_published_as_qemu_reads_it(host: Host, image: pathlib.Path, name: str) -> None:
    data = image.read_bytes()
    for disk_format in claims(name):
        verdict = image_corpus.CASES[name].verdict(disk_format)
        reason = host.cache(data, disk_format)
        if verdict.reason is None:
            assert reason is None, disk_format
            assert host.take_published() == [disk(image, disk_format)]
        else:
            expected = 'max_virtual_size_bytes' if verdict.too_large else verdict.reason
            # An image service has no empty images.
            assert expected in str(reason) or not data, disk_format
            assert host.take_published() == []


def disk(image: pathlib.Path, disk_format: str) -> bytes:
    qemu_format = image_corpus.QEMU_FORMATS.get(disk_format, disk_format)
    return image.read_bytes() if qemu_format == 'raw' else disk_images.as_raw(image, qemu_format)


def test_large_unsafe_image_cut_early(host: Host, image: pathlib.Path, name: str) -> None:
    large = image.read_bytes().ljust(LARGE_BYTES, b'\0')
    for disk_format in claims(name):
        verdict = image_corpus.CASES[name].verdict(disk_format)
        if not verdict.early:
            continue
        before = host.images.served_bytes
        assert str(verdict.reason) in str(host.cache(large, disk_format))
        assert host.images.served_bytes - before <= EARLY_BYTES
        assert host.take_published() == []


@pytest.mark.parametrize('disk_format', ['ploop', 'qed', 'luks', None])
def test_unsupported_format_downloads_nothing(host: Host, disk_format: str | None) -> None:
    before = host.images.served_bytes
    assert 'is not supported' in str(host.cache(bytes(LARGE_BYTES), str(disk_format)))
    assert host.images.served_bytes == before
    assert host.take_published() == []


@pytest.mark.parametrize('disk_format', ['qcow2', 'vmdk', 'vhdx', 'vdi', 'vhd'])
def test_oversized_disk_refused_at_header(tmp_path: pathlib.Path, disk_format: str) -> None:
    host = Host(tmp_path, max_virtual_size_bytes=8 * disk_images.MIB)
    path = tmp_path / 'image'
    qemu_format = image_corpus.QEMU_FORMATS.get(disk_format, disk_format)
    disk_images.qemu_img('create', '-f', qemu_format, str(path), '1G')
    # The next bytes would make it another image, but are never read.
    large = path.read_bytes().ljust(LARGE_BYTES, b'\0')[:LARGE_BYTES]
    assert 'max_virtual_size_bytes' in str(host.cache(large, disk_format))
    assert host.images.served_bytes <= EARLY_BYTES
    assert host.take_published() == []


HEADERS = {
    # The bytes of each format where flipped bits matter most.
    'qcow2': range(112),
    'vmdk': range(0x200 + 512),
    'vhd': range(512 + 1024),
    'vhdx': (
        *range(64),
        *range(192 * 1024, 192 * 1024 + 96),
        *range(2 * 1024**2, 2 * 1024**2 + 256),
    ),
    'vdi': range(512),
    'raw': (*range(512), *range(32 * 1024, 32 * 1024 + 16)),
}


@functools.cache
def valid(disk_format: str, directory: pathlib.Path) -> bytes:
    return image_corpus.CASES[disk_format].make(directory / disk_format).read_bytes()


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, dict[int, int]]:
    """Choose a format and the bytes to replace, by their offset in its header."""
    disk_format = draw(st.sampled_from(sorted(HEADERS)))
    places = st.sampled_from(HEADERS[disk_format])
    return disk_format, draw(st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=4))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choice=spoilt())
def test_any_header_publishes_only_image_bytes(
    host: Host, tmp_path_factory: pytest.TempPathFactory, choice: tuple[str, dict[int, int]]
) -> None:
    disk_format, bytes_by_place = choice
    directory = tmp_path_factory.getbasetemp()
    data = bytearray(valid(disk_format, directory))
    for place, value in bytes_by_place.items():
        data[place] = value
    path = directory / 'spoilt'
    path.write_bytes(data)
    if host.cache(bytes(data), disk_format) is None:
        assert host.take_published() == [disk(path, disk_format)]
    else:
        assert host.take_published() == []


def test_every_valid_header_accepted(host: Host, tmp_path: pathlib.Path) -> None:
    for disk_format in HEADERS:
        assert host.cache(valid(disk_format, tmp_path), disk_format) is None
    assert len(host.take_published()) == len(HEADERS)
    assert os.listdir(tmp_path)
