# SPDX-License-Identifier: Apache-2.0
"""Convert an inspected image to the raw file that a hypervisor boots from."""

import logging
import os

from nova_precache import exception
from nova_precache.inspection import formats, qemu_img
from nova_precache.transfer_control import Control

LOG = logging.getLogger(__name__)


class Converter:
    """Converts with qemu-img, and inspects the result."""

    def __init__(self, qemu: qemu_img.QemuImg, inspector: formats.ImageInspector) -> None:
        self._qemu = qemu
        self._inspector = inspector

    def to_raw(
        self,
        source: str,
        inspected: formats.InspectedImage,
        target: str,
        control: Control | None = None,
    ) -> None:
        """Convert an inspected image into a new file, without syncing it to the disk.

        :param control: stopping it ends the conversion at once
        :raises nova_precache.exception.UnsafeImage: its content is an image again
        :raises nova_precache.exception.ConversionFailed: qemu-img failed
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        :raises nova_precache.exception.TransferStopped: the control was stopped
        """
        LOG.debug('Converting %s from %s to raw', source, inspected.qemu_format)
        self._qemu.convert_to_raw(source, inspected.qemu_format, target, control)
        _cut_to_size(target, inspected.virtual_size_bytes)
        self._inspector.check_converted(target, control)


def _cut_to_size(path: str, size_bytes: int) -> None:
    """Cut off the zeros with which qemu-img fills up the last block in direct I/O.

    It adds them if it cannot determine the smallest write, as on tmpfs and NFS.
    """
    try:
        if os.stat(path).st_size > size_bytes:
            os.truncate(path, size_bytes)
    except OSError as exc:
        raise exception.storage_failure(f'Truncating {path}', exc) from exc
