# SPDX-License-Identifier: Apache-2.0
"""openstack precache service list: the processes of the service, and whether they report."""

import argparse

from nova_precache.osc import client, columns, listing

PREFIX = 'nova-precache-'


def _binary(text: str) -> str:
    """Parse the name of a program, with or without the prefix."""
    return f'{PREFIX}{text.removeprefix(PREFIX)}'


class Binary(columns.Nothing):
    """The name of a program; the common prefix is omitted."""

    def human_readable(self) -> str:
        return str(self._value).removeprefix(PREFIX)


class List(listing.Lister):
    """List the APIs, conductors and computes with their version and last report."""

    collection = 'services'
    first_columns = (
        columns.Column('Binary', 'binary', Binary),
        columns.Column('Host', 'host'),
        columns.Column('Status', 'status'),
        columns.Column('Version', 'version', elastic=True),
        columns.Column('Seen At', 'seen_at', columns.Time),
    )
    more_columns = (
        columns.Column('Reason', 'reason', elastic=True),
        columns.Column('Cell ID', 'cell'),
        columns.Column('Started At', 'started_at', columns.Time),
        columns.Column('ID', 'id'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            '--binary',
            metavar='<binary>',
            type=_binary,
            help='list only this program: api, conductor or compute',
        )
        add('--host', metavar='<host>', help='list only services on this host')
        add('--status', choices=('up', 'down', 'unknown'), help='list only services in this state')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {key: getattr(parsed_args, key) for key in ('binary', 'host', 'status')}
