# SPDX-License-Identifier: Apache-2.0
"""Short transactions on SQLite, MariaDB or PostgreSQL.

No RPC and no HTTP happen inside a transaction. A write on SQLite takes the
write lock at its first statement (BEGIN IMMEDIATE): a deferred transaction that
reads and then writes fails at once if another one wrote in between.
"""

import contextlib
import datetime
import itertools
import logging
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
import tenacity
from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import engines
from sqlalchemy import orm
from sqlalchemy.dialects import plugins

from nova_precache import backend, deadline, exception, outages
from nova_precache.db.engine import errors, expressions, pymysql_times, texts, timeouts, urls

LOG = logging.getLogger(__name__)
T = TypeVar('T')
M = TypeVar('M')

_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # then the last one repeatedly
_REFUSALS = (
    db_exception.DBError,
    db_exception.DBInvalidUnicodeParameter,
    sa.exc.SQLAlchemyError,
)
_PASSING = (db_exception.DBDeadlock, db_exception.DBConnectionError)
CHUNK_KEYS = 500
_CONNECTION = 'connection'  # kept: asking the session for it takes longer than some statements
_LAST = 'last'
_SESSION = 'session'
_WRITING = 'writes'
_WRITES = {_WRITING: True}
_MYSQLS = expressions.MYSQLS
_ONE_STATE = 'REPEATABLE READ'
_WHAT_OTHERS_COMMIT: Final = 'READ COMMITTED'
# For the next transaction of a connection, and for all of them.
_FOR_NEXT = 'SET TRANSACTION ISOLATION LEVEL {}'
_FOR_ALL = 'SET SESSION TRANSACTION ISOLATION LEVEL {}'
_KEPT_LEVEL = 'isolation_level'  # of a connection whose transactions all see one state


def now(session: orm.Session) -> datetime.datetime:
    """Read the database's clock, in UTC without a time zone."""
    return session.scalars(sa.select(expressions.database_now())).one()


class _PooledFiles(sa.engine.CreateEnginePlugin):
    """Pools connections to a SQLite file; oslo.db would open one for each transaction."""

    def __init__(self, url: sa.URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        # No thread waits for another's connection: one more is opened, and closed after use.
        kwargs.update(poolclass=sa.QueuePool, max_overflow=-1)

    def update_url(self, url: sa.URL) -> sa.URL:
        return url.difference_update_query(['plugin'])


_POOLED_FILES = 'precache_pooled_files'
plugins.register(_POOLED_FILES, __name__, _PooledFiles.__name__)


class Database:
    """Runs transactions; one for each process and database.

    As a context manager it closes itself at the end.

    Errors of the server are translated to those of this service: it cannot serve now, or it
    cannot hold a value. All others are raised unchanged.

    :param name: the database's name in the log, such as its option
    :ivar limits: how long to wait for the server
    :ivar outage: logs outages of the server
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        read_only: bool = False,
        name: str = '[database] connection',
        limits: timeouts.TimeLimits = timeouts.SERVICE,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.outage = outages.Outage(f'Database of {name}')
        engine.hide_parameters = True  # in errors: those of a cell contain passwords
        pymysql_times.read_faster(engine)
        _notice_other_levels(engine)
        self._silence = timeouts.limit(engine, limits)
        if read_only:
            _refuse_writes(engine)
        elif engine.dialect.name == 'sqlite':
            _prepare_sqlite(engine, limits)
        else:
            _see_what_others_commit(engine)
        engine.dispose()  # of connections that were opened without these settings
        self._sessions = orm.sessionmaker(engine, expire_on_commit=False)
        self._shared = threading.local()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.dispose()

    @contextlib.contextmanager
    def reader(self) -> Iterator[orm.Session]:
        """Open a transaction for reading, on one snapshot where the database can.

        :raises nova_precache.exception.DatabaseUnavailable: it cannot be reached or serve now
        """
        shared: orm.Session | None = getattr(self._shared, _SESSION, None)
        if shared is not None:
            yield shared
            return
        with self._reading() as session:
            yield session

    @contextlib.contextmanager
    def one_snapshot(self) -> Iterator[None]:
        """Run the readers of this thread in one transaction, so that they see one state.

        Its connection stays prepared for the next one: these are frequent, and writes beside
        them are rare.
        """
        with self._reading(keeps_level=True) as session:
            setattr(self._shared, _SESSION, session)
            try:
                yield
            finally:
                delattr(self._shared, _SESSION)

    @contextlib.contextmanager
    def _reading(self, *, keeps_level: bool = False) -> Iterator[orm.Session]:
        """Open a transaction that sees one state.

        :param keeps_level: on MariaDB, leave its connection prepared for further ones
        """
        with (
            self._translated(),
            self.engine.connect() as connection,
            self._sessions(bind=connection) as session,
        ):
            # The session joins it. One of the session's own would be rolled back twice at its end.
            connection.begin()
            session.info[_CONNECTION] = connection
            if self.engine.dialect.name in _MYSQLS and _KEPT_LEVEL not in connection.info:
                set_level = _FOR_ALL if keeps_level else _FOR_NEXT
                connection.exec_driver_sql(set_level.format(_ONE_STATE))
                if keeps_level:
                    connection.info[_KEPT_LEVEL] = _ONE_STATE
            yield session

    def write(self, work: Callable[[orm.Session], T], *, may_reword: bool = True) -> T:
        """Run ``work`` in a transaction of its own and commit it.

        ``work`` runs again from the start after a deadlock or a lost connection, so it must
        affect only the session. Reasons that the database refuses are written once more in
        ASCII.

        :param may_reword: False if several outcomes are written, of which only some may be refused
        :raises nova_precache.exception.DatabaseUnavailable: it cannot be reached or serve now
        :raises nova_precache.exception.DataRefused: it cannot hold what it is given
        """
        try:
            with self._translated():
                return self._write(work)
        except exception.DataRefused:
            if not may_reword:
                raise
            with self._translated(), texts.in_ascii():
                return self._write(work)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        self._silence.refuse()
        asked_at = self.outage.clock()
        try:
            yield
        except _REFUSALS as exc:
            error = errors.translate(exc)
            if error is None:
                raise
            if isinstance(error, exception.DatabaseUnavailable):
                self.outage.began(exc)
            raise error from exc
        except exception.PrecacheError:  # raised by the work: the server has answered
            self._note_answer(asked_at)
            raise
        self._note_answer(asked_at)

    def _note_answer(self, asked_at: float) -> None:
        self._silence.forget()
        self.outage.over(asked_at)

    def _write(self, work: Callable[[orm.Session], T]) -> T:
        """Run a transaction until it commits or the time for retries is over."""
        ends_at = time.monotonic() + deadline.left(self.limits.retry_seconds)
        # Soon after a deadlock: others may wait for its victim.
        pauses = itertools.chain(_RETRY_SECONDS, itertools.repeat(_RETRY_SECONDS[-1]))
        while True:
            try:
                return self._write_once(work)
            except _PASSING:
                seconds = next(pauses)
                if time.monotonic() + seconds >= ends_at:
                    raise
            time.sleep(seconds)

    def _write_once(self, work: Callable[[orm.Session], T]) -> T:
        with self._sessions() as session:
            connection = session.connection(execution_options=_WRITES)
            session.info[_CONNECTION] = connection
            if _KEPT_LEVEL in connection.info:
                connection.exec_driver_sql(_FOR_ALL.format(_WHAT_OTHERS_COMMIT))
                del connection.info[_KEPT_LEVEL]
            result = work(session)
            for last in session.info.get(_LAST, ()):
                last(session)
            session.commit()
            return result

    def ping(self) -> None:
        """Query the server.

        :raises nova_precache.exception.DatabaseUnavailable: it cannot be reached or serve now
        """
        with self.reader() as session:
            now(session)

    def closes(self, close: Callable[[], object]) -> None:
        """Add a callback for when this database closes, as to close another one beside it."""
        self._closing.callback(close)

    def dispose(self) -> None:
        """Run the added callbacks, then close every connection."""
        self._closing.close()
        self.engine.dispose()


def connect(
    conf: cfg.ConfigOpts,
    group: str = 'database',
    *,
    read_only: bool = False,
    limits: timeouts.TimeLimits = timeouts.SERVICE,
) -> Database:
    """Open the database that ``[database]``, or another group of such options, names.

    :param read_only: the database refuses all changes
    :param limits: how long to wait for its server
    :raises nova_precache.exception.ConfigError: the option is unset or malformed, or the
        database cannot be opened
    """
    url, name = conf[group].connection, f'[{group}] connection'
    if not url:
        raise exception.ConfigError(f'{name} is not set')
    if (problem := urls.problem(url)) is not None:
        raise exception.ConfigError(f'{name} {problem}')
    try:
        return _open(url, conf[group], read_only, name, limits)
    except cfg.Error:
        raise  # it names the option, and may be a ValueError, too
    except (db_exception.DBError, ImportError, sa.exc.SQLAlchemyError, ValueError) as exc:
        # Not chained: a part of the password may be in the message.
        raise exception.ConfigError(f'{name} {urls.what_is_wrong(url, exc)}') from None


@contextlib.contextmanager
def closed_on_failure(database: Database) -> Iterator[None]:
    """Close an opened database if the block raises."""
    try:
        yield
    except BaseException:
        database.dispose()
        raise


def update(entity: type[Any]) -> sa.Update:
    """Build an UPDATE that leaves the objects in the session unchanged."""
    return sa.update(entity).execution_options(synchronize_session=False)


def table(entity: type[Any]) -> sa.Table:
    """Return the bare table, for frequent statements that are built once."""
    return sa.inspect(entity).local_table  # type: ignore[no-any-return]


def before_commit(session: orm.Session, work: Callable[[orm.Session], None]) -> None:
    """Run ``work`` at the end of this transaction, after all else that it does."""
    session.info.setdefault(_LAST, []).append(work)


def run(
    session: orm.Session,
    statement: sa.Executable,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> sa.CursorResult[*tuple[Any, ...]]:
    """Run a prebuilt statement, bypassing the ORM."""
    connection = session.info.get(_CONNECTION) or session.connection()
    return connection.execute(statement, values)


def run_alike(
    session: orm.Session,
    statement: sa.Executable,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
) -> None:
    """Run a statement for many rows, once for all rows with the same values.

    :param statement: its parameter ``keys`` stands for an IN clause
    :param rows: key and values of each row; usually nearly all values are alike
    """
    alike: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for key, values in rows:
        alike.setdefault(tuple(sorted(values.items())), []).append(key)
    for given, keys in alike.items():
        run(session, statement, {**dict(given), 'keys': keys})


def chunks(keys: Sequence[M], size: int = CHUNK_KEYS) -> Iterator[Sequence[M]]:
    """Split keys for IN clauses, whose size databases limit."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def in_bulk(
    members: Sequence[M],
    write: Callable[[Sequence[M]], T],
    refused: Callable[[M, Exception], None],
) -> list[T]:
    """Write all members at once, or, if the database refuses some, all but these.

    Bad members are found by bisection. An outage or a deadlock is raised at once; an error that
    may or may not be caused by data is raised once several members met it and none was written.

    :param write: commits all given members or none
    :param refused: called with each skipped member and the error
    :returns: the results of ``write``, one for each written part
    """
    written: list[T] = []
    met: list[Exception] = []

    def go_on(some: Sequence[M]) -> None:
        try:
            written.append(write(some))
        except _OF_ALL:
            raise
        except _OF_SOME as exc:
            if len(some) > 1:
                middle = len(some) // 2
                go_on(some[:middle])
                go_on(some[middle:])
                return
            if not isinstance(exc, _OF_DATA):
                met.append(exc)
                if not written and len(met) == _MOST_ALIKE:
                    raise
            refused(some[0], exc)

    if members:
        go_on(members)
    return written


def in_chunks(
    members: Sequence[M],
    size: int,
    write: Callable[[Sequence[M]], T],
    refused: Callable[[M, Exception], None],
) -> list[T]:
    """Write members :func:`in_bulk`, in chunks of ``size``.

    A chunk that fails, as after too many deadlocks, is skipped; the first such error is raised
    after the other chunks are written. An outage is raised at once.
    """
    written: list[T] = []
    failed: list[Exception] = []
    for some in chunks(members, size):
        try:
            written += in_bulk(some, write, refused)
        except _OF_ALL as exc:
            if isinstance(exc, _AWAY) and not getattr(exc, 'is_reached', False):
                raise
            failed.append(exc)
    if failed:
        raise failed[0]
    return written


_AWAY = (exception.DatabaseUnavailable, db_exception.DBConnectionError)
_OF_ALL = (exception.DatabaseUnavailable, *_PASSING, db_exception.RetryRequest)
_OF_DATA = (
    exception.DataRefused,
    db_exception.DBConstraintError,
    db_exception.DBDataError,
    db_exception.DBDuplicateEntry,
    db_exception.DBInvalidUnicodeParameter,
    db_exception.DBReferenceError,
    sa.exc.DataError,
    sa.exc.IntegrityError,
)
# oslo.db raises some unchanged.
_OF_SOME = (*_OF_DATA, db_exception.DBError, sa.exc.SQLAlchemyError)
_MOST_ALIKE = 5


def rowcount(result: sa.Result[Any]) -> int:
    """Return how many rows a statement changed: the answer of a compare-and-set."""
    return int(result.rowcount)  # type: ignore[attr-defined]


def _open(
    url: str,
    options: cfg.ConfigOpts.GroupAttr,
    read_only: bool,
    name: str,
    limits: timeouts.TimeLimits,
) -> Database:
    engine = engines.create_engine(
        _with_pool(_not_made(url) if read_only else url),
        sqlite_fk=True,
        mysql_sql_mode='TRADITIONAL',  # refuses values that do not fit, and does not cut them
        connection_recycle_time=options.connection_recycle_time,
        max_pool_size=options.max_pool_size,
        max_overflow=options.max_overflow,
        pool_timeout=options.pool_timeout or limits.connect_seconds,
        max_retries=0,  # it would connect before limits are set
        # Green threads take turns there; a native one would give up its CPU after each transaction.
        thread_checkin=backend.current() is backend.Backend.EVENTLET,
    )
    database = Database(engine, read_only=read_only, name=name, limits=limits)
    with closed_on_failure(database):
        for attempt in _attempts(options, database.outage):
            with attempt, engine.connect():  # with our own settings, as later ones
                pass
    database.outage.over()
    return database


def _attempts(
    options: cfg.ConfigOpts.GroupAttr, outage: outages.Outage
) -> Iterable[tenacity.AttemptManager]:
    """Wait at start for a database that is away, as oslo.db would."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(db_exception.DBConnectionError),
        stop=tenacity.stop_never
        if options.max_retries < 0
        else tenacity.stop_after_attempt(max(1, options.max_retries)),
        wait=tenacity.wait_fixed(options.retry_interval),
        before_sleep=lambda state: _note(state, outage),
        reraise=True,
    )


def _note(state: tenacity.RetryCallState, outage: outages.Outage) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if error is not None:
        outage.began(error)


def _with_pool(url: str) -> str:
    """Pool connections to a SQLite file; one in memory is kept anyway."""
    made = sa.make_url(url)
    if made.get_backend_name() != 'sqlite' or made.database in {None, '', ':memory:'}:
        return url
    pooled = made.update_query_dict({'plugin': _POOLED_FILES}, append=True)
    return pooled.render_as_string(hide_password=False)


def _not_made(url: str) -> str:
    """Open a SQLite file read-only, and do not create it."""
    made = sa.make_url(url)
    if made.get_backend_name() != 'sqlite':
        return url
    file = f'file:{urllib.parse.quote(made.database or "")}'
    only_read = made.set(database=file).update_query_dict({'mode': 'ro', 'uri': 'true'})
    return only_read.render_as_string(hide_password=False)


def _see_what_others_commit(engine: sa.Engine) -> None:
    """Set READ COMMITTED, so that no transaction works on the snapshot of its first statement.

    After a row lock, a transaction reads what others committed meanwhile. The level is set for
    each connection: for each transaction it would take four more statements.
    """

    @sa.event.listens_for(engine, 'connect')
    def _set_isolation(connection: Any, record: Any) -> None:
        engine.dialect.set_isolation_level(connection, _WHAT_OTHERS_COMMIT)
        # A connection that was used at another level, as AUTOCOMMIT, gets this one back; by
        # default that is the level of the server.
        engine.dialect.default_isolation_level = _WHAT_OTHERS_COMMIT


def _notice_other_levels(engine: sa.Engine) -> None:
    """Forget the kept level of a connection that is used at another: it gets the default back."""

    @sa.event.listens_for(engine, 'set_connection_execution_options')
    def _forget_level(connection: sa.Connection, options: Mapping[str, Any]) -> None:
        if 'isolation_level' in options:
            connection.info.pop(_KEPT_LEVEL, None)


_READ_ONLY = {
    'sqlite': 'PRAGMA query_only = ON',
    'mysql': 'SET SESSION TRANSACTION READ ONLY',
    'mariadb': 'SET SESSION TRANSACTION READ ONLY',
    'postgresql': 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
}


def _refuse_writes(engine: sa.Engine) -> None:
    """Make every connection refuse writes, whatever its user may do."""

    @sa.event.listens_for(engine, 'connect')
    def _only_read(connection: Any, record: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(_READ_ONLY[engine.dialect.name])
        connection.commit()


def _prepare_sqlite(engine: sa.Engine, limits: timeouts.TimeLimits) -> None:
    """Set SQLite up so that readers do not wait for writers, and writers wait their turn."""

    def _limit(connection: Any) -> None:
        seconds = deadline.left(limits.lock_seconds)
        connection.execute(f'PRAGMA busy_timeout = {round(1000 * seconds)}')

    @sa.event.listens_for(engine, 'connect')
    def _set_pragmas(connection: Any, record: Any) -> None:
        _limit(connection)
        connection.execute('PRAGMA journal_mode = WAL')

    # oslo.db's own listener ran before and began a deferred transaction, in
    # which nothing was read yet.
    @sa.event.listens_for(engine, 'begin')
    def _begin(connection: sa.Connection) -> None:
        _limit(connection.connection.dbapi_connection)
        if connection.get_execution_options().get(_WRITING):
            connection.exec_driver_sql('ROLLBACK')
            connection.exec_driver_sql('BEGIN IMMEDIATE')
