# SPDX-License-Identifier: Apache-2.0
"""The computes of this service, as a conductor calls and steers them."""

import functools
import time
from collections.abc import Callable, Collection

from oslo_config import cfg

from nova_precache import model, rpc
from nova_precache.cells import transports
from nova_precache.compute import rpcapi
from nova_precache.conductor import (
    breaker,
    lifecycle as conductor_steering,
    stop_orders,
    tracker,
    unknown_hosts,
)
from nova_precache.db import agents, host_recovery, jobs, request_actions
from nova_precache.db.engine import session as db_session
from nova_precache.wiring import common


def compute_cap(conf: cfg.ConfigOpts) -> str | None:
    """Give the newest version of RPC that computes are called with."""
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
    """What a conductor has to do with computes of this service.

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
        self._strangers = unknown_hosts.UnknownHosts(self._steered, breakers, time.monotonic)
        self.liveness: agents.Agents = common.agent_store(conf, database)

    def client(self, cell_uuid: str) -> rpcapi.ComputeAPI:
        """Give the client of a cell's computes."""
        return self._api(self._transports.get(cell_uuid))

    def why_no_call(self, transport: rpc.Transport) -> str | None:
        """Say why no compute may be called at all."""
        return self._api(transport).why_unsupported()

    def why_down(self, assignment: jobs.Assignment) -> str | None:
        return self.liveness.why_down(assignment.seen_at, assignment.assigned_at, assignment.heard)

    def refuse(self, unregistered: Collection[model.Agent]) -> None:
        """Ask agents to register again that are not registered for the hosts they report for."""
        self._strangers.refuse(unregistered)

    def hosts_counter(self) -> None:
        """The database counts them, as they report to it."""

    def returning(self) -> conductor_steering.HostRecovery:
        return host_recovery.HostRecovery(self._database, self._conf.service_down_time)

    def orders(
        self,
        store: request_actions.Steering,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> conductor_steering.StopOrderSender:
        """Build what tells computes to stop."""
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

    def _steered(self, cell_uuid: str) -> rpcapi.ComputeAPI:
        """Give a client whose short calls are answered soon, or count as unanswered."""
        return self._api(self._transports.get(cell_uuid), stop_orders.ANSWER_SECONDS)

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def _api(
        self, transport: rpc.Transport, answer_seconds: float | None = None
    ) -> rpcapi.ComputeAPI:
        return compute_api(self._conf, transport, self._cap, answer_seconds)
