# SPDX-License-Identifier: Apache-2.0
"""openstack precache image list, show: the images that hosts have cached."""

import argparse

from osc_lib.command import command

from nova_precache.osc import arguments, client, columns, resolving

_SIZES = (
    columns.Column('Size', 'size_bytes', columns.Size),
    columns.Column('On Disk', 'disk_bytes', columns.Size),
    columns.Column('Touched At', 'touched_at'),
    columns.Column('Age', 'age_seconds', columns.Duration),
    columns.Column('Used By', 'used_by'),
)
ON_HOST = (
    columns.Column('Image', 'image_id'),
    *_SIZES,
    columns.Column('Pinned', 'pinned'),
    columns.Column('Name', 'name'),
)
OF_IMAGE = (columns.Column('Host', 'host'), columns.Column('Cell', 'cell'), *_SIZES)


class List(command.Lister):
    """List the images in the cache of a host, as it last reported them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--host', metavar='<host>', required=True, help='the host')
        arguments.add_paging(parser, 'images')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        found = client.of(self.app).pages(
            *('hosts', parsed_args.host, 'images'),
            collection='images',
            query={'marker': parsed_args.marker},
            limit=parsed_args.limit,
        )
        return columns.table(ON_HOST, found)


class Show(command.Lister):
    """Show which hosts have an image in their cache."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('image', metavar='<image>', help='image (name or ID)')
        arguments.add_paging(parser, 'hosts')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        (image_id,) = resolving.image_ids(self.app, [parsed_args.image])
        found = client.of(self.app).pages(
            *('images', image_id, 'hosts'),
            collection='hosts',
            query={'marker': parsed_args.marker},
            limit=parsed_args.limit,
        )
        return columns.table(OF_IMAGE, found)
