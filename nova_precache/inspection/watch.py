# SPDX-License-Identifier: Apache-2.0
"""Inspect an image while it arrives, to refuse it within the first few MiB.

Only its beginning is checked here; the whole file is inspected after the download. Once the
beginning is checked, further bytes cost nothing.
"""

from collections.abc import Callable, Sequence

from nova_precache.inspection import content, headers

# All headers end before this: the farthest, the tables of a VHDX, within its third MiB.
MAX_BYTES = 4 * 1024**2


class ImageWatch:
    """Inspects one image while it arrives.

    :param on_virtual_size: called with the size of the disk as soon as the header is read
    :raises nova_precache.exception.UnsafeImage: the disk_format is not supported
    """

    def __init__(
        self,
        disk_format: str | None,
        vmdk_allowed_types: Sequence[str],
        on_virtual_size: Callable[[int], None],
    ) -> None:
        headers.check_supported(disk_format)
        self._disk_format = str(disk_format)
        self._vmdk_allowed_types = vmdk_allowed_types
        self._on_virtual_size = on_virtual_size
        self._reported_bytes: int | None = None
        self.restart()

    def restart(self) -> None:
        """Start over: the next byte is the image's first."""
        self._recogniser: content.Recogniser | None = content.Recogniser()
        self._piece = bytearray()

    def feed(self, data: memoryview) -> None:
        """Inspect the next bytes.

        :raises nova_precache.exception.UnsafeImage: with the finding
        """
        while data and self._recogniser is not None:
            missing = self._recogniser.wanted_bytes - len(self._piece)
            self._piece += data[:missing]
            data = data[missing:]
            if len(self._piece) == self._recogniser.wanted_bytes:
                self._recogniser.take(bytes(self._piece))
                self._piece.clear()
                is_checked = self._check_beginning(self._recogniser)
                if is_checked or self._recogniser.position >= MAX_BYTES:
                    self._recogniser = None

    def _check_beginning(self, recogniser: content.Recogniser) -> bool:
        if not recogniser.is_named:
            return False
        found = recogniser.content()
        headers.check_format(found, self._disk_format)
        if not headers.is_read(found):
            return False
        headers.check_header(found, self._vmdk_allowed_types)
        size_bytes = headers.virtual_size_bytes(found)
        if size_bytes is not None and size_bytes != self._reported_bytes:  # as before a restart
            self._reported_bytes = size_bytes
            self._on_virtual_size(size_bytes)
        return True
