# SPDX-License-Identifier: Apache-2.0
"""An image ends up in the cache whole, once, or not at all."""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import multiprocessing
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
from typing import Any

import pytest

from nova_precache import exception, model, transfer_control
from nova_precache.cache import layout
from nova_precache.image import fake
from nova_precache.inspection import formats
from tests import disk_images
from tests.service import wait_until
from tests.unit.cache.conftest import MAX_PARALLEL, Cache, Refusal, cached_bytes
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.usefixtures('qemu_img')

DATA = disk_images.content(1024**2)
LONG_DATA = disk_images.content(4 * 1024**2)  # long enough to arrive in several pieces


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


def test_raw_image_cached_unchanged(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    result = cache.filler.fill(images, image.id, ignore)
    assert result == model.CacheResult(existing=False, bytes_done=len(DATA), bytes_total=len(DATA))
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == DATA


@pytest.mark.parametrize(
    ('disk_format', 'qemu_format'),
    [('qcow2', 'qcow2'), ('vhd', 'vpc'), ('vhdx', 'vhdx'), ('vmdk', 'vmdk'), ('vdi', 'vdi')],
)
def test_other_formats_converted_by_qemu_img(
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


def test_other_formats_kept_without_force_raw(
    paths: layout.CacheLayout, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    cache = Cache(paths, force_raw=False)
    data = disk_images.converted(tmp_path / 'image', 'qcow2').read_bytes()
    image = images.add(data, disk_format='qcow2')
    cache.filler.fill(images, image.id, ignore)
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == data


@pytest.mark.parametrize('qemu_format', ['raw', 'qcow2'])
def test_base_file_has_mode_of_nova(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, qemu_format: str
) -> None:
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=qemu_format)
    cache.filler.fill(images, image.id, ignore)
    assert stat.S_IMODE(cache.base_file(image.id).stat().st_mode) == 0o644


def test_cached_image_touched_without_download(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    os.utime(cache.base_file(image.id), (1, 1))
    images.faults.unavailable = 99
    assert cache.filler.fill(images, image.id, ignore) == model.CacheResult(existing=True)
    assert cache.base_file(image.id).stat().st_mtime > 1_000_000_000
    assert len(images.opens) == 1


def test_steps_reported_in_order(
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
    """Return images by name: disk_format, how to make it, why it is refused."""
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
            'content is incomplete qcow2',
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
            'its content is qcow2 after conversion to raw',
        ),
    }


@pytest.mark.parametrize('name', hostile_images())
def test_hostile_image_refused_without_leftovers(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, name: str
) -> None:
    disk_format, make, reason = hostile_images()[name]
    data = make(tmp_path / 'image').read_bytes()
    image = images.add(data, disk_format=disk_format)
    with pytest.raises(exception.UnsafeImage, match=reason) as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == model.Retry.NEVER
    assert cache.names() == []


def test_too_large_image_refused_before_download(
    paths: layout.CacheLayout, images: fake.FakeImageService
) -> None:
    cache = Cache(paths, reserved_bytes=1024**5)
    image = images.add(DATA)
    with pytest.raises(
        exception.NotEnoughSpace, match=r'needs \S+ PiB, 0\.\d PiB free in /.*must stay free'
    ):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []
    assert cache.names() == []


def test_conversion_needs_space_for_both_files(cache: Cache, images: fake.FakeImageService) -> None:
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


def go_away(images: fake.FakeImageService, image_id: str) -> None:
    images.faults.unavailable = 1


def forget_hash(images: fake.FakeImageService, image_id: str) -> None:
    images.update(image_id, hash_algo=None, hash_value=None, checksum=None)


@pytest.mark.parametrize(
    ('fault', 'error', 'retry', 'left'),
    [
        (corrupt, exception.ImageMismatch, model.Retry.ONCE, []),
        (cut, exception.DownloadInterrupted, model.Retry.BACKOFF, ['journal', 'part']),
        (refuse, exception.ImageUnauthorized, model.Retry.BACKOFF, []),
        (delete, exception.ImageGone, model.Retry.NEVER, []),
        (deactivate, exception.ImageGone, model.Retry.NEVER, []),
        (forget_hash, exception.UnverifiedImage, model.Retry.NEVER, []),
    ],
)
def test_failed_download_leaves_only_resumable_files(
    cache: Cache,
    images: fake.FakeImageService,
    fault: Callable[[fake.FakeImageService, str], None],
    error: type[exception.CacheError],
    retry: model.Retry,
    left: list[str],
) -> None:
    image = images.add(DATA)
    fault(images, image.id)
    with pytest.raises(error) as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == retry
    assert sorted(cache.suffixes()) == left
    healthy = fake.FakeImageService()
    healthy.add(DATA, id=image.id)
    assert not cache.filler.fill(healthy, image.id, ignore).existing
    assert cache.base_file(image.id).read_bytes() == DATA
    assert cache.names() == [layout.base_name(image.id)]


@pytest.mark.parametrize(
    ('change', 'error', 'reason', 'left'),
    [
        (deactivate, exception.ImageGone, 'is deactivated', []),
        (delete, exception.ImageGone, 'could not be found', []),
        (forget_hash, exception.ImageMismatch, 'changed its size or hash', []),
        (go_away, exception.DownloadInterrupted, 'does not answer', ['journal', 'part']),
    ],
)
def test_withdrawn_image_not_published(
    cache: Cache,
    images: fake.FakeImageService,
    change: Callable[[fake.FakeImageService, str], None],
    error: type[exception.CacheError],
    reason: str,
    left: list[str],
) -> None:
    image = images.add(DATA)

    def withdraw(progress: model.Progress) -> None:
        if progress.status == model.TaskStatus.VERIFYING:
            change(images, image.id)

    with pytest.raises(error, match=reason):
        cache.filler.fill(images, image.id, withdraw)

    assert sorted(cache.suffixes()) == left
    assert not cache.base_file(image.id).exists()


@pytest.mark.parametrize('step', ['downloading', 'verifying', 'converting'])
@pytest.mark.parametrize('change', [deactivate, delete])
def test_image_withdrawn_at_step_not_published(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    step: str,
    change: Callable[[fake.FakeImageService, str], None],
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    seen: list[str] = []

    def withdraw(progress: model.Progress) -> None:
        if progress.status == step and step not in seen:
            change(images, image.id)
        seen.append(progress.status)

    with pytest.raises(exception.ImageGone, match=image.id):
        cache.filler.fill(images, image.id, withdraw)

    assert step in seen
    assert cache.names() == []


@pytest.mark.parametrize('qemu_format', ['raw', 'qcow2'])
def test_unconfirmed_image_not_published(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, qemu_format: str
) -> None:
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=qemu_format)
    reins, told = transfer_control.Control(), list[str]()

    def refuse() -> None:
        raise exception.ImageGone(f'after {told[-1]}')

    reins.confirm = refuse
    last = 'converting' if qemu_format == 'qcow2' else 'verifying'
    with pytest.raises(exception.ImageGone, match=f'after {last}'):
        cache.filler.fill(images, image.id, lambda step: told.append(step.status), reins)

    assert cache.names() == []


def test_empty_image_not_cached(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(b'')
    with pytest.raises(exception.ImageGone, match='has no data'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_base_file_of_other_format_replaced(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    cache.base_file(image.id).write_bytes(b'QFI\xfb from before force_raw_images')
    assert not cache.filler.fill(images, image.id, ignore).existing
    assert cache.base_file(image.id).read_bytes() == DATA
    assert cache.names() == [layout.base_name(image.id)]


def test_base_file_in_use_not_replaced(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    base = cache.base_file(image.id)
    base.write_bytes(b'QFI\xfb from before force_raw_images')
    cache.backing_files.add(str(base))
    with pytest.raises(exception.StorageError, match='backing file of a disk'):
        cache.filler.fill(images, image.id, ignore)
    assert base.read_bytes().startswith(b'QFI\xfb')
    assert images.opens == []


def test_file_expiring_during_check_downloaded_again(
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


def test_missing_cache_not_recreated(cache: Cache, images: fake.FakeImageService) -> None:
    """An empty mount point would be filled, and with it the disk below."""
    shutil.rmtree(cache.paths.instances_path)
    with pytest.raises(exception.StorageError, match='No such file or directory'):
        cache.filler.fill(images, images.add(DATA).id, ignore)
    assert not os.path.exists(cache.paths.instances_path)


def test_cache_lost_during_download_faults_storage(
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
        thread.join(TIMEOUT_SECONDS)
    assert sorted(result.existing for result in results) == [False, True, True]
    assert images.served_bytes == len(DATA)
    assert cache.names() == [layout.base_name(image.id)]


def test_different_images_download_in_parallel(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    gate = images.faults.gate = fake.Gate()
    thread = threading.Thread(target=cache.filler.fill, args=(images, image.id, ignore))
    thread.start()
    gate.wait_reached()
    others = fake.FakeImageService()
    other = others.add(DATA)
    assert not cache.filler.fill(others, other.id, ignore).existing
    gate.release()
    thread.join(TIMEOUT_SECONDS)
    assert cache.names() == sorted(map(layout.base_name, [image.id, other.id]))


class Peer:
    """Another process that fills the same cache, and stops at a gate in mid-download."""

    _SCRIPT = textwrap.dedent("""
        import sys, threading
        from nova_precache.cache import layout
        from nova_precache.image import fake
        from tests.unit.cache.conftest import Cache
        from tests.unit.cache.test_populator import LONG_DATA, ignore

        images = fake.FakeImageService()
        images.add(LONG_DATA, id=sys.argv[2])
        gate = images.faults.gate = fake.Gate(len(LONG_DATA) - 1)

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
        output, _ = self.process.communicate(timeout=TIMEOUT_SECONDS)
        return output.strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=TIMEOUT_SECONDS)


def test_two_processes_download_once(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(LONG_DATA)
    peer = Peer(cache, image.id)
    results: list[model.CacheResult] = []
    thread = threading.Thread(
        target=lambda: results.append(cache.filler.fill(images, image.id, ignore))
    )
    thread.start()
    assert not cache.store.is_hit(image.id)
    assert peer.finish() == 'cached'
    thread.join(TIMEOUT_SECONDS)
    assert results == [model.CacheResult(existing=True)]
    assert images.opens == []


def test_download_of_killed_process_resumed(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(LONG_DATA)
    peer = Peer(cache, image.id)
    wait_until(lambda: b'synced_bytes' in cache.file_of('journal').read_bytes(), 'it is noted')
    peer.kill()
    assert sorted(cache.suffixes()) == ['journal', 'part']
    assert not cache.store.is_hit(image.id)
    noted = json.loads(cache.file_of('journal').read_bytes().splitlines()[-1])['synced_bytes']

    assert not cache.filler.fill(images, image.id, ignore).existing

    assert images.opens == [(image.id, noted)]
    assert images.served_bytes == len(LONG_DATA) - noted
    assert cache.base_file(image.id).read_bytes() == LONG_DATA
    assert cache.names() == [layout.base_name(image.id)]


def unlink_lock_file(cache: Cache, image_id: str) -> None:
    """Unlink a held lock file, as Nova's cache manager may."""
    name = f'{layout.LOCK_PREFIX}{layout.base_name(image_id)}'
    os.unlink(os.path.join(cache.paths.lock_directory, name))


def test_running_download_survives_sweep(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(LONG_DATA)
    peer = Peer(cache, image.id)
    assert cache.sweeper.sweep() == 0
    unlink_lock_file(cache, image.id)
    assert cache.sweeper.sweep() == 0
    assert peer.finish() == 'cached'
    assert cache.names() == [layout.base_name(image.id)]


def test_two_lock_holders_do_no_harm(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(LONG_DATA)
    peer = Peer(cache, image.id)
    unlink_lock_file(cache, image.id)
    assert not cache.filler.fill(images, image.id, ignore).existing
    assert images.opens == [(image.id, 0)]
    assert sorted(cache.suffixes()) == ['journal', 'part']
    assert peer.finish() == 'cached'
    assert cache.names() == [layout.base_name(image.id)]
    assert cache.base_file(image.id).read_bytes() == LONG_DATA


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


def test_disk_full_during_download_leaves_nothing(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(disk_images.content(6 * 1024**2), size=None)
    with pytest.raises(exception.NotEnoughSpace, match='No space left on device'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_disk_full_during_conversion_leaves_nothing(
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


def test_read_only_filesystem_faults_storage(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(DATA)
    subprocess.run(['mount', '-o', 'remount,ro', str(small_file_system)], check=True)
    with pytest.raises(exception.StorageError, match='Read-only file system') as caught:
        cache.filler.fill(images, image.id, ignore)
    assert caught.value.retry == model.Retry.BACKOFF
    assert cache.names() == []


def test_untouchable_hit_is_reported(
    small_file_system: pathlib.Path, images: fake.FakeImageService
) -> None:
    """Its age would keep counting, and it might expire before it is needed."""
    cache = Cache(layout.CacheLayout(str(small_file_system)))
    image = images.add(DATA)
    cache.filler.fill(images, image.id, ignore)
    subprocess.run(['mount', '-o', 'remount,ro', str(small_file_system)], check=True)
    with pytest.raises(exception.StorageError, match='Read-only file system'):
        cache.filler.fill(images, image.id, ignore)


def paused_at(
    cache: Cache, images: fake.FakeImageService, image_id: str, at_byte: int
) -> exception.CacheError:
    """Pause a download at this byte, to be resumed later."""
    return stopped_at(
        cache, images, image_id, at_byte, transfer_control.Control(), exception.Paused('later')
    )


def stopped_at(
    cache: Cache,
    images: fake.FakeImageService,
    image_id: str,
    at_byte: int,
    reins: transfer_control.Control,
    error: exception.CacheError,
) -> exception.CacheError:
    gate = images.faults.gate = fake.Gate(at_byte)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        filling = thread.submit(cache.filler.fill, images, image_id, ignore, reins)
        gate.wait_reached()
        reins.stop(error)
        ended = filling.exception(TIMEOUT_SECONDS)
    images.faults.gate = None
    assert isinstance(ended, exception.CacheError)
    return ended


def assert_unlocked(cache: Cache, image_id: str) -> None:
    with cache.locks.try_hold(layout.base_name(image_id)) as held:
        assert held


def test_paused_download_resumes_at_its_byte(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    error = paused_at(cache, images, image.id, 400_000)
    assert isinstance(error, exception.Paused)
    assert sorted(cache.suffixes()) == ['journal', 'part']
    assert_unlocked(cache, image.id)
    came = images.served_bytes
    assert 0 < came < len(DATA)

    result = cache.filler.fill(images, image.id, ignore)

    assert (result.bytes_done, result.bytes_total) == (len(DATA), len(DATA))
    assert images.opens == [(image.id, 0), (image.id, came)]
    assert images.served_bytes == len(DATA)
    assert cache.base_file(image.id).read_bytes() == DATA
    assert cache.names() == [layout.base_name(image.id)]


def test_foreign_download_resumed_after_sweep(
    paths: layout.CacheLayout, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    paused_at(Cache(paths), images, image.id, 400_000)
    restarted = Cache(paths)
    assert restarted.sweeper.sweep() == 0
    restarted.filler.fill(images, image.id, ignore)
    assert images.served_bytes == len(DATA)


def test_reuploaded_image_restarts_from_zero(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    paused_at(cache, images, image.id, 400_000)
    other = disk_images.content(len(DATA), seed=2)
    images.add(other, id=image.id)
    cache.filler.fill(images, image.id, ignore)
    assert images.opens == [(image.id, 0), (image.id, 0)]
    assert cache.base_file(image.id).read_bytes() == other


def test_image_without_hash_not_resumed(
    paths: layout.CacheLayout, images: fake.FakeImageService
) -> None:
    cache = Cache(paths, allow_unverified=True)
    image = images.add(DATA, hash_algo=None, hash_value=None, checksum=None)
    paused_at(cache, images, image.id, 400_000)
    assert cache.names() == []


def test_corrupt_kept_bytes_refetched(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    paused_at(cache, images, image.id, 400_000)
    disk_images.patched(cache.file_of('part'), 100_000, bytes([DATA[100_000] ^ 1]))
    with pytest.raises(exception.ImageMismatch):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []
    cache.filler.fill(images, image.id, ignore)
    assert images.opens[-1] == (image.id, 0)
    assert cache.base_file(image.id).read_bytes() == DATA


def test_paused_conversion_needs_no_second_download(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    reins = transfer_control.Control()

    def pause(progress: model.Progress) -> None:
        if progress.status == model.TaskStatus.CONVERTING:
            reins.stop(exception.Paused('later'))

    with pytest.raises(exception.Paused):
        cache.filler.fill(images, image.id, pause, reins)
    assert sorted(cache.suffixes()) == ['journal', 'part']
    cache.filler.fill(images, image.id, ignore)
    assert len(images.opens) == 1
    assert cache.base_file(image.id).read_bytes() == disk_images.as_raw(path, 'qcow2')
    assert cache.names() == [layout.base_name(image.id)]


@pytest.mark.parametrize(
    ('is_last_attempt', 'error'),
    [(False, exception.Cancelled('not wanted')), (True, exception.ShuttingDown('bye'))],
)
def test_unresumable_partial_is_removed(
    cache: Cache, images: fake.FakeImageService, is_last_attempt: bool, error: exception.CacheError
) -> None:
    image = images.add(DATA)
    reins = transfer_control.Control(is_last_attempt=is_last_attempt)
    assert stopped_at(cache, images, image.id, 400_000, reins, error) is error
    assert cache.names() == []
    assert_unlocked(cache, image.id)


def test_cancelled_shared_download_kept(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    error = exception.Cancelled('not wanted', keep_partial=True)
    stopped_at(cache, images, image.id, 400_000, transfer_control.Control(), error)
    assert sorted(cache.suffixes()) == ['journal', 'part']


@pytest.mark.parametrize(('is_last_attempt', 'left'), [(False, ['journal', 'part']), (True, [])])
def test_unstarted_last_attempt_clears_partials(
    cache: Cache, images: fake.FakeImageService, is_last_attempt: bool, left: list[str]
) -> None:
    image = images.add(DATA)
    paused_at(cache, images, image.id, 400_000)
    images.faults.unavailable = 1
    with pytest.raises(exception.DownloadInterrupted):
        cache.filler.fill(
            images, image.id, ignore, transfer_control.Control(is_last_attempt=is_last_attempt)
        )
    assert sorted(cache.suffixes()) == left


def test_deleted_image_removes_its_partial(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    paused_at(cache, images, image.id, 400_000)
    images.delete(image.id)
    with pytest.raises(exception.ImageGone):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


def test_stopped_transfer_does_not_begin(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    reins = transfer_control.Control()
    reins.stop(exception.Cancelled('not wanted'))
    with pytest.raises(exception.Cancelled):
        cache.filler.fill(images, image.id, ignore, reins)
    assert images.opens == []


def test_cancel_ends_lock_wait_at_once(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    reins = transfer_control.Control()
    with (
        concurrent.futures.ThreadPoolExecutor(1) as thread,
        cache.locks.hold(layout.base_name(image.id)),
    ):
        filling = thread.submit(cache.filler.fill, images, image.id, ignore, reins)
        reins.stop(exception.Cancelled('not wanted'))
        assert isinstance(filling.exception(TIMEOUT_SECONDS), exception.Cancelled)
    assert_unlocked(cache, image.id)
    assert images.opens == []


@contextlib.contextmanager
def all_slots_taken(cache: Cache) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_PARALLEL):
            stack.enter_context(cache.pace.slot(transfer_control.Control()))
        yield


def test_cancel_ends_slot_wait_at_once(cache: Cache, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    reins = transfer_control.Control()
    with concurrent.futures.ThreadPoolExecutor(1) as thread, all_slots_taken(cache):
        filling = thread.submit(cache.filler.fill, images, image.id, ignore, reins)
        wait_until(lambda: is_locked(cache, image.id), 'the lock is held')
        reins.stop(exception.Cancelled('not wanted'))
        assert isinstance(filling.exception(TIMEOUT_SECONDS), exception.Cancelled)
    assert_unlocked(cache, image.id)


def is_locked(cache: Cache, image_id: str) -> bool:
    with cache.locks.try_hold(layout.base_name(image_id)) as held:
        return not held


def test_boot_skips_slots_and_boosts_waiter(cache: Cache, images: fake.FakeImageService) -> None:
    image, other = images.add(DATA), images.add(DATA)
    with concurrent.futures.ThreadPoolExecutor(2) as threads, all_slots_taken(cache):
        boot = transfer_control.Control(is_boot=True)
        assert not cache.filler.fill(images, image.id, ignore, boot).existing
        precaching = threads.submit(
            cache.filler.fill, images, other.id, ignore, transfer_control.Control()
        )
        wait_until(lambda: is_locked(cache, other.id), 'the lock is held')
        joining = transfer_control.Control(is_boot=True)
        assert cache.filler.fill(images, other.id, ignore, joining).existing
        assert not precaching.result(TIMEOUT_SECONDS).existing


class HangingImageService(fake.FakeImageService):
    """Blocks each answer until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.answers = threading.Event()

    def show(self, image_id: str) -> model.Image:
        self.asked.set()
        assert self.answers.wait(TIMEOUT_SECONDS)
        return super().show(image_id)


def test_cancel_ends_lookup_at_once(cache: Cache) -> None:
    images = HangingImageService()
    image = images.add(DATA)
    reins = transfer_control.Control()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        filling = thread.submit(cache.filler.fill, images, image.id, ignore, reins)
        assert images.asked.wait(TIMEOUT_SECONDS)
        reins.stop(exception.Cancelled('not wanted'))
        assert isinstance(filling.exception(TIMEOUT_SECONDS), exception.Cancelled)
    images.answers.set()
    assert_unlocked(cache, image.id)
    assert cache.names() == []


@pytest.mark.parametrize('status', sorted(model.TASK_WORKING))
@pytest.mark.parametrize(
    ('error', 'left'),
    [
        (exception.Cancelled('not wanted'), []),
        (exception.ShuttingDown('bye'), ['journal', 'part']),
    ],
)
def test_stop_at_step_leaves_only_partial(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    status: model.TaskStatus,
    error: exception.CacheError,
    left: list[str],
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2')
    reins = transfer_control.Control()

    def stop(progress: model.Progress) -> None:
        if progress.status == status:
            reins.stop(error)

    with pytest.raises(type(error)):
        cache.filler.fill(images, image.id, stop, reins)
    assert sorted(cache.suffixes()) == left
    assert not cache.store.is_hit(image.id)
    assert_unlocked(cache, image.id)


def test_stop_before_publish_prevents_it(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.add(DATA)
    reins = transfer_control.Control()
    inspect = cache.inspector.inspect

    def stop_afterwards(*arguments: Any) -> formats.InspectedImage:
        inspected = inspect(*arguments)
        reins.stop(exception.Cancelled('not wanted'))
        return inspected

    monkeypatch.setattr(cache.inspector, 'inspect', stop_afterwards)
    with pytest.raises(exception.Cancelled):
        cache.filler.fill(images, image.id, ignore, reins)
    assert cache.names() == []


def huge_qcow2(path: pathlib.Path, virtual_size: str) -> bytes:
    """Make an image whose header ends long before the image does."""
    disk_images.qemu_img('create', '-f', 'qcow2', str(path), virtual_size)
    return path.read_bytes() + disk_images.content(8 * 1024**2)


def test_unfitting_disk_refused_at_header(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    data = huge_qcow2(tmp_path / 'image', '1P')
    image = images.add(data, disk_format='qcow2', virtual_size=1024**2)
    images.faults.gate = fake.Gate(6 * 1024**2)
    with pytest.raises(exception.NotEnoughSpace, match=r'needs 1\.\d PiB, 0\.\d PiB free'):
        cache.filler.fill(images, image.id, ignore)
    assert images.served_bytes < len(data)
    assert cache.names() == []


def test_oversized_disk_refused_at_header(
    paths: layout.CacheLayout, images: fake.FakeImageService, tmp_path: pathlib.Path
) -> None:
    cache = Cache(paths, max_virtual_size_bytes=10 * 1024**2)
    data = huge_qcow2(tmp_path / 'image', '11M')
    image = images.add(data, disk_format='qcow2', virtual_size=1024**2)
    images.faults.gate = fake.Gate(6 * 1024**2)
    with pytest.raises(exception.UnsafeImage, match='max_virtual_size_bytes'):
        cache.filler.fill(images, image.id, ignore)
    assert images.served_bytes < len(data)
    assert cache.names() == []


@pytest.mark.parametrize('disk_format', ['raw', 'iso', 'ami'])
def test_oversized_raw_disk_refused_before_download(
    paths: layout.CacheLayout, images: fake.FakeImageService, disk_format: str
) -> None:
    cache = Cache(paths, max_virtual_size_bytes=len(DATA) - 1)
    image = images.add(DATA, disk_format=disk_format)
    with pytest.raises(exception.UnsafeImage, match='max_virtual_size_bytes'):
        cache.filler.fill(images, image.id, ignore)
    assert images.opens == []


@pytest.mark.parametrize('disk_format', ['vhd', 'vmdk', 'vdi', 'vhdx'])
@pytest.mark.parametrize('force_raw', [True, False])
def test_oversized_disk_refused_in_every_format(
    paths: layout.CacheLayout,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    disk_format: str,
    force_raw: bool,
) -> None:
    cache = Cache(paths, max_virtual_size_bytes=len(DATA) - 1, force_raw=force_raw)
    qemu_format = {'vhd': 'vpc'}.get(disk_format, disk_format)
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=disk_format)
    with pytest.raises(exception.UnsafeImage, match='max_virtual_size_bytes'):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []


@pytest.mark.parametrize('virtual_size', [None, 1, 100 * 1024**2])
def test_disk_size_comes_from_bytes(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    virtual_size: int | None,
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2', virtual_size=virtual_size)
    cache.filler.fill(images, image.id, ignore)
    assert cache.base_file(image.id).read_bytes() == disk_images.as_raw(path, 'qcow2')


def test_kept_bytes_need_no_space(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.add(DATA)
    paused_at(cache, images, image.id, 800_000)
    other = images.add(DATA)
    monkeypatch.setattr(cache.space, 'free_bytes', lambda: len(DATA) // 2)
    with pytest.raises(exception.NotEnoughSpace):
        cache.filler.fill(images, other.id, ignore)
    assert not cache.filler.fill(images, image.id, ignore).existing


def test_parallel_downloads_share_space(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space for bytes that one of them still expects is not free for the other."""
    monkeypatch.setattr(cache.space, 'free_bytes', lambda: len(DATA) * 3 // 2)
    image, others = images.add(DATA), fake.FakeImageService()
    other = others.add(DATA)
    gate = images.faults.gate = fake.Gate()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        filling = thread.submit(cache.filler.fill, images, image.id, ignore)
        gate.wait_reached()
        with pytest.raises(exception.NotEnoughSpace):
            cache.filler.fill(others, other.id, ignore)
        gate.release()
        filling.result(TIMEOUT_SECONDS)
    assert not cache.filler.fill(others, other.id, ignore).existing


@pytest.mark.parametrize('is_converted', [False, True])
def test_holes_stay_holes(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, is_converted: bool
) -> None:
    data = DATA + bytes(30 * 1024**2)
    path = tmp_path / 'image'
    if is_converted:
        image = images.add(disk_images.qcow2_of(path, data).read_bytes(), disk_format='qcow2')
    else:
        image = images.add(data)
    cache.filler.fill(images, image.id, ignore)
    status = cache.base_file(image.id).stat()
    assert status.st_size == len(data)
    assert status.st_blocks * 512 <= 2 * len(DATA)
    assert cache.base_file(image.id).read_bytes() == data


@pytest.mark.usefixtures('drops_pages')
@pytest.mark.parametrize('qemu_format', ['raw', 'qcow2'])
def test_cached_image_leaves_page_cache(
    cache: Cache, images: fake.FakeImageService, tmp_path: pathlib.Path, qemu_format: str
) -> None:
    path = disk_images.converted(tmp_path / 'image', qemu_format)
    image = images.add(path.read_bytes(), disk_format=qemu_format)
    cache.filler.fill(images, image.id, ignore)
    assert cached_bytes(cache.base_file(image.id)) == 0


@pytest.mark.parametrize(
    ('number', 'error'),
    [
        (errno.EIO, exception.StorageError),
        (errno.EROFS, exception.StorageError),
        (errno.ENOSPC, exception.NotEnoughSpace),
        (errno.EDQUOT, exception.NotEnoughSpace),
    ],
)
@pytest.mark.parametrize('name', ['pwrite', 'fdatasync', 'ftruncate', 'fsync', 'rename'])
def test_disk_error_reported_without_leftovers(
    cache: Cache,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    error: type[exception.CacheError],
) -> None:
    image = images.add(DATA)
    Refusal(monkeypatch, name, number).is_on = True
    with pytest.raises(error, match=os.strerror(number)):
        cache.filler.fill(images, image.id, ignore)
    assert cache.names() == []
    monkeypatch.undo()
    assert not cache.filler.fill(images, image.id, ignore).existing


# A server that has imported everything forks quickly, and has no threads.
_processes = multiprocessing.get_context('forkserver')
_processes.set_forkserver_preload([__name__])

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'


def fill_until_killed(instances_path: str, data: bytes, name: str, after: int) -> None:
    """Fill the cache until killed at the n-th call of a system operation, or at a step."""
    calls = itertools.count()

    def count() -> None:
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(progress: model.Progress) -> None:
        if progress.status == name:
            count()

    if hasattr(os, name):
        real = getattr(os, name)

        def deadly(*arguments: Any) -> Any:
            count()
            return real(*arguments)

        setattr(os, name, deadly)
    images = fake.FakeImageService()
    images.add(data, id=IMAGE_ID, disk_format='qcow2')
    Cache(layout.CacheLayout(instances_path)).filler.fill(images, IMAGE_ID, tell)


@pytest.mark.parametrize(
    ('name', 'after'),
    [
        *((str(status), 0) for status in sorted(model.TASK_WORKING)),
        ('fsync', 0),
        ('rename', 0),
        ('fsync', 1),
        ('listdir', 1),
        ('unlink', 0),
        ('unlink', 1),
    ],
)
def test_killed_process_leaves_nothing_half_done(
    cache: Cache,
    images: fake.FakeImageService,
    tmp_path: pathlib.Path,
    name: str,
    after: int,
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2')
    expected = disk_images.as_raw(path, 'qcow2')
    image = images.add(path.read_bytes(), disk_format='qcow2', id=IMAGE_ID)
    process = _processes.Process(
        target=fill_until_killed,
        args=(cache.paths.instances_path, path.read_bytes(), name, after),
    )
    process.start()
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    if cache.store.is_hit(image.id):
        assert cache.base_file(image.id).read_bytes() == expected

    cache.sweeper.sweep()
    assert set(cache.suffixes()) in (set(), {'journal', 'part'})
    cache.filler.fill(images, image.id, ignore)

    assert cache.base_file(image.id).read_bytes() == expected
    cache.sweeper.sweep()
    assert set(cache.suffixes()) in (set(), {'journal', 'part'})
