# SPDX-License-Identifier: Apache-2.0
"""Lists of rows as one parameter, which a statement reads like a table.

Drivers repeat an UPDATE for each row, and each time costs more than the change. A statement with
a list is built once, and changes any number of rows.
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext import compiler
from sqlalchemy.sql import functions
from sqlalchemy.types import TypeEngine

from nova_precache import exception

_PLACE = 'place'
_INTEGERS = range(-(2**63), 2**63)


class RowList:
    """Rows of named columns, for a statement that joins them by the columns of another table.

    A statement must find at most one row of the list for each row that it changes: which of
    several it would take is undefined.

    :param name: of the parameter, and of the table in the statement; unique among all lists
    :param text_key: a column of text by which the statement finds rows of the other table
    :ivar c: the columns
    :ivar key: compares as the column ``text_key``, and is found by an index on any server
    """

    def __init__(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], text_key: str | None = None
    ) -> None:
        self._name = name
        self._columns = dict(columns)
        self._text_key = text_key
        described = [sa.column(each, type_) for each, type_ in columns.items()]
        rows = _JsonRows(sa.bindparam(name, type_=sa.Text()), *described)
        place = sa.column(_PLACE, sa.BigInteger())
        self.c = rows.table_valued(place, *described, name=name).c
        keys: sa.BindParameter[Any] = sa.bindparam(f'{name}_keys', expanding=True)
        self.key = _TextKey(self.c[text_key or _PLACE], self.c[_PLACE], keys)

    def values(self, rows: Iterable[Mapping[str, object]]) -> dict[str, object]:
        """Return the parameter for these rows.

        Values are checked here, since some servers change those that do not fit.

        :raises nova_precache.exception.DataRefused: a value does not fit its column
        """
        listed = [
            {name: _checked(row[name], type_) for name, type_ in self._columns.items()}
            for row in rows
        ]
        try:
            # Not escaped to ASCII: an invalid character is then refused by the driver.
            text = json.dumps(listed, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
        except (TypeError, ValueError) as exc:
            raise exception.DataRefused from exc
        keys = [row[self._text_key] for row in listed] if self._text_key is not None else []
        return {self._name: text, f'{self._name}_keys': keys}


def _checked(value: object, type_: TypeEngine[Any]) -> object:
    if value is None:
        return None
    match type_:
        case sa.String(length=length):
            if isinstance(value, str) and len(value) <= (length or len(value)):
                return value
        case sa.BigInteger():
            if type(value) is int and value in _INTEGERS:
                return value
        case sa.DateTime():
            if isinstance(value, datetime.datetime):
                return value.isoformat(' ', 'microseconds')
        case sa.JSON():
            return value
    raise exception.DataRefused


class _JsonRows(functions.FunctionElement[Any]):
    """The rows of a JSON list of objects: the list, then the columns."""

    inherit_cache = True


@compiler.compiles(_JsonRows, 'sqlite')
def _sqlite_rows(element: Any, compiler: Any, **kwargs: Any) -> str:
    rows, *columns = element.clauses
    values = ', '.join(f"json_extract(value, '$.{each.name}') AS {each.name}" for each in columns)
    return f'(SELECT {values} FROM json_each({compiler.process(rows, **kwargs)}))'  # noqa: S608


@compiler.compiles(_JsonRows, 'postgresql')
def _postgresql_rows(element: Any, compiler: Any, **kwargs: Any) -> str:
    rows, *columns = element.clauses
    types = ', '.join(f'{each.name} {_type(each, compiler)}' for each in columns)
    listed = f'CAST({compiler.process(rows, **kwargs)} AS JSON)'
    return f'(SELECT * FROM json_to_recordset({listed}) AS listed ({types}))'  # noqa: S608


@compiler.compiles(_JsonRows, 'mysql')
@compiler.compiles(_JsonRows, 'mariadb')
def _mariadb_rows(element: Any, compiler: Any, **kwargs: Any) -> str:
    rows, *columns = element.clauses
    paths = ', '.join(
        f"{each.name} {_type(each, compiler)}{_collation(each)} PATH '$.{each.name}'"
        for each in columns
    )
    listed = compiler.process(rows, **kwargs)
    return f"JSON_TABLE({listed}, '$[*]' COLUMNS ({_PLACE} FOR ORDINALITY, {paths}))"


def _type(column: Any, compiler: Any) -> str:
    return str(compiler.dialect.type_compiler_instance.process(column.type))


def _collation(column: Any) -> str:
    """Return the collation that can be compared with any other; else it is the database's."""
    return ' COLLATE utf8mb4_bin' if isinstance(column.type, sa.String) else ''


class _TextKey(functions.FunctionElement[Any]):
    """A column of the list, its place in the list, and the values of the column."""

    type = sa.String()
    inherit_cache = True


@compiler.compiles(_TextKey)
def _column(element: Any, compiler: Any, **kwargs: Any) -> str:
    column, _, _ = element.clauses
    return str(compiler.process(column, **kwargs))


@compiler.compiles(_TextKey, 'mysql')
@compiler.compiles(_TextKey, 'mariadb')
def _mariadb_key(element: Any, compiler: Any, **kwargs: Any) -> str:
    """Take the value from a list of literals, which are compared in the collation of any index."""
    _, place, keys = element.clauses
    listed = compiler.process(keys, **kwargs).removeprefix('(').removesuffix(')')
    return f'ELT({compiler.process(place, **kwargs)}, {listed})'
