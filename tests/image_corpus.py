# SPDX-License-Identifier: Apache-2.0
"""Images, good and hostile, and what becomes of each under each disk_format.

The table is asserted twice: for the inspection alone, and through a whole driver.
A disk_format that an image's row does not name is a lie about it, and refused as one.
"""

import dataclasses
import functools
import pathlib
import struct
import uuid
from collections.abc import Callable, Mapping

from tests import disk_images

RAW_FORMATS = ('raw', 'ami', 'iso')
DISK_FORMATS = (*RAW_FORMATS, 'qcow2', 'vmdk', 'vhd', 'vhdx', 'vdi')
QEMU_FORMATS = {**dict.fromkeys(RAW_FORMATS, 'raw'), 'vhd': 'vpc'}

Make = Callable[[pathlib.Path], pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of an image.

    :ivar reason: a part of the reason why it is refused; None: it is accepted
    :ivar early: refused from its first few MiB, whatever follows
    :ivar converting: refused only when it is to be made raw
    :ivar too_large: a limit on the size of disks refuses it before that
    """

    reason: str | None = None
    early: bool = False
    converting: bool = False
    too_large: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """An image and its verdicts.

    :ivar content: what it is in truth
    :ivar early: that is plain from its first few MiB, whatever follows
    """

    make: Make
    content: str
    verdicts: Mapping[str, Verdict]
    early: bool = True

    def verdict(self, disk_format: str) -> Verdict:
        lie = f'disk_format is {disk_format}, but the content is {self.content}'
        return self.verdicts.get(disk_format) or Verdict(lie, early=self.early)


ACCEPTED = Verdict()


def early(reason: str) -> Verdict:
    return Verdict(reason, early=True)


def late(reason: str) -> Verdict:
    return Verdict(reason)


def too_large(reason: str) -> Verdict:
    return Verdict(reason, too_large=True)


def converting(reason: str) -> Verdict:
    return Verdict(reason, converting=True)


def _raw(make: Make, content: str = 'raw', *, is_early: bool = True) -> Case:
    """What is raw to Glance and to qemu."""
    return Case(make, content, {'raw': ACCEPTED, 'ami': ACCEPTED}, is_early)


def _iso(make: Make) -> Case:
    return Case(make, 'iso', {'iso': ACCEPTED, 'ami': ACCEPTED})


def _of(disk_format: str, verdict: Verdict, make: Make, *, is_early: bool = True) -> Case:
    return Case(make, disk_format, {disk_format: verdict}, is_early)


def _always(verdict: Verdict, make: Make) -> Case:
    return Case(make, '', dict.fromkeys(DISK_FORMATS, verdict))


def _image(qemu_format: str, *options: str) -> Make:
    return lambda path: disk_images.converted(path, qemu_format, *options)


def _patched(make: Make, offset: int, data: bytes) -> Make:
    return lambda path: disk_images.patched(make(path), offset, data)


def _cut(make: Make, size_bytes: int) -> Make:
    return lambda path: disk_images.truncated(make(path), size_bytes)


def _bytes(data: bytes) -> Make:
    def make(path: pathlib.Path) -> pathlib.Path:
        path.write_bytes(data)
        return path

    return make


def _nested(data: Make) -> Make:
    """A qcow2 image whose content is another image."""

    def make(path: pathlib.Path) -> pathlib.Path:
        inner = data(path.with_suffix('.inner'))
        return disk_images.qcow2_of(path, inner.read_bytes())

    return make


def _beside(make: Callable[[pathlib.Path, pathlib.Path], pathlib.Path]) -> Make:
    """An image that names another file."""
    return lambda path: make(path, disk_images.raw(path.with_suffix('.secret')))


def _overlay(path: pathlib.Path) -> pathlib.Path:
    base = disk_images.converted(path.with_suffix('.base'), 'qcow2')
    disk_images.qemu_img('create', '-f', 'qcow2', '-b', str(base), '-F', 'qcow2', str(path))
    return path


def _old_overlay(path: pathlib.Path, base: pathlib.Path) -> pathlib.Path:
    options = ('-o', 'compat=0.10', '-b', str(base), '-F', 'raw')
    disk_images.qemu_img('create', '-f', 'qcow2', *options, str(path))
    return path


def _external_data(path: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    options = f'data_file={data}'
    disk_images.qemu_img('create', '-f', 'qcow2', '-o', options, str(path), '1M')
    return path


def _q32(value: int) -> bytes:
    return struct.pack('>I', value)


def _q64(value: int) -> bytes:
    return struct.pack('>Q', value)


_QCOW2 = _image('qcow2')
_CANNOT = 'qemu-img cannot read it as '


def _l1_entry(path: pathlib.Path) -> pathlib.Path:
    """A qcow2 image whose table of clusters lies far beyond the file."""
    disk_images.converted(path, 'qcow2')
    (l1_offset,) = struct.unpack_from('>Q', path.read_bytes(), 40)
    return disk_images.patched(path, l1_offset, _q64(1 << 63 | 1 << 40))


QCOW2 = {
    'qcow2': _of('qcow2', ACCEPTED, _QCOW2),
    'qcow2 of version 2': _of('qcow2', ACCEPTED, _image('qcow2', '-o', 'compat=0.10')),
    'qcow2, compressed': _of('qcow2', ACCEPTED, _image('qcow2', '-c')),
    'qcow2, compressed with zstd': _of(
        'qcow2', ACCEPTED, _image('qcow2', '-c', '-o', 'compression_type=zstd')
    ),
    'qcow2, not closed': _of('qcow2', ACCEPTED, _patched(_QCOW2, 72, _q64(1))),
    'qcow2, small clusters': _of('qcow2', ACCEPTED, _image('qcow2', '-o', 'cluster_size=512')),
    'qcow2, internal snapshots': _of('qcow2', ACCEPTED, disk_images.qcow2_with_snapshots),
    # What lies beyond the file reads as zeros to qemu, and the hash says that all came.
    'qcow2, half': _of('qcow2', ACCEPTED, _cut(_QCOW2, 700_000)),
    'qcow2, without data': _of('qcow2', ACCEPTED, _cut(_QCOW2, 64 * 1024)),
    'qcow2, header only': _of('qcow2', ACCEPTED, _cut(_QCOW2, 512), is_early=False),
    'qcow2, header cut': Case(_cut(_QCOW2, 511), 'incomplete qcow2', {}, early=False),
    'qcow2, magic only': Case(_cut(_QCOW2, 4), 'incomplete qcow2', {}, early=False),
    'qcow2 with backing file': _of(
        'qcow2',
        early('Image has a backing file'),
        _beside(disk_images.qcow2_with_backing_file),
    ),
    'qcow2 of version 2 with backing file': _of(
        'qcow2', early('Image has a backing file'), _beside(_old_overlay)
    ),
    'qcow2, external snapshot': _of('qcow2', early('Image has a backing file'), _overlay),
    'qcow2 with data file': _of('qcow2', early('Image has data_file set'), _beside(_external_data)),
    'qcow2 with raw data file': _of(
        'qcow2', early('Image has data_file set'), _beside(disk_images.qcow2_with_data_file)
    ),
    'qcow2 with unknown feature': _of(
        'qcow2', early('Unknown QCOW2 features'), disk_images.qcow2_with_unknown_feature
    ),
    'qcow2 with extended entries': _of(
        'qcow2', early('Unknown QCOW2 features'), _image('qcow2', '-o', 'extended_l2=on')
    ),
    'qcow2, encrypted': _of('qcow2', early('it is encrypted'), disk_images.qcow2_encrypted),
    'qcow2, encrypted with luks': _of(
        'qcow2', early('it is encrypted'), functools.partial(disk_images.qcow2_encrypted, method=2)
    ),
    'qcow of version 1': _of(
        'qcow2', early('Unsupported qcow2 version'), _patched(_QCOW2, 4, _q32(1))
    ),
    'qcow2 of version 4': _of(
        'qcow2', early('Unsupported qcow2 version'), _patched(_QCOW2, 4, _q32(4))
    ),
    'qcow2, absurd l1 size': _of('qcow2', late(_CANNOT), disk_images.qcow2_with_absurd_l1_size),
    'qcow2, l1 table outside': _of('qcow2', ACCEPTED, _patched(_QCOW2, 40, _q64(1 << 62))),
    'qcow2, l2 table outside': _of('qcow2', ACCEPTED, _l1_entry),
    'qcow2, absurd clusters': _of('qcow2', late(_CANNOT), _patched(_QCOW2, 20, _q32(31))),
    'qcow2, clusters of nothing': _of('qcow2', late(_CANNOT), _patched(_QCOW2, 20, _q32(0))),
    'qcow2, refcounts outside': _of('qcow2', ACCEPTED, _patched(_QCOW2, 48, _q64(1 << 62))),
    'qcow2, absurd refcounts': _of('qcow2', late(_CANNOT), _patched(_QCOW2, 56, _q32(1 << 31))),
    'qcow2, absurd snapshots': _of('qcow2', late(_CANNOT), _patched(_QCOW2, 60, _q32(1 << 31))),
    'qcow2, absurd size': _of('qcow2', too_large(_CANNOT), _patched(_QCOW2, 24, _q64(1 << 62))),
    'qcow2, larger than its tables': _of(
        'qcow2', too_large(_CANNOT), _patched(_QCOW2, 24, _q64(1 << 40))
    ),
    'qcow2 of no size': _of('qcow2', late('virtual size is 0'), _patched(_QCOW2, 24, _q64(0))),
}
NESTED = {
    'qcow2 within qcow2': _of('qcow2', converting('its content is qcow2'), _nested(_QCOW2)),
    'qcow2 with backing file within qcow2': _of(
        'qcow2',
        converting('its content is qcow2'),
        _nested(_beside(disk_images.qcow2_with_backing_file)),
    ),
    'vmdk within qcow2': _of('qcow2', converting('its content is vmdk'), _nested(_image('vmdk'))),
    'vmdk descriptor within qcow2': _of(
        'qcow2', converting('its content is vmdk'), _nested(disk_images.vmdk_flat)
    ),
    'luks within qcow2': _of('qcow2', converting('its content is luks'), _nested(disk_images.luks)),
    'parallels within qcow2': _of(
        'qcow2',
        converting('its content is parallels'),
        _nested(_bytes(b'WithoutFreeSpace'.ljust(4096, b'\0'))),
    ),
    'gpt within qcow2': _of('qcow2', ACCEPTED, _nested(disk_images.gpt)),
    'iso within qcow2': _of('qcow2', ACCEPTED, _nested(disk_images.iso)),
}
_VMDK = _image('vmdk')
_STREAM = _image('vmdk', '-o', 'subformat=streamOptimized')
_VMDK_CAPACITY = 12
_VMDK_GD_OFFSET = 56
VMDK_FOOTER_AT_END = b'\xff' * 8
_SPARSE = 'createType="monolithicSparse"'


def _described(make: Make, old: str, new: str) -> Make:
    return lambda path: disk_images.with_vmdk_descriptor(make(path), old, new)


def _vmdk_following_its_descriptor(path: pathlib.Path) -> pathlib.Path:
    """A header without capacity: qemu opens the extents that the descriptor names.

    The inspector reads other lines of it than qemu does.
    """
    _described(_VMDK, f'SPARSE "{path.name}"', 'ZERO')(path)
    types = 'createtype="monolithicSparse"\ncreateType="monolithicFlat"\n'
    extent = 'RW\t1\tFLAT\t"/etc/hostname"\t0\t='
    disk_images.with_vmdk_descriptor(path, _SPARSE, types + extent)
    return disk_images.patched(path, _VMDK_CAPACITY, bytes(8))


def _vmdk_that_is_its_own_extent(path: pathlib.Path) -> pathlib.Path:
    """qemu opens it from within itself until its stack is full."""
    types = 'createtype="monolithicSparse"\ncreateType="twoGbMaxExtentSparse"'
    disk_images.with_vmdk_descriptor(_VMDK(path), _SPARSE, types)
    return disk_images.patched(path, _VMDK_CAPACITY, bytes(8))


def _vmdk_with_footer(path: pathlib.Path, sectors: int = 2048) -> pathlib.Path:
    data = bytearray(_STREAM(path).read_bytes())
    footer = bytearray(data[:512])
    struct.pack_into('<Q', footer, _VMDK_CAPACITY, sectors)
    data[_VMDK_GD_OFFSET : _VMDK_GD_OFFSET + 8] = VMDK_FOOTER_AT_END
    marker = struct.pack('<QII', 1, 0, 3).ljust(512, b'\0')
    path.write_bytes(data + marker + footer + bytes(512))
    return path


def _vmdk_with_smaller_footer(path: pathlib.Path) -> pathlib.Path:
    return _vmdk_with_footer(path, sectors=1024)


def _vmdk_with_more_after_its_footer(path: pathlib.Path) -> pathlib.Path:
    size_bytes = _vmdk_with_footer(path).stat().st_size
    return disk_images.patched(path, size_bytes - 16, b'/etc/hostname')


def _vmdk_split(path: pathlib.Path) -> pathlib.Path:
    options = 'subformat=twoGbMaxExtentSparse'
    disk_images.qemu_img('create', '-f', 'vmdk', '-o', options, f'{path}.vmdk', '1M')
    return path.with_name(f'{path.name}.vmdk').rename(path)


def _vmdk_extent(path: pathlib.Path) -> pathlib.Path:
    _vmdk_split(path)
    return path.with_name(f'{path.name}-s001.vmdk').rename(path)


def _vmdk_child(path: pathlib.Path) -> pathlib.Path:
    parent = disk_images.converted(path.with_suffix('.parent'), 'vmdk')
    disk_images.qemu_img('create', '-f', 'vmdk', '-b', str(parent), '-F', 'vmdk', str(path))
    return path


def _descriptor(create_type: str, *extents: str) -> bytes:
    lines = ('# Disk DescriptorFile', 'version=1', 'CID=1', 'parentCID=ffffffff')
    return '\n'.join((*lines, f'createType="{create_type}"', *extents, '')).encode()


_OTHER_FILES = early('VMDK with extents in other files')
VMDK = {
    'vmdk': _of('vmdk', ACCEPTED, _VMDK),
    'vmdk, streamed': _of('vmdk', ACCEPTED, _STREAM),
    'vmdk that names another extent': _of(
        'vmdk', ACCEPTED, _described(_VMDK, 'SPARSE "', 'SPARSE "other-')
    ),
    'vmdk, streamed and cut': _of(
        'vmdk', converting('qemu-img cannot convert it'), _cut(_STREAM, 600_000)
    ),
    'vmdk with footer': _of('vmdk', ACCEPTED, _vmdk_with_footer),
    'vmdk without its footer': _of(
        'vmdk',
        late('Header and footer signature do not match'),
        _patched(_STREAM, _VMDK_GD_OFFSET, VMDK_FOOTER_AT_END),
    ),
    'vmdk with another size in its footer': _of(
        'vmdk', late('qemu-img finds 524288'), _vmdk_with_smaller_footer
    ),
    'vmdk whose footer ends in a path': _of(
        'vmdk', late('End-of-stream marker is invalid'), _vmdk_with_more_after_its_footer
    ),
    'vmdk with extent path': _of(
        'vmdk', early('Invalid extent filenames'), disk_images.vmdk_with_extent_path
    ),
    'vmdk that follows its descriptor': _of('vmdk', _OTHER_FILES, _vmdk_following_its_descriptor),
    'vmdk that is its own extent': _of('vmdk', _OTHER_FILES, _vmdk_that_is_its_own_extent),
    'vmdk, flat': _of('vmdk', late('Unsupported subformat'), disk_images.vmdk_flat, is_early=False),
    'vmdk, flat, path': _of(
        'vmdk',
        late('Unsupported subformat'),
        _bytes(_descriptor('monolithicFlat', 'RW 1 FLAT "/etc/hostname" 0')),
        is_early=False,
    ),
    'vmdk, flat, path, called sparse': _of(
        'vmdk',
        late('VMDK with extents in other files'),
        _bytes(_descriptor('monolithicSparse', 'RW 1 SPARSE "secret" 0')),
        is_early=False,
    ),
    'vmdk, flat, zeros after it': Case(
        _bytes(_descriptor('monolithicFlat', 'RW 1 FLAT "secret" 0').ljust(1024, b'\0')),
        'vmdk descriptor',
        {},
    ),
    'vmdk, split': _of('vmdk', late('Unsupported subformat'), _vmdk_split, is_early=False),
    'vmdk, split, extent': _of('vmdk', early('No descriptor found'), _vmdk_extent),
    'vmdk of another type': _of(
        'vmdk',
        early('Unsupported subformat'),
        _described(_VMDK, _SPARSE, 'createType="vmfsSparse"'),
    ),
    'vmdk without type': _of(
        'vmdk', early('Unsupported subformat'), _described(_VMDK, _SPARSE, '')
    ),
    'vmdk without extents': _of(
        'vmdk', early('No extents found'), _described(_VMDK, 'RW 2048 SPARSE', '#')
    ),
    'vmdk with parent': _of('vmdk', early('VMDK with a parent in another file'), _vmdk_child),
    'vmdk, descriptor beyond the file': _of(
        'vmdk', early('No descriptor found'), _patched(_VMDK, 28, struct.pack('<Q', 1 << 40))
    ),
    'vmdk, descriptor longer than the file': _of(
        'vmdk',
        late('No descriptor found'),
        _cut(_patched(_VMDK, 36, struct.pack('<Q', 1 << 40)), 300_000),
    ),
    'vmdk of version 9': _of(
        'vmdk', early('No descriptor found'), _patched(_VMDK, 4, struct.pack('<I', 9))
    ),
    'vmdk version 3': Case(_bytes(b'COWD\1\0\0\0'.ljust(65536, b'\0')), 'vmdk version 3', {}),
    'vmdk, absurd size': _of(
        'vmdk', too_large(_CANNOT), _patched(_VMDK, _VMDK_CAPACITY, struct.pack('<Q', 1 << 54))
    ),
    'vmdk, header cut': _of('vmdk', late('Unsupported subformat'), _cut(_VMDK, 63), is_early=False),
    'vmdk, header only': _of('vmdk', late('No descriptor found'), _cut(_VMDK, 512), is_early=False),
}
_VHD = _image('vpc', '-o', 'subformat=dynamic,force_size=on')
_VHDX = _image('vhdx')
_VDI = _image('vdi')


def _vhd_sized(size_bytes: int) -> Make:
    """A VHD of another size than its table has room for, with the right checksum."""

    def make(path: pathlib.Path) -> pathlib.Path:
        footer = bytearray(_VHD(path).read_bytes()[:512])
        struct.pack_into('>QQ', footer, 40, size_bytes, size_bytes)
        struct.pack_into('>I', footer, 64, 0)
        struct.pack_into('>I', footer, 64, ~sum(footer) & 0xFFFFFFFF)
        return disk_images.patched(path, 0, bytes(footer))

    return make


def _vhdx_patched(item: bytes, data: bytes) -> Make:
    """A VHDX with something else in a place of its tables."""

    def make(path: pathlib.Path) -> pathlib.Path:
        offset = _VHDX(path).read_bytes().index(item, _VHDX_TABLES)
        return disk_images.patched(path, offset, data)

    return make


def _vhdx_sized(size_bytes: int) -> Make:
    def make(path: pathlib.Path) -> pathlib.Path:
        data = _VHDX(path).read_bytes()
        metadata = data.index(b'metadata', _VHDX_TABLES)
        entry = data.index(_VHDX_SIZE.bytes_le, metadata)
        (offset,) = struct.unpack_from('<I', data, entry + 16)
        return disk_images.patched(path, metadata + offset, struct.pack('<Q', size_bytes))

    return make


_VHDX_TABLES = 192 * 1024
_VHDX_SIZE = uuid.UUID('2FA54224-CD1B-4876-B211-5DBED83BF4B8')
OTHERS = {
    'vhd': _of('vhd', ACCEPTED, _VHD),
    'vhd of a geometry': _of('vhd', ACCEPTED, _image('vpc', '-o', 'subformat=dynamic')),
    'vhd, fixed': _raw(_image('vpc', '-o', 'subformat=fixed,force_size=on')),
    'vhd, absurd size': _of('vhd', too_large(_CANNOT), _vhd_sized(1 << 60)),
    'vhd, larger than its table': _of('vhd', too_large(_CANNOT), _vhd_sized(1 << 33)),
    'vhd of no size': _of('vhd', late('virtual size is 0'), _vhd_sized(0)),
    'vhd, header cut': _of('vhd', late('Incomplete'), _cut(_VHD, 511), is_early=False),
    'vhd, header only': _of('vhd', late(_CANNOT), _cut(_VHD, 512), is_early=False),
    'vhdx': _of('vhdx', ACCEPTED, _VHDX),
    'vhdx, absurd size': _of('vhdx', too_large(_CANNOT), _vhdx_sized(1 << 60)),
    'vhdx, larger than its table': _of('vhdx', too_large(_CANNOT), _vhdx_sized(1 << 40)),
    'vhdx of no size': _of('vhdx', late(_CANNOT), _vhdx_sized(0)),
    'vhdx, no regions': _of('vhdx', late(_CANNOT), _vhdx_patched(b'regi', b'nope')),
    'vhdx, no metadata': _of('vhdx', late(_CANNOT), _vhdx_patched(b'metadata', b'nothing!')),
    'vhdx, header only': _of('vhdx', late('Incomplete'), _cut(_VHDX, 4096), is_early=False),
    'vdi': _of('vdi', ACCEPTED, _VDI),
    'vdi, absurd size': _of(
        'vdi', too_large(_CANNOT), _patched(_VDI, 0x170, struct.pack('<Q', 1 << 62))
    ),
    'vdi, absurd blocks': _of(
        'vdi', late(_CANNOT), _patched(_VDI, 0x180, struct.pack('<I', 0xFFFFFFFF))
    ),
    'vdi, blocks of nothing': _of('vdi', late(_CANNOT), _patched(_VDI, 0x178, bytes(4))),
    'vdi with parent': _of('vdi', late(_CANNOT), _patched(_VDI, 0x1A8, b'\1' * 32)),
    'vdi, header cut': Case(_cut(_VDI, 511), 'incomplete vdi', {}, early=False),
    'qed': Case(_image('qed'), 'qed', {}),
    'qed, header cut': Case(_cut(_image('qed'), 100), 'incomplete qed', {}, early=False),
    'luks': _always(early('LUKS-encrypted'), disk_images.luks),
    'luks of version 2': _always(
        early('LUKS-encrypted'), functools.partial(disk_images.luks, version=2)
    ),
    'luks, header cut': Case(
        _bytes(b'LUKS\xba\xbe\0\1'),
        'luks',
        dict.fromkeys(DISK_FORMATS, late('LUKS-encrypted')),
    ),
}
_TEXT = b'A disk image of words. ' * 400
# Which qemu takes the file for that has it at its start.
_FLAT = _descriptor('monolithicFlat', 'RW 1 FLAT "/etc/hostname" 0') + b'#'


def _beginning(start: bytes, make: Make) -> Make:
    return _patched(make, 0, start)


RAW = {
    'raw': _raw(disk_images.raw),
    'zeros': _raw(_bytes(bytes(300_000))),
    'gpt': _raw(disk_images.gpt, 'gpt'),
    'boot sector without partitions': Case(
        _bytes((bytes(510) + b'\x55\xaa').ljust(300_000, b'\0')),
        'gpt',
        dict.fromkeys(('raw', 'ami'), early('GPT MBR has no partitions defined')),
    ),
    'gpt with other partitions': Case(
        _patched(disk_images.gpt, 446 + 16, b'\x80' + bytes(3) + b'\x83' + bytes(11)),
        'gpt',
        dict.fromkeys(('raw', 'ami'), early('invalid extra partitions')),
    ),
    'iso': _iso(disk_images.iso),
    'iso with gpt': _iso(disk_images.iso_with_gpt),
    'qcow2 and iso': _always(
        early('several formats at once: iso, qcow2'),
        _patched(_QCOW2, 32 * 1024, b'\1CD001'),
    ),
    'qcow2 and gpt': _always(
        early('several formats at once: gpt, qcow2'), _patched(_QCOW2, 510, b'\x55\xaa')
    ),
    'qcow2 and vdi': _always(
        early('several formats at once: qcow2, vdi'),
        _patched(_QCOW2, 0x40, struct.pack('<I', 0xBEDA107F)),
    ),
    'vmdk and iso': _always(
        early('several formats at once: iso, vmdk'), _patched(_VMDK, 32 * 1024, b'\1CD001')
    ),
    'gpt and vmdk descriptor': _always(
        early('several formats at once: gpt, vmdk descriptor'), _beginning(_FLAT, disk_images.gpt)
    ),
    'iso and vmdk descriptor': _always(
        early('several formats at once: iso, vmdk descriptor'), _beginning(_FLAT, disk_images.iso)
    ),
    'gpt and vmdk version 3': _always(
        early('several formats at once: gpt, vmdk version 3'),
        _beginning(b'COWD\1', disk_images.gpt),
    ),
    'vdi and vmdk descriptor': _always(
        early('several formats at once: vdi, vmdk descriptor'),
        _beginning(b'#\nversion=1\n', _image('vdi')),
    ),
    'raw that begins as qcow2': _of(
        'qcow2', late(_CANNOT), _patched(disk_images.raw, 0, b'QFI\xfb\0\0\0\2')
    ),
    'virtual size is 0': Case(
        _bytes(b''), 'raw', dict.fromkeys(('raw', 'ami'), late('virtual size is 0')), early=False
    ),
    'one byte': _raw(_bytes(b'x'), is_early=False),
    '511 bytes': _raw(_bytes(b'\xff' * 511), is_early=False),
    'parallels': Case(_image('parallels'), 'parallels', {}),
    'parallels of the older kind': Case(
        _bytes(b'WithoutFreeSpace'.ljust(65536, b'\0')), 'parallels', {}
    ),
    'bochs': Case(_bytes(b'Bochs Virtual HD Image'.ljust(65536, b'\0')), 'bochs', {}),
    'cloop': Case(
        _bytes(b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop'.ljust(65536, b'\0')), 'cloop', {}
    ),
    'text': _raw(_bytes(_TEXT)),
    'text that turns into bytes': _always(
        early('cannot determine whether it is vmdk'), _bytes(_TEXT[:1000] + b'\xff' * 300_000)
    ),
}
CASES = {**QCOW2, **NESTED, **VMDK, **OTHERS, **RAW}
