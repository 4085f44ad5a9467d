# SPDX-License-Identifier: Apache-2.0
"""Which refusals of a server are an outage, which are a value's fault, and which are ours."""

import sqlite3

import psycopg
import psycopg.errors
import pymysql.err
import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import exception
from nova_precache.db.engine import errors


def _wrapped(error: Exception) -> Exception:
    """Wrap an error of a driver as SQLAlchemy does, and oslo.db around that."""
    wrapped: Exception = db_exception.DBError(sa.exc.DBAPIError('SELECT 1', {}, error))
    return wrapped


def _raw(error: Exception) -> Exception:
    """Wrap it as SQLAlchemy does, where oslo.db leaves it alone."""
    return sa.exc.OperationalError('SELECT 1', {}, error)


def _kind(error: Exception) -> type[Exception] | None:
    [kind] = {
        None if found is None else type(found)
        for found in (errors.translate(_wrapped(error)), errors.translate(_raw(error)))
    }
    return kind


@pytest.mark.parametrize(
    'code',
    [
        *(1021, 1030, 1037, 1038, 1040, 1041, 1047, 1053, 1114, 1129, 1194, 1203, 1205, 1213),
        *(1223, 1226, 1290, 1317, 1836, 1927, 1969, 2002, 2003, 2006, 2013, 3024, 3032),
    ],
)
def test_mariadb_unavailability_is_outage(code: int) -> None:
    for kind in (pymysql.err.OperationalError, pymysql.err.InternalError):
        assert _kind(kind(code, 'so it says')) is exception.DatabaseUnavailable


@pytest.mark.parametrize('code', [1044, 1045, 1049, 1054, 1062, 1064, 1142, 1146, 1451])
def test_mariadb_misconfiguration_is_no_outage(code: int) -> None:
    assert _kind(pymysql.err.OperationalError(code, 'so it says')) is None


@pytest.mark.parametrize('code', [1153, 1264, 1366, 1406])
def test_mariadb_data_error_recognized(code: int) -> None:
    assert _kind(pymysql.err.DataError(code, 'so it says')) is exception.DataRefused


@pytest.mark.parametrize(
    'error',
    [
        pymysql.err.InterfaceError(0, ''),
        pymysql.err.InternalError('Packet sequence number wrong - got 1 expected 2'),
    ],
)
def test_connection_lost_before_is_outage(error: Exception) -> None:
    assert _kind(error) is exception.DatabaseUnavailable


@pytest.mark.parametrize(
    'state',
    [
        *('08006', '25006', '40001', '40P01', '53000', '53100', '53200', '53300', '55P03'),
        *('57014', '57P01', '57P02', '57P03', '57P05', '58030', 'XX001'),
    ],
)
def test_postgresql_unavailability_is_outage(state: str) -> None:
    error = psycopg.errors.lookup(state)('so it says')
    assert _kind(error) is exception.DatabaseUnavailable


@pytest.mark.parametrize('state', ['23505', '28P01', '42501', '42601', '42P01', '54001', '3D000'])
def test_postgresql_misconfiguration_is_no_outage(
    state: str,
) -> None:
    assert _kind(psycopg.errors.lookup(state)('so it says')) is None


@pytest.mark.parametrize('state', ['22001', '22003', '22021', '22P05'])
def test_postgresql_data_error_recognized(state: str) -> None:
    assert _kind(psycopg.errors.lookup(state)('so it says')) is exception.DataRefused


def test_psycopg_client_error_is_outage() -> None:
    for kind in (psycopg.OperationalError, psycopg.InterfaceError):
        assert _kind(kind('the connection is lost')) is exception.DatabaseUnavailable


@pytest.mark.parametrize(
    ('code', 'kind'),
    [
        (sqlite3.SQLITE_BUSY, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_LOCKED, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_READONLY, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_IOERR_WRITE, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_FULL, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_CANTOPEN, exception.DatabaseUnavailable),
        (sqlite3.SQLITE_TOOBIG, exception.DataRefused),
        (sqlite3.SQLITE_ERROR, None),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, None),
    ],
)
def test_sqlite_error_classified_by_code(code: int, kind: type[Exception] | None) -> None:
    error = sqlite3.OperationalError('so it says')
    error.sqlite_errorcode = code
    assert _kind(error) is kind


@pytest.mark.parametrize('error', [sa.exc.TimeoutError('the pool is empty')])
def test_exhausted_pool_is_outage(error: Exception) -> None:
    assert isinstance(errors.translate(error), exception.DatabaseUnavailable)


@pytest.mark.parametrize(
    'error', [UnicodeEncodeError('utf-8', '\ud800', 0, 1, 'surrogates'), OverflowError('int')]
)
def test_driver_data_error_recognized(error: Exception) -> None:
    assert isinstance(errors.translate(db_exception.DBError(error)), exception.DataRefused)
