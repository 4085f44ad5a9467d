# SPDX-License-Identifier: Apache-2.0
"""Rules for the header of an image.

They need only the first bytes of an image, so they are applied while it arrives, and once
more to the whole file. The functions import the inspectors, as in ``content``.
"""

import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nova_precache import exception
from nova_precache.inspection.content import Content

if TYPE_CHECKING:
    from oslo_utils.imageutils import format_inspector

_AMAZON_FORMATS = frozenset({'ami', 'ari', 'aki'})
# Values of Glance's disk_format that qemu reads as raw.
RAW_DISK_FORMATS = _AMAZON_FORMATS | {'raw', 'iso'}
_ACCEPTED_FORMATS = RAW_DISK_FORMATS | {'qcow2', 'vhd', 'vhdx', 'vmdk', 'vdi'}

# The content that the inspector may find, by Glance's disk_format; other formats: themselves.
_EXPECTED_CONTENT = {
    'raw': frozenset({'raw', 'gpt'}),
    **dict.fromkeys(_AMAZON_FORMATS, frozenset({'raw', 'gpt', 'iso'})),
}
_QCOW2_CRYPT_METHOD = 32
_VMDK_PARENT = re.compile(rb'parentFileNameHint="[^"]')
_VHD_SIZES = 48
_SECTOR_BYTES = 512


def check_supported(disk_format: str | None) -> None:
    """Refuse a disk_format that is not supported.

    :raises nova_precache.exception.UnsafeImage: it is not supported
    """
    if disk_format not in _ACCEPTED_FORMATS:
        raise exception.UnsafeImage(f'disk_format {disk_format} is not supported')


def check_format(content: Content, disk_format: str) -> None:
    """Refuse content of another format than Glance's disk_format, and LUKS.

    :raises nova_precache.exception.UnsafeImage: with both formats
    """
    if content.name == 'luks':
        raise exception.UnsafeImage('it is LUKS-encrypted, only its owner has the key')
    if content.name not in _EXPECTED_CONTENT.get(disk_format, {disk_format}):
        raise exception.UnsafeImage(
            f'disk_format is {disk_format}, but the content is {content.name}'
        )


def is_read(content: Content) -> bool:
    """Return whether the parts that :func:`check_header` examines were received."""
    from oslo_utils.imageutils import format_inspector

    inspector = content.inspector
    if isinstance(inspector, format_inspector.VMDKInspector):
        return inspector.region('descriptor').complete
    return inspector is None or inspector.complete


def check_header(content: Content, vmdk_allowed_types: Sequence[str]) -> None:
    """Refuse an image that makes qemu open other files or ask for a key.

    :raises nova_precache.exception.UnsafeImage: with the finding
    """
    from oslo_utils.imageutils import format_inspector

    inspector = content.inspector
    if isinstance(inspector, format_inspector.VMDKInspector):
        _check_vmdk(inspector, vmdk_allowed_types)
    else:
        content.check_safety()
    if isinstance(inspector, format_inspector.QcowInspector):
        _check_qcow2(inspector)


def _check_qcow2(inspector: 'format_inspector.QcowInspector') -> None:
    header = inspector.region('header').data
    if struct.unpack_from('>I', header, _QCOW2_CRYPT_METHOD) != (0,):
        raise exception.UnsafeImage('it is encrypted')


def _check_vmdk(inspector: 'format_inspector.VMDKInspector', allowed_types: Sequence[str]) -> None:
    """Check the descriptor: the library checks the end of some VMDKs later.

    qemu uses the extents that the descriptor names if there is only a descriptor, or if the
    header has no capacity.
    """
    from oslo_utils.imageutils import format_inspector

    try:
        inspector.check_descriptor()
    except format_inspector.SafetyViolation as exc:
        raise exception.UnsafeImage(str(exc)) from exc
    if inspector.vmdktype not in {each.lower() for each in allowed_types}:
        raise exception.UnsafeImage(
            f'VMDK create type {inspector.vmdktype} is not in vmdk_allowed_types'
        )
    if not inspector.has_region('header') or not inspector.virtual_size:
        raise exception.UnsafeImage('VMDK with extents in other files')
    if _VMDK_PARENT.search(inspector.region('descriptor').data):
        raise exception.UnsafeImage('VMDK with a parent in another file')


def virtual_size_bytes(content: Content) -> int | None:
    """Return the size of the disk by the header; None: it has none.

    For a VHD it is the least that qemu may find: qemu uses the geometry or the current size,
    depending on the program that made the image.
    """
    from oslo_utils.imageutils import format_inspector

    inspector = content.inspector
    if inspector is None or content.name in ('gpt', 'iso') or not is_read(content):
        return None
    if isinstance(inspector, format_inspector.VHDInspector):
        header = inspector.region('header').data
        current, cylinders, heads, sectors = struct.unpack_from('>QHBB', header, _VHD_SIZES)
        return int(min(current, cylinders * heads * sectors * _SECTOR_BYTES))
    try:
        return int(inspector.virtual_size) or None
    except struct.error:  # The size field of a VHDX may be too short.
        return None


def check_size(content: Content, found_bytes: int) -> None:
    """Refuse an empty disk, and one of another size than its header.

    :raises nova_precache.exception.UnsafeImage: with the sizes
    """
    if not found_bytes:
        raise exception.UnsafeImage('its virtual size is 0')
    declared_bytes = virtual_size_bytes(content)
    if declared_bytes is None or content.name == 'vhd':
        return
    if abs(declared_bytes - found_bytes) >= _SECTOR_BYTES:
        raise exception.UnsafeImage(
            f'its header declares {declared_bytes} bytes, but qemu-img finds {found_bytes}'
        )
