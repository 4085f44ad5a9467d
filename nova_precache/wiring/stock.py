# SPDX-License-Identifier: Apache-2.0
"""The stock nova-computes, where they cache the images, and how a conductor calls them."""

import functools
import time
from collections.abc import Callable, Collection

from oslo_config import cfg

from nova_precache import model, rpc
from nova_precache.cells import inventory, liveness, novahosts, transports
from nova_precache.compute import novarpc
from nova_precache.conductor import lifecycle as conductor_steering, metrics, nova_backend, tracker
from nova_precache.db import host_recovery, jobs, nova_calls, request_actions
from nova_precache.db.engine import session as db_session

# Of the few seconds that Prometheus waits for all the metrics of a conductor.
COUNT_SECONDS = 2.0


def compute_cap(conf: cfg.ConfigOpts) -> str | None:
    """Give the newest version of Nova's RPC that nova-computes are called with."""
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
    """Open the hosts, which are looked at apart from the work on them."""
    return novahosts.NovaHosts(aggregates, _liveness(conf, database, aggregates, answer_seconds))


def _liveness(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    aggregates: inventory.Inventory,
    answer_seconds: float = liveness.ANSWER_SECONDS,
) -> liveness.NovaLiveness:
    """Open the databases of the cells, which are closed with that of this service."""
    opened = liveness.NovaLiveness(
        aggregates, conf.service_down_time, time.monotonic, answer_seconds=answer_seconds
    )
    database.closes(opened.close)
    return opened


class StockComputes:
    """What a conductor has to do with stock nova-computes.

    :ivar liveness: of these computes
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: db_session.Database,
        cells: transports.CellTransports,
        aggregates: inventory.Inventory,
    ) -> None:
        self._conf = conf
        self._database = database
        self._transports = cells
        self._cap = compute_cap(conf)
        self._calls = nova_calls.StockCalls(database)
        self._inventory = aggregates
        self.liveness = _liveness(conf, database, aggregates)

    def client(self, cell_uuid: str) -> nova_backend.NovaBackend:
        """Give the client of a cell's nova-computes."""
        over_seconds = self._conf.long_rpc_timeout + nova_backend.SENDING_SECONDS
        nova = self._api(self._transports.get(cell_uuid))
        return nova_backend.NovaBackend(nova, self._calls, over_seconds)

    def why_no_call(self, transport: rpc.Transport) -> str | None:
        """Say why no compute may be called at all."""
        return self._api(transport).why_unsupported()

    def why_down(self, assignment: jobs.Assignment) -> str | None:
        return self.liveness.why_down(assignment.host, assignment.cell_uuid)

    def refuse(self, unregistered: Collection[model.Agent]) -> None:
        """Leave agents of this service alone, of which none is called."""

    def hosts_counter(self) -> metrics.HostsCount:
        """Build what counts the hosts; a cell that does not tell at once is not waited for."""
        return host_store(self._conf, self._database, self._inventory, COUNT_SECONDS).count

    def returning(self) -> conductor_steering.HostRecovery:
        return nova_backend.NovaHostRecovery(host_recovery.Waiting(self._database), self.liveness)

    def orders(
        self,
        store: request_actions.Steering,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> conductor_steering.StopOrderSender:
        """Build what sees to the work that is to stop."""
        return nova_backend.NovaStopOrders(store, job_store, track, freed)

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def _api(self, transport: rpc.Transport) -> novarpc.NovaComputeAPI:
        return compute_api(self._conf, transport, self._cap)
