# SPDX-License-Identifier: Apache-2.0
"""Converts times: RFC 3339 in the API, naive UTC inside, as the database stores it."""

import datetime
import re

_FORMAT = re.compile(
    r'\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?', re.ASCII
)
_FIRST_YEAR = 1001  # MySQL's is 1000, and a zone may shift a time into the year before


def to_text(value: datetime.datetime | None) -> str | None:
    """Format a time; None stays None."""
    return None if value is None else f'{value.isoformat(timespec="microseconds")}Z'


def from_text(text: str) -> datetime.datetime:
    """Parse a time; without a zone, it is UTC.

    :raises ValueError: it is not a time, or in a year that some databases do not support
    """
    if _FORMAT.fullmatch(text) is None:
        raise ValueError(f'{text} is not an RFC 3339 time')
    there = datetime.datetime.fromisoformat(text.upper())
    if not _FIRST_YEAR <= there.year < datetime.MAXYEAR:
        raise ValueError(f'{text} is too early or too late')
    if there.tzinfo is None:
        return there
    return there.astimezone(datetime.UTC).replace(tzinfo=None)
