# SPDX-License-Identifier: Apache-2.0
"""Makes tiny disk images, good and hostile ones, with qemu-img and by hand."""

import pathlib
import random
import struct
import subprocess

MIB = 1024**2

# Where a VMDK made by qemu-img has its descriptor.
_VMDK_DESCRIPTOR = slice(0x200, 0x200 + 20 * 512)


def content(size_bytes: int, seed: int = 1) -> bytes:
    """Return bytes that do not compress and are the same for the same seed."""
    # The first sector is zero, so that no format is found in it by chance.
    return bytes(512) + random.Random(seed).randbytes(size_bytes - 512)


def raw(path: pathlib.Path, size_bytes: int = MIB, seed: int = 1) -> pathlib.Path:
    path.write_bytes(content(size_bytes, seed))
    return path


def converted(
    path: pathlib.Path, qemu_format: str, *options: str, size_bytes: int = MIB
) -> pathlib.Path:
    """Make an image of a format around the content of :func:`raw`."""
    source = raw(path.with_suffix('.source'), size_bytes)
    qemu_img('convert', '-f', 'raw', '-O', qemu_format, *options, str(source), str(path))
    source.unlink()
    return path


def qcow2_of(path: pathlib.Path, data: bytes) -> pathlib.Path:
    source = path.with_suffix('.source')
    source.write_bytes(data)
    qemu_img('convert', '-f', 'raw', '-O', 'qcow2', str(source), str(path))
    source.unlink()
    return path


def qcow2_with_backing_file(path: pathlib.Path, backing_file: pathlib.Path) -> pathlib.Path:
    qemu_img('create', '-f', 'qcow2', '-b', str(backing_file), '-F', 'raw', str(path))
    return path


def qcow2_with_data_file(path: pathlib.Path, data_file: pathlib.Path) -> pathlib.Path:
    options = f'data_file={data_file},data_file_raw=on'
    qemu_img('create', '-f', 'qcow2', '-o', options, str(path), '1M')
    return path


def qcow2_with_unknown_feature(path: pathlib.Path) -> pathlib.Path:
    converted(path, 'qcow2')
    return patched(path, 0x48, struct.pack('>Q', 1 << 20))


def qcow2_with_absurd_l1_size(path: pathlib.Path) -> pathlib.Path:
    converted(path, 'qcow2')
    return patched(path, 36, struct.pack('>I', 0x7FFFFFFF))


def qcow2_encrypted(path: pathlib.Path, method: int = 1) -> pathlib.Path:
    """Make an image that says it is encrypted, with AES or (2) as LUKS is."""
    converted(path, 'qcow2')
    return patched(path, 32, struct.pack('>I', method))


def qcow2_with_snapshots(path: pathlib.Path) -> pathlib.Path:
    converted(path, 'qcow2')
    qemu_img('snapshot', '-c', 'first', str(path))
    qemu_img('snapshot', '-c', 'second', str(path))
    return path


def qcow2_with_long_snapshot_names(path: pathlib.Path, count: int) -> pathlib.Path:
    """Make an image of as many snapshots, each with a name of 255 bytes."""
    converted(path, 'qcow2')
    (l1_offset,) = struct.unpack_from('>Q', path.read_bytes(), 40)
    fields = (l1_offset, 1, 1, 255, 0, 0, 0, 0, 16, 0, MIB)
    snapshot = struct.pack('>QIHHIIQIIQQ', *fields) + b'1' + b'n' * 255
    table = snapshot.ljust(-(-len(snapshot) // 8) * 8, b'\0') * count
    offset = 2 * MIB
    patched(path, offset, table)
    return patched(path, 60, struct.pack('>IQ', count, offset))


def qcow2_with_bad_compressed_data(path: pathlib.Path) -> pathlib.Path:
    source = path.with_suffix('.source')
    source.write_bytes(b'words ' * MIB)
    qemu_img('convert', '-f', 'raw', '-O', 'qcow2', '-c', str(source), str(path))
    source.unlink()
    (l1_offset,) = struct.unpack_from('>Q', path.read_bytes(), 40)
    (l2_entry,) = struct.unpack_from('>Q', path.read_bytes(), l1_offset)
    (entry,) = struct.unpack_from('>Q', path.read_bytes(), l2_entry & 0xFFFFFFFFFFFE00)
    return patched(path, entry & (1 << 54) - 1, b'\xff' * 64)


def luks(path: pathlib.Path, version: int = 1) -> pathlib.Path:
    header = struct.pack(
        '>6sH32s32s32sII', b'LUKS\xba\xbe', version, b'aes', b'xts-plain64', b'sha256', 4096, 64
    )
    return patched(raw(path), 0, header.ljust(1024, b'\0'))


def vmdk_flat(path: pathlib.Path) -> pathlib.Path:
    """Make a VMDK whose descriptor names another file as its extent."""
    qemu_img('create', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', str(path), '1M')
    return path


def vmdk_with_extent_path(path: pathlib.Path) -> pathlib.Path:
    """Make a sparse VMDK whose descriptor names a file of the host."""
    converted(path, 'vmdk')
    return with_vmdk_descriptor(path, f'"{path.name}"', '"/etc/hostname"')


def with_vmdk_descriptor(path: pathlib.Path, old: str, new: str) -> pathlib.Path:
    """Replace a part of a descriptor; what follows moves, but not what is after it."""
    descriptor = path.read_bytes()[_VMDK_DESCRIPTOR]
    assert old.encode() in descriptor
    replaced = descriptor.replace(old.encode(), new.encode())[: len(descriptor)]
    return patched(path, _VMDK_DESCRIPTOR.start, replaced.ljust(len(descriptor), b'\0'))


def iso(path: pathlib.Path) -> pathlib.Path:
    data = bytearray(64 * 1024)
    data[32 * 1024 : 32 * 1024 + 6] = b'\x01CD001'
    path.write_bytes(data)
    return path


def gpt(path: pathlib.Path) -> pathlib.Path:
    """Make a disk with the protective MBR of a GUID partition table."""
    path.write_bytes(protective_mbr() + content(MIB)[512:])
    return path


def iso_with_gpt(path: pathlib.Path) -> pathlib.Path:
    iso(path)
    return patched(path, 0, protective_mbr())


def protective_mbr() -> bytes:
    entry = struct.pack('<B3BB3BII', 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 2047)
    return bytes(446) + entry + bytes(48) + b'\x55\xaa'


def patched(path: pathlib.Path, offset: int, data: bytes) -> pathlib.Path:
    with path.open('r+b') as file:
        file.seek(offset)
        file.write(data)
    return path


def truncated(path: pathlib.Path, size_bytes: int) -> pathlib.Path:
    with path.open('r+b') as file:
        file.truncate(size_bytes)
    return path


def as_raw(path: pathlib.Path, qemu_format: str) -> bytes:
    """Convert with qemu-img: what a cached file must be, byte for byte."""
    target = path.with_suffix('.raw')
    qemu_img('convert', '-f', qemu_format, '-O', 'raw', str(path), str(target))
    data = target.read_bytes()
    target.unlink()
    return data


def qemu_img(*arguments: str) -> str:
    result = subprocess.run(['qemu-img', *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise QemuImgError(result.stderr)
    return result.stdout


class QemuImgError(Exception):
    """qemu-img did not do what was asked of it."""
