# SPDX-License-Identifier: Apache-2.0
"""Commits together what many threads want written at the same moment.

Whoever comes while nothing is being committed commits at once, so that one alone waits for
nobody. What gathers meanwhile is committed by the first of those who wait, for all of them.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

M = TypeVar('M')
R = TypeVar('R')

MOST_MEMBERS = 100


class _Entry(Generic[M, R]):
    """A member that waits, and what came of it."""

    def __init__(self, member: M) -> None:
        self.member = member
        self.woken = threading.Event()
        self.is_done = False
        self._results: Sequence[R] = ()
        self._error: BaseException | None = None

    def succeed(self, result: R) -> None:
        self._results, self.is_done = [result], True

    def fail(self, error: BaseException) -> None:
        self._error, self.is_done = error, True

    def result(self) -> R:
        if self._error is not None:
            raise self._error
        return self._results[0]


class Group(Generic[M, R]):
    """Has members committed in groups, each of them in the order in which they came.

    :param commit: commits all members it is given or none, and gives what came of each
    :param keys: what a member is about; a group has one of each, and the others follow
    """

    def __init__(
        self,
        commit: Callable[[Sequence[M]], Sequence[R]],
        keys: Callable[[M], Collection[str]],
    ) -> None:
        self._commit = commit
        self._keys = keys
        self._lock = threading.Lock()
        self._waiting: list[_Entry[M, R]] = []
        self._is_led = False

    def submit(self, member: M) -> R:
        """Have a member committed; what its own commit raises is raised here."""
        entry = _Entry[M, R](member)
        with self._lock:
            self._waiting.append(entry)
            leads, self._is_led = not self._is_led, True
        if not leads:
            entry.woken.wait()
        if not entry.is_done:
            self._lead()
        return entry.result()

    def gathered(self) -> int:
        """Count those who wait for the next commit."""
        with self._lock:
            return len(self._waiting)

    def _lead(self) -> None:
        with self._lock:
            batch = self._take()
        try:
            self._commit_all(batch)
        finally:
            for entry in batch:
                entry.woken.set()
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            heir = self._waiting[0] if self._waiting else None
            self._is_led = heir is not None
        if heir is not None:
            heir.woken.set()

    def _take(self) -> list[_Entry[M, R]]:
        """Take those who came first, up to one that is about the same as an earlier one."""
        about: set[str] = set()
        count = 0
        for entry in self._waiting[:MOST_MEMBERS]:
            keys = set(self._keys(entry.member))
            if about & keys:
                break
            about |= keys
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _commit_all(self, batch: Sequence[_Entry[M, R]]) -> None:
        try:
            results = self._commit([entry.member for entry in batch])
        except Exception as exc:  # noqa: BLE001 - raised to whoever submitted it
            if len(batch) == 1:
                batch[0].fail(exc)
                return
            for entry in batch:  # so that what fails fails for itself
                self._commit_all([entry])
        except BaseException as exc:
            for entry in batch:
                entry.fail(exc)
            raise
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.succeed(result)
