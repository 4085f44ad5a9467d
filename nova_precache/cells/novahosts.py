# SPDX-License-Identifier: Apache-2.0
"""Lists and counts the hosts of a Nova, whose stock nova-computes report little.

Their state is looked up in chunks, each host once.
"""

import collections
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from nova_precache import exception, model
from nova_precache.cells import inventory, liveness
from nova_precache.db import pages, statistics

CHUNK_HOSTS = 1000
_ALL = pages.Page()
_BY_NAME = (model.SortKey('host'),)
_FIELDS = {'cell': 'cell_uuid'}  # of an agent, where its name is not that of the sort key


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
        page: pages.Page = _ALL,
        status: model.HostStatus | None = None,
        cell_uuid: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> list[model.Host]:
        """See ``db.agents.Agents.list_page``."""
        sort = tuple(page.sort) or _BY_NAME
        if hosts is not None or sort != _BY_NAME:
            known = self._all(cell_uuid) if hosts is None else self.look(hosts).values()
            after = _after(known, sort, page.marker)
            return [host for host in after if _matches(host, status, cell_uuid)][: page.limit]
        found: list[model.Host] = []
        needed = CHUNK_HOSTS if page.limit is None or status is not None else page.limit
        marker = None if page.marker is None else str(page.marker)
        for chunk in self._chunks(min(needed, CHUNK_HOSTS), marker, cell_uuid):
            found.extend(host for host in chunk if _matches(host, status, cell_uuid))
            if page.limit is not None and len(found) >= page.limit:
                break
        return found[: page.limit]

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

    def _all(self, cell_uuid: str | None) -> Collection[model.Host]:
        return [host for chunk in self._chunks(CHUNK_HOSTS, None, cell_uuid) for host in chunk]

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


def _matches(host: model.Host, status: model.HostStatus | None, cell_uuid: str | None) -> bool:
    return status in (None, host.status) and cell_uuid in (None, host.agent.cell_uuid)


def _after(
    hosts: Collection[model.Host], sort: Sequence[model.SortKey], marker: str | int | None
) -> Sequence[model.Host]:
    """Sort hosts as ``db.pages`` sorts rows, and return those after a marker."""
    ordered = sorted(hosts, key=lambda host: host.agent.host, reverse=sort[-1].is_descending)
    for key in reversed(sort):
        rank = functools.partial(_rank, _FIELDS.get(key.name, key.name))
        ordered.sort(key=rank, reverse=key.is_descending)
    if marker is None:
        return ordered
    if sort == _BY_NAME:
        return [host for host in ordered if host.agent.host > str(marker)]
    names = [host.agent.host for host in ordered]
    if marker not in names:
        raise exception.InvalidMarker(marker)
    return ordered[names.index(str(marker)) + 1 :]


def _rank(field: str, host: model.Host) -> tuple[bool, Any]:
    value = getattr(host.agent, field)
    return value is None, value


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
