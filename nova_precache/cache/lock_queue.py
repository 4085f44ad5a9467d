# SPDX-License-Identifier: Apache-2.0
"""Queue the threads of this process for the lock of a base file.

The kernel grants a file lock to a process, not to a thread, and releases it as soon as the
process closes any descriptor of the file: only the thread that has the turn opens the file.
"""

import collections
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

from nova_precache import transfer_control as controls


class LockQueue:
    """The turns at the locks in one directory, by the names of base files."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: set[str] = set()
        self._boots: collections.Counter[str] = collections.Counter()
        self._boosts_by_name: dict[str, PriorityBoost] = {}

    @contextlib.contextmanager
    def wait_for(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Wait for the turn and hold it within."""
        with control.on_stop(self._wake), self._changed:
            self._changed.wait_for(lambda: self._is_free(base_name, control))
            self._held.add(base_name)
        try:
            yield
        finally:
            self._give_up(base_name)

    @contextlib.contextmanager
    def try_acquire(self, base_name: str) -> Iterator[bool]:
        """Take the turn unless another thread holds it; yield whether it was taken."""
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
    def boot_waiting(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Boost the thread that holds the turn while a boot waits for it within."""
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
            # Adding an empty Counter drops entries that reached zero.
            self._boots += collections.Counter()
            boost = self._boosts_by_name.get(base_name)
        if boost is not None:
            boost.update()

    def _do_boots_wait(self, base_name: str) -> bool:
        with self._changed:
            return self._boots[base_name] > 0

    @contextlib.contextmanager
    def priority_boost(
        self, base_name: str, control: controls.Control
    ) -> 'Iterator[PriorityBoost]':
        """Raise the priority of the transfer of the turn's holder while boots wait for the turn."""
        boost = PriorityBoost(control, lambda: self._do_boots_wait(base_name))
        with self._changed:
            self._boosts_by_name[base_name] = boost
        try:
            boost.update()
            yield boost
        finally:
            with self._changed:
                del self._boosts_by_name[base_name]
            boost.end()


class PriorityBoost:
    """Mark a control as waited for while boots or other processes wait."""

    def __init__(self, control: controls.Control, do_boots_wait: Callable[[], bool]) -> None:
        self._control = control
        self._do_boots_wait = do_boots_wait
        self._do_others_wait = False
        self._has_ended = False
        self._lock = threading.Lock()
        self._wait: controls.Wait | None = None

    def set_others(self, do_wait: bool) -> None:
        self._do_others_wait = do_wait
        self.update()

    def end(self) -> None:
        self._has_ended = True
        self.update()

    def update(self) -> None:
        """Mark or unmark the control by the current state, in whatever order changes arrive."""
        with self._lock:
            waits = not self._has_ended and (self._do_others_wait or self._do_boots_wait())
            if waits and self._wait is None:
                self._wait = self._control.waited_for()
            elif not waits and self._wait is not None:
                self._wait.leave()
                self._wait = None


# Caches of one process that share a directory must share its queue. Caches of different
# directories must not wait for each other, although their base files have the same names.
_turns: weakref.WeakValueDictionary[str, LockQueue] = weakref.WeakValueDictionary()
_turns_lock = threading.Lock()


def of(directory: str) -> LockQueue:
    """Return the queue of a directory, by its real path."""
    with _turns_lock:
        found = _turns.get(directory)
        if found is None:
            found = _turns[directory] = LockQueue()
        return found
