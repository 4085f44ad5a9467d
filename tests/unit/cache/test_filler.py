# SPDX-License-Identifier: Apache-2.0
"""An image ends up in the cache whole, once, or nothing of it does."""

import contextlib
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
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
    """Take progress that nobody looks at."""


def test_a_raw_image_is_cached_as_it_is(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    result = cache.filler.fill(images, image.id, ignore)
    assert result == model.CacheResult(existing=False, bytes_done=len(DATA), bytes_total=len(DATA))
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == DATA


@pytest.mark.parametrize(
    ('disk_format', 'qemu_format'),
    [('qcow2', 'qcow2'), ('vhd', 'vpc'), ('vhdx', 'vhdx'), ('vmdk', 'vmdk'), ('vdi', 'vdi')],
)
def test_other_formats_are_cached_as_qemu_img_converts_them(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    disk_format: str,
    qemu_format: str,
) -> None:
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=disk_format)
    cache.filler.fill(images, image.id, ignore)
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == disk_images.as_raw(path, qemu_format)


def test_other_formats_are_kept_where_raw_is_not_forced(
    paths: layout.CacheLayout, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    cache = Cache(paths, force_raw=False)
    data = disk_images.converted(tmp_path / 'image', 'qcow2').read_bytes()
    image = images.add(data, disk_format='qcow2')
    cache.filler.fill(images, image.id, ignore)
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == data


@pytest.mark.parametrize('qemu_format', ['raw', 'qcow2'])
def test_a_base_file_has_the_mode_that_nova_gives_it(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, qemu_format: str
) -> None:
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=qemu_format)
    cache.filler.fill(images, image.id, ignore)
    assert stat.S_IMODE(cache.base_file(image.id).stat().st_mode) == 0o644


def test_what_is_cached_is_made_young_and_not_read_again(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    os.utime(cache.base_file(image.id), (1, 1))
    images.faults.unavailable = 99
    assert cache.filler.fill(images, image.id, ignore) == model.CacheResult(existing=True)
    assert cache.base_file(image.id).stat().st_mtime > 1_000_000_000
    assert len(images.opens) == 1


def test_the_steps_are_told_in_their_order(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    told: list[model.Progress] = []
    cache.filler.fill(images, image.id, told.append)
    assert list(dict.fromkeys(step.status for step in told)) == [
        model.TaskStatus.DOWNLOADING,
        model.TaskStatus.VERIFYING,
        model.TaskStatus.CONVERTING,
    ]
    assert [step.bytes_done for step in told] == sorted(step.bytes_done for step in told)
    assert told[-1].bytes_done == told[-1].bytes_total == image.size


def hostile_images() -> dict[str, tuple[str, Callable[[pathlib.Path], pathlib.Path], str]]:
    """Give images by name: disk_format, how it is made, why it is refused."""
    return {
        'backing file': (
            'qcow2',
            lambda path: disk_images.qcow2_with_backing_file(
                path, disk_images.raw(path.with_name('secret'))
            ),
            'backing file',
        ),
        'data file': (
            'qcow2',
            lambda path: disk_images.qcow2_with_data_file(path, path.with_name('secret')),
            'data_file',
        ),
        'wrong format': ('qcow2', disk_images.raw, 'content is raw'),
        'hidden format': (
            'raw',
            lambda path: disk_images.converted(path, 'qcow2'),
            'content is qcow2',
        ),
        'cut header': (
            'qcow2',
            lambda path: disk_images.truncated(disk_images.converted(path, 'qcow2'), 100),
            'content is raw',
        ),
        'absurd table': ('qcow2', disk_images.qcow2_with_absurd_l1_size, 'qemu-img cannot read'),
        'flat extent': ('vmdk', disk_images.vmdk_flat, 'subformat'),
        'extent path': ('vmdk', disk_images.vmdk_with_extent_path, 'extent'),
        'luks': ('raw', disk_images.luks, 'LUKS'),
        'encrypted': ('qcow2', disk_images.qcow2_encrypted, 'encrypted'),
        'nested': (
            'qcow2',
            lambda path: disk_images.qcow2_of(
                path,
                disk_images.converted(path.with_name('inner'), 'qcow2').read_bytes(),
            ),
            'converted to raw, its content is qcow2',
        ),
    }


@pytest.mark.parametrize('name', hostile_images())
def test_a_hostile_image_is_refused_and_nothing_is_left(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, name: str
) -> None:
    disk_format, make, reason = hostile_images()[name]
    data = make(tmp_path / 'image').read_bytes()
    image = images.add(data, disk_format=disk_format)
    with pytest.raises(exception.UnsafeImage, match=reason) as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == model.Retry.NEVER
    assert cache.names() == []


def test_an_image_that_claims_to_be_huge_is_refused_and_nothing_is_left(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / 'image'
    disk_images.qemu_img('create', '-f', 'qcow2', str(path), '1P')
    image = images.add(path.read_bytes(), disk_format='qcow2', virtual_size=None)
    with pytest.raises(exception.NotEnoughSpace, match=r'needs \d{16} bytes'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_what_cannot_fit_is_refused_before_the_first_byte(
    paths: layout.CacheLayout, images: fake.FakeImageService
) -> None:
    cache = Cache(paths, reserved_bytes=1024**5)
    image = images.add(DATA)
    with pytest.raises(exception.NotEnoughSpace, match=r'needs \d+ bytes .*, \d+ free'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []
    assert cache.names() == []


def test_a_converted_image_needs_space_for_both_files(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA, disk_format='qcow2', virtual_size=1024**5)
    with pytest.raises(exception.NotEnoughSpace):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []


def corrupt(images: fake.FakeImageService, image_id: str) -> None:
    images.faults.corrupt = 1


def cut(images: fake.FakeImageService, image_id: str) -> None:
    images.faults.cuts = [1000] * 9


def refuse(images: fake.FakeImageService, image_id: str) -> None:
    images.faults.unauthorized = 1


def delete(images: fake.FakeImageService, image_id: str) -> None:
    images.delete(image_id)


def deactivate(images: fake.FakeImageService, image_id: str) -> None:
    images.update(image_id, status='deactivated')


def forget_hash(images: fake.FakeImageService, image_id: str) -> None:
    images.update(image_id, hash_algo=None, hash_value=None, checksum=None)


@pytest.mark.parametrize(
    ('fault', 'error', 'retry'),
    [
        (corrupt, exception.ImageMismatch, model.Retry.ONCE),
        (cut, exception.DownloadInterrupted, model.Retry.BACKOFF),
        (refuse, exception.ImageUnauthorized, model.Retry.BACKOFF),
        (delete, exception.ImageGone, model.Retry.NEVER),
        (deactivate, exception.ImageGone, model.Retry.NEVER),
        (forget_hash, exception.UnverifiedImage, model.Retry.NEVER),
    ],
)
def test_a_failed_download_leaves_nothing_and_can_be_repeated(
    cache: Cache,
    images: fake.FakeImageService,
    fault: Callable[[fake.FakeImageService, str], None],
    error: type[exception.CacheError],
    retry: model.Retry,
) -> None:
    image = images.add(DATA)
    fault(images, image.id)
    with pytest.raises(error) as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == retry
    assert cache.names() == []
    healthy = fake.FakeImageService()
    healthy.add(DATA, id=image.id)
    assert not cache.filler.fill(healthy, image.id, ignore).existing
    assert cache.base_file(image.id).read_bytes() == DATA


def test_an_empty_image_is_not_cached(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(b'')
    with pytest.raises(exception.ImageGone, match='has no data'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_a_base_file_of_another_format_is_replaced(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    cache.base_file(image.id).write_bytes(b'QFI\xfb from before force_raw_images')
    assert not cache.filler.fill(images, image.id, ignore).existing
    assert cache.base_file(image.id).read_bytes() == DATA
    assert cache.names() == [layout.base_name(image.id)]


def test_a_base_file_that_a_disk_needs_is_not_replaced(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    base = cache.base_file(image.id)
    base.write_bytes(b'QFI\xfb from before force_raw_images')
    cache.backing_files.add(str(base))
    with pytest.raises(exception.StorageError, match='backing file of a disk'):
        cache.filler.fill(images, image.id, ignore)
    assert base.read_bytes().startswith(b'QFI\xfb')
    assert images.opens == []


def test_a_file_that_expires_while_it_is_found_is_downloaded_again(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    touch = os.utime

    def expire_first(path: str) -> None:
        monkeypatch.setattr(os, 'utime', touch)
        os.unlink(path)
        touch(path)

    monkeypatch.setattr(os, 'utime', expire_first)
    assert not cache.filler.fill(images, image.id, ignore).existing
    assert cache.names() == [cache.base_file(image.id).name]
    assert len(images.opens) == 2


def test_a_cache_that_vanished_is_not_made_anew(
    cache: Cache, images: fake.FakeImageService
) -> None:
    """An empty mount point would be filled, and with it the disk below."""
    shutil.rmtree(cache.paths.instances_path)
    with pytest.raises(exception.StorageError, match='No such file or directory'):
        cache.filler.fill(images, images.add(DATA).id, ignore)
    assert not os.path.exists(cache.paths.instances_path)


def test_a_cache_that_vanishes_during_a_download_is_a_fault_of_the_storage(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)

    def remove(progress: model.Progress) -> None:
        shutil.rmtree(cache.paths.base_directory, ignore_errors=True)

    with pytest.raises(exception.StorageError, match='No such file or directory'):
        cache.filler.fill(images, image.id, remove)


def test_two_threads_download_once(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    gate = images.faults.gate = fake.Gate(at_byte=len(DATA) // 2)
    results: list[model.CacheResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.filler.fill(images, image.id, ignore)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    gate.wait_reached()
    assert results == []
    gate.release()
    for thread in threads:
        thread.join(30)
    assert sorted(result.existing for result in results) == [False, True, True]
    assert images.served_bytes == len(DATA)
    assert cache.names() == [layout.base_name(image.id)]


def test_different_images_are_downloaded_side_by_side(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    gate = images.faults.gate = fake.Gate()
    thread = threading.Thread(target=cache.filler.fill, args=(images, image.id, ignore))
    thread.start()
    gate.wait_reached()
    others = fake.FakeImageService()
    other = others.add(DATA)
    assert not cache.filler.fill(others, other.id, ignore).existing
    gate.release()
    thread.join(30)
    assert cache.names() == sorted(map(layout.base_name, [image.id, other.id]))


class Peer:
    """Another process that fills the same cache, and stands at a gate in mid download."""

    _SCRIPT = textwrap.dedent("""
        import sys, threading
        from nova_precache.cache import layout
        from nova_precache.image import fake
        from tests.unit.cache.conftest import Cache
        from tests.unit.cache.test_filler import DATA, ignore

        images = fake.FakeImageService()
        images.add(DATA, id=sys.argv[2])
        gate = images.faults.gate = fake.Gate(len(DATA) // 2)

        def tell():
            gate.wait_reached()
            print('reached', flush=True)
            sys.stdin.read()
            gate.release()

        threading.Thread(target=tell, daemon=True).start()
        result = Cache(layout.CacheLayout(sys.argv[1])).filler.fill(images, sys.argv[2], ignore)
        print('existing' if result.existing else 'cached', flush=True)
    """)

    def __init__(self, cache: Cache, image_id: str) -> None:
        arguments = [cache.paths.instances_path, image_id]
        self.process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', self._SCRIPT, *arguments],
            cwd=pathlib.Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == 'reached\n'

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=30)
        return output.strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


def test_two_processes_download_once(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    peer = Peer(cache, image.id)
    results: list[model.CacheResult] = []
    thread = threading.Thread(
        target=lambda: results.append(cache.filler.fill(images, image.id, ignore))
    )
    thread.start()
    assert not cache.store.is_hit(image.id)
    assert peer.finish() == 'cached'
    thread.join(30)
    assert results == [model.CacheResult(existing=True)]
    assert images.opens == []


def test_what_a_killed_process_leaves_is_never_published_and_is_swept(
    cache: Cache, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    Peer(cache, image.id).kill()
    (left,) = cache.names()
    assert layout.base_name_of_partial(left) == layout.base_name(image.id)
    assert not cache.store.is_hit(image.id)
    assert cache.store.sweep(cache.locks) == 1
    assert cache.names() == []
    assert not cache.filler.fill(images, image.id, ignore).existing


def test_a_running_download_of_another_process_is_not_swept(
    cache: Cache, images: fake.FakeImageService
) -> None:
    peer = Peer(cache, images.add(DATA).id)
    assert cache.store.sweep(cache.locks) == 0
    assert peer.finish() == 'cached'


@pytest.fixture
def small_file_system(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 4 MiB, which only root may mount."""
    path = tmp_path / 'small'
    path.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f'a file system cannot be mounted here: {mounted.stderr.strip()}')
    yield path
    subprocess.run(['umount', str(path)], check=True)


def test_a_disk_that_fills_up_during_a_download_leaves_nothing(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(disk_images.content(6 * 1024**2), size=None)
    with pytest.raises(exception.NotEnoughSpace, match='No space left on device'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_a_disk_that_fills_up_during_a_conversion_leaves_nothing(
    small_file_system: pathlib.Path, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    data = disk_images.converted(tmp_path / 'image', 'qcow2').read_bytes()
    image = images.add(data, disk_format='qcow2')

    def fill_the_disk(progress: model.Progress) -> None:
        if progress.status == model.TaskStatus.CONVERTING:
            with contextlib.suppress(OSError), (small_file_system / 'other').open('wb') as file:
                while True:
                    file.write(bytes(1024**2))
                    file.flush()

    with pytest.raises(exception.NotEnoughSpace, match='No space left on device'):
        cache.filler.fill(images, image.id, fill_the_disk)
    assert cache.names() == []


def test_a_read_only_file_system_is_a_fault_of_the_storage(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(DATA)
    subprocess.run(['mount', '-o', 'remount,ro', str(small_file_system)], check=True)
    with pytest.raises(exception.StorageError, match='Read-only file system') as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == model.Retry.BACKOFF
    assert cache.names() == []


def test_a_hit_that_cannot_be_made_young_is_told(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    """Its age would go on counting, and it might be gone when it is needed."""
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    subprocess.run(['mount', '-o', 'remount,ro', str(small_file_system)], check=True)
    with pytest.raises(exception.StorageError, match='Read-only file system'):
        cache.filler.fill(images, image.id, ignore)
