# SPDX-License-Identifier: Apache-2.0
"""openstack precache image list, show: the images that hosts have cached."""

import argparse

from nova_precache.osc import columns, listing, resolving

_SIZES = (
    columns.Column('Size', 'size_bytes', columns.Size),
    columns.Column('On Disk', 'disk_bytes', columns.Size),
    columns.Column('Touched At', 'touched_at'),
    columns.Column('Age', 'age_seconds', columns.Duration),
    columns.Column('Used By', 'used_by'),
)


class List(listing.Lister):
    """List the images in the cache of a host, as it last reported them."""

    collection = 'images'
    first_columns = (
        columns.Column('Image', 'image_id'),
        *_SIZES,
        columns.Column('Pinned', 'pinned'),
        columns.Column('Name', 'name'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--host', metavar='<host>', required=True, help='host whose cache to list'
        )

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return 'hosts', parsed_args.host, 'images'


class Show(listing.Lister):
    """Show which hosts have an image in their cache."""

    collection = 'hosts'
    first_columns = (columns.Column('Host', 'host'), columns.Column('Cell', 'cell'), *_SIZES)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('image', metavar='<image>', help='image (name or ID)')

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return 'images', resolving.image_id(self.app, parsed_args.image), 'hosts'
