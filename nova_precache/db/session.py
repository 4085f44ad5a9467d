# SPDX-License-Identifier: Apache-2.0
"""Short transactions on SQLite, MariaDB or PostgreSQL.

No RPC and no HTTP happen inside a transaction. A write on SQLite takes the
write lock at its first statement (BEGIN IMMEDIATE): a deferred transaction that
reads and then writes fails at once when another one wrote in between.
"""

import contextlib
import datetime
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from oslo_config import cfg
from oslo_db import api as db_api
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import engines
from sqlalchemy import orm
from sqlalchemy.dialects import plugins
from sqlalchemy.ext import compiler
from sqlalchemy.sql import functions

from nova_precache import exception

T = TypeVar('T')

# The database does not answer; what its message holds is not for everybody.
Unreachable = db_exception.DBConnectionError

BUSY_TIMEOUT_MS = 30_000
CHUNK_KEYS = 500
_CONNECTION = 'connection'
_WRITING = 'writes'
_WRITES = {_WRITING: True}
_MYSQLS = frozenset({'mysql', 'mariadb'})
# Of the next transaction alone.
_ONE_STATE = 'SET TRANSACTION ISOLATION LEVEL REPEATABLE READ'


class database_now(functions.GenericFunction[datetime.datetime]):  # noqa: N801
    """The database's own clock in UTC, the only one that leases are measured by."""

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


def now(session: orm.Session) -> datetime.datetime:
    """Read the database's clock, in UTC without a time zone."""
    return session.scalars(sa.select(database_now())).one()


class _PooledFiles(sa.engine.CreateEnginePlugin):
    """Has connections to a SQLite file kept, which oslo.db opens anew for each transaction."""

    def __init__(self, url: sa.URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        # None waits for another's: one more is opened, and closed after use.
        kwargs.update(poolclass=sa.QueuePool, max_overflow=-1)

    def update_url(self, url: sa.URL) -> sa.URL:
        return url.difference_update_query(['plugin'])


_POOLED_FILES = 'precache_pooled_files'
plugins.register(_POOLED_FILES, __name__, _PooledFiles.__name__)


class Database:
    """Where transactions are made; one for each process and database.

    As a context manager it closes itself at the end.
    """

    def __init__(self, engine: sa.Engine, *, read_only: bool = False) -> None:
        self.engine = engine
        engine.hide_parameters = True  # in errors: those of a cell have passwords in them
        if read_only:
            _refuse_writes(engine)
        elif engine.dialect.name == 'sqlite':
            _prepare_sqlite(engine)
        else:
            _see_what_others_commit(engine)
        if engine.dialect.name == 'postgresql':
            _tell_of_absence(engine)
        engine.dispose()  # of connections that were opened without these settings
        self._sessions = orm.sessionmaker(engine, expire_on_commit=False)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.dispose()

    @contextlib.contextmanager
    def reader(self) -> Iterator[orm.Session]:
        """A transaction that only reads, and sees one state of all where the database can."""
        with self._sessions() as session:
            if self.engine.dialect.name in _MYSQLS:
                session.connection().exec_driver_sql(_ONE_STATE)
            yield session

    def write(self, work: Callable[[orm.Session], T]) -> T:
        """Run ``work`` in a transaction of its own and commit it.

        It runs again from the start when the database reports a deadlock or a
        lost connection, so it must have no effect but on the session.
        """
        return self._write(work)  # type: ignore[no-any-return]

    # At once after a deadlock: others may wait for who was chosen to give way.
    @db_api.wrap_db_retry(  # type: ignore[untyped-decorator]
        max_retries=12, retry_interval=0.05, retry_on_deadlock=True, retry_on_disconnect=True
    )
    def _write(self, work: Callable[[orm.Session], T]) -> T:
        with self._sessions() as session:
            # Kept, since to ask the session for it takes longer than some statements do.
            session.info[_CONNECTION] = session.connection(execution_options=_WRITES)
            result = work(session)
            session.commit()
            return result

    def closes(self, close: Callable[[], object]) -> None:
        """Add what else is closed with this database, such as another one opened beside it."""
        self._closing.callback(close)

    def dispose(self) -> None:
        """Close every connection, after what was added to be closed with them."""
        self._closing.close()
        self.engine.dispose()


def connect(conf: cfg.ConfigOpts, group: str = 'database', *, read_only: bool = False) -> Database:
    """Open the database that ``[database]``, or another group of such options, names.

    :param read_only: have the database refuse whatever would change it
    :raises nova_precache.exception.ConfigError: the option is unset or malformed, or the
        database cannot be opened
    """
    url = conf[group].connection
    if not url:
        raise exception.ConfigError(f'[{group}] connection is not set')
    try:
        return _open(url, conf[group], read_only)
    except (db_exception.DBError, ImportError, sa.exc.SQLAlchemyError, ValueError) as exc:
        # Not chained: a part of the password may be in the message.
        raise exception.ConfigError(f'[{group}] connection {_what_is_wrong(url, exc)}') from None


@contextlib.contextmanager
def closed_on_failure(database: Database) -> Iterator[None]:
    """Close a database that was opened but turns out to be of no use."""
    try:
        yield
    except BaseException:
        database.dispose()
        raise


def update(entity: type[Any]) -> sa.Update:
    """An UPDATE that leaves the objects in the session alone."""
    return sa.update(entity).execution_options(synchronize_session=False)


def table(entity: type[Any]) -> sa.Table:
    """Give the bare table, of which statements are made once that run all the time."""
    return sa.inspect(entity).local_table  # type: ignore[no-any-return]


def run(
    session: orm.Session,
    statement: sa.Executable,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> sa.CursorResult[*tuple[Any, ...]]:
    """Run a statement that was made beforehand, past what the ORM would do with it."""
    connection = session.info.get(_CONNECTION) or session.connection()
    return connection.execute(statement, values)


def run_alike(
    session: orm.Session,
    statement: sa.Executable,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
) -> None:
    """Run a statement for many rows, once for all that are given the same values.

    :param statement: its parameter ``keys`` stands for an IN clause
    :param rows: each by its key; most often nearly all are alike
    """
    alike: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for key, values in rows:
        alike.setdefault(tuple(sorted(values.items())), []).append(key)
    for given, keys in alike.items():
        run(session, statement, {**dict(given), 'keys': keys})


def keys() -> sa.BindParameter[Any]:
    """Give the parameter that stands for the keys of an IN clause."""
    return sa.bindparam('keys', expanding=True)


def chunks(keys: Sequence[str], size: int = CHUNK_KEYS) -> Iterator[Sequence[str]]:
    """Split keys for IN clauses, of which databases take so many at a time."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def rowcount(result: sa.Result[Any]) -> int:
    """How many rows a statement changed: the answer of a compare-and-set."""
    return int(result.rowcount)  # type: ignore[attr-defined]


def _open(url: str, options: cfg.ConfigOpts.GroupAttr, read_only: bool) -> Database:
    database = Database(
        engines.create_engine(
            _with_pool(_not_made(url) if read_only else url),
            sqlite_fk=True,
            mysql_sql_mode='TRADITIONAL',  # what does not fit is refused, and not cut
            connection_recycle_time=options.connection_recycle_time,
            max_pool_size=options.max_pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            max_retries=options.max_retries,
            retry_interval=options.retry_interval,
        ),
        read_only=read_only,
    )
    # As every later one, with our own settings.
    with closed_on_failure(database), database.engine.connect():
        return database


def _with_pool(url: str) -> str:
    """Have SQLAlchemy keep connections to a SQLite file; one in memory is kept anyway."""
    made = sa.make_url(url)
    if made.get_backend_name() != 'sqlite' or made.database in {None, '', ':memory:'}:
        return url
    pooled = made.update_query_dict({'plugin': _POOLED_FILES}, append=True)
    return pooled.render_as_string(hide_password=False)


def _not_made(url: str) -> str:
    """Have a SQLite file only read, and not made where there is none."""
    made = sa.make_url(url)
    if made.get_backend_name() != 'sqlite':
        return url
    file = f'file:{urllib.parse.quote(made.database or "")}'
    only_read = made.set(database=file).update_query_dict({'mode': 'ro', 'uri': 'true'})
    return only_read.render_as_string(hide_password=False)


def _what_is_wrong(url: str, error: Exception) -> str:
    """Say why a database cannot be had, without its URL, which has a password."""
    # Of a password that has an @ of its own, the rest is taken for the host.
    telling = (
        db_exception.DBError | ImportError | sa.exc.NoSuchModuleError | sa.exc.OperationalError
    )
    is_telling = isinstance(error, telling)
    if is_telling and url.count('@') <= 1:
        first_line, _, _ = str(error).partition('\n')
        return f'cannot be used: {first_line}'
    return 'cannot be used; is it a URL, and its password quoted?'


def _see_what_others_commit(engine: sa.Engine) -> None:
    """Have no transaction work on a snapshot that its first statement took.

    A row lock is followed by a look at what others committed meanwhile. It is set for each
    connection and not for each transaction, which would take four more statements.
    """

    @sa.event.listens_for(engine, 'connect')
    def _set_isolation(connection: Any, record: Any) -> None:
        engine.dialect.set_isolation_level(connection, 'READ COMMITTED')


def _tell_of_absence(engine: sa.Engine) -> None:
    """Have a server that cannot be reached be the error that it is with MariaDB.

    oslo.db does not know how this driver says it: with no code of the server's, or with one
    of those by which it says that it starts or stops.
    """

    @sa.event.listens_for(engine, 'do_connect')
    def _connect(dialect: sa.Dialect, record: Any, places: Any, options: Any) -> Any:
        try:
            return dialect.connect(*places, **options)
        except dialect.loaded_dbapi.OperationalError as exc:
            state = getattr(exc, 'sqlstate', None)
            if not state or state.startswith(('08', '57P')):
                raise Unreachable(exc) from exc
            raise


_READ_ONLY = {
    'sqlite': 'PRAGMA query_only = ON',
    'mysql': 'SET SESSION TRANSACTION READ ONLY',
    'mariadb': 'SET SESSION TRANSACTION READ ONLY',
    'postgresql': 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
}


def _refuse_writes(engine: sa.Engine) -> None:
    """Have every connection refuse writes, whatever its user may do."""

    @sa.event.listens_for(engine, 'connect')
    def _only_read(connection: Any, record: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(_READ_ONLY[engine.dialect.name])
        connection.commit()


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Have readers not wait for writers, and writers wait their turn."""

    @sa.event.listens_for(engine, 'connect')
    def _set_pragmas(connection: Any, record: Any) -> None:
        connection.execute(f'PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}')
        connection.execute('PRAGMA journal_mode = WAL')

    # oslo.db's own listener ran before and began a deferred transaction, in
    # which nothing was read yet.
    @sa.event.listens_for(engine, 'begin')
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get(_WRITING):
            connection.exec_driver_sql('ROLLBACK')
            connection.exec_driver_sql('BEGIN IMMEDIATE')
