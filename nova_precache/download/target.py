# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of one image go: a file on disk, and what of it outlives a crash."""

import mmap
from typing import Protocol


class Target(Protocol):
    """Takes the bytes of one image in their order; used by one thread at a time.

    Each raises nova_precache.exception.NotEnoughSpace or StorageError when the file
    system refuses.
    """

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the image, from its first one on, are here from an earlier time."""

    def read_kept(self, buffer: memoryview, offset_bytes: int) -> int:
        """Read from what is kept, and give the number of bytes; 0 after the last one."""

    def write(self, buffer: bytearray | mmap.mmap, length: int, offset_bytes: int) -> None:
        """Take the first ``length`` bytes of a buffer, which follow those that are here.

        Large pieces begin at a whole page of the file where the last one ended with one.

        Every now and then all that came so far is brought to the disk and noted.
        """

    def restart(self) -> None:
        """Forget all that is here."""

    def finish(self, size_bytes: int) -> None:
        """Know that all of the image is here, with so many bytes."""

    def keep(self) -> None:
        """Bring what is here to the disk and note how much it is, for another attempt."""
