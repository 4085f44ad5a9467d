# SPDX-License-Identifier: Apache-2.0
"""Records the statements that a database executes for a block."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from nova_precache.db.engine import session as db_session


class Statement(NamedTuple):
    """A statement, and its values in the form that the driver takes."""

    sql: str
    values: Any


@contextlib.contextmanager
def recorded(database: db_session.Database, *verbs: str) -> Iterator[list[Statement]]:
    """Record the statements that begin with one of these verbs; without any, all statements.

    The beginning and the end of a transaction are no statements here.
    """
    found: list[Statement] = []

    def note(_: object, __: object, sql: str, values: Any, *rest: object) -> None:
        if sql.startswith(verbs) if verbs else not sql.startswith(('BEGIN', 'ROLLBACK')):
            found.append(Statement(sql, values))

    sa.event.listen(database.engine, 'before_cursor_execute', note)
    try:
        yield found
    finally:
        sa.event.remove(database.engine, 'before_cursor_execute', note)
