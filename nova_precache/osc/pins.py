# SPDX-License-Identifier: Apache-2.0
"""openstack precache pin create, list, show, delete: images that stay cached."""

import argparse
from typing import Any

from osc_lib import exceptions

from nova_precache.osc import arguments, client, columns, command, listing, resolving, tables


class Create(tables.ShowOne):
    """Keep images cached on every host of an aggregate, including hosts added later."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'images', metavar='<image>', nargs='+', help='images to keep cached (names or IDs)'
        )
        parser.add_argument(
            '--aggregate',
            metavar='<aggregate>',
            required=True,
            help='aggregate whose hosts keep the images (name, ID or UUID)',
        )
        arguments.add_until(parser)
        parser.add_argument('--description', metavar='<text>', help='description of the pin')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        said = {
            'aggregate': parsed_args.aggregate,
            'images': resolving.image_ids(self.app, parsed_args.images),
            'until': parsed_args.until,
            'description': parsed_args.description,
        }
        answer = client.of(self.app).post('pins', body={'pin': arguments.given(said)})
        return self.record(answer['pin'], parsed_args)


class List(listing.Lister):
    """List pins."""

    collection = 'pins'
    sort_keys = ('created_at', 'until', 'status', 'checked_at', 'ended_at')
    first_columns = (
        columns.Column('ID', 'id'),
        columns.Column('Status', 'status'),
        columns.Column('Aggregate', lambda pin: pin['aggregate']['name'], elastic=True),
        columns.Column('Images', 'images', columns.Lines, elastic=True, named=True),
    )
    more_columns = (
        columns.Column('Until', 'until', columns.Time),
        columns.Column('Reason', 'reason', elastic=True),
        columns.Column('Description', 'description', elastic=True),
        columns.Column('Image IDs', 'images', columns.Lines),
        columns.Column('Project', 'project_id'),
        columns.Column('User', 'user_id'),
        columns.Column('Created At', 'created_at', columns.Time),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--status', choices=('active', 'ended'), help='list only pins in this state'
        )
        arguments.add_aggregate(parser, 'pins')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {'status': parsed_args.status, 'aggregate': parsed_args.aggregate}


class Show(tables.ShowOne):
    """Show a pin and how many of its required images are cached."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pin', metavar='<pin>', help='pin (ID)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        answer = client.of(self.app).get('pins', parsed_args.pin)
        return self.record(answer['pin'], parsed_args)


class Delete(command.Command):
    """Delete pins; their images stay cached until they expire."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pins', metavar='<pin>', nargs='+', help='pins (IDs)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        refused = []
        for pin in parsed_args.pins:
            try:
                client.of(self.app).delete('pins', pin)
            except client.ApiError as error:
                refused.append(str(error))
        if refused:
            raise exceptions.CommandError('\n'.join(refused))
