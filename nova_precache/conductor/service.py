# SPDX-License-Identifier: Apache-2.0
"""A conductor as a running whole: servers, dispatcher, and what is done periodically."""

import dataclasses
import logging
from collections.abc import Callable

from nova_precache import concurrency, exception, rpc
from nova_precache.cells import transports
from nova_precache.conductor import dispatcher, intake, manager, rpcapi
from nova_precache.db import jobs

LOG = logging.getLogger(__name__)

PURGE_SECONDS = 3600.0
API = 'api'


@dataclasses.dataclass(frozen=True)
class Periods:
    """How often a conductor does what, in seconds; ``purge`` removes what is too old."""

    lease_seconds: float
    progress_seconds: float
    heartbeat_seconds: float
    cells_seconds: float
    purge: Callable[[], None]


class Conductor:
    """Serves the API and every enabled cell, and does the work that they leave."""

    def __init__(
        self,
        conductor_id: str,
        dispatch: dispatcher.Dispatcher,
        reports: intake.Intake,
        job_store: jobs.Jobs,
        api_transport: rpc.Transport,
        cell_transports: transports.CellTransports,
        cell_endpoint: Callable[[str], manager.CellEndpoint],
        periods: Periods,
    ) -> None:
        self._conductor_id = conductor_id
        self._dispatcher = dispatch
        self._intake = reports
        self._jobs = job_store
        self._api_transport = api_transport
        self._transports = cell_transports
        self._cell_endpoint = cell_endpoint
        self._servers: dict[str, rpc.Server] = {}
        self._periodic = concurrency.Periodic(
            'periodic',
            [
                (periods.lease_seconds / 3, self._renew),
                (periods.progress_seconds, reports.write_progress),
                (periods.heartbeat_seconds, reports.write_states),
                (periods.cells_seconds, self.serve_cells),
                (PURGE_SECONDS, periods.purge),
            ],
        )

    def start(self) -> None:
        """Start everything; brokers are waited for in the background."""
        api = manager.ApiEndpoint(self._dispatcher.wake)
        self._serve(API, self._api_transport.server(rpcapi.API_TOPIC, self._conductor_id, [api]))
        self.serve_cells()
        self._periodic.start()
        self._dispatcher.start()
        LOG.info('Conductor %s runs', self._conductor_id)

    def stop_claiming(self) -> None:
        """Start nothing more, and go on with what runs."""
        self._dispatcher.stop_claiming()

    def stop(self) -> None:
        """Hand back the claims, write what was reported, close the servers."""
        self._dispatcher.stop()
        concurrency.stop_all([self._periodic, *self._servers.values()])
        self._intake.write_progress()
        LOG.info('Conductor %s has stopped', self._conductor_id)

    def serve_cells(self) -> None:
        """Serve the cells that were added, and no longer those that were disabled."""
        enabled = {cell.uuid: cell for cell in self._transports.cells()}
        for gone in self._servers.keys() - enabled.keys() - {API}:
            self._servers.pop(gone).stop()
        for failed in [key for key, server in self._servers.items() if server.has_failed]:
            del self._servers[failed]  # it is tried again below
        for cell in enabled.values():
            if cell.uuid in self._servers:
                continue
            try:
                transport = self._transports.get(cell.uuid)
            except exception.PrecacheError as exc:
                LOG.error('Cell %s (%s) cannot be served: %s', cell.name, cell.uuid, exc)
                continue
            endpoint = self._cell_endpoint(cell.uuid)
            self._serve(cell.uuid, transport.server(rpcapi.TOPIC, self._conductor_id, [endpoint]))

    def _serve(self, key: str, server: rpc.Server) -> None:
        server.start_in_background()
        self._servers[key] = server

    def _renew(self) -> None:
        held = self._jobs.renew(self._conductor_id)
        LOG.debug('Conductor %s holds %d hosts', self._conductor_id, len(held))
