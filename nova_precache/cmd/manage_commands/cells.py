# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage cell: create, list and delete cells with the URLs of their brokers."""

import uuid

from oslo_config import cfg
from oslo_utils import uuidutils

from nova_precache import exception, model, rpc, wire
from nova_precache.cells import mappings
from nova_precache.cmd import manage_commands
from nova_precache.cmd.manage_commands import brokers, hosts

NAME_CHARACTERS = 255


def create(conf: cfg.ConfigOpts) -> int:
    arguments = conf.command
    name, cell_uuid = _name(arguments.cell_name), _uuid(arguments.cell_uuid)
    url = brokers.transport_url(conf, arguments.cell_transport_url)
    with manage_commands.site(conf) as site:
        cell = site.inventory.create_cell(name, transport_url=url, uuid=cell_uuid)
    print(cell.uuid)
    return 0


def _name(name: str) -> str:
    if not 0 < len(name.strip()) <= NAME_CHARACTERS:
        raise exception.InvalidInput(f'--name must have 1 to {NAME_CHARACTERS} characters')
    if not name.isprintable():
        raise exception.InvalidInput('--name must have printable characters only')
    return name


def _uuid(text: str | None) -> str | None:
    if text is None:
        return None
    if not uuidutils.is_uuid_like(text):
        raise exception.InvalidInput(f'--uuid {wire.shown(text)} is not a UUID')
    found = str(uuid.UUID(text))
    if found == mappings.CELL0_UUID:
        raise exception.InvalidInput('--uuid is that of cell0, which has no hosts')
    return found


def show_all(conf: cfg.ConfigOpts) -> int:
    with manage_commands.site(conf) as site:
        cells = site.inventory.list_cells()
    rows = [(c.name, c.uuid, rpc.describe_url(conf, c.transport_url), c.disabled) for c in cells]
    manage_commands.show(('Name', 'UUID', 'Transport URL', 'Disabled'), rows)
    return 0


def delete(conf: cfg.ConfigOpts) -> int:
    """Delete a cell without hosts, or with --force its hosts, too, if each may be deleted."""
    with manage_commands.site(conf) as site:
        cell = site.inventory.get_cell(conf.command.cell)
        mappings = site.inventory.list_host_mappings()
        mapped = [host for host, its in mappings if its.uuid == cell.uuid]
        _refuse_used(site, cell, mapped, conf.command.force)
        for host in mapped:
            hosts.delete_one(site, host)
        site.inventory.delete_cell(cell.uuid)
    print(f'Cell {cell.name} ({cell.uuid}) is deleted.')
    return 0


def _refuse_used(
    site: manage_commands.Site, cell: model.Cell, mapped: list[str], force: bool
) -> None:
    if mapped and not force:
        raise exception.InUse(
            f'Cell {cell.name} has {len(mapped)} hosts, such as {mapped[0]}: delete them first, '
            'or use --force.'
        )
    if jobs := site.departures.jobs_in_cell(cell.uuid):
        raise exception.InUse(
            f'Cell {cell.name} has {jobs} jobs in progress: cancel the requests or wait until they '
            'end.'
        )
    for host in mapped:  # check all before the first is deleted
        hosts.refuse_used(site, host)
