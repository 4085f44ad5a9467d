# SPDX-License-Identifier: Apache-2.0
"""One connection to each cell's broker, made when it is first needed."""

import dataclasses
import threading
from collections.abc import Callable, Sequence

from nova_precache import model, rpc
from nova_precache.cells import inventory


@dataclasses.dataclass(frozen=True)
class _Connected:
    """A transport, and the URL that it was made from."""

    url: str = dataclasses.field(repr=False)
    transport: rpc.Transport


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
        self._connected: dict[str, _Connected] = {}

    def refresh(self) -> Sequence[model.Cell]:
        """Give the cells whose computes may be called, and forget the transports of old URLs.

        Whoever uses one of these retires it.
        """
        cells = [
            cell
            for cell in self._inventory.list_cells()
            if not cell.disabled and cell.transport_url
        ]
        with self._lock:
            for cell in cells:
                connected = self._connected.get(cell.uuid)
                if connected is not None and connected.url != cell.transport_url:
                    del self._connected[cell.uuid]
        return cells

    def get(self, cell_uuid: str) -> rpc.Transport:
        """Give the transport of a cell.

        :raises nova_precache.exception.CellNotFound: the cell is not mapped
        :raises nova_precache.exception.ConfigError: its transport URL cannot be used
        """
        with self._lock:
            if cell_uuid not in self._connected:
                url = self._inventory.get_cell(cell_uuid).transport_url
                self._connected[cell_uuid] = _Connected(url, self._connect(url))
            return self._connected[cell_uuid].transport
