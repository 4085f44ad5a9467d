# SPDX-License-Identifier: Apache-2.0
"""Makes the raw file that a hypervisor boots from an image that was inspected."""

import logging

from nova_precache.inspection import formats, qemu_img

LOG = logging.getLogger(__name__)


class Converter:
    """Converts with qemu-img, and looks at what came out."""

    def __init__(self, qemu: qemu_img.QemuImg, inspector: formats.ImageInspector) -> None:
        self._qemu = qemu
        self._inspector = inspector

    def to_raw(self, source: str, inspected: formats.InspectedImage, target: str) -> None:
        """Convert an inspected image into a new file, which is not yet synchronised.

        :raises nova_precache.exception.UnsafeImage: its content is an image again
        :raises nova_precache.exception.ConversionFailed: qemu-img could not
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        """
        LOG.debug('Converting %s from %s to raw', source, inspected.qemu_format)
        self._qemu.convert_to_raw(source, inspected.qemu_format, target)
        self._inspector.check_converted(target)
