# SPDX-License-Identifier: Apache-2.0
"""Sizes, long values and lists, as people read them."""

import pytest

from nova_precache import shown

KIB, GIB = 1024, 1024**3


@pytest.mark.parametrize(
    ('count_bytes', 'text'),
    [
        (0, '0 B'),
        (1023, '1023 B'),
        (KIB, '1.0 KiB'),
        (50 * KIB**2, '50.0 MiB'),
        (1.5 * GIB, '1.5 GiB'),
        (KIB**9, '1024.0 YiB'),
    ],
)
def test_sizes_shown_with_unit(count_bytes: float, text: str) -> None:
    assert shown.size(count_bytes) == text


@pytest.mark.parametrize(
    ('needed_bytes', 'free_bytes', 'text'),
    [
        (GIB, 2 * GIB // 5, 'needs 1.0 GiB, 0.3 GiB free'),
        (GIB, GIB // 2, 'needs 1.0 GiB, 0.5 GiB free'),
        (GIB + 2, GIB + 1, 'needs 1.1 GiB, 1.0 GiB free'),
        (GIB, GIB - 1, 'needs 1.0 GiB, 0.9 GiB free'),
        (9, 0, 'needs 9 B, 0 B free'),
    ],
)
def test_shortage_shown_in_one_unit(needed_bytes: int, free_bytes: int, text: str) -> None:
    assert shown.shortage(needed_bytes, free_bytes) == text


@pytest.mark.parametrize(
    ('given', 'text'),
    [
        ('short', 'short'),
        ('x' * 81, 'x' * 80 + '...'),
        (['a', 'b', 'c'], 'a, b, c'),
        (['a', 'b', 'c', 'd', 'e'], 'a, b, c and 2 more'),
        (['x' * 90], 'x' * 80 + '...'),
        ([], '[]'),
        (None, 'None'),
        (5, '5'),
    ],
)
def test_long_values_cut_short(given: object, text: str) -> None:
    assert shown.value(given) == text
