# SPDX-License-Identifier: Apache-2.0
"""qemu-img within its limits, and what its failures become."""

import os
import pathlib

import psutil
import pytest

from nova_precache import exception
from nova_precache.inspection import qemu_img
from tests import disk_images

pytestmark = pytest.mark.usefixtures('qemu_img')


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    return disk_images.converted(tmp_path / 'image', 'qcow2')


def stand_in(tmp_path: pathlib.Path, script: str) -> str:
    """Make a program that behaves as no qemu-img can be brought to on demand."""
    program = tmp_path / 'stand-in'
    program.write_text(f'#!/bin/sh\n{script}\n')
    program.chmod(0o755)
    return str(program)


def test_an_image_is_described(image: pathlib.Path) -> None:
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


def test_the_format_is_taken_as_named_and_not_guessed(image: pathlib.Path) -> None:
    assert qemu_img.QemuImg().info(str(image), 'raw').format == 'raw'
    with pytest.raises(exception.UnsafeImage, match='cannot read it as vmdk'):
        qemu_img.QemuImg().info(str(image), 'vmdk')


def test_a_path_with_a_colon_is_a_file(image: pathlib.Path) -> None:
    moved = image.rename(image.parent / 'nbd:image,format=raw')
    assert qemu_img.QemuImg().info(str(moved), 'qcow2').format == 'qcow2'


def test_an_overlay_names_the_format_of_its_backing_file(image: pathlib.Path) -> None:
    overlay = image.parent / 'overlay, with=odd,characters'
    qemu_img.QemuImg().create_overlay(str(overlay), str(image), 'qcow2', 2 * disk_images.MIB)
    info = qemu_img.QemuImg().info(str(overlay), 'qcow2')
    assert (info.backing_file, info.virtual_size_bytes) == (str(image), 2 * disk_images.MIB)


def test_too_little_memory_is_not_the_fault_of_the_image(image: pathlib.Path) -> None:
    small = qemu_img.QemuImg(qemu_img.QemuImgLimits(address_space_bytes=4 * disk_images.MIB))
    with pytest.raises(exception.ConversionFailed, match='4194304 bytes of address space'):
        small.info(str(image), 'qcow2')


def test_cpu_time_is_limited(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = stand_in(tmp_path, 'while :; do :; done')
    endless = qemu_img.QemuImg(qemu_img.QemuImgLimits(inspect_cpu_seconds=1), program)
    with pytest.raises(exception.ConversionFailed, match='1 s of CPU time'):
        endless.info(str(image), 'qcow2')


def test_a_program_that_hangs_is_ended(
    image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, 'WALL_SECONDS_PER_CPU_SECOND', 1)
    program = stand_in(tmp_path, f'echo $$ > {tmp_path}/pid; exec sleep 600')
    hanging = qemu_img.QemuImg(qemu_img.QemuImgLimits(inspect_cpu_seconds=1), program)
    with pytest.raises(exception.ConversionFailed, match='took more than 1 s'):
        hanging.info(str(image), 'qcow2')
    assert not psutil.pid_exists(int((tmp_path / 'pid').read_text()))


@pytest.mark.parametrize(
    ('message', 'error'),
    [
        ('No space left on device', exception.NotEnoughSpace),
        ('Input/output error', exception.StorageError),
        ('Read-only file system', exception.StorageError),
        ('Image is corrupt', exception.ConversionFailed),
    ],
)
def test_a_refusal_of_the_file_system_is_told_from_a_fault_of_the_image(
    image: pathlib.Path, tmp_path: pathlib.Path, message: str, error: type[Exception]
) -> None:
    program = stand_in(tmp_path, f'echo "qemu-img: error while writing: {message}" >&2; exit 1')
    with pytest.raises(error, match=message):
        qemu_img.QemuImg(program=program).convert_to_raw(str(image), 'qcow2', f'{image}.raw')


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(exception.ConfigError, match='no-such-program is not installed'):
        qemu_img.QemuImg(program='no-such-program').check_installed()


def test_paths_of_the_host_stay_out_of_the_reason(image: pathlib.Path) -> None:
    with pytest.raises(exception.UnsafeImage) as caught:
        qemu_img.QemuImg().info(str(image), 'vdi')
    assert os.fspath(image) not in str(caught.value)
