# SPDX-License-Identifier: Apache-2.0
"""Values in messages to people: sizes with a unit, long values and lists cut short."""

import math
from collections.abc import Collection

_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB', 'ZiB', 'YiB')
_STEP = 1024
LONGEST = 80
MOST_ITEMS = 3


def size(count_bytes: float) -> str:
    """Format bytes: 50.0 MiB."""
    power = _power(count_bytes)
    if power == 0:
        return f'{count_bytes:.0f} B'
    return f'{count_bytes / _STEP**power:.1f} {_UNITS[power]}'


def shortage(needed_bytes: int, free_bytes: int) -> str:
    """Format a lack of space in one unit: needs 1.0 GiB, 0.4 GiB free.

    The former is rounded up and the latter down, so that they differ.
    """
    power = _power(needed_bytes)
    if power == 0:
        return f'needs {needed_bytes} B, {free_bytes} B free'
    tenth = _STEP**power / 10
    needed, free = math.ceil(needed_bytes / tenth) / 10, math.floor(free_bytes / tenth) / 10
    return f'needs {needed:.1f} {_UNITS[power]}, {free:.1f} {_UNITS[power]} free'


def value(given: object) -> str:
    """Format an input: the beginning of a long text, the first items of a list."""
    if isinstance(given, list | tuple) and given:
        return some(given)
    text = str(given)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def some(items: Collection[object]) -> str:
    """Format the first items of a list, and the number of the others."""
    first = ', '.join(value(each) for each in list(items)[:MOST_ITEMS])
    more = len(items) - MOST_ITEMS
    return first if more <= 0 else f'{first} and {more} more'


def _power(count_bytes: float) -> int:
    power = 0
    while abs(count_bytes) >= _STEP ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return power
