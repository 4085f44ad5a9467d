# SPDX-License-Identifier: Apache-2.0
"""Asks agents to register again that report for a host without being registered for it.

Another agent has the name, or an older database was restored. Which of two agents takes a
message from the queue that they share is chance, so each report has it sent again.
"""

import functools
import logging
from collections.abc import Callable, Collection
from typing import Protocol

from nova_precache import context, exception, model
from nova_precache.conductor import breaker, orders

LOG = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
KNOWN = 1000


class RefusingCompute(Protocol):
    """What is sent to a host; ``compute.rpcapi.ComputeAPI`` is the real one."""

    def register_again(self, ctxt: context.RequestContext, host: str, agent_id: str) -> None:
        """As ``compute.rpcapi.ComputeAPI.register_again``."""


class Strangers:
    """The agents that one conductor refused.

    :param computes: gives the client of a cell by its uuid
    :param clock: seconds that only grow
    """

    def __init__(
        self,
        computes: Callable[[str], RefusingCompute],
        breakers: breaker.CellBreakers,
        clock: Callable[[], float],
    ) -> None:
        self._computes = computes
        self._errands = orders.Errands(breakers, clock, AGAIN_SECONDS)
        self._logged: set[tuple[str, str]] = set()

    def refuse(self, agents: Collection[model.Agent]) -> None:
        """Ask agents to register again, in the background."""
        keys = {(agent.host, agent.agent_id) for agent in agents}
        self._errands.forget_all_but(keys)
        if len(self._logged) > KNOWN:
            self._logged.clear()
        for agent in agents:
            key = agent.host, agent.agent_id
            if key not in self._logged:
                LOG.warning('Agent %s is not registered for host %s', agent.agent_id, agent.host)
                self._logged.add(key)
            self._errands.run(key, agent.cell_uuid, functools.partial(self._send, agent))

    def _send(self, agent: model.Agent) -> float:
        try:
            self._computes(agent.cell_uuid).register_again(
                context.admin_context(), agent.host, agent.agent_id
            )
        except exception.VersionUnsupported as exc:
            LOG.debug('Agent %s is not asked to register again: %s', agent.agent_id, exc)
        return 0
