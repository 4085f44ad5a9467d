# SPDX-License-Identifier: Apache-2.0
"""What the commands of the benchmarks share: options that are lists, and how results are shown."""

import argparse
import dataclasses
import datetime
import json
import logging
import pathlib
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from benchmarks import report


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with the result of a command; on Ctrl-C and SIGTERM it cleans up first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def log_progress(level: int = logging.INFO) -> None:
    logging.basicConfig(level=level, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')


def fail(reason: object) -> int:
    """Print why the command failed and return its exit status."""
    print(reason, file=sys.stderr)
    return 1


def names(known: Iterable[str], what: str) -> Callable[[str], list[str]]:
    """Return the type of an option that takes some known names, separated by commas."""

    def parse(text: str) -> list[str]:
        found = text.split(',')
        if unknown := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f'no such {what}: {", ".join(unknown)}')
        return found

    return parse


def numbers(minimum: int) -> Callable[[str], list[int]]:
    """Return the type of an option that takes numbers, separated by commas."""

    def parse(text: str) -> list[int]:
        found = [int(word) for word in text.split(',')]
        if min(found) < minimum:
            raise argparse.ArgumentTypeError(f'{min(found)} is less than {minimum}')
        return found

    return parse


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', type=pathlib.Path, help='write all results to this file')
    parser.add_argument('--rst', type=pathlib.Path, help='write the tables to this file, as RST')
    parser.add_argument('--check', action='store_true', help='fail if a target is missed')


def command(
    environment: str,
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    options: Iterable[str],
) -> str:
    """Return the command that measures the same again.

    :param environment: of tox
    :param options: those that are not about the output
    """
    words = []
    for option in options:
        field = option.replace('-', '_')
        value = getattr(given, field)
        if value == parser.get_default(field):
            continue
        if isinstance(value, bool):
            words.append(f'--{option}' if value else f'--no-{option}')
        else:
            listed = value if isinstance(value, list) else [value]
            words.append(f'--{option}={",".join(map(str, listed))}')
    return ' '.join([f'tox -e {environment}', *(['--', *words] if words else [])])


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a command.

    :ivar command: measures the same again
    :ivar summary: of its options
    :ivar document: more fields of the JSON document
    """

    command: str
    summary: str
    machine: str
    tables: Sequence[report.Table]
    findings: Sequence[report.Finding] = ()
    document: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def publish(self, *, rst: pathlib.Path | None, json_file: pathlib.Path | None = None) -> None:
        """Print the tables, and write the files that are asked for."""
        tables = list(self.tables)
        if self.findings:
            tables.append(report.compared(self.findings))
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        print(f'\n{today}, {self.summary}. {self.machine}')
        for table in tables:
            print('\n' + report.text(table))
        if rst:
            heading = f'``{self.command}``, {today}. {self.machine}'
            rst.write_text('\n\n'.join([heading, *map(report.restructured, tables)]) + '\n')
        if json_file:
            document = {
                'date': today,
                'machine': self.machine,
                **self.document,
                'findings': [
                    {**dataclasses.asdict(each), 'is_met': each.is_met} for each in self.findings
                ],
            }
            json_file.write_text(json.dumps(document, indent=2) + '\n')

    def status(self, given: argparse.Namespace) -> int:
        """Return the exit status: 1 if a target is missed that is to be checked."""
        return 1 if given.check and not all(each.is_met for each in self.findings) else 0
