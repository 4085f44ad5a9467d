# SPDX-License-Identifier: Apache-2.0
"""openstack precache host list: the hosts that can cache images."""

import argparse

from nova_precache.osc import client, columns, listing


class List(listing.Lister):
    """List hosts with their status, the size of their cache and their free space."""

    collection = 'hosts'
    first_columns = (
        columns.Column('Host', 'host'),
        columns.Column('Cell', 'cell'),
        columns.Column('Status', 'status'),
        columns.Column('Cache', 'cache_bytes', columns.Size),
        columns.Column('Free', 'free_bytes', columns.Size),
        columns.Column('Seen At', 'seen_at'),
        columns.Column('Reason', 'reason'),
    )
    more_columns = (
        columns.Column('Version', 'version'),
        columns.Column('Driver', 'driver'),
        columns.Column('Store ID', 'store_id'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--status', choices=('up', 'down', 'unknown'), help='list only hosts in this state'
        )
        parser.add_argument('--cell', metavar='<cell>', help='list only hosts in this cell (UUID)')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {'status': parsed_args.status, 'cell': parsed_args.cell}
