# SPDX-License-Identifier: Apache-2.0
"""The disk space of a cache: reserve it before a transfer writes, and measure it."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from nova_precache import exception, shown
from nova_precache.cache import layout, store

_BLOCK_BYTES = 512


class CacheSpace:
    """The space on the file system of one cache; thread-safe.

    :param reserved_bytes: space that downloads leave free
    """

    def __init__(self, paths: layout.CacheLayout, reserved_bytes: int = 0) -> None:
        self._directory = paths.base_directory
        self._reserved_bytes = reserved_bytes
        self._reservations: set[Reservation] = set()
        self._reservations_lock = threading.Lock()

    @contextlib.contextmanager
    def reserve(
        self,
        needed_bytes: int,
        paths: Sequence[str],
        passed_bytes: Callable[[], int] = lambda: 0,
    ) -> 'Iterator[Reservation]':
        """Reserve space for files that will be written.

        :param paths: files whose space on disk is subtracted from the reservation
        :param passed_bytes: bytes received, also subtracted: of downloaded files, the share of
            holes is not known in advance
        :raises nova_precache.exception.NotEnoughSpace: there is not enough space
        :raises nova_precache.exception.StorageError: the file system cannot be asked
        """
        reservation = Reservation(self, paths, passed_bytes)
        try:
            self.require(reservation, needed_bytes)
            yield reservation
        finally:
            with self._reservations_lock:
                self._reservations.discard(reservation)

    def require(self, reservation: 'Reservation', needed_bytes: int) -> None:
        """Set the size of a reservation; raises as :meth:`reserve`."""
        with self._reservations_lock, store.storage_errors(f'Checking {self._directory}'):
            others = sum(item.outstanding_bytes() for item in self._reservations - {reservation})
            free = self.free_bytes() - others
            still_needed = needed_bytes - reservation.written_bytes() + self._reserved_bytes
            if still_needed > free:
                raise exception.NotEnoughSpace(
                    f'{shown.shortage(still_needed, max(0, free))} in {self._directory}'
                    f'{self._reserve()}'
                )
            reservation.needed_bytes = needed_bytes
            self._reservations.add(reservation)

    def _reserve(self) -> str:
        if not self._reserved_bytes:
            return ''
        return f' ({shown.size(self._reserved_bytes)} must stay free)'

    def free_bytes(self) -> int:
        """Return how many bytes the file system has free for this process.

        :raises nova_precache.exception.StorageError: it cannot be asked
        """
        with store.storage_errors(f'Checking {self._directory}'):
            status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def cache_bytes(self) -> int:
        """Return how many bytes on disk the files of the cache take.

        :raises nova_precache.exception.StorageError: they cannot be listed
        """
        with store.storage_errors(f'Listing {self._directory}'):
            paths = [os.path.join(self._directory, each) for each in os.listdir(self._directory)]
            return sum(map(_bytes_on_disk, paths))


class Reservation:
    """Space that one transfer has reserved; bytes already written no longer count."""

    def __init__(
        self, space: CacheSpace, paths: Sequence[str], passed_bytes: Callable[[], int]
    ) -> None:
        self.needed_bytes = 0
        self._space = space
        self._paths = tuple(paths)
        self._passed_bytes = passed_bytes

    def require(self, needed_bytes: int) -> None:
        """Adjust the size once more is known; raises as :meth:`CacheSpace.reserve`."""
        self._space.require(self, needed_bytes)

    def check(self) -> None:
        """Check that the rest still fits; raises as :meth:`CacheSpace.reserve`.

        A file that was removed and counts as not written takes its space until its last reader
        closes it.
        """
        self.require(self.needed_bytes)

    def written_bytes(self) -> int:
        return self._passed_bytes() + sum(map(_bytes_on_disk, self._paths))

    def outstanding_bytes(self) -> int:
        return max(0, self.needed_bytes - self.written_bytes())


def _bytes_on_disk(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
