# SPDX-License-Identifier: Apache-2.0
"""The migrations produce the tables of the models, and never touch Nova's database."""

import datetime
import hashlib
import pathlib
from collections.abc import Iterator

import alembic.command
import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration

from nova_precache import exception, model
from nova_precache.cells import models as cell_models
from nova_precache.db import requests, task_counts
from nova_precache.db.engine import models, schema, session
from tests import counting
from tests.unit.conftest import CACHED, open_database, open_world


@pytest.fixture
def new_database(tmp_path: pathlib.Path) -> Iterator[session.Database]:
    made = open_database(tmp_path / 'new.sqlite')
    yield made
    made.dispose()


def _tables(database: session.Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def test_migrations_match_models(
    new_database: session.Database,
) -> None:
    schema.sync(new_database)

    everything = sa.MetaData()
    for base in (models.Base, cell_models.InventoryBase):
        for table in base.metadata.tables.values():
            table.to_metadata(everything)
    with new_database.engine.connect() as connection:
        context = migration.MigrationContext.configure(
            connection,
            opts={'version_table': schema.VERSION_TABLE, 'compare_type': True},
        )
        assert autogenerate.compare_metadata(context, everything) == []


def test_transaction_counters_exist(new_database: session.Database) -> None:
    schema.sync(new_database)

    with new_database.reader() as reader:
        rows = reader.scalars(sa.select(models.Counter)).all()
    assert {row.name: row.value for row in rows} == {
        'claimed_hosts': 0,
        'requests': 0,
        'pins': 0,
        'counts_checked': 0,
    }


def test_second_sync_changes_nothing(new_database: session.Database) -> None:
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


def test_older_schema_is_refused(new_database: session.Database) -> None:
    schema.sync(new_database)
    _set_revision(new_database, '0001')

    with pytest.raises(exception.ConfigError, match=r'revision 0001\); run nova-precache-manage'):
        schema.require(new_database)


def test_newer_schema_is_accepted(new_database: session.Database) -> None:
    schema.sync(new_database)
    _set_revision(new_database, '9999')

    schema.require(new_database)


def test_later_tables_not_migrated(new_database: session.Database) -> None:
    schema.sync(new_database)
    _set_revision(new_database, '9999')

    with pytest.raises(
        exception.ConfigError, match=r'of a later release \(revision 9999, this one'
    ):
        schema.sync(new_database)


def _sync_to(database: session.Database, revision: str) -> None:
    """Create the tables of an earlier release."""
    with database.engine.begin() as connection:
        config = schema._alembic_config()
        config.attributes['connection'] = connection
        alembic.command.upgrade(config, revision)


# The columns whose values a driver does not take as they are.
_TYPES = {'images': sa.JSON(), 'created_at': sa.DateTime(), 'planned_at': sa.DateTime()}


def _insert(database: session.Database, table: str, **values: object) -> None:
    """Insert a row as an earlier release would."""
    columns = [sa.column(name, _TYPES.get(name)) for name in values]
    with database.engine.begin() as connection:
        connection.execute(sa.insert(sa.table(table, *columns)).values(**values))


def _insert_running_request(database: session.Database) -> None:
    """Insert the rows of 0002 for a request for two hosts, of which one is done."""
    now = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    asked = {'id': 'r1', 'number': 1, 'status': 'running', 'images': ['i1'], 'options': '{}'}
    of = {'aggregate_id': 1, 'aggregate_uuid': 'uuid-1', 'aggregate_name': 'edge'}
    counted = {'priority': 0, 'is_admin': False, 'hosts_total': 2, 'hosts_done': 1}
    _insert(database, 'cache_requests', **asked, **of, **counted, created_at=now, planned_at=now)
    work = {'image_id': 'i1', 'cell_uuid': 'c', 'attempts': 0, 'bytes_done': 0, 'created_at': now}
    job = {'uuid': 'j2', 'active_key': 'h2/i1', 'priority': 0, 'ready': True}
    done = {'mismatches': 0, 'progress_sequence': 0}
    _insert(database, 'jobs', host='h2', status='queued', **work, **job, **done)
    task = {'request_id': 'r1', **work}
    _insert(database, 'cache_tasks', host='h1', status='cached', job_uuid='j1', **task)
    _insert(database, 'cache_tasks', host='h2', status='queued', job_uuid='j2', **task)
    _insert(database, 'announcements', request_id='r1', position=1, phase='progress', host='h1')


def _insert_tasks(database: session.Database) -> None:
    """Insert tasks of r1 with all kinds of sizes, one of them at work."""
    now = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    common = {'request_id': 'r1', 'image_id': 'i1', 'attempts': 0, 'created_at': now}
    for number, (status, done, total) in enumerate(
        [
            ('error', 5, None),
            ('error', 7, 3),
            ('cached', 20, 20),
            ('queued', 0, 40),
            ('downloading', 9, 90),
        ]
    ):
        sizes = {'bytes_done': done, 'bytes_total': total}
        _insert(database, 'cache_tasks', host=f'x{number}', status=status, **common, **sizes)


def test_older_database_upgraded_with_data(
    new_database: session.Database,
) -> None:
    _sync_to(new_database, '0002')
    _insert_running_request(new_database)

    schema.sync(new_database)

    world = open_world(new_database)
    request = world.requests.get('r1')
    assert (request.options, request.hosts) == (model.RequestOptions(), None)
    assert world.requests.list(requests.RequestFilter(image_id='i1')) == [request]
    with new_database.reader() as reader:
        [named] = reader.scalars(sa.select(models.ImageName))
    assert (named.name, named.image_id) == (hashlib.sha1(b'i1').hexdigest(), 'i1')  # noqa: S324
    begun = world.begun()
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.requests.complete(request.id)
    assert world.announced(request) == [(1, 'h1', 1), (4, 'h2', 2), (5, 'end', None)]


def test_counters_filled_from_tasks(new_database: session.Database) -> None:
    _sync_to(new_database, '0008')
    _insert_running_request(new_database)
    _insert_tasks(new_database)

    schema.sync(new_database)

    counted = counting.counters(new_database)
    assert counted == counting.sums(new_database)
    assert (counted['r1 error tasks'], counted['r1 error bytes_total']) == (2, 12)
    with new_database.reader() as reader:
        made = set(reader.scalars(sa.select(models.TaskCount.status)))
    assert made == task_counts.COUNTED
    assert open_world(new_database).requests.get('r1').counts == {
        'cached': 2,
        'downloading': 1,
        'error': 2,
        'queued': 2,
    }


def test_unsynced_database_is_refused(new_database: session.Database) -> None:
    with pytest.raises(exception.ConfigError, match='run nova-precache-manage db sync'):
        schema.require(new_database)

    schema.sync(new_database)

    schema.require(new_database)


def test_nova_database_refused_unchanged(
    new_database: session.Database,
) -> None:
    with new_database.engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE request_specs (id INTEGER)'))

    with pytest.raises(exception.ConfigError, match=r'\[database\] connection .*request_specs'):
        schema.sync(new_database)

    assert _tables(new_database) == {'request_specs'}
