# SPDX-License-Identifier: Apache-2.0
"""openstack precache task list: images on hosts, of one request or of all."""

import argparse

from nova_precache import model
from nova_precache.osc import arguments, client, columns, listing, resolving


def _percent(task: client.Json) -> int | None:
    """Return how much of a task is done; an image that existed already is complete."""
    if task['status'] in model.TASK_SUCCEEDED:
        return 100
    return columns.percent(task['bytes_done'], task['bytes_total'])


class List(listing.Lister):
    """List tasks, each an image on a host: its status, and why it waits or failed."""

    collection = 'tasks'
    sort_keys = (
        *('id', 'request_id', 'host', 'image_id', 'status', 'attempts'),
        *('bytes_done', 'bytes_total', 'rate_bytes', 'next_attempt_at'),
        *('created_at', 'started_at', 'finished_at'),
    )
    first_columns = (
        columns.Column('Host', 'host'),
        columns.Column('Image', 'image_id', elastic=True, named=True),
        columns.Column('Status', 'status'),
        columns.Column('Done', _percent, columns.Percent),
        columns.Column('Reason', 'reason', elastic=True),
    )
    more_columns = (
        columns.Column('Bytes Done', 'bytes_done', columns.Size),
        columns.Column('Bytes Total', 'bytes_total', columns.Size),
        columns.Column('Rate', 'rate_bytes', columns.Rate),
        columns.Column('ETA', 'eta_seconds', columns.Duration),
        columns.Column('Attempts', 'attempts'),
        columns.Column('ID', 'id'),
        columns.Column('Request', 'request_id'),
        columns.Column('Image ID', 'image_id'),
        columns.Column('Cell', 'cell_name'),
        columns.Column('Cell ID', 'cell'),
        columns.Column('Started At', 'started_at', columns.Time),
        columns.Column('Finished At', 'finished_at', columns.Time),
        columns.Column('Next Attempt At', 'next_attempt_at', columns.Time),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        of_one = parser.add_mutually_exclusive_group()
        of_one.add_argument(
            'request',
            metavar='<request>',
            nargs='?',
            help='list only tasks of this request (ID); without one, of all requests',
        )
        of_one.add_argument(
            '--request', metavar='<request>', dest='of', help='the same, as an option'
        )
        arguments.add_project(of_one, 'tasks')
        add = parser.add_argument
        add('--status', metavar='<status>', help='list only tasks in this state')
        add('--host', metavar='<host>', help='list only tasks on this host')
        add('--image', metavar='<image>', help='list only tasks for this image (name or ID)')

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        request = parsed_args.request or parsed_args.of
        return ('tasks',) if request is None else ('requests', request, 'tasks')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        name = parsed_args.image
        return {
            'status': parsed_args.status,
            'host': parsed_args.host,
            'image': None if name is None else resolving.image_id(self.app, name),
            'project_id': resolving.project_id(self.app, parsed_args.project),
        }
