# SPDX-License-Identifier: Apache-2.0
"""Format values: readable in a table, raw numbers in machine-readable output."""

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cliff import columns
from osc_lib.cli import format_columns

from nova_precache import shown
from nova_precache.osc.client import Json

# Ids of images, and their names in the image service.
Names = Mapping[str, str]

# The ends of the keys of times.
_TIMES = ('_at', '_since', 'until', 'not_before', 'deadline')
_FRACTION = re.compile(r'(?<=:\d\d)\.\d+')


def size(value: float | None) -> str:
    """Format bytes for humans: 50.0 MiB."""
    return '' if value is None else shown.size(value)


def rate(value: float | None) -> str:
    return f'{size(value)}/s' if value else ''


def duration(seconds: float | None) -> str:
    """Format seconds for humans: 0:01:30, and 12 d 0:01:30."""
    if seconds is None:
        return ''
    span = datetime.timedelta(seconds=round(seconds))
    rest = str(span - datetime.timedelta(days=span.days))
    return f'{span.days} d {rest}' if span.days else rest


def time(iso: str | None) -> str:
    """Format a time of the API for humans: without the fraction of a second."""
    return '' if iso is None else _FRACTION.sub('', str(iso))


def percent(done: int, total: int | None) -> int | None:
    """Return the whole percent that are done, 100 only for all; None if the total is unknown."""
    return min(100, 100 * done // total) if total else None


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


class Time(columns.FormattableColumn[str | None]):
    """A time of the API."""

    def human_readable(self) -> str:
        return time(self._value)


class Percent(columns.FormattableColumn[int | None]):
    """A number of percent."""

    def human_readable(self) -> str:
        return '' if self._value is None else f'{self._value}%'


class YesNo(columns.FormattableColumn[bool | None]):
    """A boolean; null is unknown."""

    def human_readable(self) -> str:
        return {True: 'yes', False: 'no'}.get(self._value, '')  # type: ignore[arg-type]


class Images(columns.FormattableColumn[list[str] | str | None]):
    """The id of an image, or several, one per line: shown as names where those are known."""

    def __init__(self, value: list[str] | str | None, names: Names) -> None:
        super().__init__(value)
        self._names = names

    def human_readable(self) -> str:
        return '\n'.join(self._names.get(each, each) for each in _ids(self._value))


class ImagesWithIds(Images):
    """The ids of images, one per line, with the names that are known."""

    def human_readable(self) -> str:
        lines = (
            f'{self._names[each]} ({each})' if each in self._names else each
            for each in _ids(self._value)
        )
        return '\n'.join(lines)


class Lines(columns.FormattableColumn[list[Any]]):
    """A list, one item per line."""

    def human_readable(self) -> str:
        return '\n'.join(str(item) for item in self._value or ())


class Nothing(columns.FormattableColumn[Any]):
    """A value that is shown as empty if it is null."""

    def human_readable(self) -> str:
        return '' if self._value is None else str(self._value)


class Entries(format_columns.DictColumn):
    """A mapping; the key determines the format of a value, entries that are null are omitted."""

    def human_readable(self) -> str:
        said = {key: value for key, value in (self._value or {}).items() if value is not None}
        return '\n'.join(f'{key}: {_form(key, it).human_readable()}' for key, it in said.items())


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a list: its title, and how to get its value from an item.

    :ivar elastic: a table that is too wide wraps this column before others
    :ivar named: the value is the id of an image, or several, which tables show as names
    """

    title: str
    value: str | Callable[[Json], Any]
    form: Callable[[Any], columns.FormattableColumn[Any]] = Nothing
    elastic: bool = False
    named: bool = False

    def of(self, item: Json) -> Any:
        return self.value(item) if callable(self.value) else item.get(self.value)


Table = tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]
Record = tuple[tuple[str, ...], tuple[Any, ...]]


def table(shown: Sequence[Column], items: Iterable[Json], names: Names | None = None) -> Table:
    """Return a list in cliff's form; rows are built lazily."""
    rows = (tuple(_cell(column, item, names or {}) for column in shown) for item in items)
    return tuple(column.title for column in shown), rows


def image_ids(shown: Sequence[Column], items: Iterable[Json]) -> set[str]:
    """Return the ids of the images that the columns of a list show as names."""
    named = [column for column in shown if column.named]
    return {found for item in items for column in named for found in _ids(column.of(item))}


def record(item: Json, names: Names) -> Record:
    """Return one item in cliff's form; the key determines the format of its value."""
    values = {key: _form(key, value) for key, value in item.items()}
    if 'images' in item:
        values['images'] = ImagesWithIds(item['images'], names)
    return tuple(values), tuple(values.values())


def _cell(column: Column, item: Json, names: Names) -> columns.FormattableColumn[Any]:
    value = column.of(item)
    return Images(value, names) if column.named else column.form(value)


def _ids(value: list[str] | str | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _form(key: str, value: Any) -> columns.FormattableColumn[Any]:
    if isinstance(value, dict):
        return Entries(value)
    if isinstance(value, list):
        return Lines(value)
    if isinstance(value, bool):
        return Nothing(value)
    if key.endswith('rate_bytes'):
        return Rate(value)
    if key.startswith('bytes_') or key.endswith('_bytes'):
        return Size(value)
    if key.endswith('seconds'):
        return Duration(value)
    return Time(value) if key.endswith(_TIMES) else Nothing(value)
