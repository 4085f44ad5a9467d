# SPDX-License-Identifier: Apache-2.0
"""openstack precache cache remove: remove images from the caches of hosts."""

import argparse
from collections.abc import Collection

from nova_precache.osc import client, columns, resolving, tables
from nova_precache.osc.client import Json

# A host without the image counts as success, so that the command can be repeated.
_GONE = frozenset({'removed', 'absent'})
_FAILED = 'error'


class Remove(tables.Lister):
    """Remove images from the caches of hosts, except images that are used or pinned there.

    Exit 0 if no host has an image any more, else 1.
    """

    _columns = (
        columns.Column('Host', 'host'),
        columns.Column('Image', 'image', elastic=True),
        columns.Column('Status', 'status'),
        columns.Column('Freed', 'freed_bytes', columns.Size),
        columns.Column('Reason', 'reason', elastic=True),
    )
    _is_done = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'images', metavar='<image>', nargs='+', help='images to remove (names or IDs)'
        )
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument(
            '--host',
            metavar='<host>',
            dest='hosts',
            action='append',
            help='remove from this host (repeat option for several hosts)',
        )
        where.add_argument(
            '--aggregate',
            metavar='<aggregate>',
            help='remove from the hosts of this aggregate that have the image (name, ID or UUID)',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        names = list(dict.fromkeys(parsed_args.images))
        ids = resolving.image_ids(self.app, names)
        # Every host is known before the first file is removed.
        wanted = [
            (host, name, image_id)
            for name, image_id in zip(names, ids, strict=True)
            for host in self._hosts(name, image_id, parsed_args)
        ]
        rows = [self._remove(*each) for each in wanted]
        self._is_done = all(row['status'] in _GONE for row in rows)
        return columns.table(self._columns, rows)

    def run(self, parsed_args: argparse.Namespace) -> int:
        return super().run(parsed_args) or int(not self._is_done)

    def elastic(self) -> Collection[str]:
        return {each.title for each in self._columns if each.elastic}

    def _hosts(self, name: str, image_id: str, parsed_args: argparse.Namespace) -> list[str]:
        """Return the named hosts, or those of the aggregate that have the image."""
        if parsed_args.hosts is not None:
            return list(dict.fromkeys(parsed_args.hosts))
        found = client.of(self.app).pages(
            *('images', image_id, 'hosts'),
            collection='hosts',
            query={'aggregate': parsed_args.aggregate},
        )
        hosts = [str(each['host']) for each in found]
        if not hosts:
            self.log.warning('No host of aggregate %s has image %s', parsed_args.aggregate, name)
        return hosts

    def _remove(self, host: str, name: str, image_id: str) -> Json:
        row = {'host': host, 'image': name, 'freed_bytes': None}
        try:
            answer = client.of(self.app).delete_and_read('hosts', host, 'images', image_id)
        except client.ApiError as error:
            return {**row, 'status': _FAILED, 'reason': str(error)}
        return {**row, **answer['removal']}
