# SPDX-License-Identifier: Apache-2.0
"""Format values: readable in a table, raw numbers in machine-readable output."""

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cliff import columns
from osc_lib.cli import format_columns

from nova_precache import shown
from nova_precache.osc.client import Json


def size(value: float | None) -> str:
    """Format bytes for humans: 50.0 MiB."""
    return '' if value is None else shown.size(value)


def rate(value: float | None) -> str:
    return f'{size(value)}/s' if value else ''


def duration(seconds: float | None) -> str:
    """Format seconds for humans: 0:01:30."""
    return '' if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


class Size(columns.FormattableColumn[int | None]):
    """Bytes."""

    def human_readable(self) -> str:
        return size(self._value)


class Rate(columns.FormattableColumn[int | None]):
    """Bytes per second."""

    def human_readable(self) -> str:
        return rate(self._value)


class Duration(columns.FormattableColumn[float | None]):
    """Seconds."""

    def human_readable(self) -> str:
        return duration(self._value)


class Lines(columns.FormattableColumn[list[Any]]):
    """A list, one item per line."""

    def human_readable(self) -> str:
        return '\n'.join(str(item) for item in self._value or ())


class Nothing(columns.FormattableColumn[Any]):
    """A value that is shown as empty if it is null."""

    def human_readable(self) -> str:
        return '' if self._value is None else str(self._value)


class Mapping(format_columns.DictColumn):
    """A mapping; entries that are null are omitted."""

    def human_readable(self) -> str:
        said = {key: value for key, value in (self._value or {}).items() if value is not None}
        return '\n'.join(f'{key}: {value}' for key, value in said.items())


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a list: its title, and how to get its value from an item."""

    title: str
    value: str | Callable[[Json], Any]
    form: Callable[[Any], columns.FormattableColumn[Any]] = Nothing

    def of(self, item: Json) -> columns.FormattableColumn[Any]:
        found = self.value(item) if callable(self.value) else item.get(self.value)
        return self.form(found)


Table = tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]


def table(shown: Sequence[Column], items: Iterable[Json]) -> Table:
    """Return a list in cliff's form; rows are built lazily."""
    rows = (tuple(column.of(item) for column in shown) for item in items)
    return tuple(column.title for column in shown), rows


def record(item: Json) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return one item in cliff's form; the key determines the format of its value."""
    return tuple(item), tuple(_form(key, value) for key, value in item.items())


def _form(key: str, value: Any) -> columns.FormattableColumn[Any]:
    if isinstance(value, dict):
        return Mapping(value)
    if isinstance(value, list):
        return Lines(value)
    if key.endswith('rate_bytes'):
        return Rate(value)
    if key.startswith('bytes_') or key.endswith('_bytes'):
        return Size(value)
    return Duration(value) if key.endswith('seconds') else Nothing(value)
