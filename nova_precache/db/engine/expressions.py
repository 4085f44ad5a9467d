# SPDX-License-Identifier: Apache-2.0
"""Parts of SQL statements that differ between the servers, or make them use the right index."""

import datetime
from collections.abc import Iterable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext import compiler
from sqlalchemy.sql import functions

S = TypeVar('S', bound=sa.Select[*tuple[Any, ...]])

MYSQLS = frozenset({'mysql', 'mariadb'})


class database_now(functions.GenericFunction[datetime.datetime]):  # noqa: N801
    """The database's own clock in UTC, the only clock for leases."""

    type = sa.DateTime()
    inherit_cache = True


@compiler.compiles(database_now, 'sqlite')
def _sqlite_now(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiler.compiles(database_now, 'mysql')
@compiler.compiles(database_now, 'mariadb')
def _mysql_now(element: Any, compiler: Any, **kwargs: Any) -> str:
    return 'UTC_TIMESTAMP(6)'


@compiler.compiles(database_now, 'postgresql')
def _postgresql_now(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "(clock_timestamp() AT TIME ZONE 'UTC')"


class seconds_ago(functions.GenericFunction[datetime.datetime]):  # noqa: N801
    """A time before the database's own, by a number of seconds."""

    type = sa.DateTime()
    inherit_cache = True


@compiler.compiles(seconds_ago, 'sqlite')
def _sqlite_ago(element: Any, compiler: Any, **kwargs: Any) -> str:
    seconds = compiler.process(element.clauses, **kwargs)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || {seconds} || ' seconds')"


@compiler.compiles(seconds_ago, 'mysql')
@compiler.compiles(seconds_ago, 'mariadb')
def _mysql_ago(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f'(UTC_TIMESTAMP(6) - INTERVAL {compiler.process(element.clauses, **kwargs)} SECOND)'


@compiler.compiles(seconds_ago, 'postgresql')
def _postgresql_ago(element: Any, compiler: Any, **kwargs: Any) -> str:
    seconds = compiler.process(element.clauses, **kwargs)
    return f"((clock_timestamp() AT TIME ZONE 'UTC') - make_interval(secs => {seconds}))"


class led_by(functions.FunctionElement[Any]):  # noqa: N801
    """Selects rows by the first column of an index, by which they are sorted, too.

    PostgreSQL then reads them in the order of that index. It would ignore the sort by a column
    that it knows to be equal, and maybe read all rows in the order of the primary key.
    """

    type = sa.Integer()  # a boolean would be compared with 1, which no index serves
    inherit_cache = True


@compiler.compiles(led_by)
def _equal(element: Any, compiler: Any, **kwargs: Any) -> str:
    column, value = (compiler.process(each, **kwargs) for each in element.clauses)
    return f'{column} = {value}'


@compiler.compiles(led_by, 'postgresql')
def _postgresql_equal(element: Any, compiler: Any, **kwargs: Any) -> str:
    column, value = (compiler.process(each, **kwargs) for each in element.clauses)
    return f'{column} = ANY (ARRAY[{value}])'


class among(functions.FunctionElement[Any]):  # noqa: N801
    """Selects rows whose column is one of many keys: a column, then a parameter as of ``keys``.

    For PostgreSQL they are one parameter. With one each, its driver would read the statement
    again each time, and that takes longer than the statement.
    """

    type = sa.Integer()  # as of ``led_by``
    inherit_cache = True


@compiler.compiles(among)
def _in(element: Any, compiler: Any, **kwargs: Any) -> str:
    column, keys = element.clauses
    return str(compiler.process(column.in_(keys), **kwargs))


@compiler.compiles(among, 'postgresql')
def _postgresql_any(element: Any, compiler: Any, **kwargs: Any) -> str:
    column, keys = element.clauses
    # Without the length of the column, to which a longer key would be cut.
    of = sa.Text() if isinstance(column.type, sa.String) else column.type
    listed = sa.bindparam(keys.key, type_=postgresql.ARRAY(of))
    return f'{compiler.process(column, **kwargs)} = ANY ({compiler.process(listed, **kwargs)})'


def by_index(query: S, entity: type[Any] | sa.Table, name: str) -> S:
    """Read the first rows of a query in the order of an index that begins with its conditions.

    To save a sort, MariaDB would read all rows in the order of the primary key; for PostgreSQL
    see ``led_by``.
    """
    for dialect in sorted(MYSQLS):
        query = query.with_hint(entity, f'FORCE INDEX ({name})', dialect)
    return query


def keys() -> sa.BindParameter[Any]:
    """Return the parameter that stands for the keys of an IN clause."""
    return sa.bindparam('keys', expanding=True)


def one_of(column: sa.ColumnElement[Any] | Any, names: Iterable[str]) -> sa.ColumnElement[bool]:
    """Select rows with one of the names that this release knows, such as statuses.

    ``in_`` would spell the list in the statement again each time.
    """
    return column.in_([sa.literal(str(name)) for name in sorted(names)])
