# SPDX-License-Identifier: Apache-2.0
"""Commits together the work that many threads submit at the same moment.

A thread that comes while no commit runs commits at once, so that a single thread never waits.
Members that gather meanwhile are committed by the first waiting thread, for all. If recent
groups had several members, this leader lingers for a moment first: calls that began together
end together, and most of a commit costs the same for one member as for many.
"""

import collections
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from nova_precache import deadline, exception

M = TypeVar('M')
C = TypeVar('C')
R = TypeVar('R')

MOST_MEMBERS = 100
# Longer than a commit may take, with all retries.
MOST_SECONDS = 600.0
LINGER_SECONDS = 0.008
_LATE_BATCHES = 3


class _Entry(Generic[M, C]):
    """A waiting member, and what its commit returned.

    :ivar woken: set when it is committed, or is to lead
    """

    def __init__(self, member: M, keys: Collection[str]) -> None:
        self.member = member
        self.keys = frozenset(keys)
        self.woken = threading.Event()
        self.is_done = False
        self._committed: Sequence[C] = ()
        self._error: Exception | None = None

    def succeed(self, committed: C) -> None:
        self._committed, self.is_done = [committed], True

    def fail(self, error: Exception) -> None:
        self._error, self.is_done = error, True

    def committed(self) -> C:
        if self._error is not None:
            raise self._error
        return self._committed[0]


class Group(Generic[M, C]):
    """Commits members in groups, in the order in which they came.

    A thread that is interrupted, such as an exiting one, leaves the others to the next.

    :param commit: commits all given members or none, and returns the results of all
    :param keys: what a member concerns; a group has at most one member per key, others follow
    :param of_all: errors that no member causes, so that none is retried alone
    :param linger: waits a moment for more members
    """

    def __init__(
        self,
        commit: Callable[[Sequence[M]], C],
        keys: Callable[[M], Collection[str]],
        of_all: type[Exception] | tuple[type[Exception], ...] = (),
        linger: Callable[[], None] = lambda: time.sleep(LINGER_SECONDS),
    ) -> None:
        self._commit = commit
        self._keys = keys
        self._of_all = of_all
        self._linger = linger
        self._late_sizes: collections.deque[int] = collections.deque(maxlen=_LATE_BATCHES)
        self._lock = threading.Lock()
        self._waiting: list[_Entry[M, C]] = []
        self._is_led = False

    def submit(self, member: M, result: Callable[[C], R]) -> R:
        """Submit a member and return its result; raise the error of its own commit.

        :param result: picks the member's result from those of its commit
        :raises nova_precache.exception.DatabaseUnavailable: the deadline of this thread has
            passed; others may still commit the member
        """
        entry = _Entry[M, C](member, self._keys(member))
        with self._lock:
            self._waiting.append(entry)
            if not self._is_led:
                self._hand_over()
        try:
            if not entry.woken.wait(deadline.left(MOST_SECONDS)):
                raise exception.DatabaseUnavailable(
                    'earlier commits have not finished', is_reached=True
                )
            if not entry.is_done:
                self._lead()
        except BaseException:
            self._withdraw(entry)
            raise
        return result(entry.committed())

    def _lead(self) -> None:
        if max(self._late_sizes, default=0) > 1:
            self._linger()
        with self._lock:
            batch = self._take()
            self._late_sizes.append(len(batch))
        try:
            self._commit_all(batch)
        finally:
            with self._lock:
                self._waiting[:0] = [entry for entry in batch if not entry.is_done]
                for entry in batch:
                    if entry.is_done:
                        entry.woken.set()
                self._hand_over()

    def _hand_over(self) -> None:
        """Wake the first waiting member to lead; the caller holds the lock."""
        self._is_led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].woken.set()

    def _withdraw(self, entry: _Entry[M, C]) -> None:
        """Remove an entry whose thread gave up; if it was to lead, wake the next one."""
        with self._lock:
            if entry in self._waiting:
                self._waiting.remove(entry)
                if entry.woken.is_set():
                    self._hand_over()

    def _take(self) -> list[_Entry[M, C]]:
        """Take the first entries, up to one that shares a key with an earlier one."""
        about: set[str] = set()
        count = 0
        for entry in self._waiting[:MOST_MEMBERS]:
            if about & entry.keys:
                break
            about |= entry.keys
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _commit_all(self, batch: Sequence[_Entry[M, C]]) -> None:
        try:
            committed = self._commit([entry.member for entry in batch])
        except Exception as exc:  # noqa: BLE001 - raised in submit()
            if len(batch) == 1 or isinstance(exc, self._of_all):
                for entry in batch:
                    entry.fail(exc)
                return
            for entry in batch:  # each alone, so that only bad members fail
                self._commit_all([entry])
        else:
            for entry in batch:
                entry.succeed(committed)
