# SPDX-License-Identifier: Apache-2.0
"""Our libvirt driver beside stock Nova's own code, on one directory.

Only Nova can answer whether it takes our base file for its own, whether its boot uses the
file without a download, and whether its lock and ours are the same.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest

from nova_precache import conf as precache_conf, exception, model
from nova_precache.image import glance as glance_images
from nova_precache.standalone import glance as glance_server
from nova_precache.virt import libvirt
from tests import disk_images, gateway as site_link, service as doors
from tests.conftest import UploadImage, require_environment
from tools.servers import nova
from tools.servers.nova import libvirt_compute
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.usefixtures('qemu_img')

MIB = disk_images.MIB
GIB = 1024**3
DAY_SECONDS = 86400


@pytest.fixture(scope='module')
def link(glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    """The link to Glance that Nova and we share; it counts the downloads."""
    with site_link.Gateway(glance.url) as gateway:
        yield gateway


@pytest.fixture(scope='module')
def compute(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[libvirt_compute.LibvirtCompute]:
    """Stock Nova's libvirt driver, in a process of its own."""
    require_environment(nova.ENVIRONMENT)
    with libvirt_compute.LibvirtCompute(tmp_path_factory.mktemp('nova')) as started:
        yield started


@dataclasses.dataclass(frozen=True)
class Host:
    """A directory of instances, used by our driver and by Nova's."""

    compute: libvirt_compute.LibvirtCompute
    link: site_link.Gateway
    instances_path: pathlib.Path
    force_raw: bool = True

    def ours(self) -> libvirt.LibvirtDriver:
        """Start our driver on the directory."""
        conf = precache_conf.new([], [])
        conf.set_override('instances_path', str(self.instances_path))
        conf.set_override('force_raw_images', self.force_raw)
        conf.set_override('reserved_disk_bytes', 0, 'image_cache')
        driver = libvirt.LibvirtDriver(conf)
        driver.init_host()
        return driver

    def cache_image(self, image_id: str) -> model.CacheResult:
        """Cache an image with our driver."""
        return self.ours().cache_image(self._images(), image_id, lambda progress: None)

    def nova_caches(self, image_id: str, glance_url: str | None = None) -> str:
        """Cache an image with Nova and return the outcome; without a URL, Glance is unreachable."""
        outcome = self.compute.call('cache_image', self._options(), glance_url, image_id=image_id)
        return str(outcome)

    def nova_boots(
        self,
        image_id: str,
        *,
        images_type: str = 'qcow2',
        root_gib: int = 1,
        glance_url: str | None = None,
        instance: str | None = None,
    ) -> pathlib.Path:
        """Make a root disk with Nova, and return its path."""
        path = self.compute.call(
            'make_root_disk',
            self._options(images_type),
            glance_url,
            image_id=image_id,
            instance=instance or str(uuid.uuid4()),
            root_gb=root_gib,
        )
        return pathlib.Path(path)

    def nova_boots_with_kernel(
        self, bootable: 'Bootable', glance_url: str | None = None
    ) -> pathlib.Path:
        """Make the files of an instance with Nova, and return their directory."""
        path = self.compute.call(
            'make_disks',
            self._options(),
            glance_url,
            image_id=bootable.image,
            kernel_id=bootable.kernel,
            ramdisk_id=bootable.ramdisk,
            instance=str(uuid.uuid4()),
        )
        return pathlib.Path(path)

    def nova_cleans(
        self,
        instances: dict[str, str] | None = None,
        companions: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """Run Nova's image cache manager; it knows the images of these instances."""
        self.compute.call(
            'manage_image_cache',
            self._options(),
            None,
            instances=instances or {},
            companions=companions or {},
        )

    def base(self, image_id: str) -> pathlib.Path:
        return self.instances_path / '_base' / _sha1(image_id)

    def lock_file(self, image_id: str) -> pathlib.Path:
        return self.instances_path / 'locks' / f'nova-{_sha1(image_id)}'

    def names(self) -> list[str]:
        return sorted(os.listdir(self.instances_path / '_base'))

    def _images(self) -> glance_images.GlanceImageService:
        return glance_images.GlanceImageService.with_token(
            glance_images.GlanceSettings(), endpoint=self.link.url, token=None
        )

    def _options(self, images_type: str = 'qcow2') -> libvirt_compute.Options:
        return {
            'DEFAULT': {
                'instances_path': str(self.instances_path),
                'force_raw_images': self.force_raw,
            },
            'libvirt': {'images_type': images_type},
        }


def _sha1(image_id: str) -> str:
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def host(
    compute: libvirt_compute.LibvirtCompute, link: site_link.Gateway, tmp_path: pathlib.Path
) -> Iterator[Host]:
    """A host without instances, with the defaults of Nova and of our service."""
    yield Host(compute, link, tmp_path / 'instances')
    link.release()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of image: Glance's name of its format, and how to make one."""

    disk_format: str
    qemu_format: str
    make: Callable[[pathlib.Path], pathlib.Path]


def _converted(disk_format: str, qemu_format: str, *options: str) -> Kind:
    return Kind(
        disk_format,
        qemu_format,
        lambda path: disk_images.converted(path, qemu_format, *options),
    )


KINDS = {
    'raw': Kind('raw', 'raw', disk_images.raw),
    'partitioned raw': Kind('raw', 'raw', disk_images.gpt),
    'ami': Kind('ami', 'raw', disk_images.raw),
    'iso': Kind('iso', 'raw', disk_images.iso),
    'iso with partitions': Kind('iso', 'raw', disk_images.iso_with_gpt),
    'qcow2': _converted('qcow2', 'qcow2'),
    'compressed qcow2': _converted('qcow2', 'qcow2', '-c'),
    'sparse vmdk': _converted('vmdk', 'vmdk', '-o', 'subformat=monolithicSparse'),
    'stream vmdk': _converted('vmdk', 'vmdk', '-o', 'subformat=streamOptimized'),
    'vdi': _converted('vdi', 'vdi'),
    'vhdx': _converted('vhdx', 'vhdx'),
}
FILLINGS = [
    *((kind, True) for kind in KINDS),
    *((kind, False) for kind in ('raw', 'qcow2', 'compressed qcow2')),
]


@dataclasses.dataclass(frozen=True)
class Filled:
    """A host on which we cached an image."""

    host: Host
    kind: Kind
    image_id: str
    original: pathlib.Path


@pytest.fixture(
    scope='module',
    params=FILLINGS,
    ids=[f'{kind}{"" if force_raw else ", kept"}' for kind, force_raw in FILLINGS],
)
def filled(
    request: pytest.FixtureRequest,
    compute: libvirt_compute.LibvirtCompute,
    link: site_link.Gateway,
    upload_image: UploadImage,
    tmp_path_factory: pytest.TempPathFactory,
) -> Filled:
    """An image of each kind that Nova boots, cached by us, with raw forced and not."""
    name, force_raw = request.param
    directory = tmp_path_factory.mktemp('filled')
    kind = KINDS[name]
    original = kind.make(directory / 'original')
    image_id = upload_image(original, disk_format=kind.disk_format)
    host = Host(compute, link, directory / 'instances', force_raw)
    assert not host.cache_image(image_id).existing
    return Filled(host, kind, image_id, original)


def test_nova_finds_and_touches_our_file(filled: Filled) -> None:
    base = filled.host.base(filled.image_id)
    os.utime(base, (1, 1))
    before = base.read_bytes()
    assert filled.host.nova_caches(filled.image_id) == 'existing'
    assert time.time() - base.stat().st_mtime < DAY_SECONDS
    assert base.read_bytes() == before


def test_nova_overlay_boots_without_download(filled: Filled) -> None:
    disk = filled.host.nova_boots(filled.image_id, images_type='qcow2')
    info = describe(disk)
    assert info['format'] == 'qcow2'
    assert info['backing-filename'] == str(filled.host.base(filled.image_id))
    assert info['virtual-size'] == GIB
    assert_same_guest_content(disk, 'qcow2', filled)
    assert len(filled.host.link.served(filled.image_id)) == 1


def test_nova_copy_boots_without_download(filled: Filled) -> None:
    disk = filled.host.nova_boots(filled.image_id, images_type='raw')
    info = describe(disk)
    kept = not filled.host.force_raw
    assert info['format'] == (filled.kind.qemu_format if kept else 'raw')
    assert 'backing-filename' not in info
    assert_same_guest_content(disk, str(info['format']), filled)
    assert len(filled.host.link.served(filled.image_id)) == 1


def describe(disk: pathlib.Path) -> dict[str, Any]:
    return dict(json.loads(disk_images.qemu_img('info', '--output=json', str(disk))))


def assert_same_guest_content(disk: pathlib.Path, qemu_format: str, filled: Filled) -> None:
    """Check that a guest finds the image on its disk, followed by nothing but zeros."""
    formats = ('-f', qemu_format, '-F', filled.kind.qemu_format)
    disk_images.qemu_img('compare', *formats, str(disk), str(filled.original))


def test_files_equal_those_of_nova(filled: Filled, tmp_path: pathlib.Path) -> None:
    ours = filled.host
    theirs = dataclasses.replace(ours, instances_path=tmp_path / 'instances')
    outcome = theirs.nova_caches(filled.image_id, ours.link.url)
    assert outcome == 'cached'
    assert theirs.names() == ours.names() == [_sha1(filled.image_id)]
    theirs.nova_boots(filled.image_id)  # takes the lock, which Nova's caching does not
    assert ours.base(filled.image_id).read_bytes() == theirs.base(filled.image_id).read_bytes()
    for path in ('_base', 'locks'):
        assert access(ours.instances_path / path) == access(theirs.instances_path / path)
    for find in (Host.base, Host.lock_file):
        assert access(find(ours, filled.image_id)) == access(find(theirs, filled.image_id))


def access(path: pathlib.Path) -> tuple[str, int, int]:
    """Return mode and owners of a file, which decide who may use it."""
    status = path.stat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid


def test_nova_overlay_boots_from_kept_vmdk(
    compute: libvirt_compute.LibvirtCompute,
    link: site_link.Gateway,
    upload_image: UploadImage,
    tmp_path: pathlib.Path,
) -> None:
    """Nova copies only raw and qcow2 files, also from its own cache."""
    kind = KINDS['stream vmdk']
    original = kind.make(tmp_path / 'original')
    image_id = upload_image(original, disk_format='vmdk')
    host = Host(compute, link, tmp_path / 'instances', force_raw=False)
    host.cache_image(image_id)
    disk = host.nova_boots(image_id)
    assert describe(disk)['backing-filename-format'] == 'vmdk'
    assert_same_guest_content(disk, 'qcow2', Filled(host, kind, image_id, original))
    with pytest.raises(libvirt_compute.NovaError, match='InvalidImageFormat'):
        host.nova_boots(image_id, images_type='raw')


def test_image_refused_by_nova_still_boots(
    host: Host, upload_image: UploadImage, tmp_path: pathlib.Path
) -> None:
    """Nova and qemu name the format differently, so Nova's check of a download fails."""
    original = disk_images.converted(tmp_path / 'original', 'vpc', '-o', 'force_size=on')
    image_id = upload_image(original, disk_format='vhd')
    with pytest.raises(libvirt_compute.NovaError, match='does not match disk_format'):
        host.nova_caches(image_id, host.link.url)
    host.cache_image(image_id)
    assert host.nova_caches(image_id) == 'existing'
    kind = Kind('vhd', 'vpc', disk_images.raw)
    assert_same_guest_content(
        host.nova_boots(image_id), 'qcow2', Filled(host, kind, image_id, original)
    )


HOSTILE: dict[str, tuple[str, Callable[[pathlib.Path], pathlib.Path]]] = {
    'qcow2 that says raw': ('raw', lambda path: disk_images.converted(path, 'qcow2')),
    'raw that says qcow2': ('qcow2', disk_images.raw),
    'iso that says raw': ('raw', disk_images.iso),
    'iso with partitions that says raw': ('raw', disk_images.iso_with_gpt),
    'encrypted qcow2': ('qcow2', disk_images.qcow2_encrypted),
    'luks that says raw': ('raw', disk_images.luks),
    'unknown format': ('ploop', disk_images.raw),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_image_refused_by_nova_refused(
    host: Host, upload_image: UploadImage, tmp_path: pathlib.Path, name: str
) -> None:
    disk_format, make = HOSTILE[name]
    image_id = upload_image(make(tmp_path / 'original'), disk_format=disk_format)
    with pytest.raises(libvirt_compute.NovaError, match=r'ImageUnacceptable|InvalidDiskInfo'):
        host.nova_caches(image_id, host.link.url)
    with pytest.raises(exception.UnsafeImage):
        host.cache_image(image_id)
    assert host.names() == []


def test_nova_refuses_too_small_root_disk(
    host: Host, upload_image: UploadImage, tmp_path: pathlib.Path
) -> None:
    original = tmp_path / 'original'
    disk_images.qemu_img('create', '-f', 'qcow2', str(original), str(2 * GIB))
    image_id = upload_image(original, disk_format='qcow2')
    host.cache_image(image_id)
    with pytest.raises(libvirt_compute.NovaError, match='FlavorDiskSmallerThanImage'):
        host.nova_boots(image_id, root_gib=1)
    assert describe(host.nova_boots(image_id, root_gib=2))['virtual-size'] == 2 * GIB


# Nova's image cache manager on our files


@pytest.fixture
def image_id(upload_image: UploadImage) -> str:
    """A raw image of a few pieces, as the link passes them."""
    return upload_image(disk_images.content(MIB))


def age(path: pathlib.Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_image_expired_by_nova_cached_again(host: Host, image_id: str) -> None:
    host.cache_image(image_id)
    age(host.base(image_id), DAY_SECONDS - 60)
    host.nova_cleans()
    assert host.names() == [_sha1(image_id)]
    age(host.base(image_id), DAY_SECONDS + 60)
    host.nova_cleans()
    assert host.names() == []
    assert not host.lock_file(image_id).exists()
    assert not host.cache_image(image_id).existing
    assert host.names() == [_sha1(image_id)]


def test_repeated_request_prevents_expiry_by_nova(host: Host, image_id: str) -> None:
    host.cache_image(image_id)
    age(host.base(image_id), DAY_SECONDS + 60)
    assert host.cache_image(image_id).existing
    host.nova_cleans()
    assert host.names() == [_sha1(image_id)]


def test_nova_keeps_base_file_in_use(host: Host, image_id: str) -> None:
    """Whether the instance is based on the file or was made from the image."""
    host.cache_image(image_id)
    instance = str(uuid.uuid4())
    host.nova_boots(image_id, instance=instance)
    age(host.base(image_id), DAY_SECONDS + 60)
    host.nova_cleans({instance: str(uuid.uuid4())})
    assert host.names() == [_sha1(image_id)]
    host.nova_cleans({str(uuid.uuid4()): image_id})
    assert time.time() - host.base(image_id).stat().st_mtime < DAY_SECONDS


def test_nova_leaves_our_other_files(host: Host, image_id: str) -> None:
    host.cache_image(image_id)
    ours = host.ours()
    store_id = ours.cache_report().store_id
    partials = [
        host.base(image_id).with_name(f'{_sha1(image_id)}.{uuid.uuid4().hex}.{suffix}')
        for suffix in ('part', 'converted')
    ]
    for path in partials:
        path.write_bytes(b'half')
        age(path, 30 * DAY_SECONDS)
    age(host.base(image_id), DAY_SECONDS + 60)
    host.nova_cleans()
    assert host.names() == sorted(path.name for path in partials)
    assert ours.cache_report().store_id == store_id


def test_our_expiry_keeps_novas_backing_files(host: Host, image_id: str) -> None:
    host.cache_image(image_id)
    disk = host.nova_boots(image_id)
    age(host.base(image_id), DAY_SECONDS + 60)
    host.ours().manage_image_cache()
    assert time.time() - host.base(image_id).stat().st_mtime < DAY_SECONDS
    shutil.rmtree(disk.parent)
    age(host.base(image_id), DAY_SECONDS + 60)
    host.ours().manage_image_cache()
    assert host.names() == []


@pytest.mark.parametrize('mark', ['compute_id', 'instances/compute_nodes'])
def test_expiry_left_to_detected_nova_compute(
    host: Host, image_id: str, tmp_path: pathlib.Path, mark: str
) -> None:
    host.cache_image(image_id)
    age(host.base(image_id), DAY_SECONDS + 60)
    host.compute.call(
        'leave_marks',
        {'DEFAULT': {'instances_path': str(host.instances_path), 'state_path': str(tmp_path)}},
        None,
    )
    (tmp_path / ({'compute_id', 'instances/compute_nodes'} - {mark}).pop()).unlink()
    assert (tmp_path / mark).exists()
    host.ours().manage_image_cache()
    assert host.names() == [_sha1(image_id)]
    host.nova_cleans()
    assert host.names() == []


# The lock, taken by each side in its own way


@contextlib.contextmanager
def downloads_held(link: site_link.Gateway) -> Iterator[None]:
    """Hold each download before its first byte, until released."""
    link.hold()
    try:
        yield
    finally:
        link.release()


def waits_for(process_id: int, lock_file: pathlib.Path) -> bool:
    """Return whether a process that does not hold the lock waits for it: its file is open then."""
    descriptors = pathlib.Path(f'/proc/{process_id}/fd')
    return any(_leads_to(each, lock_file) for each in descriptors.iterdir())


def _leads_to(descriptor: pathlib.Path, file: pathlib.Path) -> bool:
    try:
        return os.readlink(descriptor) == str(file)
    except FileNotFoundError:  # closed while they were listed, like the descriptor of the listing
        return False


def test_downloading_nova_boot_blocks_us(host: Host, image_id: str) -> None:
    host.ours()
    with futures.ThreadPoolExecutor() as pool, downloads_held(host.link):
        boot = pool.submit(host.nova_boots, image_id, glance_url=host.link.url)
        host.link.wait_for(1)
        asked = pool.submit(host.cache_image, image_id)
        doors.wait_until(
            lambda: waits_for(os.getpid(), host.lock_file(image_id)), 'we are at the lock'
        )
        assert not asked.done()
        host.link.release()
        assert asked.result(TIMEOUT_SECONDS) == model.CacheResult(existing=True)
        assert describe(boot.result(TIMEOUT_SECONDS))['backing-filename'] == str(
            host.base(image_id)
        )
    assert len(host.link.served(image_id)) == 1


def test_our_download_blocks_nova_boot(host: Host, image_id: str) -> None:
    with futures.ThreadPoolExecutor() as pool, downloads_held(host.link):
        asked = pool.submit(host.cache_image, image_id)
        host.link.wait_for(1)
        boot = pool.submit(host.nova_boots, image_id)
        doors.wait_until(
            lambda: waits_for(host.compute.pid, host.lock_file(image_id)), 'Nova is at the lock'
        )
        assert not boot.done()
        host.link.release()
        assert not asked.result(TIMEOUT_SECONDS).existing
        assert describe(boot.result(TIMEOUT_SECONDS))['backing-filename'] == str(
            host.base(image_id)
        )
    assert len(host.link.served(image_id)) == 1


def test_lockless_nova_precache_is_harmless(host: Host, image_id: str) -> None:
    with futures.ThreadPoolExecutor() as pool, downloads_held(host.link):
        asked = pool.submit(host.cache_image, image_id)
        host.link.wait_for(1)
        nova_asked = pool.submit(host.nova_caches, image_id, host.link.url)
        host.link.wait_for(2)
        host.link.release()
        assert not asked.result(TIMEOUT_SECONDS).existing
        assert nova_asked.result(TIMEOUT_SECONDS) == 'cached'
    assert host.names() == [_sha1(image_id)]
    assert host.base(image_id).read_bytes() == disk_images.content(MIB)


# Kernels and ramdisks

KERNEL = b'MZ' + os.urandom(508) + b'\x55\xaaHdrS' + os.urandom(MIB)
RAMDISK = b'QFI\xfb' + os.urandom(MIB)


@dataclasses.dataclass(frozen=True)
class Bootable:
    """The ids of an image in Glance, and of the kernel and ramdisk that it names."""

    image: str
    kernel: str
    ramdisk: str

    @property
    def all(self) -> tuple[str, ...]:
        return self.image, self.kernel, self.ramdisk

    @property
    def companions(self) -> dict[str, str]:
        return {'kernel_id': self.kernel, 'ramdisk_id': self.ramdisk}


@pytest.fixture
def bootable(upload_image: UploadImage, tmp_path: pathlib.Path) -> Bootable:
    kernel = upload_image(KERNEL, 'aki', container_format='aki')
    ramdisk = upload_image(RAMDISK, 'ari', container_format='ari')
    original = disk_images.raw(tmp_path / 'original')
    image = upload_image(
        original, 'ami', container_format='ami', kernel_id=kernel, ramdisk_id=ramdisk
    )
    return Bootable(image, kernel, ramdisk)


def test_nova_boots_with_our_cached_kernel(host: Host, bootable: Bootable) -> None:
    assert not host.cache_image(bootable.image).existing

    directory = host.nova_boots_with_kernel(bootable)

    assert (directory / 'kernel').read_bytes() == KERNEL
    assert (directory / 'ramdisk').read_bytes() == RAMDISK
    assert (directory / 'disk').exists()


def test_nova_fetched_companions_are_hits(host: Host, bootable: Bootable) -> None:
    host.nova_boots_with_kernel(bootable, glance_url=host.link.url)
    served = len(host.link.downloads)
    assert host.base(bootable.ramdisk).read_bytes() == RAMDISK

    assert host.cache_image(bootable.image).existing

    assert len(host.link.downloads) == served


def test_kernel_usage_agrees_with_nova(host: Host, bootable: Bootable) -> None:
    host.cache_image(bootable.image)
    directory = host.nova_boots_with_kernel(bootable)

    def is_left_of(clean: Callable[[], None]) -> set[bool]:
        for image_id in bootable.all:
            age(host.base(image_id), DAY_SECONDS + 60)
        clean()
        return {host.base(image_id).exists() for image_id in bootable.all}

    known, companions = {directory.name: bootable.image}, {directory.name: bootable.companions}
    assert is_left_of(lambda: host.nova_cleans(known, companions)) == {True}
    assert is_left_of(host.ours().manage_image_cache) == {True}
    assert f'{host.base(bootable.image).name}.companions' in host.names()

    shutil.rmtree(directory)
    assert is_left_of(host.ours().manage_image_cache) == {False}
    host.ours().manage_image_cache()
    assert host.names() == []


def test_note_survives_nova_and_follows_image(host: Host, bootable: Bootable) -> None:
    host.cache_image(bootable.image)
    for image_id in bootable.all:
        age(host.base(image_id), DAY_SECONDS + 60)
    host.nova_cleans()
    assert host.names() == [f'{host.base(bootable.image).name}.companions']
    host.ours().remove_leftovers()
    assert host.names() == []
