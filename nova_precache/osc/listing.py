# SPDX-License-Identifier: Apache-2.0
"""The base of the commands that list a collection of the API, page by page."""

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import ClassVar

from nova_precache.osc import arguments, client, columns, naming, tables


class Lister(tables.Lister):
    """Lists the items of a collection.

    The first columns fit a terminal of 80.

    :cvar collection: the key of the list in each answer, and the noun in the help
    :cvar more_columns: shown in addition with ``--long``; without any there is no such option
    :cvar sort_keys: the fields to sort by; without any there is no such option
    :cvar is_paged: the API returns it page by page, not at once
    """

    collection: ClassVar[str]
    first_columns: ClassVar[Sequence[columns.Column]]
    more_columns: ClassVar[Sequence[columns.Column]] = ()
    sort_keys: ClassVar[Sequence[str]] = ()
    is_paged: ClassVar[bool] = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments that choose the items."""

    def path(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return (self.collection,)

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        return {}

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        self.add_arguments(parser)
        if self.more_columns:
            parser.add_argument('--long', action='store_true', help='show additional columns')
        if self.sort_keys:
            arguments.add_sort(parser, self.sort_keys)
        if self.is_paged:
            arguments.add_paging(parser, self.collection)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        options = {key: getattr(parsed_args, key, None) for key in ('sort', 'marker')}
        found = client.of(self.app).pages(
            *self.path(parsed_args),
            collection=self.collection,
            query={**self.query(parsed_args), **options},
            limit=getattr(parsed_args, 'limit', None),
        )
        more = self.more_columns if _is_long(parsed_args) else ()
        shown = (*self.first_columns, *more)
        if parsed_args.formatter != 'table':
            return columns.table(shown, found)
        items = list(found)
        names = naming.image_names(self.app, columns.image_ids(shown, items))
        return columns.table(shown, items, names)

    def elastic(self) -> Collection[str]:
        return {each.title for each in (*self.first_columns, *self.more_columns) if each.elastic}

    def fits(self, parsed_args: argparse.Namespace) -> bool:
        # The long form is as wide as it needs to be, unless it meets a terminal.
        return not _is_long(parsed_args) or parsed_args.max_width > 0 or sys.stdout.isatty()


def _is_long(parsed_args: argparse.Namespace) -> bool:
    return bool(getattr(parsed_args, 'long', False))
