# SPDX-License-Identifier: Apache-2.0
"""Check that an image has its declared format and refers to no other file.

Three must agree, as in Nova: the inspector of oslo.utils, which only reads the bytes; Glance's
``disk_format``; and qemu-img, which runs last since it opens the files that an image names. An
image on which they disagree is refused:

- raw is content that no inspector recognises, or a partition table;
- ami, ari, aki and iso are raw to qemu;
- two formats at once are refused, except an ISO with a partition table, as on images that also
  boot from a USB stick: it is an ISO;
- LUKS and encrypted qcow2 are refused: only the owner has the key, so the content can be
  neither checked nor converted;
- a header with another size than qemu-img finds is refused. A VHD has two sizes; the one that
  qemu uses counts.

Nova's libvirt driver decides the same by the same inspector, except that it

- refuses every VHD, whose format qemu calls vpc;
- refuses encrypted images only at their conversion;
- makes qemu-img guess the format. Here the format is always named, and content that the
  inspector takes for raw is searched for the few formats that only qemu knows;
- does not check sizes: neither whether they agree nor whether a disk has any bytes.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

from nova_precache import exception
from nova_precache.inspection import content, headers, qemu_img, watch
from nova_precache.transfer_control import Control

RAW_DISK_FORMATS = headers.RAW_DISK_FORMATS

_QEMU_NAMES = {
    **dict.fromkeys(('gpt', 'iso'), 'raw'),
    'vhd': 'vpc',
}
_QEMU_FORMATS = ('qcow2', 'vhd', 'vhdx', 'vmdk', 'vdi', 'qed', 'luks')


@dataclasses.dataclass(frozen=True)
class InspectedImage:
    """A file that is safe to open: qemu's name of its format, and the size of its disk."""

    qemu_format: str
    virtual_size_bytes: int


class ImageInspector:
    """Inspects images.

    :param vmdk_allowed_types: accepted VMDK create types
    """

    def __init__(self, qemu: qemu_img.QemuImg, vmdk_allowed_types: Sequence[str]) -> None:
        self._qemu = qemu
        self._vmdk_allowed_types = tuple(vmdk_allowed_types)

    def watch(
        self, disk_format: str | None, on_virtual_size: Callable[[int], None]
    ) -> watch.ImageWatch:
        """Return a watch that inspects the beginning of an image while it arrives.

        :param on_virtual_size: called with the size of the disk if the header has it; an
            error it raises stops the download
        :raises nova_precache.exception.UnsafeImage: the disk_format is not supported
        """
        return watch.ImageWatch(disk_format, self._vmdk_allowed_types, on_virtual_size)

    def inspect(
        self, path: str, disk_format: str | None, control: Control | None = None
    ) -> InspectedImage:
        """Check a downloaded image against Glance's disk_format.

        :raises nova_precache.exception.UnsafeImage: with the finding
        :raises nova_precache.exception.ConversionFailed: qemu-img ran into its limits
        :raises nova_precache.exception.StorageError: the file could not be read
        :raises nova_precache.exception.TransferStopped: the control was stopped
        """
        headers.check_supported(disk_format)
        found = content.recognise(path, control=control)
        headers.check_format(found, str(disk_format))
        headers.check_header(found, self._vmdk_allowed_types)
        return self._ask_qemu(path, found, control)

    def check_programs(self) -> None:
        """Check, before a download, that the image can be inspected.

        :raises nova_precache.exception.ConversionFailed: qemu-img is not installed
        """
        self._qemu.check_programs()

    def inspect_base(self, path: str) -> InspectedImage:
        """Inspect a base file, whose disk_format is not known.

        Raises as :meth:`inspect`.
        """
        found = content.recognise(path, _QEMU_FORMATS)
        headers.check_header(found, self._vmdk_allowed_types)
        return self._ask_qemu(path, found)

    def check_converted(self, path: str, control: Control | None = None) -> None:
        """Check that the result of a conversion is raw, not a nested image.

        :raises nova_precache.exception.UnsafeImage: a nested image
        :raises nova_precache.exception.StorageError: the file could not be read
        :raises nova_precache.exception.TransferStopped: the control was stopped
        """
        found = content.recognise(path, _QEMU_FORMATS, control, only_name=True)
        if found.name != 'raw':
            raise exception.UnsafeImage(f'its content is {found.name} after conversion to raw')

    def _ask_qemu(
        self, path: str, found: content.Content, control: Control | None = None
    ) -> InspectedImage:
        found.check_safety()
        info = self._qemu.info(path, qemu_name(found.name), control)
        self._check_self_contained(info, path)
        headers.check_size(found, info.virtual_size_bytes)
        return InspectedImage(info.format, info.virtual_size_bytes)

    def _check_self_contained(self, info: qemu_img.DiskInfo, path: str) -> None:
        """Refuse an image that makes qemu open other files or ask for a key."""
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
    """Return qemu's name of a format that the inspector found."""
    return _QEMU_NAMES.get(content, content)
