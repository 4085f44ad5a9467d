# SPDX-License-Identifier: Apache-2.0
"""The bases of all commands: errors of the API name the option that was typed, not its field."""

import argparse
import functools
from typing import NoReturn

from osc_lib.command import command

from nova_precache.osc import arguments, client


class Command(command.Command):
    """A command whose errors name its own options and arguments."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        self._parser = super().get_parser(prog_name)
        # Without the usage, which is longer than a screen for some commands.
        vars(self._parser)['error'] = functools.partial(_refuse, self._parser)
        return self._parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        client.of(self.app).names = arguments.names(self._parser)
        return super().run(parsed_args)


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.exit(2, f'{client.shorten(message)}\nSee: {parser.prog} --help\n')


class Lister(Command, command.Lister):
    """A command that shows a list."""


class ShowOne(Command, command.ShowOne):
    """A command that shows one object."""
