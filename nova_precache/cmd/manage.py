# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage: the database, the cells, the hosts, and root disks, from the shell."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import prettytable
from oslo_config import cfg

from nova_precache import exception, rpc, wiring
from nova_precache.cells import inventory
from nova_precache.cmd import running
from nova_precache.control import Control
from nova_precache.db import schema, session
from nova_precache.virt import driver as virt_driver

Command = Callable[[cfg.ConfigOpts], int]


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    command = cfg.SubCommandOpt('command', title='Commands', handler=_add_commands)
    conf = running.read_configuration(sys.argv[1:], [command])
    run: Command = conf.command.run
    return run(conf)


def _add_commands(subparsers: Any) -> None:
    database = _group(subparsers, 'db', 'the database of this service')
    _command(database, 'sync', _sync, 'create the tables, or bring them up to date')
    # Each destination is a name that no option has: they share one name space.
    cells = _group(subparsers, 'cell', 'the cells and their brokers')
    create = _command(cells, 'create', _create_cell, 'add a cell')
    create.add_argument('--name', dest='cell_name', required=True, help='name of the cell')
    create.add_argument(
        '--transport-url', dest='cell_transport_url', required=True, help="URL of the cell's broker"
    )
    create.add_argument('--uuid', dest='cell_uuid', help='uuid of the cell, else a new one')
    _command(cells, 'list', _list_cells, 'show the cells, without who logs in to their brokers')
    hosts = _group(subparsers, 'host', 'the compute hosts')
    _command(hosts, 'list', _list_hosts, 'show the hosts that are mapped to a cell')
    disks = _group(subparsers, 'root-disk', 'root disks of instances on this host')
    _add_create_root_disk(disks)


def _add_create_root_disk(disks: Any) -> None:
    create = _command(
        disks, 'create', _create_root_disk, 'make a root disk from the image cache, as a boot does'
    )
    create.add_argument('--host', dest='on_host', help='host whose paths are used, else this one')
    create.add_argument('--image', required=True, help='id of the image')
    create.add_argument('--instance', required=True, help='name of the directory of the instance')
    create.add_argument('--size-gib', type=int, help="size of the disk, else the image's own")


def _group(subparsers: Any, name: str, text: str) -> Any:
    parser = subparsers.add_parser(name, help=text, description=text)
    return parser.add_subparsers(dest=f'{name}_action', required=True, metavar='ACTION')


def _command(group: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _sync(conf: cfg.ConfigOpts) -> int:
    schema.sync(session.connect(conf))
    print('The database is up to date.')
    return 0


def _create_cell(conf: cfg.ConfigOpts) -> int:
    arguments = conf.command
    cells = inventory.Inventory(schema.open_current(conf))
    cell = cells.create_cell(
        arguments.cell_name, transport_url=arguments.cell_transport_url, uuid=arguments.cell_uuid
    )
    print(cell.uuid)
    return 0


def _list_cells(conf: cfg.ConfigOpts) -> int:
    cells = inventory.Inventory(schema.open_current(conf)).list_cells()
    rows = [(c.name, c.uuid, rpc.describe_url(conf, c.transport_url), c.disabled) for c in cells]
    _show(('Name', 'UUID', 'Transport URL', 'Disabled'), rows)
    return 0


def _list_hosts(conf: cfg.ConfigOpts) -> int:
    database = schema.open_current(conf)
    mappings = inventory.Inventory(database).list_host_mappings()
    store = wiring.agent_store(conf, database)
    known = {agent.host: agent for agent in store.list()}
    down = store.down([host for host, _ in mappings])
    rows = [
        (
            host,
            cell.name,
            'down' if host in down else 'up',
            known[host].seen_at if host in known else None,
            known[host].driver if host in known else None,
        )
        for host, cell in mappings
    ]
    _show(('Host', 'Cell', 'State', 'Last report (UTC)', 'Driver'), rows)
    return 0


def _create_root_disk(conf: cfg.ConfigOpts) -> int:
    arguments = conf.command
    if arguments.on_host:
        conf.set_override('host', arguments.on_host)
    driver = virt_driver.load_driver(conf.compute_driver, conf)
    driver.init_host()
    size_bytes = None if arguments.size_gib is None else arguments.size_gib * 1024**3
    boot = Control(is_boot=True)
    interrupted = exception.Cancelled('interrupted, no root disk was made', keep_partial=True)
    running.on_stop_signals(lambda: boot.stop(interrupted))
    disk = driver.create_root_disk(
        wiring.service_images(conf), arguments.image, arguments.instance, size_bytes, control=boot
    )
    print(disk.path)
    return 0


def _show(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = prettytable.PrettyTable(columns, align='l')
    table.add_rows([list(row) for row in rows])
    print(table)
