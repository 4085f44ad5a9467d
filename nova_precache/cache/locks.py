# SPDX-License-Identifier: Apache-2.0
"""The lock of one base file, which Nova's image backend takes too.

Whoever holds it downloads, and whoever waits finds the file there afterwards. It
only saves work: unique names and an atomic rename keep the cache right without it.
"""

import collections
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator

import fasteners
from oslo_concurrency import lockutils

from nova_precache import control as controls
from nova_precache import exception
from nova_precache.cache import layout, waiting

LOG = logging.getLogger(__name__)

# Nova's own waiters try at least as often.
_POLL_SECONDS = 0.1
# A lock file is replaced by hand or by Nova's cache manager, not all the time.
_MAX_REPLACEMENTS = 10


class ImageLocks:
    """The locks in one directory, by the names of base files."""

    def __init__(self, lock_directory: str) -> None:
        self._directory = lock_directory
        self._threads = _threads_at(os.path.realpath(lock_directory))
        self._held: dict[str, fasteners.InterProcessLock] = {}
        self._has_warned = False

    @contextlib.contextmanager
    def hold(self, base_name: str, control: controls.Control | None = None) -> Iterator[None]:
        """Hold the lock of a base file; waits for whoever holds it.

        :param control: ends the wait when it is stopped
        :raises nova_precache.exception.StorageError: the lock file cannot be used
        :raises nova_precache.exception.CacheError: what it was stopped with while it waited
        """
        control = control or controls.Control()
        with contextlib.ExitStack() as stack:
            with self._threads.waiting(base_name, control):
                stack.enter_context(self._threads.turn(base_name, control))
                stack.enter_context(self._file_lock(base_name, control))
            yield

    @contextlib.contextmanager
    def _file_lock(self, base_name: str, control: controls.Control) -> Iterator[None]:
        lock = self._acquire(base_name, control)
        self._held[base_name] = lock
        try:
            yield
        finally:
            del self._held[base_name]
            _close(lock)

    def _acquire(self, base_name: str, control: controls.Control) -> fasteners.InterProcessLock:
        for _ in range(_MAX_REPLACEMENTS):
            lock = self._wait_for_file(base_name, control)
            if _is_in_place(lock):
                return lock
            # It was removed while we waited: whoever comes now takes another.
            _close(lock)
        raise exception.StorageError(f'Locking {base_name}: the lock file keeps being replaced')

    def _wait_for_file(
        self, base_name: str, control: controls.Control
    ) -> fasteners.InterProcessLock:
        lock = self._lock(base_name)
        try:
            while not _try_acquire(lock, base_name):
                control.wait(_POLL_SECONDS)
        except BaseException:
            _close(lock)
            raise
        return lock

    @contextlib.contextmanager
    def try_hold(self, base_name: str) -> Iterator[bool]:
        """Hold the lock unless somebody does already; gives whether it is held.

        :raises nova_precache.exception.StorageError: the lock file cannot be used
        """
        with self._threads.try_turn(base_name) as is_ours:
            if not is_ours:
                yield False
                return
            with self._try_file_lock(base_name) as held:
                yield held

    @contextlib.contextmanager
    def _try_file_lock(self, base_name: str) -> Iterator[bool]:
        lock = self._lock(base_name)
        try:
            # Whoever replaces the file just now has use for it.
            yield _try_acquire(lock, base_name) and _is_in_place(lock)
        finally:
            _close(lock)

    def _lock(self, base_name: str) -> fasteners.InterProcessLock:
        return lockutils.external_lock(base_name, layout.LOCK_PREFIX, self._directory)

    @contextlib.contextmanager
    def hastening(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Hasten the work while a boot of this process, or another process, waits for the lock.

        The lock is held. Of processes on other machines, which share the directory over
        NFS, nothing is seen.
        """
        lock_file = self._held[base_name].lockfile
        with (
            self._threads.hastening(base_name, control) as hastening,
            contextlib.ExitStack() as stack,
        ):
            try:
                stack.enter_context(waiting.watch(lock_file, hastening.set_others))
            except OSError as exc:
                self._warn(exc)
            yield

    def _warn(self, error: OSError) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        LOG.warning(
            'Precaching is not hastened when other processes wait in %s, it cannot be watched '
            '(see the limits in /proc/sys/fs/inotify): %s',
            self._directory,
            error,
        )


def _try_acquire(lock: fasteners.InterProcessLock, base_name: str) -> bool:
    try:
        return bool(lock.acquire(blocking=False))
    except OSError as exc:
        raise exception.storage_failure(f'Locking {base_name}', exc) from exc
    except threading.ThreadError as exc:
        raise exception.StorageError(f'Locking {base_name}: {exc}') from exc


def _is_in_place(lock: fasteners.InterProcessLock) -> bool:
    """Tell whether the file that is locked is the one at which others look for the lock."""
    try:
        return os.path.samestat(os.fstat(lock.lockfile.fileno()), os.stat(lock.path))
    except FileNotFoundError:
        return False


def _close(lock: fasteners.InterProcessLock) -> None:
    """Close the file, and with it let go of the lock, where it is held."""
    if lock.lockfile is not None:
        lock.lockfile.close()


class _Threads:
    """Who among the threads of this process has, and waits for, the locks of one directory.

    The kernel gives a file's lock to a process, not to a thread, and takes it away when
    the process closes the file, however often it has it open: only the one whose turn it
    is touches the file.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: set[str] = set()
        self._boots: collections.Counter[str] = collections.Counter()
        self._hastenings: dict[str, _Hastening] = {}

    @contextlib.contextmanager
    def turn(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Wait for the turn, and have it."""
        with control.at_stop(self._wake), self._changed:
            self._changed.wait_for(lambda: self._is_free(base_name, control))
            self._held.add(base_name)
        try:
            yield
        finally:
            self._give_up(base_name)

    @contextlib.contextmanager
    def try_turn(self, base_name: str) -> Iterator[bool]:
        """Have the turn unless another thread has it; gives whether it is so."""
        with self._changed:
            is_ours = base_name not in self._held
            self._held.add(base_name)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._give_up(base_name)

    def _is_free(self, base_name: str, control: controls.Control) -> bool:
        control.check()
        return base_name not in self._held

    def _give_up(self, base_name: str) -> None:
        with self._changed:
            self._held.remove(base_name)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def waiting(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Have a boot hasten whoever has the turn, while it waits for it."""
        if not control.is_boot:
            yield
            return
        self._count_boots(base_name, +1)
        try:
            yield
        finally:
            self._count_boots(base_name, -1)

    def _count_boots(self, base_name: str, step: int) -> None:
        with self._changed:
            self._boots[base_name] += step
            # Without a boot there is no entry.
            self._boots += collections.Counter()
            hastening = self._hastenings.get(base_name)
        if hastening is not None:
            hastening.update()

    def _do_boots_wait(self, base_name: str) -> bool:
        with self._changed:
            return self._boots[base_name] > 0

    @contextlib.contextmanager
    def hastening(self, base_name: str, control: controls.Control) -> Iterator['_Hastening']:
        """Hasten the work of the one whose turn it is while boots wait for it."""
        hastening = _Hastening(control, lambda: self._do_boots_wait(base_name))
        with self._changed:
            self._hastenings[base_name] = hastening
        try:
            hastening.update()
            yield hastening
        finally:
            with self._changed:
                del self._hastenings[base_name]
            hastening.end()


class _Hastening:
    """Has a control waited for while boots, or others, wait."""

    def __init__(self, control: controls.Control, do_boots_wait: Callable[[], bool]) -> None:
        self._control = control
        self._do_boots_wait = do_boots_wait
        self._do_others_wait = False
        self._has_ended = False
        self._lock = threading.Lock()
        self._waited_for: contextlib.ExitStack | None = None

    def set_others(self, do_wait: bool) -> None:
        self._do_others_wait = do_wait
        self.update()

    def end(self) -> None:
        self._has_ended = True
        self.update()

    def update(self) -> None:
        """Have the control waited for, or not, as things are now, whoever tells of them first."""
        with self._lock:
            waits = not self._has_ended and (self._do_others_wait or self._do_boots_wait())
            if waits and self._waited_for is None:
                self._waited_for = contextlib.ExitStack()
                self._waited_for.enter_context(self._control.waited_for())
            elif not waits and self._waited_for is not None:
                self._waited_for.close()
                self._waited_for = None


# Caches of one process that share a directory have to share this; those of others must
# not wait for each other, whose images have the same names.
_threads: weakref.WeakValueDictionary[str, _Threads] = weakref.WeakValueDictionary()
_threads_lock = threading.Lock()


def _threads_at(directory: str) -> _Threads:
    with _threads_lock:
        found = _threads.get(directory)
        if found is None:
            found = _threads[directory] = _Threads()
        return found
