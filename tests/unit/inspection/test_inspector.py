# SPDX-License-Identifier: Apache-2.0
"""Which images are accepted, which refused, and for which reason."""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable

import pytest

from nova_precache import exception, transfer_control
from nova_precache.inspection import convert, formats, qemu_img
from tests import disk_images, image_corpus

pytestmark = pytest.mark.usefixtures('qemu_img')

VMDK_TYPES = ('streamOptimized', 'monolithicSparse')


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'image'


@pytest.fixture
def inspector() -> formats.ImageInspector:
    return formats.ImageInspector(qemu_img.QemuImg(), VMDK_TYPES)


def refusal(inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str | None) -> str:
    """Inspect a file that must be refused as unsafe, and return the reason."""
    with pytest.raises(exception.UnsafeImage) as caught:
        inspector.inspect(str(path), disk_format)
    return str(caught.value)


@pytest.mark.parametrize(
    ('disk_format', 'qemu_format', 'options'),
    [
        ('qcow2', 'qcow2', ()),
        ('qcow2', 'qcow2', ('-o', 'compat=0.10')),
        ('qcow2', 'qcow2', ('-c',)),
        ('vhd', 'vpc', ('-o', 'subformat=dynamic,force_size=on')),
        ('vhdx', 'vhdx', ()),
        ('vmdk', 'vmdk', ('-o', 'subformat=monolithicSparse')),
        ('vmdk', 'vmdk', ('-o', 'subformat=streamOptimized')),
        ('vdi', 'vdi', ()),
    ],
)
def test_each_supported_format_accepted(
    inspector: formats.ImageInspector,
    path: pathlib.Path,
    disk_format: str,
    qemu_format: str,
    options: tuple[str, ...],
) -> None:
    disk_images.converted(path, qemu_format, *options)
    found = inspector.inspect(str(path), disk_format)
    assert found.qemu_format == qemu_format
    assert found.virtual_size_bytes >= disk_images.MIB


@pytest.mark.parametrize('disk_format', ['raw', 'ami', 'ari', 'aki'])
@pytest.mark.parametrize('make', [disk_images.raw, disk_images.gpt])
def test_data_and_partitioned_disks_are_raw(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str, make: type
) -> None:
    make(path)
    assert inspector.inspect(str(path), disk_format) == formats.InspectedImage('raw', 1024**2)


@pytest.mark.parametrize('disk_format', ['iso', 'ami'])
def test_iso_is_raw_to_qemu(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str
) -> None:
    assert inspector.inspect(str(disk_images.iso(path)), disk_format).qemu_format == 'raw'


@pytest.mark.parametrize(
    ('disk_format', 'make', 'content'),
    [
        ('raw', 'qcow2', 'qcow2'),
        ('raw', 'iso', 'iso'),
        ('raw', 'vmdk', 'vmdk'),
        ('ami', 'qcow2', 'qcow2'),
        ('iso', 'raw', 'raw'),
        ('iso', 'gpt', 'gpt'),
        ('qcow2', 'raw', 'raw'),
        ('vmdk', 'qcow2', 'qcow2'),
        ('vhd', 'vhdx', 'vhdx'),
        ('raw', 'parallels', 'parallels'),
    ],
)
def test_content_differing_from_declared_format_refused(
    inspector: formats.ImageInspector,
    path: pathlib.Path,
    disk_format: str,
    make: str,
    content: str,
) -> None:
    by_hand = {'iso': disk_images.iso, 'raw': disk_images.raw, 'gpt': disk_images.gpt}
    if make in by_hand:
        by_hand[make](path)
    else:
        disk_images.converted(path, make)
    assert refusal(inspector, path, disk_format) == (
        f'unsafe image: disk_format is {disk_format}, but the content is {content}'
    )


def test_raw_with_qcow2_magic_refused(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    disk_images.patched(disk_images.raw(path), 0, b'QFI\xfb\x00\x00\x00\x02')
    assert refusal(inspector, path, 'raw') == (
        'unsafe image: disk_format is raw, but the content is qcow2'
    )


def test_iso_with_partition_table_is_iso(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    disk_images.iso_with_gpt(path)
    assert inspector.inspect(str(path), 'iso').qemu_format == 'raw'
    assert refusal(inspector, path, 'raw') == (
        'unsafe image: disk_format is raw, but the content is iso'
    )


def test_two_formats_at_once_refused(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    iso = disk_images.iso(path).read_bytes()
    disk_images.converted(path, 'qcow2')
    disk_images.patched(path, 32 * 1024, iso[32 * 1024 : 32 * 1024 + 6])
    assert 'several formats at once: iso, qcow2' in refusal(inspector, path, 'iso')


def test_backing_file_is_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    backing = disk_images.raw(tmp_path / 'secret')
    disk_images.qcow2_with_backing_file(path, backing)
    assert 'Image has a backing file' in refusal(inspector, path, 'qcow2')


def test_data_file_is_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk_images.qcow2_with_data_file(path, tmp_path / 'secret')
    assert 'Image has data_file set' in refusal(inspector, path, 'qcow2')


def test_unknown_feature_is_refused(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    disk_images.qcow2_with_unknown_feature(path)
    assert 'Unknown QCOW2 features found' in refusal(inspector, path, 'qcow2')


def test_extended_l2_refused_as_in_nova(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    disk_images.converted(path, 'qcow2', '-o', 'extended_l2=on')
    assert 'Unknown QCOW2 features found' in refusal(inspector, path, 'qcow2')


def test_absurd_table_refused_by_qemu_img(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    disk_images.qcow2_with_absurd_l1_size(path)
    assert 'qemu-img cannot read it as qcow2' in refusal(inspector, path, 'qcow2')


def test_encrypted_qcow2_is_refused(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    assert 'it is encrypted' in refusal(inspector, disk_images.qcow2_encrypted(path), 'qcow2')


@pytest.mark.parametrize('disk_format', ['raw', 'ami'])
def test_luks_is_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str
) -> None:
    assert 'LUKS-encrypted' in refusal(inspector, disk_images.luks(path), disk_format)


@pytest.mark.parametrize('disk_format', ['ploop', 'luks', 'qed', 'gpt', '', None])
def test_unbootable_format_is_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str | None
) -> None:
    disk_images.raw(path)
    assert refusal(inspector, path, disk_format) == (
        f'unsafe image: disk_format {disk_format} is not supported'
    )


def test_multi_file_vmdk_refused(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    assert 'Unsupported subformat' in refusal(inspector, disk_images.vmdk_flat(path), 'vmdk')


def test_vmdk_with_path_extent_refused(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    disk_images.vmdk_with_extent_path(path)
    assert 'Invalid extent filenames found' in refusal(inspector, path, 'vmdk')


def test_disallowed_vmdk_type_refused(path: pathlib.Path) -> None:
    strict = formats.ImageInspector(qemu_img.QemuImg(), ['monolithicSparse'])
    disk_images.converted(path, 'vmdk', '-o', 'subformat=streamOptimized')
    assert refusal(strict, path, 'vmdk') == (
        'unsafe image: VMDK create type streamoptimized is not in vmdk_allowed_types'
    )


def test_vmdk_with_parent_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    parent = disk_images.converted(tmp_path / 'parent', 'vmdk')
    disk_images.qemu_img('create', '-f', 'vmdk', '-b', str(parent), '-F', 'vmdk', str(path))
    assert refusal(inspector, path, 'vmdk').startswith('unsafe image: ')


@pytest.mark.parametrize(
    ('magic', 'name'),
    [
        (b'WithoutFreeSpace', 'parallels'),
        (b'WithouFreSpacExt', 'parallels'),
        (b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop', 'cloop'),
    ],
)
def test_qemu_only_format_not_raw(
    inspector: formats.ImageInspector, path: pathlib.Path, magic: bytes, name: str
) -> None:
    disk_images.patched(disk_images.raw(path), 0, magic)
    assert f'the content is {name}' in refusal(inspector, path, 'raw')


@pytest.mark.parametrize(
    ('told', 'reason'),
    [
        ({'backing-filename': '/etc/passwd'}, 'backing file'),
        ({'format-specific': {'data': {'data-file': '/etc/passwd'}}}, 'data file'),
        ({'encrypted': True}, 'encrypted'),
        ({'format': 'vmdk'}, 'create type None'),
        (
            {
                'format': 'vmdk',
                'format-specific': {
                    'data': {
                        'create-type': 'monolithicSparse',
                        'extents': [{'filename': '/etc/passwd'}],
                    }
                },
            },
            'extents in other files',
        ),
    ],
)
def test_qemu_img_findings_refused(
    path: pathlib.Path, tmp_path: pathlib.Path, told: dict[str, object], reason: str
) -> None:
    """A stand-in program reports what no image that passes the inspector can contain."""
    document = {'format': 'raw', 'virtual-size': 1, **told}
    program = tmp_path / 'stand-in'
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(document)}\nEND\n")
    program.chmod(0o755)
    inspector = formats.ImageInspector(qemu_img.QemuImg(program=str(program)), VMDK_TYPES)
    disk_images.raw(path)
    assert reason in refusal(inspector, path, 'raw')


@pytest.mark.parametrize(
    ('make', 'qemu_format'),
    [
        (disk_images.raw, 'raw'),
        (disk_images.gpt, 'raw'),
        (disk_images.iso, 'raw'),
        (disk_images.iso_with_gpt, 'raw'),
        (lambda path: disk_images.converted(path, 'qcow2'), 'qcow2'),
        (lambda path: disk_images.converted(path, 'vpc'), 'vpc'),
    ],
)
def test_base_file_has_format_of_qemu(
    inspector: formats.ImageInspector,
    path: pathlib.Path,
    make: Callable[[pathlib.Path], pathlib.Path],
    qemu_format: str,
) -> None:
    assert inspector.inspect_base(str(make(path))).qemu_format == qemu_format


def test_base_file_referencing_files_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk_images.qcow2_with_data_file(path, tmp_path / 'secret')
    with pytest.raises(exception.UnsafeImage, match='data_file'):
        inspector.inspect_base(str(path))


def test_missing_file_faults_storage(inspector: formats.ImageInspector, path: pathlib.Path) -> None:
    with pytest.raises(exception.StorageError, match='No such file'):
        inspector.inspect(str(path), 'raw')


def test_converted_image_equals_qemu_img_output(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk_images.converted(path, 'qcow2')
    target = tmp_path / 'target'
    inspected = inspector.inspect(str(path), 'qcow2')
    convert.Converter(qemu_img.QemuImg(), inspector).to_raw(str(path), inspected, str(target))
    assert target.read_bytes() == disk_images.content(disk_images.MIB)


@pytest.mark.parametrize('directory', [None, '/dev/shm'])  # noqa: S108 - another file system
def test_disk_keeps_any_size(
    inspector: formats.ImageInspector, path: pathlib.Path, directory: str | None
) -> None:
    """Some file systems lead qemu-img to fill the last block."""
    if directory is not None and not os.path.isdir(directory):
        pytest.skip('no such file system')
    size_bytes = disk_images.MIB + 512
    disk_images.converted(path, 'qcow2', size_bytes=size_bytes)
    inspected = inspector.inspect(str(path), 'qcow2')
    with tempfile.TemporaryDirectory(dir=directory) as place:
        target = pathlib.Path(place, 'target')
        convert.Converter(qemu_img.QemuImg(), inspector).to_raw(str(path), inspected, str(target))
        assert target.read_bytes() == disk_images.content(size_bytes)


def test_conversion_padding_is_removed(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = tmp_path / 'stand-in'
    program.write_text('#!/bin/sh\nfor target; do :; done\nhead -c 8192 /dev/zero > "$target"\n')
    program.chmod(0o755)
    converter = convert.Converter(qemu_img.QemuImg(program=str(program)), inspector)
    target = tmp_path / 'target'
    disk_images.raw(path)
    converter.to_raw(str(path), formats.InspectedImage('qcow2', 4608), str(target))
    assert target.stat().st_size == 4608


def test_nested_image_is_refused(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    secret = disk_images.raw(tmp_path / 'secret')
    inner = disk_images.qcow2_with_backing_file(tmp_path / 'inner', secret)
    disk_images.qcow2_of(path, inner.read_bytes())
    inspected = inspector.inspect(str(path), 'qcow2')
    converter = convert.Converter(qemu_img.QemuImg(), inspector)
    with pytest.raises(exception.UnsafeImage, match='its content is qcow2 after conversion to raw'):
        converter.to_raw(str(path), inspected, str(tmp_path / 'target'))


@pytest.mark.parametrize('is_stopped', [False, True])
def test_conversion_output_read_only_where_needed(
    inspector: formats.ImageInspector, path: pathlib.Path, is_stopped: bool
) -> None:
    """Some formats need the end of the image, but a sparse disk may have many TiB."""
    disk_images.patched(disk_images.converted(path, 'vmdk'), 56, image_corpus.VMDK_FOOTER_AT_END)
    disk_images.truncated(path, 1024**4)
    held = transfer_control.Control()
    if is_stopped:
        held.stop(exception.Cancelled('not wanted any more'))
    expected = exception.Cancelled if is_stopped else exception.UnsafeImage
    with pytest.raises(expected, match='not wanted any more' if is_stopped else 'is vmdk'):
        inspector.check_converted(str(path), held)


def test_nested_boot_sector_is_raw(
    inspector: formats.ImageInspector, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    boot_sector = bytes(510) + b'\x55\xaa'
    disk_images.qcow2_of(path, boot_sector + bytes(disk_images.MIB - 512))
    target = tmp_path / 'target'
    inspected = inspector.inspect(str(path), 'qcow2')
    convert.Converter(qemu_img.QemuImg(), inspector).to_raw(str(path), inspected, str(target))
    assert target.read_bytes()[:512] == boot_sector


def test_inspector_knows_every_qemu_format(
    inspector: formats.ImageInspector, path: pathlib.Path
) -> None:
    """A base file that qemu would not take for raw must not pass for raw."""
    for qemu_format in ('qcow2', 'vpc', 'vhdx', 'vmdk', 'vdi', 'qed', 'parallels', 'qcow'):
        disk_images.converted(path, qemu_format)
        with pytest.raises(exception.UnsafeImage, match='its content is'):
            inspector.check_converted(str(path))
