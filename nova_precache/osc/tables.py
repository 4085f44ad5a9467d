# SPDX-License-Identifier: Apache-2.0
"""Tables that are no wider than the terminal, or than 80 columns where there is none.

cliff fits a table only in a terminal, and then narrows each wide column alike, identifiers too.
Here, text wraps between words, first in the columns that say so, and then in all.
"""

import argparse
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TextIO

from cliff import columns as cliff
from cliff.formatters import table
from rich import cells

from nova_precache.osc import columns, command, naming
from nova_precache.osc.client import Json

# Columns are not made narrower.
LEAST_WIDTH = 8
# While there is room, elastic columns keep this width, others that of an id.
_ELASTIC_WIDTH = 12
_KEPT_WIDTH = 36
_PADDING = 3
_BORDER = 1
_PIECE = re.compile(r'[^./_-]*[./_-]|[^./_-]+')


class FittedTable(table.TableFormatter):
    """Formats tables that fit the width of the terminal, or ``--max-width``.

    :param elastic: titles of the columns to wrap first
    """

    def __init__(self, elastic: Collection[str] = ()) -> None:
        self._elastic = elastic

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        rows = [[_readable(cell) for cell in row] for row in data]
        natural = [max(map(_width, column)) for column in zip(column_names, *rows, strict=True)]
        widths = _narrow(
            natural,
            [cells.cell_len(name) for name in column_names],
            [name in self._elastic for name in column_names],
            _columns(parsed_args) - _BORDER - _PADDING * len(column_names),
        )
        fitted = [[wrap(*cell) for cell in zip(row, widths, strict=True)] for row in rows]
        super().emit_list(column_names, fitted, stdout, parsed_args)

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        names = max(map(cells.cell_len, ('Field', *column_names)))
        width = max(2 * LEAST_WIDTH, _columns(parsed_args) - _BORDER - 2 * _PADDING - names)
        fitted = [wrap(_readable(value), width) for value in data]
        super().emit_one(column_names, fitted, stdout, parsed_args)


class Lister(command.Lister):
    """The base of the commands that show a list."""

    def elastic(self) -> Collection[str]:
        """Return the titles of the columns that wrap before others."""
        return ()

    def fits(self, parsed_args: argparse.Namespace) -> bool:
        """Whether the table has to fit the terminal."""
        return True

    def produce_output(self, parsed_args: argparse.Namespace, *shown: Any) -> int:
        if parsed_args.formatter == 'table' and self.fits(parsed_args):
            self.formatter = FittedTable(self.elastic())
        return super().produce_output(parsed_args, *shown)


class ShowOne(command.ShowOne):
    """The base of the commands that show one thing."""

    def record(self, item: Json, parsed_args: argparse.Namespace) -> columns.Record:
        """Return the output for an item of the API; a table adds the names of images."""
        ids = item.get('images', ()) if parsed_args.formatter == 'table' else ()
        return columns.record(item, naming.image_names(self.app, ids))

    def produce_output(self, parsed_args: argparse.Namespace, *shown: Any) -> int:
        if parsed_args.formatter == 'table':
            self.formatter = FittedTable()
        return super().produce_output(parsed_args, *shown)


def wrap(text: str, width: int) -> str:
    """Wrap each line between words; break a word that is too long, if possible after ``-./_``."""
    return '\n'.join('\n'.join(_lines(line, width)) for line in text.split('\n'))


def _lines(line: str, width: int) -> Iterator[str]:
    """Yield the lines of one line; spaces stay as they are if it fits."""
    if cells.cell_len(line) <= width:
        yield line
        return
    said = ''
    for word in line.split():
        gap = ' ' if said else ''
        for piece in _pieces(word, width):
            if cells.cell_len(said + gap + piece) > width:
                yield said
                said, gap = '', ''
            said, gap = said + gap + piece, ''
    yield said


def _pieces(word: str, width: int) -> Iterator[str]:
    if cells.cell_len(word) <= width:
        yield word
        return
    for piece in _PIECE.findall(word):
        yield from cells.chop_cells(piece, width)


def _narrow(
    natural: Sequence[int], titles: Sequence[int], elastic: Sequence[bool], room: int
) -> Sequence[int]:
    """Return widths of columns that fit: of those that may be narrower, the widest first."""
    widths = list(natural)
    kept = [_ELASTIC_WIDTH if each else _KEPT_WIDTH for each in elastic]
    for least in (kept, [LEAST_WIDTH] * len(widths)):
        for _ in range(sum(widths) - room):
            able = [
                index
                for index, width in enumerate(widths)
                if width > max(least[index], titles[index])
            ]
            if not able:
                break
            widths[max(able, key=lambda index: widths[index])] -= 1
    return widths


def _readable(value: Any) -> str:
    return value.human_readable() if isinstance(value, cliff.FormattableColumn) else str(value)


def _width(text: str) -> int:
    return max(map(cells.cell_len, text.split('\n')))


def _columns(parsed_args: argparse.Namespace) -> int:
    return int(parsed_args.max_width) if parsed_args.max_width > 0 else _terminal_columns()


def _terminal_columns() -> int:
    """Return the width of the terminal, or 80."""
    return shutil.get_terminal_size().columns
