# SPDX-License-Identifier: Apache-2.0
"""Each server gets the database's clock, and many keys, in its own words."""

import datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql

from nova_precache.db.engine import expressions, models, session
from tests.unit.conftest import World


def test_stored_time_compares_with_database_clock(
    database: session.Database,
) -> None:
    """SQLite compares text, so the spelling must be the same to the last digit."""

    def work(writer: orm.Session) -> tuple[bool, bool]:
        now = session.now(writer).replace(microsecond=0)
        later = now + datetime.timedelta(seconds=60)
        clock = expressions.database_now()
        return (
            writer.scalars(sa.select(sa.literal(now, sa.DateTime()) <= clock)).one(),
            writer.scalars(sa.select(sa.literal(later, sa.DateTime()) <= clock)).one(),
        )

    assert database.write(work) == (True, False)


@pytest.mark.parametrize(
    ('dialect', 'spelling'),
    [
        (mysql.dialect, 'UTC_TIMESTAMP(6)'),
        (postgresql.dialect, "(clock_timestamp() AT TIME ZONE 'UTC')"),
    ],
)
def test_database_clock_has_fractions(dialect: type[sa.Dialect], spelling: str) -> None:
    assert spelling in str(sa.select(expressions.database_now()).compile(dialect=dialect()))


def test_many_keys_are_one_parameter() -> None:
    job = session.table(models.Job)
    query = sa.select(job.c.id).where(expressions.among(job.c.uuid, expressions.keys()))

    made = query.compile(dialect=postgresql.psycopg.dialect())

    assert str(made).endswith('WHERE jobs.uuid = ANY (%(keys)s::TEXT[])')
    assert made.construct_params({'keys': ['a', 'b']}) == {'keys': ['a', 'b']}


@pytest.mark.parametrize('keys', [[], ['j2'], ['j1', 'none', 'j2']])
def test_rows_found_among_keys(world: World, keys: list[str]) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    ids = {f'j{number}': job.uuid for number, job in enumerate(world.all_jobs(), 1)}
    job = session.table(models.Job)
    query = sa.select(job.c.uuid).where(expressions.among(job.c.uuid, expressions.keys()))

    with world.database.reader() as reader:
        asked = {'keys': [ids.get(key, key) for key in keys]}
        found = set(session.run(reader, query, asked).scalars())

    assert found == {ids[key] for key in keys if key in ids}
