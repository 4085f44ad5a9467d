# SPDX-License-Identifier: Apache-2.0
"""Whether an image is what it says it is, and reaches nothing beyond itself.

Three must agree, as in Nova: the inspector of oslo.utils, which only looks at
the bytes; the ``disk_format`` that Glance has; and qemu-img, which comes last
since it opens what an image names. Whatever they disagree about is refused:

- raw is content that nobody recognises, or a partition table;
- ami, ari, aki and iso are raw to qemu;
- two formats at once are refused, but for an ISO that has a partition table too, as
  those have that also boot from a stick: it is an ISO;
- LUKS is refused: only the owner has the key, so its content can neither be
  checked nor converted.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence

from oslo_utils.imageutils import format_inspector

from nova_precache import exception
from nova_precache.inspection import qemu_img

LOG = logging.getLogger(__name__)

READ_BYTES = 1024**2

_AMAZON_FORMATS = frozenset({'ami', 'ari', 'aki'})
# What qemu reads as raw, as Glance's disk_format has it.
RAW_DISK_FORMATS = _AMAZON_FORMATS | {'raw', 'iso'}

# What the inspector may find, by Glance's disk_format; other formats: themselves.
_EXPECTED_CONTENT = {
    'raw': frozenset({'raw', 'gpt'}),
    **dict.fromkeys(_AMAZON_FORMATS, frozenset({'raw', 'gpt', 'iso'})),
}
_ACCEPTED_FORMATS = RAW_DISK_FORMATS | {'qcow2', 'vhd', 'vhdx', 'vmdk', 'vdi'}
_QEMU_NAMES = {
    **dict.fromkeys(('gpt', 'iso'), 'raw'),
    'vhd': 'vpc',
}
_QEMU_FORMATS = ('raw', 'qcow2', 'vhd', 'vhdx', 'vmdk', 'vdi', 'qed', 'luks')
# Formats that qemu recognises and the inspector does not: a boot that let qemu
# guess the format of the base file would not see a raw disk.
_QEMU_ONLY_MAGICS = {
    b'WithoutFreeSpace': 'parallels',
    b'WithouFreSpacExt': 'parallels',
    b'Bochs Virtual HD Image': 'bochs',
    b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop': 'cloop',
}


@dataclasses.dataclass(frozen=True)
class InspectedImage:
    """A file that may be opened: how qemu calls its format, and what it holds."""

    qemu_format: str
    virtual_size_bytes: int


class ImageInspector:
    """Looks at whole files.

    :param vmdk_allowed_types: VMDK create types that are accepted
    """

    def __init__(self, qemu: qemu_img.QemuImg, vmdk_allowed_types: Sequence[str]) -> None:
        self._qemu = qemu
        self._vmdk_allowed_types = frozenset(vmdk_allowed_types)

    def inspect(self, path: str, disk_format: str | None) -> InspectedImage:
        """Check a downloaded image against what Glance says it is.

        :raises nova_precache.exception.UnsafeImage: with what was found
        :raises nova_precache.exception.ConversionFailed: qemu-img ran into its limits
        :raises nova_precache.exception.StorageError: the file could not be read
        """
        if disk_format not in _ACCEPTED_FORMATS:
            raise exception.UnsafeImage(f'disk_format {disk_format} is not supported')
        content = _safe_content(path)
        if content not in _EXPECTED_CONTENT.get(disk_format, {disk_format}):
            raise exception.UnsafeImage(
                f'disk_format is {disk_format}, but the content is {content}'
            )
        info = self._qemu.info(path, qemu_name(content))
        self._check_self_contained(info, path)
        return InspectedImage(info.format, info.virtual_size_bytes)

    def inspect_base(self, path: str) -> InspectedImage:
        """Describe a base file, of which no disk_format is known.

        Raises as :meth:`inspect`.
        """
        info = self._qemu.info(path, qemu_name(_qemu_content(path, check_safety=True)))
        self._check_self_contained(info, path)
        return InspectedImage(info.format, info.virtual_size_bytes)

    def check_converted(self, path: str) -> None:
        """See that what came out of a conversion is raw, and not another image within.

        :raises nova_precache.exception.UnsafeImage: a nested image
        :raises nova_precache.exception.StorageError: the file could not be read
        """
        content = _qemu_content(path, check_safety=False)
        if content != 'raw':
            raise exception.UnsafeImage(f'converted to raw, its content is {content}')

    def _check_self_contained(self, info: qemu_img.DiskInfo, path: str) -> None:
        """Refuse what would have qemu open other files, or ask for a key."""
        if info.backing_file is not None:
            raise exception.UnsafeImage(f'it has the backing file {info.backing_file!r}')
        if info.data_file is not None:
            raise exception.UnsafeImage(f'it has the data file {info.data_file!r}')
        if info.encrypted:
            raise exception.UnsafeImage('it is encrypted')
        if info.format == 'vmdk':
            self._check_vmdk(info, path)

    def _check_vmdk(self, info: qemu_img.DiskInfo, path: str) -> None:
        if info.create_type not in self._vmdk_allowed_types:
            raise exception.UnsafeImage(
                f'VMDK create type {info.create_type} is not in vmdk_allowed_types'
            )
        if any(extent != os.path.abspath(path) for extent in info.extents):
            raise exception.UnsafeImage('VMDK with extents in other files')


def qemu_name(content: str) -> str:
    """Give qemu's name of a format that the inspector found."""
    return _QEMU_NAMES.get(content, content)


def _safe_content(path: str) -> str:
    """Name the format of a file whose header passes the inspector's safety checks."""
    with _inspector_errors(path):
        found = _detect(path)
        found.safety_check()
        if str(found) == 'luks':
            raise exception.UnsafeImage('it is LUKS-encrypted, only its owner has the key')
        return _qemu_only_format(path) if str(found) == 'raw' else str(found)


def _qemu_content(path: str, *, check_safety: bool) -> str:
    """Name the format that qemu would take a file for: a partition table is raw to it."""
    with _inspector_errors(path):
        found = _detect(path, _QEMU_FORMATS)
        if check_safety:
            found.safety_check()
        return _qemu_only_format(path) if str(found) == 'raw' else str(found)


@contextlib.contextmanager
def _inspector_errors(path: str) -> Iterator[None]:
    try:
        yield
    except format_inspector.SafetyCheckFailed as exc:
        reasons = ', '.join(sorted(str(reason) for reason in exc.failures.values()))
        raise exception.UnsafeImage(reasons) from exc
    except format_inspector.ImageFormatError as exc:
        raise exception.UnsafeImage(str(exc)) from exc
    except OSError as exc:
        raise exception.storage_failure(f'Reading {path}', exc) from exc


def _detect(path: str, among: Sequence[str] | None = None) -> format_inspector.FileInspector:
    """Read as far as is needed, in big pieces: small ones cost the inspector CPU time."""
    with open(path, 'rb') as file:
        wrapper = format_inspector.InspectWrapper(
            file, allowed_formats=None if among is None else list(among)
        )
        while wrapper.read(READ_BYTES):
            if wrapper.formats is not None:
                return _the_one(wrapper)
        wrapper.close()
    return _the_one(wrapper)


def _the_one(wrapper: format_inspector.InspectWrapper) -> format_inspector.FileInspector:
    found = {str(each): each for each in wrapper.formats or ()}
    if found.keys() == {'iso', 'gpt'}:
        return found['iso']
    if wrapper.format is None:
        raise format_inspector.ImageFormatError('its format cannot be told')
    return wrapper.format


def _qemu_only_format(path: str) -> str:
    """Name the format of a file that the inspector takes for raw."""
    with open(path, 'rb') as file:
        start = file.read(max(map(len, _QEMU_ONLY_MAGICS)))
    found = [name for magic, name in _QEMU_ONLY_MAGICS.items() if start.startswith(magic)]
    return found[0] if found else 'raw'
