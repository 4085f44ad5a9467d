# SPDX-License-Identifier: Apache-2.0
"""The base of the commands that list a collection of the API, page by page."""

import argparse
from collections.abc import Sequence
from typing import ClassVar

from osc_lib.command import command

from nova_precache.osc import arguments, client, columns


class Lister(command.Lister):
    """Lists the items of a collection.

    :cvar collection: the key of the list in each answer, and the noun in the help
    :cvar more_columns: shown in addition with ``--long``; without any there is no such option
    """

    collection: ClassVar[str]
    first_columns: ClassVar[Sequence[columns.Column]]
    more_columns: ClassVar[Sequence[columns.Column]] = ()

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
        arguments.add_paging(parser, self.collection)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> columns.Table:
        found = client.of(self.app).pages(
            *self.path(parsed_args),
            collection=self.collection,
            query={**self.query(parsed_args), 'marker': parsed_args.marker},
            limit=parsed_args.limit,
        )
        more = self.more_columns if self.more_columns and parsed_args.long else ()
        return columns.table((*self.first_columns, *more), found)
