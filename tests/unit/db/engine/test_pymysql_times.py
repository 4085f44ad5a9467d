# SPDX-License-Identifier: Apache-2.0
"""Times of rows are read as the driver reads them."""

import pytest
from pymysql import converters

from nova_precache.db.engine import pymysql_times


@pytest.mark.parametrize(
    'text',
    [
        '2026-01-02 03:04:05',
        '2026-01-02 03:04:05.000006',
        '9999-12-31 23:59:59.999999',
        '0000-00-00 00:00:00',
        '2026-02-31 00:00:00.000000',
    ],
)
def test_times_read_as_by_driver(text: str) -> None:
    assert pymysql_times.from_text(text) == converters.convert_datetime(text)
