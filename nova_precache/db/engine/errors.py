# SPDX-License-Identifier: Apache-2.0
"""Translates database errors: the server cannot serve now, or cannot hold the given data.

Each server has its own codes. All other errors are faults of this service or of its
configuration, such as a missing right or table, and stay unchanged.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import exception

_MARIADB_UNAVAILABLE = frozenset(
    {
        *(1015, 1016, 1021, 1023, 1024, 1026, 1030, 1114),  # its files: full, unreadable, locked
        *(1034, 1035, 1194, 1195, 1712, 1812, 1877, 1932),  # or damaged
        *(1036, 1223, 1290, 1792, 1836, 1874, 3032),  # read-only, offline
        *(1037, 1038, 1041, 1135, 1206),  # out of memory, threads or locks
        *(1040, 1129, 1203, 1226),  # too many connections, or connection errors
        *(1047, 1053, 1077, 1079, 1080),  # not ready, shutting down
        *(1152, 1158, 1159, 1160, 1161, 1184, 1927),  # the connection was lost, or ended
        *(1020, 1180, 1205, 1213, 1614, 3101, 3572),  # conflicts with other transactions
        *(1317, 1907, 1969, 3024),  # interrupted
        *(2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2027, 2055),  # raised by the driver
        *(9001, 9002, 9003),  # sent by a proxy
    }
)
# Prefixes of SQLSTATE; see "PostgreSQL Error Codes".
_POSTGRESQL_UNAVAILABLE = (
    '08',  # connection exception
    '25006',  # read-only
    '25P03',  # ended while idle, or after too long
    '25P04',
    '40',  # rolled back, such as after a deadlock
    '53',  # insufficient resources
    '55000',  # not in the state for it, such as in recovery
    '55006',
    '55P03',  # a lock is not available
    '57',  # operator intervention: shutting down, cancelled
    '58',  # system error
    '72000',  # snapshot too old
    'XX001',  # damaged
    'XX002',
)
_SQLITE_UNAVAILABLE = frozenset({3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 22, 23, 26})

_MARIADB_REFUSED = frozenset({1153, 1264, 1265, 1267, 1270, 1271, 1292, 1366, 1406, 3988})
_POSTGRESQL_REFUSED = '22'
_SQLITE_REFUSED = frozenset({18, 20})


def translate(error: Exception) -> exception.PrecacheError | None:
    """Translate an error of a driver or its library to one of this service; None if none fits."""
    causes = list(_causes(error))
    if any(map(_is_unavailable, causes)):
        reason, _, _ = str(error).partition('\n')
        is_reached = not isinstance(error, db_exception.DBConnectionError)
        return exception.DatabaseUnavailable(reason, is_reached=is_reached)
    if any(map(_is_refused, causes)):
        return exception.DataRefused()
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those of the libraries and the driver that are wrapped in it."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and each not in seen:
            seen.append(each)
            yield each
            waiting += [getattr(each, 'inner_exception', None), getattr(each, 'orig', None)]


def _is_unavailable(error: BaseException) -> bool:
    if isinstance(error, db_exception.DBConnectionError | db_exception.DBDeadlock):
        return True
    if isinstance(error, sa.exc.TimeoutError | sa.exc.DisconnectionError):  # of the pool
        return True
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is not None:
        return state.startswith(_POSTGRESQL_UNAVAILABLE)
    return _mariadb_code(error) in _MARIADB_UNAVAILABLE or (
        _sqlite_code(error) in _SQLITE_UNAVAILABLE
    )


def _is_refused(error: BaseException) -> bool:
    if isinstance(error, UnicodeError | OverflowError | db_exception.DBDataError):
        return True
    if isinstance(error, db_exception.DBInvalidUnicodeParameter):
        return True
    state = _sqlstate(error)
    if state is not None:
        return state.startswith(_POSTGRESQL_REFUSED)
    return _mariadb_code(error) in _MARIADB_REFUSED or _sqlite_code(error) in _SQLITE_REFUSED


def _sqlstate(error: BaseException) -> str | None:
    """Return the code of a psycopg error; 08000, no connection, if the driver itself raised it."""
    if type(error).__module__.partition('.')[0] != 'psycopg':
        return None
    state: str | None = getattr(error, 'sqlstate', None)
    is_of_driver = type(error).__name__ in {'OperationalError', 'InterfaceError'}
    return state or ('08000' if is_of_driver else '')


def _mariadb_code(error: BaseException) -> int | None:
    """Return the code of an error of PyMySQL or mysqlclient, which are alike."""
    if type(error).__module__.partition('.')[0] not in {'pymysql', 'MySQLdb'}:
        return None
    code: Any = error.args[0] if error.args else None
    if code == 0 and type(error).__name__ == 'InterfaceError':  # used after its loss
        return 2013
    if isinstance(code, str) and 'Packet sequence number wrong' in code:
        return 2027
    return code if isinstance(code, int) else None


def _sqlite_code(error: BaseException) -> int | None:
    code: int | None = getattr(error, 'sqlite_errorcode', None)
    return None if code is None else code & 0xFF  # without the extended part


@contextlib.contextmanager
def translate_db_errors() -> Iterator[None]:
    """Translate database errors; keep the reason, omit the SQL.

    :raises nova_precache.exception.PrecacheError: the database failed
    """
    try:
        yield
    except exception.DatabaseUnavailable as exc:
        raise exception.PrecacheError(f'The database failed: {exc.reason}') from exc
    except (db_exception.DBError, sa.exc.SQLAlchemyError) as exc:
        reason, _, _ = str(exc).partition('\n')
        raise exception.PrecacheError(f'The database failed: {reason}') from exc
