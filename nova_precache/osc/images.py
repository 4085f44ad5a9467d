# SPDX-License-Identifier: Apache-2.0
"""openstack precache image list, show, host list: the images that hosts have cached."""

import argparse
from typing import Any

from nova_precache.osc import arguments, client, columns, listing, naming, resolving, tables

_SORT_KEYS = ('size_bytes', 'disk_bytes', 'touched_at', 'used_by')
_USE = (
    columns.Column('Size', 'size_bytes', columns.Size),
    columns.Column('Used By', 'used_by'),
    columns.Column('Age', 'age_seconds', columns.Duration),
)
_FILE = (
    columns.Column('On Disk', 'disk_bytes', columns.Size),
    columns.Column('Touched At', 'touched_at', columns.Time),
)


class List(listing.Lister):
    """List the images in the cache of a host, as it last reported them."""

    collection = 'images'
    sort_keys = ('name', *_SORT_KEYS)
    first_columns = (
        columns.Column('Image', 'image_id', elastic=True, named=True),
        *_USE,
        columns.Column('Pinned', 'pinned', columns.YesNo),
    )
    more_columns = (
        *_FILE,
        columns.Column('Image ID', 'image_id'),
        columns.Column('File', 'name'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--host', metavar='<host>', required=True, help='host whose cache to list'
        )

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return 'hosts', parsed_args.host, 'images'


class ListHosts(listing.Lister):
    """List the hosts that have an image in their cache."""

    collection = 'hosts'
    sort_keys = ('host', *_SORT_KEYS)
    first_columns = (columns.Column('Host', 'host'), columns.Column('Cell', 'cell_name'), *_USE)
    more_columns = (*_FILE, columns.Column('Cell ID', 'cell'))

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('image', metavar='<image>', help='image (name or ID)')
        arguments.add_aggregate(parser, 'hosts')

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return 'images', resolving.image_id(self.app, parsed_args.image), 'hosts'

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {'aggregate': parsed_args.aggregate}


class Show(tables.ShowOne):
    """Show an image: how many hosts have it, on how many bytes, and which pins keep it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('image', metavar='<image>', help='image (name or ID)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        image_id = resolving.image_id(self.app, parsed_args.image)
        service = client.of(self.app)
        holders = list(service.pages('images', image_id, 'hosts', collection='hosts'))
        hosts = sum(1 for _ in service.pages('hosts', collection='hosts'))
        pins = service.pages('pins', collection='pins', query={'status': 'active'})
        known = naming.find_image(self.app, image_id)
        shown = {
            'id': image_id,
            'name': known.get('name'),
            'status': known.get('status'),
            'size_bytes': known.get('size'),
            'hosts_cached': len(holders),
            'hosts_total': hosts,
            'disk_bytes': sum(holder['disk_bytes'] for holder in holders),
            'pinned_by': [pin['id'] for pin in pins if image_id in pin['images']],
        }
        return self.record(shown, parsed_args)
