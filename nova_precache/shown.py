# SPDX-License-Identifier: Apache-2.0
"""Values in messages to people: sizes with a unit, long values and lists cut short."""

import math
from collections.abc import Collection

_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB', 'ZiB', 'YiB')
_STEP = 1024
LONGEST, LONGEST_MESSAGE = 80, 500
MOST_ITEMS = 3


def size(count_bytes: float) -> str:
    """Format bytes: 50.0 MiB."""
    power = _power(count_bytes)
    if power == 0:
        return f'{count_bytes:.0f} B'
    return f'{count_bytes / _STEP**power:.1f} {_UNITS[power]}'


def shortage(needed_bytes: int, free_bytes: int) -> str:
    """Format a lack of space: needs 1.0 GiB, 0.4 GiB free."""
    needed, free = excess(needed_bytes, free_bytes)
    return f'needs {needed}, {free} free'


def excess(more_bytes: int, fewer_bytes: int) -> tuple[str, str]:
    """Format two sizes in the unit of the first.

    It is rounded up, and the other one down, so that they differ as the sizes do.
    """
    power = _power(more_bytes)
    if power == 0:
        return f'{more_bytes} B', f'{fewer_bytes} B'
    tenth, unit = _STEP**power / 10, _UNITS[power]
    more, fewer = math.ceil(more_bytes / tenth) / 10, math.floor(fewer_bytes / tenth) / 10
    return f'{more:.1f} {unit}', f'{fewer:.1f} {unit}'


def value(given: object) -> str:
    """Format an input: the beginning of a long text, the first items of a list."""
    if isinstance(given, list | tuple) and given:
        return some(given)
    return _cut(str(given), LONGEST)


def text(message: str) -> str:
    """Cut a long message short, which may contain inputs."""
    return _cut(message, LONGEST_MESSAGE)


def some(items: Collection[object]) -> str:
    """Format the first items of a list, and the number of the others."""
    first = ', '.join(value(each) for each in list(items)[:MOST_ITEMS])
    more = len(items) - MOST_ITEMS
    return first if more <= 0 else f'{first} and {more} more'


def _cut(long: str, most: int) -> str:
    return long if len(long) <= most else f'{long[:most]}...'


def _power(count_bytes: float) -> int:
    power = 0
    while abs(count_bytes) >= _STEP ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return power
