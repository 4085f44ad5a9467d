# SPDX-License-Identifier: Apache-2.0
"""Builds what a conductor needs to call and steer the computes of this service."""

import functools
import time
from collections.abc import Callable, Collection

from oslo_config import cfg

from nova_precache import model, rpc
from nova_precache.cells import breaker, inventory, transports
from nova_precache.compute import rpcapi
from nova_precache.conductor import (
    lifecycle,
    manager,
    removals,
    report_buffer,
    stop_orders,
    tracker,
    unknown_hosts,
)
from nova_precache.db import agents, host_recovery, jobs, pins, request_actions
from nova_precache.db.engine import session as db_session
from nova_precache.wiring import common


def compute_cap(conf: cfg.ConfigOpts) -> str | None:
    """Return the highest RPC version to call computes with, None if not pinned."""
    return rpc.version_cap('compute', conf.upgrade_levels.compute, rpcapi.VERSION)


def compute_api(
    conf: cfg.ConfigOpts,
    transport: rpc.Transport,
    cap: str | None,
    answer_seconds: float | None = None,
) -> rpcapi.ComputeAPI:
    return rpcapi.ComputeAPI(
        transport,
        version_cap=cap,
        connect_retries=conf.conductor.rpc_connect_retries,
        timeout_seconds=conf.long_rpc_timeout,
        monitor_seconds=answer_seconds or conf.rpc_response_timeout,
    )


class AgentComputes:
    """Builds the conductor's objects for the computes of this service.

    :ivar liveness: of these computes
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: db_session.Database,
        cells: transports.CellTransports,
        breakers: breaker.CellBreakers,
    ) -> None:
        self._conf = conf
        self._database = database
        self._transports = cells
        self._breakers = breakers
        self._cap = compute_cap(conf)
        self._unknown_hosts = unknown_hosts.UnknownHosts(self._steered, breakers, time.monotonic)
        self.liveness: agents.Agents = common.agent_store(conf, database)

    def client(self, cell_uuid: str) -> rpcapi.ComputeAPI:
        """Return the client of a cell's computes."""
        return self._api(self._transports.get(cell_uuid))

    def why_no_call(self, transport: rpc.Transport) -> str | None:
        """Return why no compute may be called at all, None if they may."""
        return self._api(transport).why_unsupported()

    def why_down(self, assignment: jobs.Assignment) -> str | None:
        return self.liveness.why_no_call(
            assignment.seen_at, assignment.assigned_at, assignment.heard, assignment.stopped_at
        )

    def refuse(self, unregistered: Collection[model.Agent]) -> None:
        """Request agents to register again that report for a host without being registered."""
        self._unknown_hosts.refuse(unregistered)

    def hosts_counter(self) -> None:
        """Return None: the database counts these hosts."""

    def host_recovery(self) -> lifecycle.HostRecovery:
        return host_recovery.AgentHostRecovery(self._database, self._conf.service_down_time)

    def orders(
        self,
        store: request_actions.RequestActions,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> lifecycle.StopOrderSender:
        """Build the sender of stop orders."""
        return stop_orders.StopOrders(
            store=store,
            job_store=job_store,
            agent_store=self.liveness,
            track=track,
            computes=self._steered,
            breakers=self._breakers,
            clock=time.monotonic,
            freed=freed,
        )

    def remover(
        self,
        aggregates: inventory.Inventory,
        job_store: jobs.Jobs,
        reports: report_buffer.ReportBuffer,
    ) -> manager.Remove:
        """Build the removal of images from caches."""
        return removals.Removals(
            agent_store=self.liveness,
            aggregates=aggregates,
            pin_store=pins.Pins(self._database),
            job_store=job_store,
            reports=reports,
            computes=self.client,
            breakers=self._breakers,
        ).remove

    def _steered(self, cell_uuid: str) -> rpcapi.ComputeAPI:
        """Return a client with a short timeout, for stop orders and other short calls."""
        return self._api(self._transports.get(cell_uuid), stop_orders.ANSWER_SECONDS)

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def _api(
        self, transport: rpc.Transport, answer_seconds: float | None = None
    ) -> rpcapi.ComputeAPI:
        return compute_api(self._conf, transport, self._cap, answer_seconds)
