# SPDX-License-Identifier: Apache-2.0
"""The lock of one base file, which Nova's image backend takes too.

Whoever holds it downloads, and whoever waits finds the file there afterwards. It
only saves work: unique names and an atomic rename keep the cache right without it.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

from oslo_concurrency import lockutils

from nova_precache import exception
from nova_precache.cache import layout

# The kernel gives a lock file's lock to a process, so threads that share the files
# must share semaphores. Those of lockutils are found by name alone: by default, an
# image's download on one host of the process would wait for that on another.
_semaphores: weakref.WeakValueDictionary[str, lockutils.Semaphores] = weakref.WeakValueDictionary()
_semaphores_lock = threading.Lock()


class ImageLocks:
    """The locks in one directory, by the names of base files."""

    def __init__(self, lock_directory: str) -> None:
        self._directory = lock_directory
        self._semaphores = _shared_semaphores(os.path.realpath(lock_directory))

    @contextlib.contextmanager
    def hold(self, base_name: str) -> Iterator[None]:
        """Hold the lock of a base file; waits for whoever holds it.

        :raises nova_precache.exception.StorageError: the lock file cannot be used
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    lockutils.lock(
                        base_name,
                        lock_file_prefix=layout.LOCK_PREFIX,
                        external=True,
                        lock_path=self._directory,
                        semaphores=self._semaphores,
                        do_log=False,
                    )
                )
            except OSError as exc:
                raise exception.storage_failure(f'Locking {base_name}', exc) from exc
            except threading.ThreadError as exc:
                raise exception.StorageError(f'Locking {base_name}: {exc}') from exc
            yield

    @contextlib.contextmanager
    def try_hold(self, base_name: str) -> Iterator[bool]:
        """Hold the lock unless somebody does already; gives whether it is held.

        :raises nova_precache.exception.StorageError: the lock file cannot be used
        """
        semaphore = self._semaphores.get(base_name)
        if not semaphore.acquire(blocking=False):
            yield False
            return
        try:
            with self._try_file_lock(base_name) as held:
                yield held
        finally:
            semaphore.release()

    @contextlib.contextmanager
    def _try_file_lock(self, base_name: str) -> Iterator[bool]:
        lock = lockutils.external_lock(base_name, layout.LOCK_PREFIX, self._directory)
        try:
            held = lock.acquire(blocking=False)
        except OSError as exc:
            raise exception.storage_failure(f'Locking {base_name}', exc) from exc
        try:
            yield held
        finally:
            if held:
                lock.release()
            else:
                # While another thread of this process holds the lock, closing this
                # file would take it away: it is closed under the semaphore.
                lock.lockfile.close()


def _shared_semaphores(directory: str) -> lockutils.Semaphores:
    with _semaphores_lock:
        found = _semaphores.get(directory)
        if found is None:
            found = _semaphores[directory] = lockutils.Semaphores()
        return found
