# SPDX-License-Identifier: Apache-2.0
"""Lists and counts the hosts of a Nova, whose stock nova-computes report little.

Their state is looked up in chunks, each host once.
"""

import collections
from collections.abc import Collection, Iterator, Mapping

from nova_precache import model
from nova_precache.cells import inventory, liveness
from nova_precache.db import statistics

CHUNK_HOSTS = 1000


class NovaHosts:
    """The mapped hosts, with the state of their nova-computes from the cells' databases.

    Fields that only an agent of this service reports are None.
    """

    def __init__(self, aggregates: inventory.Inventory, alive: liveness.NovaLiveness) -> None:
        self._inventory = aggregates
        self._liveness = alive

    def get(self, hosts: Collection[str]) -> Mapping[str, model.Agent]:
        """Map hosts to their agents, without a query to a cell; unmapped hosts are absent."""
        cells = self._inventory.cell_of_hosts(hosts)
        return {host: _agent(host, uuid) for host, uuid in cells.items()}

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map hosts that are down, disabled or in an unknown state to the reason."""
        look = self._liveness.look(hosts)
        return {**look.down, **look.unknown, **look.settling}

    def look(self, hosts: Collection[str]) -> Mapping[str, model.Host]:
        """Map hosts to their state; unmapped hosts are absent."""
        return self._look_at(self._inventory.cell_of_hosts(hosts))

    def list_page(
        self,
        limit: int | None = None,
        marker: str | None = None,
        status: model.HostStatus | None = None,
        cell_uuid: str | None = None,
    ) -> list[model.Host]:
        """See ``db.agents.Agents.list_page``."""
        found: list[model.Host] = []
        needed = CHUNK_HOSTS if limit is None or status is not None else limit
        for chunk in self._chunks(min(needed, CHUNK_HOSTS), marker, cell_uuid):
            found.extend(host for host in chunk if status in (None, host.status))
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    def count(self) -> Mapping[str, statistics.HostCount]:
        """Count the hosts of each cell by state."""
        counted: dict[str, collections.Counter[str]] = {}
        for chunk in self._chunks(CHUNK_HOSTS):
            for host in chunk:
                counted.setdefault(host.agent.cell_uuid, collections.Counter())[host.status] += 1
        return {
            cell_uuid: statistics.HostCount(
                **{status.value: hosts[status] for status in model.HostStatus}
            )
            for cell_uuid, hosts in counted.items()
        }

    def _chunks(
        self, size: int, marker: str | None = None, cell_uuid: str | None = None
    ) -> Iterator[Collection[model.Host]]:
        """Look up the hosts in order of their names, in chunks of a size."""
        while mapped := self._inventory.page_of_hosts(size, marker, cell_uuid):
            yield self._look_at(mapped).values()
            if len(mapped) < size:
                return
            marker = list(mapped)[-1]

    def _look_at(self, cells: Mapping[str, str]) -> Mapping[str, model.Host]:
        look = self._liveness.look_at(cells)
        return {host: _host(_agent(host, uuid, look), look) for host, uuid in cells.items()}


def _agent(host: str, cell_uuid: str, look: liveness.Look | None = None) -> model.Agent:
    service = None if look is None else look.services.get(host)
    seen_at = None if service is None else service.seen_at
    return model.Agent(host, agent_id='', cell_uuid=cell_uuid, seen_at=seen_at)


def _host(agent: model.Agent, look: liveness.Look) -> model.Host:
    if agent.host in look.unknown:
        return model.Host(agent, model.HostStatus.UNKNOWN, look.unknown[agent.host])
    if agent.host in look.settling:
        return model.Host(agent, model.HostStatus.UNKNOWN, look.settling[agent.host])
    if agent.host in look.down:
        return model.Host(agent, model.HostStatus.DOWN, look.down[agent.host])
    return model.Host(agent)
