# SPDX-License-Identifier: Apache-2.0
"""qemu-img within its limits, and the errors for its failures."""

import os
import pathlib
import subprocess
import sys
from concurrent import futures

import psutil
import pytest

from nova_precache import exception, model, priority, transfer_control
from nova_precache.inspection import pagecache, qemu_img
from tests import disk_images, service
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.usefixtures('qemu_img')


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    return disk_images.converted(tmp_path / 'image', 'qcow2')


def stand_in(tmp_path: pathlib.Path, script: str) -> str:
    """Make a program with a behaviour that no qemu-img shows on demand."""
    program = tmp_path / 'stand-in'
    program.write_text(f'#!/bin/sh\n{script}\n')
    program.chmod(0o755)
    return str(program)


def test_image_is_described(image: pathlib.Path) -> None:
    info = qemu_img.QemuImg().info(str(image), 'qcow2')
    assert info == qemu_img.DiskInfo(
        format='qcow2',
        virtual_size_bytes=disk_images.MIB,
        backing_file=None,
        data_file=None,
        encrypted=False,
        create_type=None,
        extents=(),
    )


def test_named_format_used_without_probing(image: pathlib.Path) -> None:
    assert qemu_img.QemuImg().info(str(image), 'raw').format == 'raw'
    with pytest.raises(exception.UnsafeImage, match='cannot read it as vmdk'):
        qemu_img.QemuImg().info(str(image), 'vmdk')


def test_path_with_colon_is_file(image: pathlib.Path) -> None:
    moved = image.rename(image.parent / 'nbd:image,format=raw')
    assert qemu_img.QemuImg().info(str(moved), 'qcow2').format == 'qcow2'


def test_overlay_names_backing_format(image: pathlib.Path) -> None:
    overlay = image.parent / 'overlay, with=odd,characters'
    qemu_img.QemuImg().create_overlay(str(overlay), str(image), 'qcow2', 2 * disk_images.MIB)
    info = qemu_img.QemuImg().info(str(overlay), 'qcow2')
    assert (info.backing_file, info.virtual_size_bytes) == (str(image), 2 * disk_images.MIB)


def test_memory_limit_not_image_fault(image: pathlib.Path) -> None:
    small = qemu_img.QemuImg(qemu_img.QemuImgLimits(address_space_bytes=4 * disk_images.MIB))
    with pytest.raises(exception.ConversionFailed, match=r'4\.0 MiB of address space'):
        small.info(str(image), 'qcow2')


def test_cpu_time_is_limited(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = stand_in(tmp_path, 'while :; do :; done')
    endless = qemu_img.QemuImg(qemu_img.QemuImgLimits(inspect_cpu_seconds=1), program)
    with pytest.raises(exception.ConversionFailed, match='1 s of CPU time'):
        endless.info(str(image), 'qcow2')


def test_hanging_program_is_killed(
    image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, 'WALL_SECONDS_PER_CPU_SECOND', 1)
    program = stand_in(tmp_path, f'echo $$ > {tmp_path}/pid; exec sleep 600')
    slow = qemu_img.QemuImg(qemu_img.QemuImgLimits(inspect_cpu_seconds=1), program)
    with pytest.raises(exception.ConversionTimedOut, match='took more than 1 s') as caught:
        slow.info(str(image), 'qcow2')
    assert (caught.value.retry, caught.value.keeps_partial) == (model.Retry.BACKOFF, True)
    assert not psutil.pid_exists(int((tmp_path / 'pid').read_text()))


def test_exhausted_memory_not_image_fault(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = stand_in(tmp_path, 'echo "qemu-img: Cannot allocate memory" >&2; exit 1')
    with pytest.raises(exception.ConversionFailed, match='iB of address space'):
        qemu_img.QemuImg(program=program).info(str(image), 'qcow2')


def hanging(tmp_path: pathlib.Path, **arguments: bool) -> tuple[qemu_img.QemuImg, pathlib.Path]:
    """Make a program that writes its process id into a file and never ends."""
    ready = tmp_path / 'pid'
    script = f'echo $$ > {tmp_path}/new; mv {tmp_path}/new {ready}; exec sleep 600'
    return qemu_img.QemuImg(program=stand_in(tmp_path, script), **arguments), ready


@pytest.mark.parametrize('command', ['info', 'convert'])
@pytest.mark.parametrize('idle_priority', [False, True])
def test_stop_kills_program_at_once(
    image: pathlib.Path, tmp_path: pathlib.Path, command: str, idle_priority: bool
) -> None:
    endless, ready = hanging(tmp_path, idle_priority=idle_priority)
    held = transfer_control.Control()
    run = {
        'info': lambda: endless.info(str(image), 'qcow2', held),
        'convert': lambda: endless.convert_to_raw(str(image), 'qcow2', f'{image}.raw', held),
    }[command]
    with futures.ThreadPoolExecutor() as threads:
        running = threads.submit(run)
        service.wait_until(ready.exists, 'the program runs')
        held.stop(exception.Cancelled('not wanted any more'))
        with pytest.raises(exception.Cancelled, match='not wanted any more'):
            running.result(timeout=TIMEOUT_SECONDS)
    assert not psutil.pid_exists(int(ready.read_text()))


def test_stopped_work_starts_no_program(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    never, ready = hanging(tmp_path)
    held = transfer_control.Control()
    held.stop(exception.Paused('later'))
    with pytest.raises(exception.Paused, match='later'):
        never.info(str(image), 'qcow2', held)
    assert not ready.exists()


_PARENT = """
import sys
from nova_precache.inspection import qemu_img
qemu_img.QemuImg(program=sys.argv[1]).info('image', 'raw')
"""


def test_program_dies_with_its_parent(tmp_path: pathlib.Path) -> None:
    endless, ready = hanging(tmp_path)
    parent = subprocess.Popen([sys.executable, '-c', _PARENT, endless._program])
    try:
        service.wait_until(ready.exists, 'the program runs')
    finally:
        parent.kill()
        parent.wait()
    program = int(ready.read_text())
    service.wait_until(lambda: not psutil.pid_exists(program), 'the program has ended')


def test_idle_program_yields_until_urgent(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    endless, ready = hanging(tmp_path, idle_priority=True)
    held = transfer_control.Control()
    with futures.ThreadPoolExecutor() as threads:
        running = threads.submit(endless.info, str(image), 'qcow2', held)
        service.wait_until(ready.exists, 'the program runs')
        program = psutil.Process(int(ready.read_text()))
        assert program.nice() == priority.IDLE_NICENESS
        assert program.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        with held.waited_for():
            service.wait_until(
                lambda: program.ionice().ioclass != psutil.IOPRIO_CLASS_IDLE, 'it is lifted'
            )
        held.stop(exception.Cancelled('enough'))
        with pytest.raises(exception.Cancelled):
            running.result(timeout=TIMEOUT_SECONDS)


def convert_command(tmp_path: pathlib.Path, source: pathlib.Path, target: pathlib.Path) -> str:
    """Convert with a program that only records its arguments."""
    program = stand_in(tmp_path, f'echo "$@" > {tmp_path}/arguments')
    qemu_img.QemuImg(program=program).convert_to_raw(str(source), 'qcow2', str(target))
    return (tmp_path / 'arguments').read_text()


def test_conversion_bypasses_page_cache(
    image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a source that is there from the download is read from there."""
    monkeypatch.setattr(pagecache, 'takes_direct_writes', lambda path: True)
    target = tmp_path / 'target'
    monkeypatch.setattr(pagecache, 'is_mostly_cached', lambda path: True)
    assert ' -W -t none /' in convert_command(tmp_path, image, target)
    monkeypatch.setattr(pagecache, 'is_mostly_cached', lambda path: False)
    assert ' -W -t none -T none /' in convert_command(tmp_path, image, target)


def test_conversion_works_without_direct_writes(
    image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, 'takes_direct_writes', lambda path: False)
    target = tmp_path / 'target'
    assert ' -W /' in convert_command(tmp_path, image, target)


def test_uncreatable_target_faults_storage(image: pathlib.Path) -> None:
    with pytest.raises(exception.StorageError, match='No such file'):
        qemu_img.QemuImg().convert_to_raw(str(image), 'qcow2', '/no-such-directory/target')


def test_large_disk_converted_sparse_within_limits(
    image: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk_images.qemu_img('resize', str(image), '10G')
    target = tmp_path / 'target'
    qemu_img.QemuImg().convert_to_raw(str(image), 'qcow2', str(target))
    assert target.stat().st_size == 10 * 1024**3
    assert target.stat().st_blocks * 512 <= 2 * disk_images.MIB
    with target.open('rb') as file:
        assert file.read(disk_images.MIB) == disk_images.content(disk_images.MIB)


def test_endless_output_is_truncated(
    tmp_path: pathlib.Path,
) -> None:
    """Its output is held in memory, ours too."""
    image = disk_images.qcow2_with_long_snapshot_names(tmp_path / 'image', 4000)
    with pytest.raises(exception.UnsafeImage, match=r'description exceeds 1\.0 MiB'):
        qemu_img.QemuImg().info(str(image), 'qcow2')
    assert os.listdir(tmp_path) == ['image']


def test_undecodable_data_is_image_fault(tmp_path: pathlib.Path) -> None:
    """To qemu-img it is an input/output error, but another attempt would meet it again."""
    image = disk_images.qcow2_with_bad_compressed_data(tmp_path / 'image')
    with pytest.raises(exception.ConversionFailed, match='error while reading'):
        qemu_img.QemuImg().convert_to_raw(str(image), 'qcow2', str(tmp_path / 'target'))


@pytest.mark.parametrize('launcher', ['setpriv', 'prlimit', 'ionice'])
def test_failure_to_start_not_image_fault(
    image: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
) -> None:
    """A container, or a unit with limits of its own, may refuse."""
    refusing = pathlib.Path(stand_in(tmp_path, f'echo "{launcher}: refused" >&2; exit 1'))
    refusing.rename(tmp_path / launcher)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    run = qemu_img.QemuImg(idle_priority=True)
    with pytest.raises(exception.ConversionFailed, match=f'{launcher}: refused'):
        run.info(str(image), 'qcow2')
    with pytest.raises(exception.ConfigError, match=f'cannot be run .* {launcher}: refused'):
        run.check_installed()


@pytest.mark.parametrize(
    ('message', 'error'),
    [
        ('No space left on device', exception.NotEnoughSpace),
        ('Input/output error', exception.StorageError),
        ('Read-only file system', exception.StorageError),
        ('Image is corrupt', exception.ConversionFailed),
    ],
)
def test_filesystem_error_not_image_fault(
    image: pathlib.Path, tmp_path: pathlib.Path, message: str, error: type[Exception]
) -> None:
    program = stand_in(tmp_path, f'echo "qemu-img: error while writing: {message}" >&2; exit 1')
    with pytest.raises(error, match=message):
        qemu_img.QemuImg(program=program).convert_to_raw(str(image), 'qcow2', f'{image}.raw')


def test_installed_program_runs() -> None:
    qemu_img.QemuImg().check_installed()


def test_missing_program_is_named() -> None:
    with pytest.raises(exception.ConfigError, match='no-such-program is not installed'):
        qemu_img.QemuImg(program='no-such-program').check_installed()


def test_host_paths_stay_out_of_reason(image: pathlib.Path) -> None:
    with pytest.raises(exception.UnsafeImage) as caught:
        qemu_img.QemuImg().info(str(image), 'vdi')
    assert os.fspath(image) not in str(caught.value)
