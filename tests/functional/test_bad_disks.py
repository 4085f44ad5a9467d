# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, read-only, unmounted or broken: the reason is reported, nothing leaks."""

import contextlib
import errno
import itertools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from nova_precache import model
from nova_precache.cache import layout
from nova_precache.image import fake
from nova_precache.virt import libvirt
from tests import disk_images
from tests.functional import kill_harness
from tests.functional.faulty_proxy import Kind, RoughLink, Trouble

MIB = disk_images.MIB
IMAGE_BYTES = 3 * MIB
# If one of these failed, the next start removes the remains.
CLEARING = {'open', 'unlink', 'remove'}
# How often one attempt reopens a cut connection.
OPENS = 5

Mount = Callable[..., None]


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'instances'
    path.mkdir()
    return path


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Return a function that mounts; every mount is removed at the end."""
    with contextlib.ExitStack() as stack:

        def do(*arguments: str, on: pathlib.Path) -> None:
            _run('mount', *arguments, str(on))
            stack.callback(subprocess.run, ['umount', '-l', str(on)], capture_output=True)

        yield do


def _run(*command: str) -> None:
    if os.geteuid() != 0:
        pytest.skip('only root mounts file systems')
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f'{" ".join(command)}: {done.stderr.strip()}')


@pytest.fixture
def small_disk(directory: pathlib.Path, mount: Mount) -> pathlib.Path:
    """An instances directory on a file system of 8 MiB."""
    mount('-t', 'tmpfs', '-o', 'size=8m', 'none', on=directory)
    return directory


class Compute:
    """A driver, the images that it caches, and a view of its cache."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.base_directory = directory / '_base'
        self.images = fake.FakeImageService()
        self.driver = self.start()

    def start(self) -> libvirt.LibvirtDriver:
        self.driver = kill_harness.make_driver(str(self.directory))
        self.driver.init_host()
        return self.driver

    def add(self, data: bytes, disk_format: str = 'raw') -> str:
        return self.images.add(data, disk_format=disk_format).id

    def cache(
        self,
        image_id: str,
        trouble: Trouble | None = None,
        happening: Callable[[], None] = lambda: None,
        progress: model.ProgressCallback = lambda progress: None,
    ) -> tuple[str, str]:
        self.link = RoughLink(self.images, [trouble] if trouble else [], struck=happening)
        status, reason = kill_harness.try_to_cache(
            self.driver, self.link, image_id, progress=progress
        )
        return status, reason or ''

    def begin(self, image_id: str, cut_bytes: int) -> None:
        """Leave a partial download of this size, as an earlier attempt would."""
        link = RoughLink(self.images, [Trouble(Kind.CUT, cut_bytes)] * OPENS)
        assert kill_harness.try_to_cache(self.driver, link, image_id)[0] == 'DownloadInterrupted'

    def names(self) -> list[str]:
        return sorted(os.listdir(self.base_directory))

    def assert_tidy_after(
        self, status: str, reason: str, code: int, disk: kill_harness.Disk, begun: list[str]
    ) -> None:
        """Check that the reason is reported and only resumable partial files from before remain."""
        if status not in {'cached', 'existing'}:
            assert os.strerror(code) in reason
        if disk.failed & CLEARING:
            self.start()
        left = [name for name in self.names() if not layout.is_base_name(name)]
        assert set(left) <= set(begun), (status, reason, disk.failed)

    def assert_recovers(self, image_id: str, raw: bytes) -> None:
        """Check that another attempt caches the image and leaves nothing else."""
        assert self.cache(image_id)[0] in {'cached', 'existing'}
        assert self.names() == [layout.base_name(image_id)]
        assert (self.base_directory / self.names()[0]).read_bytes() == raw


def _fill(directory: pathlib.Path) -> None:
    """Fill the free space."""
    with (directory / 'filler').open('wb', buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def qcow2(tmp_path: pathlib.Path, qemu_img: str) -> tuple[bytes, bytes]:
    """An image and its raw conversion."""
    raw = disk_images.content(2 * MIB)
    return disk_images.qcow2_of(tmp_path / 'image', raw).read_bytes(), raw


@pytest.mark.usefixtures('qemu_img')
class TestDiskFillsUp:
    def test_fills_during_download(self, small_disk: pathlib.Path) -> None:
        compute = Compute(small_disk)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)

        status, reason = compute.cache(image_id, Trouble(Kind.CALL, MIB), lambda: _fill(small_disk))

        assert status == 'NotEnoughSpace'
        assert os.strerror(errno.ENOSPC) in reason
        assert compute.names() == []
        (small_disk / 'filler').unlink()
        compute.assert_recovers(image_id, data)

    def test_fills_before_resumed_download(self, small_disk: pathlib.Path) -> None:
        compute = Compute(small_disk)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)
        compute.begin(image_id, MIB)
        assert compute.names() != []
        _fill(small_disk)

        status, reason = compute.cache(image_id)

        assert status == 'NotEnoughSpace'
        assert '0.0 MiB free' in reason
        assert compute.link.served_bytes == 0
        (small_disk / 'filler').unlink()
        compute.assert_recovers(image_id, data)

    def test_fills_during_conversion(
        self, small_disk: pathlib.Path, qcow2: tuple[bytes, bytes]
    ) -> None:
        compute = Compute(small_disk)
        image, raw = qcow2
        image_id = compute.add(image, 'qcow2')

        def progress(seen: model.Progress) -> None:
            if seen.status == model.TaskStatus.CONVERTING:
                _fill(small_disk)

        status, reason = compute.cache(image_id, progress=progress)

        assert status == 'NotEnoughSpace'
        assert os.strerror(errno.ENOSPC) in reason
        assert compute.names() == []
        (small_disk / 'filler').unlink()
        compute.assert_recovers(image_id, raw)

    def test_fills_when_names_run_out(self, directory: pathlib.Path, mount: Mount) -> None:
        mount('-t', 'tmpfs', '-o', 'size=8m,nr_inodes=32', 'none', on=directory)
        compute = Compute(directory)
        data = disk_images.content(MIB)
        image_id = compute.add(data)
        (directory / 'many').mkdir()
        _use_up_names(directory / 'many')

        status, reason = compute.cache(image_id)

        assert status == 'NotEnoughSpace'
        assert os.strerror(errno.ENOSPC) in reason
        assert compute.names() == []
        shutil.rmtree(directory / 'many')
        compute.assert_recovers(image_id, data)


def _use_up_names(directory: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(1000):
            (directory / str(number)).touch()


@pytest.mark.usefixtures('qemu_img')
class TestDiskIsReadOnly:
    def test_read_only_caches_nothing_until_repaired(
        self, small_disk: pathlib.Path, mount: Mount
    ) -> None:
        compute = Compute(small_disk)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)
        _run('mount', '-o', 'remount,ro', str(small_disk))

        status, reason = compute.cache(image_id)

        assert status == 'StorageError'
        assert os.strerror(errno.EROFS) in reason
        assert compute.names() == []
        _run('mount', '-o', 'remount,rw', str(small_disk))
        compute.assert_recovers(image_id, data)

    def test_repaired_disk_resumes_partial(self, small_disk: pathlib.Path) -> None:
        compute = Compute(small_disk)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)
        compute.begin(image_id, MIB)
        _run('mount', '-o', 'remount,ro', str(small_disk))

        status, reason = compute.cache(image_id)

        assert status == 'StorageError'
        assert os.strerror(errno.EROFS) in reason
        _run('mount', '-o', 'remount,rw', str(small_disk))
        compute.assert_recovers(image_id, data)
        assert compute.link.opens == [MIB]


@pytest.mark.usefixtures('qemu_img')
class TestDirectoryVanishes:
    def test_vanishes_during_download(self, directory: pathlib.Path) -> None:
        compute = Compute(directory)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)

        status, reason = compute.cache(
            image_id, Trouble(Kind.CALL, MIB), lambda: shutil.rmtree(compute.base_directory)
        )

        assert status == 'StorageError'
        assert os.strerror(errno.ENOENT) in reason
        compute.assert_recovers(image_id, data)

    def test_vanishes_during_conversion(
        self, directory: pathlib.Path, qcow2: tuple[bytes, bytes]
    ) -> None:
        compute = Compute(directory)
        image, raw = qcow2
        image_id = compute.add(image, 'qcow2')

        def progress(seen: model.Progress) -> None:
            if seen.status == model.TaskStatus.CONVERTING:
                shutil.rmtree(compute.base_directory)

        status, reason = compute.cache(image_id, progress=progress)

        assert status == 'StorageError', 'it is tried again'
        assert os.strerror(errno.ENOENT) in reason
        compute.assert_recovers(image_id, raw)

    def test_vanishes_with_its_filesystem(self, small_disk: pathlib.Path) -> None:
        compute = Compute(small_disk)
        data = disk_images.content(IMAGE_BYTES)
        image_id = compute.add(data)

        status, reason = compute.cache(
            image_id, Trouble(Kind.CALL, MIB), lambda: _run('umount', '-l', str(small_disk))
        )

        assert status == 'StorageError'
        assert os.strerror(errno.ENOENT) in reason
        # The directory below the mount point is not filled instead.
        assert compute.cache(image_id)[0] == 'StorageError'
        assert list(small_disk.iterdir()) == []
        compute.start()
        compute.assert_recovers(image_id, data)


@pytest.mark.usefixtures('qemu_img')
class TestDiskBreaks:
    def test_accepted_writes_are_lost(
        self, tmp_path: pathlib.Path, directory: pathlib.Path, mount: Mount
    ) -> None:
        """A disk of 64 MiB is backed by 8: every write is accepted, not every one is stored."""
        thin = tmp_path / 'thin'
        thin.mkdir()
        mount('-t', 'tmpfs', '-o', 'size=8m', 'none', on=thin)
        disk = thin / 'disk'
        disk.touch()
        os.truncate(disk, 64 * MIB)
        _run('mkfs.ext4', '-q', '-O', '^has_journal', '-E', 'nodiscard', str(disk))
        mount('-o', 'loop,errors=continue', str(disk), on=directory)
        compute = Compute(directory)
        data = disk_images.content(16 * MIB)
        image_id = compute.add(data)

        status, reason = compute.cache(image_id)

        assert status == 'NotEnoughSpace'
        assert os.strerror(errno.ENOSPC) in reason
        assert compute.names() == []
        _run('mount', '-o', 'remount,size=80m', str(thin))
        compute.assert_recovers(image_id, data)

    @pytest.mark.parametrize(
        ('code', 'lasts'), [(errno.EIO, False), (errno.ENOSPC, True), (errno.EROFS, True)]
    )
    @pytest.mark.parametrize('is_begun', [False, True], ids=['anew', 'resumed'])
    def test_fails_at_any_operation(
        self, tmp_path: pathlib.Path, code: int, lasts: bool, is_begun: bool
    ) -> None:
        data = disk_images.content(IMAGE_BYTES)
        _fail_at_each_operation(tmp_path, (data, data), 'raw', code, lasts, is_begun)

    def test_fails_at_any_conversion_operation(
        self, tmp_path: pathlib.Path, qcow2: tuple[bytes, bytes]
    ) -> None:
        _fail_at_each_operation(tmp_path / 'computes', qcow2, 'qcow2', errno.EIO)


def _fail_at_each_operation(
    directory: pathlib.Path,
    data: tuple[bytes, bytes],
    disk_format: str,
    code: int,
    lasts: bool = False,
    is_begun: bool = False,
) -> None:
    """Fail attempts, each one operation later, until one completes unharmed."""
    image, raw = data
    statuses = set()
    for nth in itertools.count(1):
        compute = Compute(directory / str(nth))
        image_id = compute.add(image, disk_format)
        if is_begun:
            compute.begin(image_id, MIB)
        begun = compute.names()
        disk = kill_harness.Disk(str(compute.directory), fault=kill_harness.Fault(code, nth, lasts))
        with disk.watched():
            status, reason = compute.cache(image_id)
        if disk.operations < nth:
            break
        statuses.add(status)
        compute.assert_tidy_after(status, reason, code, disk, begun)
        compute.assert_recovers(image_id, raw)
    assert status == 'cached', 'the last one did not fail'
    assert nth > 10
    assert ('NotEnoughSpace' if code == errno.ENOSPC else 'StorageError') in statuses
