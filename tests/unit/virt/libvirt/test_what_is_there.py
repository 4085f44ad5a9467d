# SPDX-License-Identifier: Apache-2.0
"""What counts as cached: the same for a task, for a boot and for the host's report."""

import os
import pathlib
import shutil
from collections.abc import Callable

import pytest
from oslo_utils.imageutils import format_inspector

from nova_precache import model
from nova_precache.image import fake
from nova_precache.inspection import content
from tests import disk_images, odd_files
from tests.functional import kill_harness
from tests.unit.virt.libvirt.conftest import MakeDriver
from tests.unit.virt.libvirt.test_driver import sha1

pytestmark = pytest.mark.timeout(120)

DATA = disk_images.content(disk_images.MIB)
OLD = 1_000_000_000
Put = Callable[[pathlib.Path], object]


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Make an image elsewhere, in a directory of its own."""
    directory = path.parents[2] / 'elsewhere'
    directory.mkdir(exist_ok=True)
    target = directory / 'target'
    target.write_bytes(DATA)
    return target


def _link(path: pathlib.Path) -> None:
    path.symlink_to(_beside(path))


def _relative_link(path: pathlib.Path) -> None:
    path.symlink_to(os.path.relpath(_beside(path), path.parent))


def _link_to_a_link(path: pathlib.Path) -> None:
    _link(path.with_name('first'))
    path.symlink_to('first')


def _link_to(put: Put) -> Put:
    def link(path: pathlib.Path) -> None:
        put(path.with_name('target'))
        path.symlink_to('target')

    return link


def _converted(qemu_format: str, *options: str) -> Put:
    def put(path: pathlib.Path) -> None:
        made = path.parents[2] / 'made'
        disk_images.converted(made, qemu_format, *options)
        shutil.copyfile(made, path)

    return put


THERE: dict[str, Put] = {
    'a file': lambda path: path.write_bytes(DATA),
    'a file of one byte': lambda path: path.write_bytes(b'Q'),
    'a hole': lambda path: path.write_bytes(bytes(disk_images.MIB)),
    'a link': _link,
    'a relative link': _relative_link,
    'a link to a link': _link_to_a_link,
    'a hard link': lambda path: os.link(_beside(path), path),
    'a fixed VHD, which is raw but for its end': _converted('vpc', '-o', 'subformat=fixed'),
}
NOT_THERE: dict[str, Put] = {
    'nothing': lambda path: None,
    'an empty file': pathlib.Path.touch,
    'a FIFO': os.mkfifo,
    'a socket': odd_files.NOT_REGULAR['a socket'],
    'a directory': pathlib.Path.mkdir,
    'a dangling link': odd_files.DANGLING,
    'a loop of links': odd_files.LOOP,
    'a link below a file': lambda path: path.symlink_to(_beside(path) / 'below'),
    'a link to a device': odd_files.DEVICE,
    'a link to a directory': lambda path: path.symlink_to(path.parents[1]),
    'a link to an empty file': _link_to(pathlib.Path.touch),
    'a link to a qcow2 file': _link_to(_converted('qcow2')),
    **{
        f'a file in {name}': _converted(name, *options)
        for name, *options in (
            ('qcow2',), ('qcow',), ('qed',), ('vdi',), ('vpc',), ('vhdx',), ('vmdk',),
            ('parallels',),
            ('vmdk', '-o', 'subformat=streamOptimized'),
            ('vmdk', '-o', 'subformat=monolithicFlat'),
        )
    },
    'a VMDK of ESX 3': lambda path: path.write_bytes(b'COWD' + bytes(4096)),
    'a Bochs image': lambda path: path.write_bytes(b'Bochs Virtual HD Image' + bytes(4096)),
    'a VDI that is cut off': lambda path: path.write_bytes(bytes(64) + b'\x7f\x10\xda\xbe'),
}  # fmt: skip


def _try(driver: object, images: fake.FakeImageService, image: model.Image) -> str:
    return kill_harness.try_to_cache(driver, images, image.id)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize('kind', [*THERE, *NOT_THERE])
def test_task_and_report_agree_on_presence(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    kind: str,
) -> None:
    image, driver = images.add(DATA), make_driver()
    path = instances_path / '_base' / sha1(image.id)
    (THERE | NOT_THERE)[kind](path)
    listed = [[each.name for each in driver.cached_images(recount=each_time)]
              for each_time in (True, False, False)]  # fmt: skip

    status = _try(driver, images, image)

    assert listed == [[path.name] if kind in THERE else []] * 3
    assert (status == 'existing') == (kind in THERE)
    assert (images.opens == []) == (status in {'existing', 'PlaceTaken'})
    if status in {'existing', 'cached'}:
        [reported] = driver.cached_images()
        assert reported.size_bytes == path.stat().st_size


@pytest.mark.parametrize('kind', [kind for kind in NOT_THERE if ' in ' in kind or ' VMDK' in kind])
def test_other_format_counts_without_force_raw(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
    kind: str,
) -> None:
    image, driver = images.add(DATA), make_driver(force_raw_images=False)
    NOT_THERE[kind](instances_path / '_base' / sha1(image.id))
    assert [each.name for each in driver.cached_images()] == [sha1(image.id)]
    assert _try(driver, images, image) == 'existing'


def test_format_changed_in_place_reported(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    driver, path = make_driver(), instances_path / '_base' / sha1('image')
    path.write_bytes(DATA)
    assert driver.cached_images()
    path.write_bytes(b'QFI\xfb' + DATA[4:])
    assert driver.cached_images() == []


def test_touch_follows_link_to_target(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image, driver = images.add(DATA), make_driver()
    path = instances_path / '_base' / sha1(image.id)
    _link(path)
    os.utime(path, (OLD, OLD))
    assert driver.cached_images()[0].touched_at.year == 2001
    assert _try(driver, images, image) == 'existing'
    assert path.stat().st_mtime > OLD
    driver.manage_image_cache()
    assert path.is_symlink()


@pytest.mark.parametrize('put', [_link, _relative_link, _link_to_a_link])
def test_expiring_link_removed_alone(
    make_driver: MakeDriver, instances_path: pathlib.Path, put: Put
) -> None:
    driver, path = make_driver(), instances_path / '_base' / sha1('image')
    put(path)
    os.utime(path, (OLD, OLD))
    driver.manage_image_cache()
    assert not os.path.lexists(path)
    assert (path.parents[2] / 'elsewhere' / 'target').read_bytes() == DATA


def test_used_link_and_target_stay(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    driver, image, other = make_driver(), images.add(DATA), images.add(DATA)
    path, target = (instances_path / '_base' / sha1(each.id) for each in (image, other))
    target.write_bytes(DATA)
    path.symlink_to(target.name)
    driver.create_root_disk(images, image.id, 'instance')
    os.utime(path, (OLD, OLD))
    assert {each.name: each.used_by for each in driver.cached_images()} == {
        path.name: 1,
        target.name: 1,
    }
    driver.manage_image_cache()
    assert path.read_bytes() == DATA


@pytest.mark.parametrize('kind', ['a FIFO', 'a directory', 'a dangling link', 'a loop of links'])
def test_non_file_stays_and_blocks_none(
    make_driver: MakeDriver, instances_path: pathlib.Path, kind: str
) -> None:
    driver, path = make_driver(), instances_path / '_base' / sha1('image')
    NOT_THERE[kind](path)
    other = path.with_name(sha1('other'))
    other.write_bytes(DATA)
    os.utime(other, (OLD, OLD))
    driver.manage_image_cache()
    assert os.path.lexists(path)
    assert not other.exists()


def test_header_probe_agrees_with_inspectors() -> None:
    """It is another list of magics, and must stay in step with theirs."""
    among = format_inspector.ALL_FORMATS
    assert set(content._CONVERTED) | {'raw', 'gpt', 'iso', 'luks'} == set(among)
