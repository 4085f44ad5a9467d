# SPDX-License-Identifier: Apache-2.0
"""The names of the cells, beside the ids that other rows hold."""

import threading
import time
from collections.abc import Callable, Mapping

from nova_precache import exception
from nova_precache.cells import inventory

KEPT_SECONDS = 30.0


class CellNames:
    """Names by uuid, which are reloaded now and then; thread-safe.

    A list is answered while the database of the inventory is away, with the names known before.

    :param clock: monotonic seconds
    """

    def __init__(
        self, aggregates: inventory.Inventory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inventory = aggregates
        self._clock = clock
        self._lock = threading.Lock()
        self._names: Mapping[str, str] = {}
        self._are_old_at = float('-inf')

    def load(self) -> Mapping[str, str]:
        """Map the uuids of the cells that have a name to it."""
        with self._lock:
            if self._clock() < self._are_old_at:
                return self._names
            self._are_old_at = self._clock() + KEPT_SECONDS  # also if the load fails
        try:
            cells = self._inventory.list_cells()
        except exception.DatabaseUnavailable:  # logged as an outage
            return self._names
        names = {cell.uuid: cell.name for cell in cells if cell.name}
        with self._lock:
            self._names = names
        return names
