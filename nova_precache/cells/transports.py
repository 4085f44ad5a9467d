# SPDX-License-Identifier: Apache-2.0
"""One connection to each cell's broker, made when it is first needed."""

import threading
from collections.abc import Callable, Sequence

from nova_precache import model, rpc
from nova_precache.cells import inventory


class CellTransports:
    """The transports of the cells that are mapped.

    :param connect: connects to a transport URL
    """

    def __init__(
        self, aggregates: inventory.Inventory, connect: Callable[[str], rpc.Transport]
    ) -> None:
        self._inventory = aggregates
        self._connect = connect
        self._lock = threading.Lock()
        self._transports: dict[str, rpc.Transport] = {}

    def cells(self) -> Sequence[model.Cell]:
        """Give the cells whose computes may be called."""
        return [
            cell
            for cell in self._inventory.list_cells()
            if not cell.disabled and cell.transport_url
        ]

    def get(self, cell_uuid: str) -> rpc.Transport:
        """Give the transport of a cell.

        :raises nova_precache.exception.CellNotFound: the cell is not mapped
        :raises nova_precache.exception.ConfigError: its transport URL cannot be used
        """
        with self._lock:
            if cell_uuid not in self._transports:
                url = self._inventory.get_cell(cell_uuid).transport_url
                self._transports[cell_uuid] = self._connect(url)
            return self._transports[cell_uuid]
