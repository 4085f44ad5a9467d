# SPDX-License-Identifier: Apache-2.0
"""Reads the times of PyMySQL's rows: the driver matches each with a regular expression.

A page of tasks has a hundred times.
"""

import datetime
from typing import Any

import sqlalchemy as sa


def read_faster(engine: sa.Engine) -> None:
    """Replace the converter of times of an engine's connections, if its driver is PyMySQL."""
    if engine.dialect.driver != 'pymysql':
        return
    from pymysql import converters
    from pymysql.constants import FIELD_TYPE

    kinds = (FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP)
    conversions = {**converters.conversions, **dict.fromkeys(kinds, from_text)}

    @sa.event.listens_for(engine, 'do_connect')
    def _convert(dialect: sa.Dialect, record: Any, places: Any, options: dict[str, Any]) -> None:
        options.setdefault('conv', conversions)


def from_text(text: str) -> datetime.datetime | str:
    """Read a time of a row; as in the driver, one that is none, such as all zeros, stays text."""
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
