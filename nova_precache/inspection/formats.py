# SPDX-License-Identifier: Apache-2.0
"""Whether an image is what it says it is, and reaches nothing beyond itself.

Three must agree, as in Nova: the inspector of oslo.utils, which only looks at
the bytes; the ``disk_format`` that Glance has; and qemu-img, which comes last
since it opens what an image names. Whatever they disagree about is refused:

- raw is content that nobody recognises, or a partition table;
- ami, ari, aki and iso are raw to qemu;
- two formats at once are refused, but for an ISO that has a partition table too, as
  those have that also boot from a stick: it is an ISO;
- LUKS is refused, and encrypted qcow2: only the owner has the key, so the content can
  neither be checked nor converted;
- so is a header that tells of another size than qemu-img finds. A VHD has two sizes;
  that counts which qemu goes by.

Nova's libvirt driver decides the same by the same inspector, but that it

- refuses every VHD, whose format qemu calls vpc;
- refuses what is encrypted only when it comes to convert it;
- has qemu-img guess the format. Here that is always named, and the few formats that
  only qemu knows are looked for in what the inspector takes for raw;
- does not look at sizes: neither whether they agree nor whether a disk has any.
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
    """A file that may be opened: how qemu calls its format, and what it holds."""

    qemu_format: str
    virtual_size_bytes: int


class ImageInspector:
    """Looks at images.

    :param vmdk_allowed_types: VMDK create types that are accepted
    """

    def __init__(self, qemu: qemu_img.QemuImg, vmdk_allowed_types: Sequence[str]) -> None:
        self._qemu = qemu
        self._vmdk_allowed_types = tuple(vmdk_allowed_types)

    def watch(
        self, disk_format: str | None, on_virtual_size: Callable[[int], None]
    ) -> watch.ImageWatch:
        """Look at an image while it arrives, as far as its beginning tells something.

        :param on_virtual_size: told the size of the disk where the image has a header
            that says it; what it raises stops the download
        :raises nova_precache.exception.UnsafeImage: the disk_format is not supported
        """
        return watch.ImageWatch(disk_format, self._vmdk_allowed_types, on_virtual_size)

    def inspect(
        self, path: str, disk_format: str | None, control: Control | None = None
    ) -> InspectedImage:
        """Check a downloaded image against what Glance says it is.

        :raises nova_precache.exception.UnsafeImage: with what was found
        :raises nova_precache.exception.ConversionFailed: qemu-img ran into its limits
        :raises nova_precache.exception.StorageError: the file could not be read
        :raises nova_precache.exception.TransferStopped: as the control has it
        """
        headers.check_supported(disk_format)
        found = content.recognise(path, control=control)
        headers.check_format(found, str(disk_format))
        headers.check_header(found, self._vmdk_allowed_types)
        return self._ask_qemu(path, found, control)

    def check_there(self) -> None:
        """See, before an image is downloaded, that it can be inspected in the end.

        :raises nova_precache.exception.ConversionFailed: qemu-img is not installed
        """
        self._qemu.check_there()

    def inspect_base(self, path: str) -> InspectedImage:
        """Describe a base file, of which no disk_format is known.

        Raises as :meth:`inspect`.
        """
        found = content.recognise(path, _QEMU_FORMATS)
        headers.check_header(found, self._vmdk_allowed_types)
        return self._ask_qemu(path, found)

    def check_converted(self, path: str, control: Control | None = None) -> None:
        """See that what came out of a conversion is raw, and not another image within.

        :raises nova_precache.exception.UnsafeImage: a nested image
        :raises nova_precache.exception.StorageError: the file could not be read
        :raises nova_precache.exception.TransferStopped: as the control has it
        """
        found = content.recognise(path, _QEMU_FORMATS, control, only_name=True)
        if found.name != 'raw':
            raise exception.UnsafeImage(f'converted to raw, its content is {found.name}')

    def _ask_qemu(
        self, path: str, found: content.Content, control: Control | None = None
    ) -> InspectedImage:
        found.check_safety()
        info = self._qemu.info(path, qemu_name(found.name), control)
        self._check_self_contained(info, path)
        headers.check_size(found, info.virtual_size_bytes)
        return InspectedImage(info.format, info.virtual_size_bytes)

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
