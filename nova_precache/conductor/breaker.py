# SPDX-License-Identifier: Apache-2.0
"""Leaves a cell alone whose broker takes no messages, so that it holds no slots."""

import threading
from collections.abc import Callable, Collection


class CellBreakers:
    """One circuit breaker a cell: open for a while, then one call probes it.

    :param rest_seconds: how long a cell is left alone after it failed; may change at any time
    :param clock: seconds that only grow
    """

    def __init__(self, rest_seconds: float, clock: Callable[[], float]) -> None:
        self.rest_seconds = rest_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until: dict[str, float] = {}
        self._probing: set[str] = set()

    def avoid(self) -> Collection[str]:
        """Give the cells of which no host is to be claimed now."""
        now = self._clock()
        with self._lock:
            resting = {cell for cell, until in self._open_until.items() if until > now}
            return resting | self._probing

    def has_to_probe(self) -> bool:
        """Tell whether some cell may be called again, by one call only."""
        now = self._clock()
        with self._lock:
            rested = {cell for cell, until in self._open_until.items() if until <= now}
            return not rested <= self._probing

    def is_resting(self, cell_uuid: str) -> bool:
        """Tell whether not even a short call is to be made to the cell now.

        One that is probed may have it: the probe can last as long as a download.
        """
        now = self._clock()
        with self._lock:
            return self._open_until.get(cell_uuid, now) > now

    def enter(self, cell_uuid: str) -> None:
        """Note that a host of the cell is claimed; after a failure, as the only probe."""
        with self._lock:
            if cell_uuid in self._open_until:
                self._probing.add(cell_uuid)

    def leave(self, cell_uuid: str) -> None:
        """Note that the work on a host of the cell has ended, however it did."""
        with self._lock:
            self._probing.discard(cell_uuid)

    def failed(self, cell_uuid: str) -> bool:
        """Leave the cell alone from now on, for a while; False when it was left already."""
        now = self._clock()
        with self._lock:
            opens = self._open_until.get(cell_uuid, now) <= now
            self._open_until[cell_uuid] = now + self.rest_seconds
            return opens

    def succeeded(self, cell_uuid: str) -> None:
        """Take the cell back."""
        with self._lock:
            self._open_until.pop(cell_uuid, None)
            self._probing.discard(cell_uuid)
