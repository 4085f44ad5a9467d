# SPDX-License-Identifier: Apache-2.0
"""Chooses between the computes of this service and stock nova-computes."""

from collections.abc import Callable, Collection
from typing import Protocol

from oslo_config import cfg

from nova_precache import model, rpc
from nova_precache.cells import breaker, inventory, novahosts, transports
from nova_precache.conductor import (
    database_wait,
    host_worker,
    lifecycle,
    liveness,
    manager,
    metrics,
    report_buffer,
    tracker,
)
from nova_precache.db import agents as db_agents, jobs, request_actions, statistics
from nova_precache.db.engine import session as db_session
from nova_precache.wiring import agents, common, stock


class ComputeBackend(Protocol):
    """Builds the conductor's objects for one kind of computes."""

    @property
    def liveness(self) -> liveness.Liveness: ...

    def client(self, cell_uuid: str) -> host_worker.ComputeClient: ...

    def why_no_call(self, transport: rpc.Transport) -> str | None: ...

    def why_down(self, assignment: jobs.Assignment) -> str | None: ...

    def refuse(self, unregistered: Collection[model.Agent]) -> None: ...

    def hosts_counter(self) -> metrics.HostsCount | None: ...

    def host_recovery(self) -> lifecycle.HostRecovery: ...

    def orders(
        self,
        store: request_actions.RequestActions,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> lifecycle.StopOrderSender: ...

    def remover(
        self,
        aggregates: inventory.Inventory,
        job_store: jobs.Jobs,
        reports: report_buffer.ReportBuffer,
    ) -> manager.Remove: ...


def choose(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    cells: transports.CellTransports,
    aggregates: inventory.Inventory,
    breakers: breaker.CellBreakers,
    waiting: database_wait.DatabaseWait,
) -> ComputeBackend:
    """Build the computes that ``[image_cache] compute_backend`` names."""
    if common.is_stock(conf):
        return stock.StockComputes(conf, database, cells, aggregates, waiting)
    return agents.AgentComputes(conf, database, cells, breakers)


def host_counter(
    conf: cfg.ConfigOpts, database: db_session.Database, aggregates: inventory.Inventory
) -> metrics.HostsCount:
    """Build the counter of the hosts that the API shows for each cell."""
    if common.is_stock(conf):
        return stock.host_store(conf, database, aggregates, stock.COUNT_SECONDS).count
    return statistics.Statistics(database, conf.service_down_time).hosts


def host_store(
    conf: cfg.ConfigOpts, database: db_session.Database, aggregates: inventory.Inventory
) -> novahosts.NovaHosts | db_agents.Agents:
    """Open the store from which the API shows hosts."""
    if common.is_stock(conf):
        return stock.host_store(conf, database, aggregates)
    return common.agent_store(conf, database)
