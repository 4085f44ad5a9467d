# SPDX-License-Identifier: Apache-2.0
"""The lock of one base file, which Nova's image backend takes too.

Its holder downloads the image; the waiting processes then find the file. The lock only
saves work: unique names and an atomic rename keep the cache correct without it.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator

import fasteners
from oslo_concurrency import lockutils

from nova_precache import exception, files, transfer_control as controls
from nova_precache.cache import layout, lock_queue, lock_waiters

LOG = logging.getLogger(__name__)

# Nova's own waiters try at least as often.
_POLL_SECONDS = 0.1
# A lock file is replaced by hand or by Nova's cache manager, not all the time.
_MAX_REPLACEMENTS = 10


class ImageLocks:
    """The locks in one directory, by the names of base files.

    :param check_mounted: called before a lock file is made; raises if it may not be
    """

    def __init__(
        self, lock_directory: str, check_mounted: Callable[[], None] = lambda: None
    ) -> None:
        self._directory = lock_directory
        self._check_mounted = check_mounted
        self._turns = lock_queue.of(os.path.realpath(lock_directory))
        self._held: dict[str, fasteners.InterProcessLock] = {}
        self._has_warned = False

    @contextlib.contextmanager
    def hold(self, base_name: str, control: controls.Control | None = None) -> Iterator[None]:
        """Wait for the lock of a base file and hold it within.

        :param control: stopping it ends the wait
        :raises nova_precache.exception.StorageError: the lock file cannot be used
        :raises nova_precache.exception.CacheError: the control was stopped with it during the
            wait
        """
        control = control or controls.Control()
        with contextlib.ExitStack() as stack:
            with self._turns.boot_waiting(base_name, control):
                stack.enter_context(self._turns.wait_for(base_name, control))
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
            lock = self._lock(base_name)
            with contextlib.ExitStack() as stack:
                stack.callback(_close, lock)
                while not _try_acquire(lock, base_name):
                    control.wait(_POLL_SECONDS)
                if _is_in_place(lock, base_name):
                    stack.pop_all()
                    return lock
            # The file was removed during the wait: newcomers lock its replacement.
        raise exception.StorageError(
            f'{_locking(lock, base_name)}: the lock file keeps being replaced'
        )

    @contextlib.contextmanager
    def try_hold(self, base_name: str) -> Iterator[bool]:
        """Hold the lock within unless it is held already; yield whether it was acquired.

        :raises nova_precache.exception.StorageError: the lock file cannot be used
        """
        with self._turns.try_acquire(base_name) as is_ours:
            if not is_ours:
                yield False
                return
            with self._try_file_lock(base_name) as held:
                yield held

    @contextlib.contextmanager
    def _try_file_lock(self, base_name: str) -> Iterator[bool]:
        lock = self._lock(base_name)
        with contextlib.ExitStack() as stack:
            stack.callback(_close, lock)
            # A process that replaces the file at this moment wants the lock itself.
            held = _try_acquire(lock, base_name) and _is_in_place(lock, base_name)
            if held:
                self._held[base_name] = lock
                stack.callback(self._held.pop, base_name)
            yield held

    def _lock(self, base_name: str) -> fasteners.InterProcessLock:
        """Open the lock file without locking it."""
        self._check_mounted()
        lock = lockutils.external_lock(base_name, layout.LOCK_PREFIX, self._directory)
        try:
            files.open_lock(lock)
        except OSError as exc:
            raise exception.storage_failure(_locking(lock, base_name), exc) from exc
        return lock

    @contextlib.contextmanager
    def priority_boost(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Raise the priority of the transfer while a boot or another process waits for the lock.

        The caller holds the lock. Processes on other machines, which share the directory
        over NFS, are not seen.
        """
        lock_file = self._held[base_name].lockfile
        with (
            self._turns.priority_boost(base_name, control) as boost,
            contextlib.ExitStack() as stack,
        ):
            try:
                stack.enter_context(lock_waiters.watch(lock_file, boost.set_others))
            except OSError as exc:
                self._warn(exc)
            yield

    def _warn(self, error: OSError) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        LOG.warning(
            'Cannot watch %s for waiting processes, so precaching does not speed up for them '
            '(see the limits in /proc/sys/fs/inotify): %s',
            self._directory,
            error,
        )


def _try_acquire(lock: fasteners.InterProcessLock, base_name: str) -> bool:
    try:
        return bool(lock.acquire(blocking=False))
    except OSError as exc:
        raise exception.storage_failure(_locking(lock, base_name), exc) from exc
    except threading.ThreadError as exc:
        raise exception.StorageError(f'{_locking(lock, base_name)}: {exc}') from exc


def _is_in_place(lock: fasteners.InterProcessLock, base_name: str) -> bool:
    """Return whether the locked file is still the one at the lock's path."""
    try:
        return os.path.samestat(os.fstat(lock.lockfile.fileno()), os.stat(lock.path))
    except OSError as exc:
        # Over NFS, a file that another machine removed is stale.
        if exc.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise exception.storage_failure(_locking(lock, base_name), exc) from exc


def _locking(lock: fasteners.InterProcessLock, base_name: str) -> str:
    return f'Locking {base_name} with {os.fsdecode(lock.path)}'


def _close(lock: fasteners.InterProcessLock) -> None:
    """Close the file, which also releases the lock if it is held."""
    if lock.lockfile is not None:
        lock.lockfile.close()
