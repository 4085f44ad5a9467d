# SPDX-License-Identifier: Apache-2.0
"""Stops calls to a cell whose broker accepts no messages, so that it occupies no slots."""

import threading
from collections.abc import Callable, Collection


class CellBreakers:
    """One circuit breaker per cell: open for a while, then one call probes it.

    :param rest_seconds: how long a breaker stays open after a failure; may change at any time
    :param clock: monotonic seconds
    """

    def __init__(self, rest_seconds: float, clock: Callable[[], float]) -> None:
        self.rest_seconds = rest_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until: dict[str, float] = {}
        self._probing: set[str] = set()

    def avoid(self) -> Collection[str]:
        """Return the cells whose hosts must not be claimed now."""
        now = self._clock()
        with self._lock:
            resting = {cell for cell, until in self._open_until.items() if until > now}
            return resting | self._probing

    def has_to_probe(self) -> bool:
        """Return whether a cell is due for a probe by a single call."""
        now = self._clock()
        with self._lock:
            rested = {cell for cell, until in self._open_until.items() if until <= now}
            return not rested <= self._probing

    def is_resting(self, cell_uuid: str) -> bool:
        """Return whether the cell must not receive even a short call now.

        A cell that is being probed may: the probe can last as long as a download.
        """
        now = self._clock()
        with self._lock:
            return self._open_until.get(cell_uuid, now) > now

    def enter(self, cell_uuid: str) -> None:
        """Record that a host of the cell was claimed; after a failure, it is the only probe."""
        with self._lock:
            if cell_uuid in self._open_until:
                self._probing.add(cell_uuid)

    def leave(self, cell_uuid: str) -> None:
        """Record that the work on a host of the cell ended, whatever its outcome."""
        with self._lock:
            self._probing.discard(cell_uuid)

    def failed(self, cell_uuid: str) -> bool:
        """Open the breaker of the cell for ``rest_seconds``; False if it was open already."""
        now = self._clock()
        with self._lock:
            opens = self._open_until.get(cell_uuid, now) <= now
            self._open_until[cell_uuid] = now + self.rest_seconds
            return opens

    def succeeded(self, cell_uuid: str) -> None:
        """Close the breaker of the cell."""
        with self._lock:
            self._open_until.pop(cell_uuid, None)
            self._probing.discard(cell_uuid)
