# SPDX-License-Identifier: Apache-2.0
"""A list of rows is one parameter; values that do not fit a column are refused before."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception
from nova_precache.db.engine import models, row_list, session
from tests.unit.conftest import World

COLUMNS: Mapping[str, sa.types.TypeEngine[Any]] = {
    'number': sa.BigInteger(),
    'word': sa.String(5),
    'at': sa.DateTime(),
    'more': sa.JSON(),
}
ROW: Mapping[str, Any] = {
    'number': 2**63 - 1,
    'word': 'é\'"\\%',
    'at': datetime.datetime(2026, 1, 2, 3, 4, 5, 60),  # noqa: DTZ001 - as the database keeps it
    'more': {'a': [1, None]},
}
EMPTY: Mapping[str, Any] = dict.fromkeys(COLUMNS)


def test_values_arrive_unchanged(world: World) -> None:
    some = row_list.RowList('some', COLUMNS)
    query = sa.select(some.c.number, some.c.word, some.c.at, some.c.more)

    with world.database.reader() as reader:
        rows = session.run(reader, query, some.values([ROW, EMPTY])).all()

    assert [row._asdict() for row in rows] == [ROW, EMPTY]


@pytest.mark.parametrize(
    ('column', 'value'),
    [
        *(('number', value) for value in (2**63, -(2**63) - 1, True, 1.5, '1')),
        *(('word', value) for value in ('sixsix', 1, {'a': 1})),
        *(('at', value) for value in ('2026-01-01', 1)),
        *(('more', value) for value in ({'a': float('nan')}, {'a': object()})),
    ],
)
def test_unfit_value_is_refused(column: str, value: object) -> None:
    some = row_list.RowList('some', COLUMNS)

    with pytest.raises(exception.DataRefused):
        some.values([ROW, {**ROW, column: value}])


def test_rows_joined_by_key(world: World) -> None:
    for host in ('h1', 'h2', 'h3'):
        world.living(host)
    columns: Mapping[str, sa.types.TypeEngine[Any]] = {
        'host': sa.String(255),
        'free': sa.BigInteger(),
    }
    some = row_list.RowList('some', columns)
    agent = session.table(models.Agent)
    change = sa.update(agent).where(agent.c.host == some.c.host).values(free_bytes=some.c.free)
    rows: list[Mapping[str, Any]] = [
        {'host': 'h1', 'free': 1},
        {'host': 'h3', 'free': None},
        {'host': 'h9', 'free': 9},
    ]

    changed = world.database.write(
        lambda writer: session.rowcount(session.run(writer, change, some.values(rows)))
    )

    assert changed == 2
    assert json.loads(some.values(rows)['some']) == rows
    assert [each.free_bytes for each in world.agents.list()] == [1, None, None]
