# SPDX-License-Identifier: Apache-2.0
"""openstack precache host list: the hosts that can cache images."""

import argparse

from osc_lib.command import command

from nova_precache.osc import arguments, client, columns

COLUMNS = (
    columns.Column('Host', 'host'),
    columns.Column('Cell', 'cell'),
    columns.Column('Status', 'status'),
    columns.Column('Cache', 'cache_bytes', columns.Size),
    columns.Column('Free', 'free_bytes', columns.Size),
    columns.Column('Seen At', 'seen_at'),
    columns.Column('Reason', 'reason'),
)
MORE_COLUMNS = (
    columns.Column('Version', 'version'),
    columns.Column('Driver', 'driver'),
    columns.Column('Store ID', 'store_id'),
)


class List(command.Lister):
    """List hosts with their status, the size of their cache and their free space."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--status', choices=('up', 'down', 'unknown'), help='those that are so')
        parser.add_argument('--cell', metavar='<cell>', help='those of this cell (UUID)')
        parser.add_argument('--long', action='store_true', help='with more columns')
        arguments.add_paging(parser, 'hosts')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        query = {key: getattr(parsed_args, key) for key in ('status', 'cell', 'marker')}
        found = client.of(self.app).pages(
            'hosts', collection='hosts', query=query, limit=parsed_args.limit
        )
        return columns.table(COLUMNS + (MORE_COLUMNS if parsed_args.long else ()), found)
