# SPDX-License-Identifier: Apache-2.0
"""The migrations make what the models say, and never touch Nova's database."""

import pathlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration

from nova_precache import exception
from nova_precache.cells import models as cell_models
from nova_precache.db import models, schema, session
from tests.unit.conftest import CACHED, World, open_database


@pytest.fixture
def new_database(tmp_path: pathlib.Path) -> Iterator[session.Database]:
    made = open_database(tmp_path / 'new.sqlite')
    yield made
    made.dispose()


def _tables(database: session.Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def test_the_migrations_make_exactly_the_tables_of_the_models(
    new_database: session.Database,
) -> None:
    schema.sync(new_database)

    everything = sa.MetaData()
    for base in (models.Base, cell_models.Base):
        for table in base.metadata.tables.values():
            table.to_metadata(everything)
    with new_database.engine.connect() as connection:
        context = migration.MigrationContext.configure(
            connection,
            opts={'version_table': schema.VERSION_TABLE, 'compare_type': True},
        )
        assert autogenerate.compare_metadata(context, everything) == []


def test_the_counters_that_transactions_compare_are_there(new_database: session.Database) -> None:
    schema.sync(new_database)

    with new_database.reader() as reader:
        rows = reader.scalars(sa.select(models.Counter)).all()
    assert {row.name: row.value for row in rows} == {'claimed_hosts': 0, 'requests': 0}


def test_a_second_sync_changes_nothing(new_database: session.Database) -> None:
    schema.sync(new_database)
    new_database.write(
        lambda writer: writer.execute(session.update(models.Counter).values(value=7))
    )
    before = _tables(new_database)

    schema.sync(new_database)

    assert _tables(new_database) == before
    with new_database.reader() as reader:
        assert set(reader.scalars(sa.select(models.Counter.value))) == {7}


def _set_revision(database: session.Database, revision: str) -> None:
    version = sa.table(schema.VERSION_TABLE, sa.column('version_num'))
    with database.engine.begin() as connection:
        connection.execute(sa.update(version).values(version_num=revision))


def test_the_tables_of_an_earlier_release_are_refused(new_database: session.Database) -> None:
    schema.sync(new_database)
    _set_revision(new_database, '0001')

    with pytest.raises(exception.ConfigError, match=r'revision 0001\); run nova-precache-manage'):
        schema.require(new_database)


def test_the_tables_of_a_later_release_are_taken(new_database: session.Database) -> None:
    schema.sync(new_database)
    _set_revision(new_database, '9999')

    schema.require(new_database)


def test_an_older_database_is_brought_up_to_date_with_what_is_in_it(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    with world.database.engine.begin() as connection:
        connection.execute(sa.text('DROP TABLE announcements'))
    _set_revision(world.database, '0001')

    schema.sync(world.database)

    assert world.to_announce(request) == []
    begun = world.begun()
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.requests.complete(request.id)
    assert world.to_announce(request) == ['h1', 'end']


def test_a_database_is_refused_until_it_was_synced(new_database: session.Database) -> None:
    with pytest.raises(exception.ConfigError, match='run nova-precache-manage db sync'):
        schema.require(new_database)

    schema.sync(new_database)

    schema.require(new_database)


def test_the_database_of_a_nova_is_refused_and_left_as_it_is(
    new_database: session.Database,
) -> None:
    with new_database.engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE request_specs (id INTEGER)'))

    with pytest.raises(exception.ConfigError, match=r'\[database\] connection .*request_specs'):
        schema.sync(new_database)

    assert _tables(new_database) == {'request_specs'}
