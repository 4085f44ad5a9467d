# SPDX-License-Identifier: Apache-2.0
"""Builds what a conductor needs to cache images through stock nova-computes."""

import functools
import time
from collections.abc import Callable, Collection

from oslo_config import cfg

from nova_precache import context, exception, model, rpc
from nova_precache.cells import inventory, liveness, novahosts, transports
from nova_precache.compute import novarpc
from nova_precache.conductor import (
    database_wait,
    lifecycle,
    manager,
    metrics,
    nova_backend,
    report_buffer,
    tracker,
)
from nova_precache.db import host_recovery, jobs, nova_calls, request_actions
from nova_precache.db.engine import session as db_session

# A share of the few seconds that Prometheus waits for all metrics of a conductor.
COUNT_SECONDS = 2.0


def compute_cap(conf: cfg.ConfigOpts) -> str | None:
    """Return the highest version of Nova's RPC to call nova-computes with, None if not pinned."""
    return rpc.version_cap('compute', conf.upgrade_levels.compute, novarpc.VERSION)


def compute_api(
    conf: cfg.ConfigOpts, transport: rpc.Transport, cap: str | None
) -> novarpc.NovaComputeAPI:
    return novarpc.NovaComputeAPI(
        transport,
        version_cap=cap,
        connect_retries=conf.conductor.rpc_connect_retries,
        timeout_seconds=conf.long_rpc_timeout,
        monitor_seconds=conf.rpc_response_timeout,
    )


def host_store(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    aggregates: inventory.Inventory,
    answer_seconds: float = liveness.ANSWER_SECONDS,
) -> novahosts.NovaHosts:
    """Open the host store, with its own liveness look-ups, apart from those of the work."""
    return novahosts.NovaHosts(aggregates, _liveness(conf, database, aggregates, answer_seconds))


def _liveness(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    aggregates: inventory.Inventory,
    answer_seconds: float = liveness.ANSWER_SECONDS,
) -> liveness.NovaLiveness:
    """Build the liveness look-ups; their connections close with this service's database."""
    opened = liveness.NovaLiveness(
        aggregates, conf.service_down_time, time.monotonic, answer_seconds=answer_seconds
    )
    database.closes(opened.close)
    return opened


def refuse_removal(ctxt: context.RequestContext, host: str, image_id: str) -> model.ImageRemoval:
    """Refuse to remove an image from the cache of a nova-compute.

    :raises nova_precache.exception.NotByNova: always
    """
    raise exception.NotByNova(
        'With compute_backend = nova, images are not removed on request: each nova-compute '
        'removes those that are unused.'
    )


class StockComputes:
    """Builds the conductor's objects for stock nova-computes.

    :ivar liveness: of these computes
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: db_session.Database,
        cells: transports.CellTransports,
        aggregates: inventory.Inventory,
        waiting: database_wait.DatabaseWait,
    ) -> None:
        self._conf = conf
        self._database_wait = waiting
        self._database = database
        self._transports = cells
        self._cap = compute_cap(conf)
        self._calls = nova_calls.StockCalls(database)
        self._inventory = aggregates
        self.liveness = _liveness(conf, database, aggregates)

    def client(self, cell_uuid: str) -> nova_backend.NovaBackend:
        """Return the client of a cell's nova-computes."""
        over_seconds = self._conf.long_rpc_timeout + nova_backend.SENDING_SECONDS
        nova = self._api(self._transports.get(cell_uuid))
        return nova_backend.NovaBackend(nova, self._calls, over_seconds, self._database_wait)

    def why_no_call(self, transport: rpc.Transport) -> str | None:
        """Return why no compute may be called at all, None if they may."""
        return self._api(transport).why_unsupported()

    def why_down(self, assignment: jobs.Assignment) -> str | None:
        return self.liveness.why_down(assignment.host, assignment.cell_uuid)

    def refuse(self, unregistered: Collection[model.Agent]) -> None:
        """Ignore agents of this service: they are never called."""

    def hosts_counter(self) -> metrics.HostsCount:
        """Build the counter of hosts, which waits only ``COUNT_SECONDS`` for a cell."""
        return host_store(self._conf, self._database, self._inventory, COUNT_SECONDS).count

    def host_recovery(self) -> lifecycle.HostRecovery:
        return nova_backend.NovaHostRecovery(host_recovery.Waiting(self._database), self.liveness)

    def orders(
        self,
        store: request_actions.RequestActions,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> lifecycle.StopOrderSender:
        """Build the handler of stop orders."""
        return nova_backend.NovaStopOrders(store, job_store, track, freed)

    def remover(
        self,
        aggregates: inventory.Inventory,
        job_store: jobs.Jobs,
        reports: report_buffer.ReportBuffer,
    ) -> manager.Remove:
        """Return :func:`refuse_removal`: the conductor does not remove images either."""
        return refuse_removal

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def _api(self, transport: rpc.Transport) -> novarpc.NovaComputeAPI:
        return compute_api(self._conf, transport, self._cap)
