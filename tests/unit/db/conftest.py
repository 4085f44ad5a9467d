# SPDX-License-Identifier: Apache-2.0
"""Fails a test in which a row changes its status as no table of ``states`` allows.

The same for a test at whose end a counter of tasks is not the sum over the tasks.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import states
from nova_precache.db.engine import models, session as db_session
from tests import counting

TABLES: dict[type[models.Base], states.Transitions[Any]] = {
    models.CacheRequest: states.REQUESTS,
    models.Task: states.TASKS,
    models.Job: states.JOBS,
}


class Changes:
    """The changes of statuses that triggers in a database have recorded."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def record(self) -> None:
        statements = ['CREATE TABLE changes (kind TEXT, origin TEXT, target TEXT)']
        for table in TABLES:
            kind = table.__tablename__
            for event, origin in (('INSERT', 'NULL'), ('UPDATE', 'OLD.status')):
                statements.append(
                    f'CREATE TRIGGER {kind}_{event} AFTER {event} ON {kind} '  # noqa: S608
                    f"BEGIN INSERT INTO changes VALUES ('{kind}', {origin}, NEW.status); END"
                )
        with self._database.engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def of(self, table: type[models.Base]) -> set[tuple[str | None, str]]:
        """Return the pairs of statuses; both are the same where the status stayed."""
        query = sa.text('SELECT DISTINCT origin, target FROM changes WHERE kind = :kind')
        with self._database.engine.connect() as connection:
            rows = connection.execute(query, {'kind': table.__tablename__})
            return {(row.origin, row.target) for row in rows}

    def unlisted(self) -> set[tuple[str, str | None, str]]:
        return {
            (table.__tablename__, origin, target)
            for table, transitions in TABLES.items()
            for origin, target in self.of(table)
            - {(arrow.origin, arrow.target) for arrow in transitions.arrows}
            if origin != target
        }

    def discard(self, status: str) -> None:
        """Allow changes to a status of a later release."""
        with self._database.engine.begin() as connection:
            connection.execute(sa.text('DELETE FROM changes WHERE target = :s'), {'s': status})

    def discard_new(self) -> None:
        with self._database.engine.begin() as connection:
            connection.execute(sa.text('DELETE FROM changes WHERE origin IS NULL'))


@pytest.fixture
def changes(database: db_session.Database) -> Changes:
    return Changes(database)


@pytest.fixture
def handmade_rows(database: db_session.Database, changes: Changes) -> Iterator[None]:
    """Allow a test to insert rows in any status, and tasks that no counter counts."""
    yield
    changes.discard_new()
    database.write(lambda session: session.execute(sa.delete(models.CacheRequest)))


@pytest.fixture
def database(database: db_session.Database) -> Iterator[db_session.Database]:
    """Extend the database of the test by records of its changes."""
    changes = Changes(database)
    changes.record()
    yield database
    assert changes.unlisted() == set()
    assert counting.counters(database) == counting.sums(database)
