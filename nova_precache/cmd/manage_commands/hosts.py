# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage host: list and map hosts, and delete those that are gone for good."""

import sys

from oslo_config import cfg

from nova_precache import exception, model, wire
from nova_precache.cmd import manage_commands


def show_all(conf: cfg.ConfigOpts) -> int:
    with manage_commands.site(conf) as site:
        mappings = site.inventory.list_host_mappings()
        known = site.hosts.look([host for host, _ in mappings])
    rows = [(host, cell.name, *_state(known.get(host))) for host, cell in mappings]
    manage_commands.show(('Host', 'Cell', 'State', 'Last report (UTC)', 'Driver'), rows)
    return 0


def _state(host: model.Host | None) -> tuple[object, ...]:
    if host is None:
        return model.HostStatus.DOWN, None, None
    return host.status, host.agent.seen_at, host.agent.driver


def discover(conf: cfg.ConfigOpts) -> int:
    """Map the unmapped hosts of live agents to their cells, as a first report does."""
    with manage_commands.site(conf) as site:
        mapped = {host for host, _ in site.inventory.list_host_mappings()}
        unmapped = [agent for agent in site.agents.list() if agent.host not in mapped]
        known = site.agents.look([agent.host for agent in unmapped]).values()
        # Try each host, and report the error of each.
        results = [_map(site, each.agent) for each in known if each.status == model.HostStatus.UP]
    print(f'Hosts mapped: {sum(results)}')
    return 0 if all(results) else 1


def _map(site: manage_commands.Site, agent: model.Agent) -> bool:
    try:
        site.inventory.map_host(wire.host(agent.host), agent.cell_uuid)
    except (exception.InvalidInput, exception.NotFound, exception.Conflict) as exc:
        print(f'Host {wire.printable(agent.host)} is not mapped: {exc}', file=sys.stderr)
        return False
    print(f'Host {agent.host} is mapped to cell {site.inventory.get_cell(agent.cell_uuid).name}.')
    return True


def delete(conf: cfg.ConfigOpts) -> int:
    host = conf.command.host_name
    with manage_commands.site(conf) as site:
        refuse_used(site, host)
        delete_one(site, host)
    print(f'Host {wire.printable(host)} is deleted.')
    return 0


def refuse_used(site: manage_commands.Site, host: str) -> None:
    """Refuse to delete a host that may be up, or is still referred to.

    :raises nova_precache.exception.ComputeHostNotFound: the host is unknown
    :raises nova_precache.exception.InUse: it may be up, is in an aggregate, or has jobs
    """
    known = site.agents.look([host]).get(host)
    if known is None and host not in site.inventory.cell_of_hosts([host]):
        raise exception.ComputeHostNotFound(host)
    if known is not None and known.status == model.HostStatus.UP:
        raise exception.InUse(
            f'Host {host} is up (last report: {known.agent.seen_at} UTC): stop its compute first.'
        )
    if known is not None and known.status == model.HostStatus.UNKNOWN:
        raise exception.InUse(
            f'Cannot verify that host {host} is down ({known.reason}): try again after a conductor '
            'has received reports from its cell for [DEFAULT] service_down_time.'
        )
    if aggregates := sorted(site.inventory.aggregates_of_hosts([host])):
        names = ', '.join(map(str, aggregates))
        raise exception.InUse(
            f'Host {host} is in the aggregates with id {names}: remove it from them first.'
        )
    if jobs := site.departures.jobs_on_host(host):
        raise exception.InUse(
            f'Host {host} has {jobs} jobs in progress: cancel the requests or wait until they end.'
        )


def delete_one(site: manage_commands.Site, host: str) -> None:
    """Delete the host's mapping and records; raises if Nova keeps the inventory."""
    site.inventory.unmap_host(host)
    site.departures.forget(host)
