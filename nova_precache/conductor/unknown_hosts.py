# SPDX-License-Identifier: Apache-2.0
"""Requests agents to register again that report for a host but are not registered for it.

Another agent has the name, or an older database was restored. Either of two agents may take a
message from the queue that they share, so each report causes another message.
"""

import functools
import logging
import random
from collections.abc import Callable, Collection
from typing import Protocol

from nova_precache import context, exception, model, wire
from nova_precache.cells import breaker
from nova_precache.conductor import stop_orders

LOG = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
# A cell may send reports for any number of hosts that do not exist.
MOST_AT_ONCE = 1000


class RefusingCompute(Protocol):
    """Sends ``register_again``; implemented by ``compute.rpcapi.ComputeAPI``."""

    def register_again(self, ctxt: context.RequestContext, host: str, agent_id: str) -> None:
        """See ``compute.rpcapi.ComputeAPI.register_again``."""


class UnknownHosts:
    """Sends ``register_again`` to the agents that one conductor refused.

    :param computes: returns the client of a cell by its uuid
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        computes: Callable[[str], RefusingCompute],
        breakers: breaker.CellBreakers,
        clock: Callable[[], float],
    ) -> None:
        self._computes = computes
        self._calls = stop_orders.CellCallPool(breakers, clock, AGAIN_SECONDS)
        self._senders = wire.Senders(LOG)

    def refuse(self, agents: Collection[model.Agent]) -> None:
        """Request agents to register again, in the background; limited per cell."""
        some = _some_of_each_cell(agents)
        self._calls.forget_all_but({_key(agent) for agent in some})
        for agent in some:
            if self._senders.is_first(agent.cell_uuid, f'{agent.host} {agent.agent_id}'):
                LOG.warning('Agent %s is not registered for host %s', agent.agent_id, agent.host)
            send = functools.partial(self._send, agent)
            self._calls.run(_key(agent), agent.cell_uuid, send)

    def _send(self, agent: model.Agent) -> float:
        try:
            self._computes(agent.cell_uuid).register_again(
                context.admin_context(), agent.host, agent.agent_id
            )
        except exception.VersionUnsupported as exc:
            LOG.debug('Cannot ask agent %s to register again: %s', agent.agent_id, exc)
        return 0


def _key(agent: model.Agent) -> tuple[str, str, str]:
    return agent.cell_uuid, agent.host, agent.agent_id


def _some_of_each_cell(agents: Collection[model.Agent]) -> list[model.Agent]:
    """Return the agents; of a cell with too many a random sample, so that each gets its turn."""
    by_cell: dict[str, list[model.Agent]] = {}
    for agent in agents:
        by_cell.setdefault(agent.cell_uuid, []).append(agent)
    some: list[model.Agent] = []
    for of_cell in by_cell.values():
        is_few = len(of_cell) <= MOST_AT_ONCE
        some += of_cell if is_few else random.sample(of_cell, MOST_AT_ONCE)
    return some
