# SPDX-License-Identifier: Apache-2.0
"""The hosts of a Nova as the API shows them; stock nova-compute tells little of itself."""

from collections.abc import Collection, Mapping

from nova_precache import model
from nova_precache.cells import inventory, liveness, services


class NovaHosts:
    """The mapped hosts, and what the cells know of their nova-computes."""

    def __init__(self, aggregates: inventory.Inventory, alive: liveness.NovaLiveness) -> None:
        self._inventory = aggregates
        self._liveness = alive

    def get(self, hosts: Collection[str]) -> Mapping[str, model.Agent]:
        """Map hosts to what is known of them; one that is mapped to no cell is left out."""
        cells = self._inventory.cell_of_hosts(hosts)
        known = self._liveness.look(hosts).services
        return {host: _agent(host, uuid, known.get(host)) for host, uuid in cells.items()}

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map hosts that are down, disabled, or of which nothing is known to the reason."""
        look = self._liveness.look(hosts)
        return {**look.down, **look.unknown}

    def list_page(
        self,
        limit: int | None = None,
        marker: str | None = None,
        up: bool | None = None,
        cell_uuid: str | None = None,
    ) -> list[model.Agent]:
        """As ``db.agents.Agents.list_page``."""
        hosts = sorted(
            host
            for host, cell in self._inventory.list_host_mappings()
            if (marker is None or host > marker) and cell_uuid in (None, cell.uuid)
        )
        if up is not None:
            down = self.down(hosts)
            hosts = [host for host in hosts if (host not in down) == up]
        known = self.get(hosts[:limit])
        return [known[host] for host in hosts[:limit] if host in known]


def _agent(host: str, cell_uuid: str, service: services.Service | None) -> model.Agent:
    seen_at = None if service is None else service.seen_at
    return model.Agent(host, agent_id='', cell_uuid=cell_uuid, seen_at=seen_at)
