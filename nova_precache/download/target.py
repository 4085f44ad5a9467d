# SPDX-License-Identifier: Apache-2.0
"""The destination of an image's bytes: a file on disk, resumable after a crash."""

import logging
import mmap
from typing import Protocol

from nova_precache import exception

LOG = logging.getLogger(__name__)


class Target(Protocol):
    """Takes the bytes of one image in order; used by one thread at a time.

    Each method raises nova_precache.exception.NotEnoughSpace or StorageError when the file
    system refuses.
    """

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the image, from its first on, were kept by an earlier attempt."""

    @property
    def has_readers(self) -> bool:
        """Whether the bytes are read as soon as they are written; it may change at any time."""

    def read_kept(self, buffer: memoryview, offset_bytes: int) -> int:
        """Read kept bytes into the buffer and return their number; 0 after the last one."""

    def write(self, buffer: bytearray | mmap.mmap, length: int, offset_bytes: int) -> None:
        """Append the first ``length`` bytes of a buffer.

        A large piece begins at a page of the file if the previous one ended with a page.

        Periodically, all bytes received so far are synced to the disk and recorded.
        """

    def restart(self) -> None:
        """Discard all bytes."""

    def finish(self, size_bytes: int) -> None:
        """Complete the file; the image has this size."""

    def keep(self) -> None:
        """Sync the received bytes and record their number, for another attempt."""


def keep(target: Target, image_id: str) -> None:
    """Keep the received bytes after an error; log a failure, so that the error is raised."""
    try:
        target.keep()
    except exception.CacheError as exc:
        LOG.warning('Cannot keep the partial download of image %s: %s', image_id, exc)
