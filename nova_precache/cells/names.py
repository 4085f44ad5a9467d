# SPDX-License-Identifier: Apache-2.0
"""The cells, and their names beside the ids that other rows hold."""

import threading
import time
from collections.abc import Callable, Mapping

from nova_precache import exception, model
from nova_precache.cells import inventory

KEPT_SECONDS = 30.0


class CellNames:
    """Cells by uuid, which are reloaded now and then; thread-safe.

    A list is answered while the database of the inventory is away, with the cells known before.

    :param clock: monotonic seconds
    """

    def __init__(
        self, aggregates: inventory.Inventory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inventory = aggregates
        self._clock = clock
        self._lock = threading.Lock()
        self._cells: Mapping[str, model.Cell] = {}
        self._are_old_at = float('-inf')

    def load(self) -> Mapping[str, str]:
        """Map the uuids of the cells that have a name to it."""
        return {uuid: cell.name for uuid, cell in self.cells().items() if cell.name}

    def cells(self) -> Mapping[str, model.Cell]:
        """Map the uuids of the cells to them."""
        with self._lock:
            if self._clock() < self._are_old_at:
                return self._cells
            self._are_old_at = self._clock() + KEPT_SECONDS  # also if the load fails
        try:
            cells = {cell.uuid: cell for cell in self._inventory.list_cells()}
        except exception.DatabaseUnavailable:  # logged as an outage
            return self._cells
        with self._lock:
            self._cells = cells
        return cells
