# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage: the database, the cells, the hosts, and root disks, from the shell."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from nova_precache.cmd import running
from nova_precache.cmd.manage_commands import brokers, cells, databases, disks, hosts
from nova_precache.db.engine import errors

Command = Callable[[cfg.ConfigOpts], int]


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    command = cfg.SubCommandOpt('command', title='Commands', handler=_add_commands)
    conf = running.read_configuration(sys.argv[1:], [command])
    run: Command = conf.command.run
    with errors.translate_db_errors():
        return run(conf)


def _add_commands(subparsers: Any) -> None:
    # Destinations and options share one name space, so no destination has an option's name.
    _add_databases(_group(subparsers, 'db', 'manage the database of this service'))
    _add_cells(_group(subparsers, 'cell', 'manage the cells and their brokers'))
    _add_hosts(_group(subparsers, 'host', 'manage the compute hosts'))
    _add_disks(_group(subparsers, 'root-disk', 'manage root disks of instances on this host'))


def _add_databases(database: Any) -> None:
    _command(database, 'sync', databases.sync, 'create or upgrade the tables')
    _command(database, 'version', databases.version, 'show the schema revision')
    purge = _command(database, 'purge', databases.purge, 'delete requests that ended long ago')
    purge.add_argument(
        '--age-days',
        type=_whole_number,
        help='minimum days since a request ended (default: [image_cache] request_retention_days); '
        '0 deletes all',
    )


def _add_cells(group: Any) -> None:
    create = _command(group, 'create', cells.create, 'add a cell')
    create.add_argument('--name', dest='cell_name', required=True, help='name of the cell')
    create.add_argument(
        brokers.OPTION,
        dest='cell_transport_url',
        metavar='-|URL',
        help="URL of the cell's broker (default: [DEFAULT] transport_url); '-' reads it from "
        'standard input, since passwords on a command line are visible to other users',
    )
    create.add_argument('--uuid', dest='cell_uuid', help='uuid of the cell (default: a new one)')
    _command(
        group, 'list', cells.show_all, 'list the cells, without the credentials of their brokers'
    )
    delete = _command(group, 'delete', cells.delete, 'delete a cell that has no hosts')
    delete.add_argument('cell', help='uuid or name of the cell')
    delete.add_argument(
        '--force',
        action='store_true',
        help='also delete its hosts, if all of them are down and unused',
    )


def _add_hosts(group: Any) -> None:
    _command(group, 'list', hosts.show_all, 'list the hosts that are mapped to a cell')
    _command(group, 'discover', hosts.discover, 'map hosts that report but have no mapping')
    delete = _command(
        group, 'delete', hosts.delete, 'delete the mapping and records of a retired host'
    )
    delete.add_argument('host_name', metavar='host', help='name of the host')


def _add_disks(group: Any) -> None:
    create = _command(
        group, 'create', disks.create, 'create a root disk from the image cache, as a boot does'
    )
    create.add_argument(
        '--host', dest='on_host', help='host whose paths to use (default: this host)'
    )
    create.add_argument('--image', required=True, help='id of the image')
    create.add_argument('--instance', required=True, help="name of the instance's directory")
    create.add_argument(
        '--size-gib',
        type=_whole_number,
        help='size of the disk in GiB (default: that of the image)',
    )


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 99999')
    return int(text)


def _group(subparsers: Any, name: str, text: str) -> Any:
    parser = subparsers.add_parser(name, help=text, description=text)
    return parser.add_subparsers(dest=f'{name}_action', required=True, metavar='ACTION')


def _command(group: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser
