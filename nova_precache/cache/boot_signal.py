# SPDX-License-Identifier: Apache-2.0
"""Who boots on a host, in whatever process: what is precached there gives way to them.

Each boot has a shared lock on one file for as long as it waits for its image. The kernel
tells whether there is such a lock, and takes it away from a process that dies. It belongs
to an open file, not to a process: so a process sees its own, and closing one leaves others.
"""

import contextlib
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator

from nova_precache import files

LOG = logging.getLogger(__name__)

FILE_NAME = 'nova-precache-boots'
LOOK_SECONDS = 0.25
# struct flock: type, whence, start, length, process id.
_FLOCK = 'hhqqi4x'


class WaitingBoots:
    """The boots on the hosts that share one lock directory: over NFS, all of theirs."""

    def __init__(self, lock_directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = os.path.join(lock_directory, FILE_NAME)
        self._clock = clock
        self._are_there = False
        self._looked_at: float | None = None
        self._has_warned = False

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Be seen as a boot that waits; where that cannot be, boot all the same."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = files.open_regular(self._path, os.O_RDONLY | os.O_CREAT, 0o644)
                stack.callback(os.close, descriptor)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
            except OSError as exc:
                self._warn(exc)
            yield

    def are_there(self) -> bool:
        """Tell whether any boot waits; it was so, or not, within the last moments."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._are_there = self._look()
        return self._are_there

    def _look(self) -> bool:
        try:
            descriptor = files.open_regular(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False  # nobody ever booted here
        except OSError as exc:
            self._warn(exc)
            return False
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        except OSError as exc:
            LOG.debug('Nobody can tell who boots: %s', exc)
            return False
        finally:
            os.close(descriptor)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            LOG.warning('Precaching does not give way to boots: %s: %s', self._path, error.strerror)
        self._has_warned = True


def _lock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
