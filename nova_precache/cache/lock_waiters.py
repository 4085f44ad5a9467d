# SPDX-License-Identifier: Apache-2.0
"""Detect other processes that wait for a lock that this one holds.

A process that waits for a lock in Nova's way keeps the file open once and polls. inotify
reports each open and close without delaying the opener. A file lease would also show who
has the file open, but a process that opens it would hang while this one is stopped.

Processes that opened the file earlier, and other machines over NFS, are not seen.
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
    """Report whether other processes have an open file open, each time that may have changed.

    This process must not open the file a second time within.

    :param tell: called from another thread; never after the context is left
    :raises OSError: inotify's instances or watches are used up, or there is no inotify
    """
    with _inotify() as inotify:
        # Watch the file itself: its name may belong to another file by now.
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
            # Removing the watch wakes the thread. It fails if the watch has ended already;
            # that event, or the one of an overflowing queue, has then woken the thread.
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
                opens = 0  # else a process whose close event was lost would count for ever
            # The count may be off by one: inotify merges equal consecutive events, and of a
            # process that had opened the file earlier only the close is seen.
            opens = max(0, opens + bool(event.mask & _OPENED) - bool(event.mask & _CLOSED))
        tell(opens > 0)
