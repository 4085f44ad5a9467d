# SPDX-License-Identifier: Apache-2.0
"""Detect boots in any process of a host, so that precaching yields to them.

Each boot holds a shared lock on one file while it waits for its image. The kernel reports
whether such a lock exists, and releases it when its process dies. The lock belongs to an
open file description, not to a process: a process sees its own locks, and closing one file
does not release the others.
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
    """The boots on all hosts that share one lock directory, such as over NFS."""

    def __init__(self, lock_directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = os.path.join(lock_directory, FILE_NAME)
        self._clock = clock
        self._any_waiting = False
        self._looked_at: float | None = None
        self._has_warned = False

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Signal a waiting boot within; if the lock fails, warn and boot anyway."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = files.open_regular(self._path, os.O_RDONLY | os.O_CREAT, 0o644)
                stack.callback(os.close, descriptor)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
            except OSError as exc:
                self._warn(exc)
            yield

    def any_waiting(self) -> bool:
        """Return whether any boot waits; the answer is cached for ``LOOK_SECONDS``."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._any_waiting = self._look()
        return self._any_waiting

    def _look(self) -> bool:
        try:
            descriptor = files.open_regular(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False  # no boot has used this directory yet
        except OSError as exc:
            self._warn(exc)
            return False
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        except OSError as exc:
            LOG.debug('Cannot detect waiting boots: %s', exc)
            return False
        finally:
            os.close(descriptor)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            LOG.warning('Precaching cannot yield to boots: %s: %s', self._path, error.strerror)
        self._has_warned = True


def _lock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
