# SPDX-License-Identifier: Apache-2.0
"""Connects to the broker of each cell, once, when it is first needed."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from nova_precache import exception, model, rpc
from nova_precache.cells import inventory

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Connected:
    """A transport, and the URL that it connects to."""

    url: str = dataclasses.field(repr=False)
    transport: rpc.Transport


class CellTransports:
    """The transports of the mapped cells.

    :param connect: returns a transport for a transport URL and a cell's description
    """

    def __init__(
        self, aggregates: inventory.Inventory, connect: Callable[[str, str], rpc.Transport]
    ) -> None:
        self._inventory = aggregates
        self._connect = connect
        self._lock = threading.Lock()
        self._connected: dict[str, _Connected] = {}
        self._told: dict[str, str] = {}

    def refresh(self) -> Sequence[model.Cell]:
        """Return the cells whose computes may be called, and drop the transports of old URLs.

        The user of a dropped transport has to retire it.
        """
        every = self._inventory.list_cells()
        self._tell_of_problems(every)
        cells = [cell for cell in every if cell.disabled_reason is None]
        with self._lock:
            for cell in cells:
                connected = self._connected.get(cell.uuid)
                if connected is not None and connected.url != cell.transport_url:
                    del self._connected[cell.uuid]
        return cells

    def get(self, cell_uuid: str) -> rpc.Transport:
        """Return the transport of a cell.

        :raises nova_precache.exception.CellNotFound: the cell is not mapped
        :raises nova_precache.exception.ConfigError: its transport URL cannot be used
        """
        with self._lock:
            if cell_uuid not in self._connected:
                cell = self._inventory.get_cell(cell_uuid)
                if not cell.transport_url:  # oslo.messaging would use the API's URL instead
                    raise exception.ConfigError(cell.disabled_reason)
                url = cell.transport_url
                transport = self._connect(url, f'cell {cell.name}, {cell_uuid}')
                self._connected[cell_uuid] = _Connected(url, transport)
            return self._connected[cell_uuid].transport

    def _tell_of_problems(self, cells: Sequence[model.Cell]) -> None:
        """Log why a cell cannot be served, once, and again if the reason changes."""
        problems = {
            cell.uuid: problem
            for cell in cells
            if (problem := cell.transport_problem) and not cell.disabled
        }
        for uuid, problem in problems.items():
            if self._told.get(uuid) != problem:
                LOG.warning('Cell %s is not served: %s', uuid, problem)
        self._told = problems
