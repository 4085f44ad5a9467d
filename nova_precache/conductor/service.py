# SPDX-License-Identifier: Apache-2.0
"""The conductor service: its servers, dispatcher, loops and periodic work."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping

from nova_precache import concurrency, exception, model, outages, rpc
from nova_precache.cells import transports
from nova_precache.conductor import (
    announcer,
    dispatcher,
    lifecycle,
    manager,
    pin_loop,
    report_buffer,
    report_endpoint as report_endpoints,
    rpcapi,
)
from nova_precache.db import jobs

LOG = logging.getLogger(__name__)

PURGE_SECONDS = 3600.0
COUNTS_SECONDS = 60.0
PART_STOP_SECONDS = 10.0
API = 'api'


@dataclasses.dataclass(frozen=True)
class Periods:
    """Periodic work of a conductor, with intervals in seconds.

    :ivar purge: removes requests that are too old
    :ivar check_counts: corrects the counters of tasks, unless another conductor did this recently
    """

    lease_seconds: float
    progress_seconds: float
    heartbeat_seconds: float
    cells_seconds: float
    purge: Callable[[], object]
    check_counts: Callable[[], object]


@dataclasses.dataclass(frozen=True)
class _Served:
    """The servers on one transport, by topic."""

    servers: Mapping[str, rpc.Server]
    transport: rpc.Transport

    def stop(self) -> None:
        concurrency.stop_all([_InTime(each, self.transport) for each in self.servers.values()])


@dataclasses.dataclass(frozen=True)
class _InTime:
    """A server that is left running if it does not stop in time."""

    server: rpc.Server
    transport: rpc.Transport

    def stop(self) -> None:
        if not concurrency.stop_within(PART_STOP_SECONDS, self.server):
            LOG.warning(
                '%s: RPC server did not stop within %g s',
                self.transport.outage.name,
                PART_STOP_SECONDS,
            )


class Conductor:
    """Serves the API and every enabled cell, and does the work of the requests."""

    def __init__(
        self,
        conductor_id: str,
        dispatch: dispatcher.Dispatcher,
        lifecycle_loop: lifecycle.LifecycleLoop,
        keep_pins: pin_loop.PinLoop,
        announce: announcer.Announcer,
        reports: report_buffer.ReportBuffer,
        job_store: jobs.Jobs,
        api_transport: rpc.Transport,
        cell_transports: transports.CellTransports,
        cell_endpoint: Callable[[str], manager.CellEndpoint],
        report_endpoint: Callable[[str], report_endpoints.ReportEndpoint],
        correct_clock: Callable[[], None],
        periods: Periods,
        remove: manager.Remove,
        ping_arguments: Callable[[], model.Json] = dict,
    ) -> None:
        self._conductor_id = conductor_id
        self._dispatcher = dispatch
        self._lifecycle_loop = lifecycle_loop
        self._pin_loop = keep_pins
        self._announcer = announce
        self._reports = reports
        self._jobs = job_store
        self._api_transport = api_transport
        self._transports = cell_transports
        self._cell_endpoint = cell_endpoint
        self._report_endpoint = report_endpoint
        self._remove = remove
        self._ping_arguments = ping_arguments
        self._served: dict[str, _Served] = {}
        self._cell_names: dict[str, str] = {}
        self._periodic = concurrency.Periodic(
            'periodic',
            [
                (periods.lease_seconds / 3, self._renew),
                (periods.progress_seconds, reports.write_progress),
                (periods.heartbeat_seconds, reports.write_states),
                (periods.heartbeat_seconds, self._probe_brokers),
                (periods.heartbeat_seconds, correct_clock),
                (periods.progress_seconds, reports.write_images),
                (periods.cells_seconds, self.serve_all),
                (PURGE_SECONDS, periods.purge),
                (COUNTS_SECONDS, periods.check_counts),
            ],
        )

    def start(self) -> None:
        """Start all parts; connect to brokers in the background."""
        self.serve_all()
        self._periodic.start()
        self._announcer.start()
        self._lifecycle_loop.start()
        self._pin_loop.start()
        self._dispatcher.start()
        LOG.info('Conductor %s runs', self._conductor_id)

    def stop_claiming(self) -> None:
        """Stop claiming hosts; the running calls continue."""
        self._dispatcher.stop_claiming()

    def stop(self) -> None:
        """Release the claims, close the servers, write the buffered reports."""
        for step in (
            self._dispatcher.stop,
            self._stop_the_others,
            self._reports.write_progress,
            self._reports.write_images,
        ):
            self._try_to(step)
        LOG.info('Conductor %s has stopped', self._conductor_id)

    def _try_to(self, step: Callable[[], None]) -> None:
        """Run one step of the stop; log a failure, so that the other steps still run."""
        try:
            step()
        except Exception:
            LOG.exception('Stopping a part of the conductor failed')

    def _stop_the_others(self) -> None:
        loops = (self._lifecycle_loop, self._pin_loop, self._announcer)
        concurrency.stop_all([*loops, *self._served.values()])
        if not concurrency.stop_within(PART_STOP_SECONDS, self._periodic):
            LOG.warning(
                'Periodic work of the conductor did not stop within %g s', PART_STOP_SECONDS
            )

    def serve_all(self) -> None:
        """Serve the API and every enabled cell at its current URL; stop serving the others."""
        enabled = {cell.uuid: cell for cell in self._transports.refresh()}
        self._cell_names = {cell.uuid: cell.name or cell.uuid for cell in enabled.values()}
        for gone in self._served.keys() - enabled.keys() - {API}:
            self._in_background(self._served.pop(gone).stop)
        if API not in self._served:
            api = manager.ApiEndpoint(self._wake, self._remove)
            server = rpc.Server(self._api_transport, rpcapi.API_TOPIC, self._conductor_id, [api])
            self._serve(API, self._api_transport, {rpcapi.API_TOPIC: server})
        for cell in enabled.values():
            try:
                self._serve_cell(cell)
            except exception.PrecacheError as exc:
                if not outages.is_logged(exc):
                    LOG.error('Cell %s (%s) cannot be served: %s', cell.name, cell.uuid, exc)

    def brokers(self) -> Mapping[str | None, rpc.Transport | None]:
        """Map None to the transport of the API, and the name of each enabled cell to its own.

        A cell that cannot be served has no transport.
        """
        served = dict(self._served)
        found: dict[str | None, rpc.Transport | None] = {
            name: served[uuid].transport if uuid in served else None
            for uuid, name in self._cell_names.items()
        }
        return {None: self._api_transport, **found}

    def _wake(self) -> None:
        """Wake all loops that may have to act on a new or steered request."""
        self._lifecycle_loop.wake()
        self._dispatcher.wake()
        self._announcer.wake()

    def _serve_cell(self, cell: model.Cell) -> None:
        transport = self._transports.get(cell.uuid)
        served = self._served.get(cell.uuid)
        if served is not None and served.transport is transport:
            return
        if served is not None:
            LOG.info('The broker of cell %s (%s) has changed', cell.name, cell.uuid)
            self._in_background(lambda: self._leave(served))
        questions = rpc.Server(
            transport, rpcapi.TOPIC, self._conductor_id, [self._cell_endpoint(cell.uuid)]
        )
        reports = rpc.Server(
            transport,
            rpcapi.REPORTS_TOPIC,
            self._conductor_id,
            [self._report_endpoint(cell.uuid)],
            report_endpoints.THREADS,
        )
        servers = {rpcapi.TOPIC: questions, rpcapi.REPORTS_TOPIC: reports}
        self._serve(cell.uuid, transport, servers)

    def _serve(self, key: str, transport: rpc.Transport, servers: Mapping[str, rpc.Server]) -> None:
        for server in servers.values():
            server.start_in_background()
        self._served[key] = _Served(servers, transport)

    def _leave(self, served: _Served) -> None:
        served.stop()
        served.transport.retire()

    def _in_background(self, work: Callable[[], None]) -> None:
        """Run work in a thread, so that a broker that is gone does not delay the others."""
        threading.Thread(target=work, name='rpc-server-stop', daemon=True).start()

    def _probe_brokers(self) -> None:
        """Probe which brokers are away or back; the probe also records the cell as heard."""
        # Only there: conductors of the first release take no arguments, and do not serve it.
        arguments = {rpcapi.REPORTS_TOPIC: self._ping_arguments()}
        for served in list(self._served.values()):
            served.transport.probe_in_background(*served.servers, arguments=arguments)

    def _renew(self) -> None:
        held = self._jobs.renew(self._conductor_id)
        LOG.debug('Conductor %s renewed its leases on %d hosts', self._conductor_id, len(held))
