# SPDX-License-Identifier: Apache-2.0
"""Limits on waiting for a database: no silent server holds a thread for ever.

A driver waits on a socket, whose other side may be a stopped server or a machine that is gone.
Driver limits in a URL take precedence. Under a deadline, such as that of a caller of the API,
every wait ends sooner.
"""

import contextlib
import dataclasses
import functools
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import deadline, exception

# A living server answers a ping at once, however busy it is.
_STEP_SECONDS = 0.125
PING_SECONDS = 3.0
_STARTS_OR_STOPS = re.compile('starting up|shutting down|recovery|connections|slots|clients')
# After a silence, one caller checks whether it is over; the others do not wait.
SILENT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class TimeLimits:
    """How long to wait for a server, in seconds.

    :ivar answer_seconds: without a byte of the answer to a statement
    :ivar lock_seconds: for a lock that another transaction holds
    :ivar retry_seconds: with retries of a transaction after deadlocks or lost connections
    """

    connect_seconds: float = 10
    answer_seconds: float = 60
    lock_seconds: int = 30
    retry_seconds: float = 30


SERVICE = TimeLimits()
# Callers of the API are answered within 15 s.
API = TimeLimits(connect_seconds=4, answer_seconds=10, lock_seconds=5, retry_seconds=10)
# An operator watches a command; one statement of a migration may take hours.
COMMAND = TimeLimits(answer_seconds=math.inf, lock_seconds=3600)


class Silence:
    """Remembers that a server was silent, so that only one caller at a time waits for it.

    Only callers with a deadline are refused; the others have their own pauses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at: float | None = None

    def refuse(self) -> None:
        """Refuse a caller with a deadline while another caller checks a silent server.

        :raises nova_precache.exception.DatabaseUnavailable: the server gave no answer a moment ago
        """
        if self._ends_at is None or not deadline.is_set():
            return
        if self._clock() < self._ends_at:
            raise exception.DatabaseUnavailable('it did not answer a moment ago')
        self._ends_at = self._clock() + PING_SECONDS + SILENT_SECONDS

    @contextlib.contextmanager
    def noticed(self, seconds: float) -> Iterator[None]:
        """Record a silence if a step that a living server does at once fails after ``seconds``."""
        began_at = self._clock()
        try:
            yield
        except Exception:
            if self._clock() - began_at >= seconds:
                self._ends_at = self._clock() + SILENT_SECONDS
            raise

    def forget(self) -> None:
        self._ends_at = None


def limit(engine: sa.Engine, limits: TimeLimits) -> Silence:
    """Limit how long each connection of an engine waits for its server."""
    silence, known = Silence(), threading.Event()
    if engine.dialect.name == 'sqlite':
        return silence  # it has no server; the lock timeout is set where the lock is taken
    _limit_ping(engine.dialect, limits, silence)

    @sa.event.listens_for(engine, 'do_connect')
    def _connect(dialect: sa.Dialect, record: Any, places: Any, options: Any) -> Any:
        try:
            with silence.noticed(PING_SECONDS), deadline.within(limits.connect_seconds):
                connection = _open(dialect, places, options, limits)
        except dialect.loaded_dbapi.OperationalError as exc:
            # A server that has accepted this service before may do so again, whatever the error.
            if known.is_set() or _is_absent(dialect, exc):
                raise db_exception.DBConnectionError(exc) from exc
            raise
        known.set()
        return connection

    if not any(_names_locks(each) for each in engine.url.query.values()):
        _limit_locks(engine, limits)
    return silence


def _is_absent(dialect: sa.Dialect, error: Exception) -> bool:
    """Recognise a PostgreSQL that is unreachable or not ready yet; oslo.db does not.

    For a failed connection, psycopg passes on only the server's text, not its code.
    """
    if dialect.driver != 'psycopg':
        return False
    return 'FATAL' not in str(error) or _STARTS_OR_STOPS.search(str(error)) is not None


def _limit_ping(dialect: sa.Dialect, limits: TimeLimits, silence: Silence) -> None:
    """Treat a pooled connection as lost if its server does not answer a ping at once."""
    ping = dialect.do_ping

    def _ping(connection: Any) -> bool:
        seconds = min(PING_SECONDS, limits.answer_seconds)
        with silence.noticed(seconds), deadline.within(seconds):
            return bool(ping(connection))

    dialect.do_ping = _ping  # type: ignore[assignment,method-assign]


def _open(dialect: sa.Dialect, places: Any, options: dict[str, Any], limits: TimeLimits) -> Any:
    seconds = deadline.left(limits.connect_seconds)
    if not seconds:
        raise dialect.loaded_dbapi.OperationalError(2013, 'no time left to connect')
    options.setdefault('connect_timeout', max(1, round(seconds)))
    match dialect.driver:
        case 'pymysql':
            return _pymysql(limits)(*places, **options)
        case 'psycopg':
            return _psycopg(limits).connect(*places, **options)
        case 'mysqldb' if math.isfinite(limits.answer_seconds):  # it waits in C, in whole seconds
            options.setdefault('read_timeout', round(limits.answer_seconds))
            options.setdefault('write_timeout', round(limits.answer_seconds))
    return dialect.connect(*places, **options)


@functools.cache
def _pymysql(limits: TimeLimits) -> Any:
    """Build the class of PyMySQL's connections under these limits."""
    from pymysql import connections

    class Connection(connections.Connection):  # type: ignore[misc]
        """Checks the deadline with each statement, and once a step while it reads the answer.

        The driver asks for its limits several times for each row and column.
        """

        _read_limit: float | None = None
        _read_limit_until = -math.inf

        @property
        def _read_timeout(self) -> float | None:
            now = time.monotonic()
            if now >= self._read_limit_until:
                self._read_limit = _of_socket(deadline.left(self._read_seconds))
                self._read_limit_until = now + _STEP_SECONDS
            return self._read_limit

        @_read_timeout.setter
        def _read_timeout(self, seconds: float | None) -> None:
            self._read_seconds = limits.answer_seconds if seconds is None else seconds

        @property
        def _write_timeout(self) -> float | None:
            self._read_limit_until = -math.inf  # a statement, maybe of another caller
            return _of_socket(deadline.left(self._write_seconds))

        @_write_timeout.setter
        def _write_timeout(self, seconds: float | None) -> None:
            self._write_seconds = limits.answer_seconds if seconds is None else seconds

    return Connection


def _of_socket(seconds: float) -> float | None:
    """Return the timeout of a socket, None for no limit; never 0, which would not wait at all.

    In steps: the driver sets it again for each packet if it has changed.
    """
    if not math.isfinite(seconds):
        return None
    return max(0.001, math.ceil(seconds / _STEP_SECONDS) * _STEP_SECONDS)


@functools.cache
def _psycopg(limits: TimeLimits) -> Any:
    """Build the class of psycopg's connections under these limits."""
    import psycopg

    class Connection(psycopg.Connection[Any]):
        """Ends a wait at its limit, and the connection with it.

        ``statement_timeout`` does not help against a stopped server, nor does any limit of
        TCP: the kernel of its machine still acknowledges.
        """

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            ends_at = time.monotonic() + deadline.left(limits.answer_seconds)
            return super().wait(self._until(gen, ends_at), *args, **kwargs)

        def _until(self, gen: Generator[Any, Any, Any], ends_at: float) -> Generator[Any, Any, Any]:
            """Forward the driver's waits; it wakes ten times a second if nothing is ready."""
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() >= ends_at:
                        self.pgconn.finish()
                        raise psycopg.OperationalError('the server did not answer in time')
                    wanted = gen.send(ready)
            except StopIteration as exc:
                return exc.value

    return Connection


_LOCKS: Mapping[str, str] = {
    **dict.fromkeys(
        ('mysql', 'mariadb'),
        'SET SESSION innodb_lock_wait_timeout = {0}, SESSION lock_wait_timeout = {0}',
    ),
    'postgresql': "SET lock_timeout = '{0}s'",
}


def _names_locks(option: str | tuple[str, ...]) -> bool:
    """Return whether a URL's option, as ``init_command`` or ``options``, sets a lock timeout."""
    return 'lock_timeout' in str(option) or 'lock_wait_timeout' in str(option)


def _limit_locks(engine: sa.Engine, limits: TimeLimits) -> None:
    statement = _LOCKS[engine.dialect.name].format(limits.lock_seconds)

    @sa.event.listens_for(engine, 'connect')
    def _set_limit(connection: Any, record: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        connection.commit()
