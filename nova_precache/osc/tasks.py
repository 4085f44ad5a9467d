# SPDX-License-Identifier: Apache-2.0
"""openstack precache task list: each host and image of a request."""

import argparse

from osc_lib.command import command

from nova_precache.osc import arguments, client, columns, resolving

COLUMNS = (
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
MORE_COLUMNS = (
    columns.Column('ID', 'id'),
    columns.Column('Cell', 'cell'),
    columns.Column('Started At', 'started_at'),
    columns.Column('Finished At', 'finished_at'),
    columns.Column('Next Attempt At', 'next_attempt_at'),
)


class List(command.Lister):
    """List the tasks of a request: the progress of each image on each host."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('request', metavar='<request>', help='request (ID)')
        parser.add_argument('--status', metavar='<status>', help='those in this state')
        parser.add_argument('--host', metavar='<host>', help='those of this host')
        parser.add_argument('--image', metavar='<image>', help='those of it (name or ID)')
        parser.add_argument('--long', action='store_true', help='with more columns')
        arguments.add_paging(parser, 'tasks')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        names = [] if parsed_args.image is None else [parsed_args.image]
        query = {
            'status': parsed_args.status,
            'host': parsed_args.host,
            'image': next(iter(resolving.image_ids(self.app, names)), None),
            'marker': parsed_args.marker,
        }
        found = client.of(self.app).pages(
            *('requests', parsed_args.request, 'tasks'),
            collection='tasks',
            query=query,
            limit=parsed_args.limit,
        )
        return columns.table(COLUMNS + (MORE_COLUMNS if parsed_args.long else ()), found)
