# SPDX-License-Identifier: Apache-2.0
"""Counts the rows that a database server reads for the statements of a block."""

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from nova_precache.db.engine import session as db_session


class RowsRead:
    """The rows that each statement of a block read, once it has ended, with the statement."""

    def __init__(self) -> None:
        self.each: list[tuple[int, str]] = []

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.each)


@contextlib.contextmanager
def counted(database: db_session.Database) -> Iterator[RowsRead]:
    """Count the rows that MariaDB or PostgreSQL reads, by a second look at each statement."""
    found = RowsRead()
    seen: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        if statement.startswith(('SELECT', '(SELECT')):
            seen.append((statement, values))

    sa.event.listen(database.engine, 'before_cursor_execute', note)
    try:
        yield found
    finally:
        sa.event.remove(database.engine, 'before_cursor_execute', note)
    count = _of_postgresql if database.engine.dialect.name == 'postgresql' else _of_mariadb
    with database.engine.connect() as connection:
        found.each = [(count(connection, *each), each[0]) for each in seen]


def _of_mariadb(connection: sa.Connection, statement: str, values: Any) -> int:
    connection.exec_driver_sql('FLUSH STATUS')
    connection.exec_driver_sql(statement, values).all()
    counters = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(row[1]) for row in counters)


def _of_postgresql(connection: sa.Connection, statement: str, values: Any) -> int:
    explained = connection.exec_driver_sql(f'EXPLAIN (ANALYZE, FORMAT JSON) {statement}', values)
    (found,) = explained.scalar_one()
    return _scanned(found['Plan'])


def _scanned(node: Any) -> int:
    inner = sum(map(_scanned, node.get('Plans', ())))
    if 'Relation Name' not in node:
        return inner
    dropped = node.get('Rows Removed by Filter', 0) + node.get('Rows Removed by Index Recheck', 0)
    return inner + int((node['Actual Rows'] + dropped) * node['Actual Loops'])
