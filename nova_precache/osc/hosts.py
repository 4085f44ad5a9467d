# SPDX-License-Identifier: Apache-2.0
"""openstack precache host list, show: the hosts that can cache images."""

import argparse
from typing import Any

from nova_precache.osc import arguments, client, columns, listing, resolving, tables


class List(listing.Lister):
    """List hosts with their cell, their status and their free space."""

    collection = 'hosts'
    sort_keys = ('host', 'cell', 'seen_at', 'version', 'driver', 'cache_bytes', 'free_bytes')
    first_columns = (
        columns.Column('Host', 'host'),
        columns.Column('Cell', 'cell_name'),
        columns.Column('Status', 'status'),
        columns.Column('Free', 'free_bytes', columns.Size),
        columns.Column('Reason', 'reason', elastic=True),
    )
    more_columns = (
        columns.Column('Cache', 'cache_bytes', columns.Size),
        columns.Column('Seen At', 'seen_at', columns.Time),
        columns.Column('Version', 'version'),
        columns.Column('Driver', 'driver'),
        columns.Column('Store ID', 'store_id'),
        columns.Column('Cell ID', 'cell'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--status', choices=('up', 'down', 'unknown'), help='list only hosts in this state'
        )
        arguments.add_cell(parser, 'hosts')
        arguments.add_aggregate(parser, 'hosts')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {
            'status': parsed_args.status,
            'cell': resolving.cell_id(self.app, parsed_args.cell),
            'aggregate': parsed_args.aggregate,
        }


class Show(tables.ShowOne):
    """Show a host: its status and why, its cache and its agent."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('host', metavar='<host>', help='host (name)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        answer = client.of(self.app).get('hosts', parsed_args.host)
        return self.record(answer['host'], parsed_args)
