# SPDX-License-Identifier: Apache-2.0
"""Who among the threads of this process has the lock of a base file, and who waits for it.

The kernel gives a file's lock to a process, not to a thread, and takes it away when the
process closes the file, however often it has it open: only the one whose turn it is
touches the file.
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
        self._hastenings: dict[str, PriorityBoost] = {}

    @contextlib.contextmanager
    def wait_for(self, base_name: str, control: controls.Control) -> Iterator[None]:
        """Wait for the turn, and have it."""
        with control.on_stop(self._wake), self._changed:
            self._changed.wait_for(lambda: self._is_free(base_name, control))
            self._held.add(base_name)
        try:
            yield
        finally:
            self._give_up(base_name)

    @contextlib.contextmanager
    def try_have(self, base_name: str) -> Iterator[bool]:
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
    def boot_waiting(self, base_name: str, control: controls.Control) -> Iterator[None]:
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
    def hastening(self, base_name: str, control: controls.Control) -> 'Iterator[PriorityBoost]':
        """Hasten the work of the one whose turn it is while boots wait for it."""
        hastening = PriorityBoost(control, lambda: self._do_boots_wait(base_name))
        with self._changed:
            self._hastenings[base_name] = hastening
        try:
            hastening.update()
            yield hastening
        finally:
            with self._changed:
                del self._hastenings[base_name]
            hastening.end()


class PriorityBoost:
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
_turns: weakref.WeakValueDictionary[str, LockQueue] = weakref.WeakValueDictionary()
_turns_lock = threading.Lock()


def of(directory: str) -> LockQueue:
    """Give the turns of a directory, by its real path."""
    with _turns_lock:
        found = _turns.get(directory)
        if found is None:
            found = _turns[directory] = LockQueue()
        return found
