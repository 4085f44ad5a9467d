# SPDX-License-Identifier: Apache-2.0
"""Stops calls to a cell whose broker or database does not answer, so that none waits for it."""

import collections
import threading
from collections.abc import Callable, Collection


class CircuitBreaker:
    """Open for a while after a failure; then a call may probe.

    :param rest_seconds: returns how long it stays open, by the number of failures in a row
    :param clock: monotonic seconds
    :ivar is_probed: a long call probes, so that no other one is made
    """

    def __init__(self, rest_seconds: Callable[[int], float], clock: Callable[[], float]) -> None:
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._failures = 0
        self._open_until = float('-inf')
        self.is_probed = False

    @property
    def is_open(self) -> bool:
        """Whether no call may be made now."""
        return self._clock() < self._open_until

    @property
    def has_failed(self) -> bool:
        """Whether no call has succeeded since a failure."""
        return self._failures > 0

    def failed(self) -> bool:
        """Open; return False if it was open already."""
        opens = not self.is_open
        self._failures += 1
        self._open_until = self._clock() + self._rest_seconds(self._failures)
        return opens

    def succeeded(self, *, closes: bool = True) -> None:
        """Forget the failures.

        :param closes: False if this may be a late answer: then it stays open for its time
        """
        self._failures = 0
        self.is_probed = False
        if closes:
            self._open_until = float('-inf')


class CellBreakers:
    """A circuit breaker for the broker of each cell, which one call at a time probes; thread-safe.

    :param rest_seconds: how long a breaker stays open after a failure; may change at any time
    :param clock: monotonic seconds
    """

    def __init__(self, rest_seconds: float, clock: Callable[[], float]) -> None:
        self.rest_seconds = rest_seconds
        self._lock = threading.Lock()
        self._breakers = collections.defaultdict[str, CircuitBreaker](
            lambda: CircuitBreaker(lambda _: self.rest_seconds, clock)
        )

    def avoid(self) -> Collection[str]:
        """Return the cells whose hosts must not be claimed now."""
        with self._lock:
            return {cell for cell, each in self._breakers.items() if each.is_open or each.is_probed}

    def has_to_probe(self) -> bool:
        """Return whether a cell is due for a probe by a single call."""
        with self._lock:
            return any(
                each.has_failed and not each.is_open and not each.is_probed
                for each in self._breakers.values()
            )

    def is_resting(self, cell_uuid: str) -> bool:
        """Return whether the cell must not receive even a short call now.

        A cell that is being probed may: the probe can last as long as a download.
        """
        with self._lock:
            return self._breakers[cell_uuid].is_open

    def enter(self, cell_uuid: str) -> None:
        """Record that a host of the cell was claimed; after a failure, it is the only probe."""
        with self._lock:
            each = self._breakers[cell_uuid]
            each.is_probed = each.has_failed

    def leave(self, cell_uuid: str) -> None:
        """Record that the work on a host of the cell ended, whatever its outcome."""
        with self._lock:
            self._breakers[cell_uuid].is_probed = False

    def failed(self, cell_uuid: str) -> bool:
        """Open the breaker of the cell for ``rest_seconds``; False if it was open already."""
        with self._lock:
            return self._breakers[cell_uuid].failed()

    def succeeded(self, cell_uuid: str) -> None:
        """Close the breaker of the cell."""
        with self._lock:
            self._breakers[cell_uuid].succeeded()
