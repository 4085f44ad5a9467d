# SPDX-License-Identifier: Apache-2.0
"""Finds out whether other processes wait for a lock that this one holds.

Whoever waits for a lock in Nova's way has its file open, and tries again and again.
inotify tells that the file was opened or closed, but not by how many, nor who had it
open before. So then the kernel is asked whether anybody has: it grants a lease on a
file only to the one who alone has it open.

Neither sees what other machines do to a file on NFS.
"""

import contextlib
import errno
import fcntl
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import inotify_simple

_OPENED = inotify_simple.flags.OPEN
_CLOSED = inotify_simple.masks.CLOSE
_TOO_MANY = inotify_simple.flags.Q_OVERFLOW


@contextlib.contextmanager
def watch(lock_file: IO[str], tell: Callable[[bool], None]) -> Iterator[None]:
    """Tell whether other processes have an open file open, too: now and when that may change.

    This process does not open the file a second time meanwhile.

    :param tell: called from here and from a thread, and not after this is left
    :raises OSError: inotify's instances or watches are used up, or there is no inotify
    """
    directory, name = os.path.split(os.path.realpath(os.fsdecode(lock_file.name)))
    with _inotify() as inotify:
        watched = inotify.add_watch(directory, _OPENED | _CLOSED | inotify_simple.flags.ONLYDIR)
        opens = _Opens(lock_file, directory)
        tell(opens.are_there_now())
        left = threading.Event()

        def follow() -> None:
            while not left.is_set():
                masks = [event.mask for event in inotify.read() if _concerns(event, name)]
                if masks:
                    tell(opens.are_there_after(masks))

        thread = threading.Thread(target=follow, name=f'waiting for {name}', daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            # The thread is told that the watch is gone, unless it was told already, or
            # that there was too much to tell.
            with contextlib.suppress(OSError):
                inotify.rm_watch(watched)
            thread.join()


def _inotify() -> inotify_simple.INotify:
    try:
        return inotify_simple.INotify()
    except AttributeError as exc:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from exc


def _concerns(event: inotify_simple.Event, name: str) -> bool:
    return event.name == name or bool(event.mask & _TOO_MANY)


class _Opens:
    """Whether others have a file open."""

    def __init__(self, file: IO[str], directory: str) -> None:
        self._file = file
        self._leases_tell = _is_ours_alone(file) is not None and _leases_work(directory)
        self._counted = 0

    def are_there_now(self) -> bool:
        return self._leases_tell and not _is_ours_alone(self._file)

    def are_there_after(self, masks: Iterable[int]) -> bool:
        """Look again after what inotify told."""
        # Where nothing is left but to count, it may go wrong: inotify tells equal events,
        # one right after the other, but once.
        for mask in masks:
            self._counted = max(0, self._counted + bool(mask & _OPENED) - bool(mask & _CLOSED))
        return self.are_there_now() if self._leases_tell else self._counted > 0


def _leases_work(directory: str) -> bool:
    """Find out whether a file that nobody else knows passes for ours alone: on NFS it may not."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory) as file:
        return bool(_is_ours_alone(file))
    return False


def _is_ours_alone(file: IO[Any]) -> bool | None:
    """Tell whether nobody else has a file open; None: the kernel does not tell us.

    Whoever opens it just now is held up until the lease is given back, and this process
    gets a signal: instead of SIGIO, which would end it, one that is ignored.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as exc:
        return False if exc.errno == errno.EAGAIN else None
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
