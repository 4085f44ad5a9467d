# SPDX-License-Identifier: Apache-2.0
"""Read a file while it is still being written.

One thread writes the file from its first byte to its last; readers in other threads follow
it up to the written position. Each reader has its own descriptor, so it goes on when the
file is renamed or unlinked.

A byte before the position never changes. Before the writer cuts the file back, or leaves it
to a later attempt that may cut it, all readers end. It writes the file past the page cache
only while no reader can read: otherwise the page cache could return stale pages.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from nova_precache import files

# The kernel reads ahead in large pages, and drops a page only if all of it is to be dropped.
_DROPPED_BYTES = 4 * 1024**2


class Ended(Exception):
    """The file may change or is removed; what was read before is right."""


class GrowingFile:
    """What the writer of a file and its readers share; thread-safe.

    :param position: how many bytes can be read from the start on
    :param window_bytes: while there are readers, at least the pages of this many bytes
        before the position stay in the page cache
    """

    def __init__(self, path: str, position: int, window_bytes: int) -> None:
        self._path = path
        self._position = position
        self._window_bytes = window_bytes
        self._readers: set[Reader] = set()
        self._reads = 0
        self._is_complete = self._is_final = self._is_ended = False
        self._changed = threading.Condition()
        self._writing = threading.Lock()

    @property
    def position(self) -> int:
        return self._position

    @property
    def has_readers(self) -> bool:
        """Whether a reader is open that has not ended."""
        return self.is_held and not self._is_ended

    @property
    def is_held(self) -> bool:
        """Whether a reader, perhaps an ended one, keeps the file on the disk."""
        return bool(self._readers)

    @property
    def cold_bytes(self) -> int:
        """How many bytes, from the start on, no reader is expected to read soon."""
        return max(0, self._position - (self._window_bytes if self.has_readers else 0))

    def open(self, offset_bytes: int = 0) -> 'Reader':
        """Open a reader that begins at an offset; wait for a write in progress.

        :raises Ended: its writer has ended it
        :raises OSError: it cannot be opened
        """
        with self._writing, self._changed:
            if self._is_ended or self._is_final:
                raise Ended
            try:
                descriptor = files.open_regular(self._path, os.O_RDONLY)
            except FileNotFoundError as exc:  # it has just been published
                raise Ended from exc
            reader = Reader(self, descriptor, offset_bytes)
            self._readers.add(reader)
        return reader

    def writing(self) -> threading.Lock:
        """Return a context within which no reader is added."""
        return self._writing

    def advance(self, position: int) -> None:
        """Let readers read up to a position."""
        with self._changed:
            self._position = position
            self._changed.notify_all()

    def complete(self, size_bytes: int) -> None:
        """Let readers read up to the size of the file, and stop waiting for more."""
        with self._changed:
            self._position, self._is_complete = size_bytes, True
            self._changed.notify_all()

    def make_final(self) -> None:
        """Do not end the readers: the file was published or unlinked, and never changes."""
        with self._changed:
            self._is_final = True

    def end(self) -> None:
        """End all readers unless the file is final; wait for the reads in progress."""
        with self._changed:
            self._is_ended = not self._is_final
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_final or not self._reads)

    @contextlib.contextmanager
    def reading(self, offset_bytes: int, timeout_seconds: float) -> Iterator[int]:
        """Yield how many bytes can be read at an offset; they do not change within.

        Raises as :meth:`Reader.read_into`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._may_read(offset_bytes), timeout_seconds):
                raise TimeoutError
            if self._is_ended:
                raise Ended
            self._reads += 1
            readable_bytes = max(0, self._position - offset_bytes)
        try:
            yield readable_bytes
        finally:
            with self._changed:
                self._reads -= 1
                self._changed.notify_all()

    def _may_read(self, offset_bytes: int) -> bool:
        return self._is_ended or self._is_complete or self._position > offset_bytes

    def forget(self, reader: 'Reader') -> bool:
        """Remove a closed reader; return False if it was closed before."""
        with self._changed:
            was_open = reader in self._readers
            self._readers.discard(reader)
        return was_open


class Reader:
    """Reads a growing file; used by one thread at a time, which closes it."""

    def __init__(self, file: GrowingFile, descriptor: int, offset_bytes: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._offset_bytes = offset_bytes

    def __enter__(self) -> 'Reader':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read_into(self, buffer: memoryview, timeout_seconds: float) -> int:
        """Wait for bytes, and return the number read, at least one; 0 is the end of the file.

        :raises Ended: nothing more can be read
        :raises TimeoutError: no byte was written in time
        :raises OSError: the file system refused
        """
        with self._file.reading(self._offset_bytes, timeout_seconds) as readable_bytes:
            wanted = buffer[:readable_bytes]
            count = os.preadv(self._descriptor, [wanted], self._offset_bytes)
            if not count:  # A hole at the end of the file is not yet part of it.
                wanted[:] = bytes(len(wanted))
                count = len(wanted)
            self._drop_cold_pages(count)
        self._offset_bytes += count
        return count

    def close(self) -> None:
        """Close it; to do so again changes nothing."""
        if self._file.forget(self):
            os.close(self._descriptor)

    def _drop_cold_pages(self, count: int) -> None:
        """Free page cache for the guests, unless other readers need it soon."""
        start = max(0, self._offset_bytes - _DROPPED_BYTES)
        end = min(self._offset_bytes + count, self._file.cold_bytes)
        if end > start:
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
