# SPDX-License-Identifier: Apache-2.0
"""Values that no field of a message may have, by the kind of the field."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nova_precache import model

_NO_TEXTS = (5, True, 1.5, ['a'], {'a': 1}, b'a')
_BAD_TEXTS = ('a\0b', 'a\nb', '\x1b[31m', '\ud800', 'a\u2028b', '\x85')
_NO_NUMBERS = ('5', True, 1.0, math.nan, math.inf, [5], {'a': 5}, -1, -(2**70), 2**63, 2**70)
_DEEP: dict[str, Any] = {}
for _ in range(50):
    _DEEP = {'a': _DEEP}

HOST = (
    None, '', *_NO_TEXTS, *_BAD_TEXTS, '../../evil\n\x1b[31m', 'a/b', 'a b', 'h1\n', 'h:1', 'hö',
    'h' * 256, 'h' * 4000,
)  # fmt: skip
ID = (None, '', *_NO_TEXTS, *_BAD_TEXTS, 'x' * 37)
JOB = (*ID, '../x', 'a b', 'a\n')
NUMBER = (None, *_NO_NUMBERS)
BYTES = _NO_NUMBERS
IMAGE_BYTES = (*_NO_NUMBERS, 2**63 - 1)
FLAG = (None, 1, 0, 'true', [True])
TIME = (
    None, 5, '', 'yesterday', '2026-01-02', '2026-01-02T03:04:05', '0001-01-01T00:00:00+14:00',
    '0001-01-01T00:00:00Z', '1969-12-31T23:59:59Z', '9999-12-31T23:59:59-14:00', '2026-01-02T03:04'
    ':05Z' + ' ' * 99, '٢026-01-02T03:04:05Z', 'x' * 10_000, {'a': 1},
)  # fmt: skip

STATE: Mapping[str, Sequence[Any]] = {
    'host': HOST,
    'agent_id': ID,
    'boot_id': (*_NO_TEXTS, *_BAD_TEXTS, 'x' * 65),
    'version': (*_NO_TEXTS, *_BAD_TEXTS, 'x' * 65),
    'driver': (*_NO_TEXTS, *_BAD_TEXTS, 'x' * 256),
    'store_id': (*_NO_TEXTS, *_BAD_TEXTS, 'x' * 301),
    'cache_bytes': BYTES,
    'free_bytes': BYTES,
    'capabilities': (
        None, 'all', 5, ['a'], _DEEP, {'a': math.nan}, {'a': '\ud800'}, {'\0': 1}, {'a': 2**70},
        {'a': 'x' * 10_000}, {str(n): n for n in range(1000)}, {'a': [[[[[1]]]]]}, {'a': b'x'},
        {'reserved_disk_bytes': -1}, {'reserved_disk_bytes': '5'}, {'reserved_disk_bytes': 2**63},
        {'reserved_disk_bytes': True}, {'force_raw_images': 1}, {'force_raw_images': 'yes'},
        {'a': list(range(100_000))}, {5: 1}, {'a': {str(n): list(range(20)) for n in range(20)}},
        {str(n): 'x' * 255 for n in range(40)},
    ),
}  # fmt: skip
PROGRESS: Mapping[str, Sequence[Any]] = {
    'status': (None, *_NO_TEXTS, *_BAD_TEXTS, '', 'x' * 33, 'cached', 'error', 'cancelled', 'a b'),
    'bytes_done': (None, *IMAGE_BYTES),
    'bytes_total': IMAGE_BYTES,
    'rate_bytes': IMAGE_BYTES,
}
IMAGE: Mapping[str, Sequence[Any]] = {
    'name': (None, *_NO_TEXTS),
    'size_bytes': (None, *BYTES),
    'disk_bytes': (None, *BYTES),
    'touched_at': TIME,
    'used_by': (*BYTES, 2**31),
}
OUTCOME: Mapping[str, Sequence[Any]] = {
    'status': (None, *_NO_TEXTS, *_BAD_TEXTS, '', 'x' * 33, 'queued', 'downloading', 'a b'),
    'reason': (5, ['a'], {'a': 1}, True, b'x'),
    'retry': (None, 'a b', 5, ['never'], {'a': 1}, '\ud800', 'x' * 10_000),
    'gained_bytes': IMAGE_BYTES,
    'bytes_done': (None, *IMAGE_BYTES),
    'bytes_total': IMAGE_BYTES,
    'at_once': FLAG,
    'seconds': ('5', True, math.nan, math.inf, -1, [5], {'a': 5}),
}
REMOVAL: Mapping[str, Sequence[Any]] = {
    'status': (None, *_NO_TEXTS, *_BAD_TEXTS, '', 'x' * 33, 'a b'),
    'reason': (5, ['a'], {'a': 1}, True, b'x'),
    'freed_bytes': (None, *BYTES),
    'names': (None, 5, 'name', {'a': 1}, [None], ['a\0b'], ['x' * 256], ['a'] * 10_001),
}
OPTIONS: Mapping[str, Sequence[Any]] = {
    'max_rate_bytes': (0, *_NO_NUMBERS),
    'deadline_seconds': ('5', True, math.nan, math.inf, [5], {'a': 5}),
    'is_last_attempt': FLAG[1:],
}
NO_OBJECT = (None, 5, 'text', ['a'], True, math.nan)


def fields(
    read: Callable[..., object],
    good: model.Json,
    odd: Mapping[str, Sequence[Any]],
    *more: object,
) -> Iterator[tuple[Callable[[Any], object], Any, str]]:
    """Return a reader, a message with one odd value, and the name of the field."""

    def read_it(message: Any) -> object:
        return read(message, *more)

    for name, values in odd.items():
        for value in values:
            yield read_it, {**good, name: value}, name
