# SPDX-License-Identifier: Apache-2.0
"""Finds out whether other processes wait for a lock that this one holds.

Whoever waits for a lock in Nova's way has its file open, once, and tries again and again.
inotify tells of each open and close, and holds up nobody: the kernel could also be asked
who has the file open, by a lease, but then a process that opens it hangs for as long as
this one is stopped meanwhile.

Who had the file open before, and what other machines do to it over NFS, is not seen.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO

import inotify_simple

_OPENED = inotify_simple.flags.OPEN
_CLOSED = inotify_simple.masks.CLOSE
_WATCH_ENDED = inotify_simple.flags.IGNORED
_LOST_SOME = inotify_simple.flags.Q_OVERFLOW


@contextlib.contextmanager
def watch(lock_file: IO[str], tell: Callable[[bool], None]) -> Iterator[None]:
    """Tell whether others have opened an open file, too, each time that may have changed.

    This process does not open the file a second time meanwhile.

    :param tell: called from a thread, and not after this is left
    :raises OSError: inotify's instances or watches are used up, or there is no inotify
    """
    with _inotify() as inotify:
        # The file itself: another may have its name by now.
        watched = inotify.add_watch(f'/proc/self/fd/{lock_file.fileno()}', _OPENED | _CLOSED)
        left = threading.Event()
        thread = threading.Thread(
            target=_follow, args=(inotify, left, tell), name='waiting', daemon=True
        )
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


def _follow(
    inotify: inotify_simple.INotify, left: threading.Event, tell: Callable[[bool], None]
) -> None:
    opens = 0
    while not left.is_set():
        for event in inotify.read():
            if event.mask & _WATCH_ENDED:
                return
            if event.mask & _LOST_SOME:
                opens = 0  # else whoever closed it untold would count for ever
            # It may go wrong by one: equal events that come within the same moment are told
            # but once, and whoever had the file open before is seen to close it only.
            opens = max(0, opens + bool(event.mask & _OPENED) - bool(event.mask & _CLOSED))
        tell(opens > 0)
