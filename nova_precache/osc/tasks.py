# SPDX-License-Identifier: Apache-2.0
"""openstack precache task list: each host and image of a request."""

import argparse

from nova_precache.osc import client, columns, listing, resolving


class List(listing.Lister):
    """List the tasks of a request: the progress of each image on each host."""

    collection = 'tasks'
    first_columns = (
        columns.Column('Host', 'host'),
        columns.Column('Image', 'image_id'),
        columns.Column('Status', 'status'),
        columns.Column('Bytes Done', 'bytes_done', columns.Size),
        columns.Column('Bytes Total', 'bytes_total', columns.Size),
        columns.Column('Rate', 'rate_bytes', columns.Rate),
        columns.Column('ETA', 'eta_seconds', columns.Duration),
        columns.Column('Attempts', 'attempts'),
        columns.Column('Reason', 'reason'),
    )
    more_columns = (
        columns.Column('ID', 'id'),
        columns.Column('Cell', 'cell'),
        columns.Column('Started At', 'started_at'),
        columns.Column('Finished At', 'finished_at'),
        columns.Column('Next Attempt At', 'next_attempt_at'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('request', metavar='<request>', help='request (ID)')
        add = parser.add_argument
        add('--status', metavar='<status>', help='list only tasks in this state')
        add('--host', metavar='<host>', help='list only tasks on this host')
        add('--image', metavar='<image>', help='list only tasks for this image (name or ID)')

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return 'requests', parsed_args.request, 'tasks'

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        name = parsed_args.image
        return {
            'status': parsed_args.status,
            'host': parsed_args.host,
            'image': None if name is None else resolving.image_id(self.app, name),
        }
