# SPDX-License-Identifier: Apache-2.0
"""Transactions take turns, see what others committed, and are retried."""

import datetime
import pathlib
import threading
import traceback
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import engines
from sqlalchemy import orm

from nova_precache import backend, conf as options, exception
from nova_precache.cells import models as cell_models
from nova_precache.db.engine import models, session
from tests.unit.conftest import open_database
from tools.waiting import TIMEOUT_SECONDS


def _value(reader: orm.Session) -> int:
    return reader.scalars(sa.select(models.Counter.value)).first() or 0


def _add_one(writer: orm.Session) -> None:
    value = _value(writer)
    writer.execute(session.update(models.Counter).values(value=value + 1))


def _read(database: session.Database) -> int:
    with database.reader() as reader:
        return _value(reader)


def test_concurrent_writers_never_locked_out(
    database: session.Database,
) -> None:
    together = threading.Barrier(4)

    def add_many() -> None:
        together.wait(TIMEOUT_SECONDS)
        for _ in range(25):
            database.write(_add_one)

    with futures.ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(add_many) for _ in range(4)]:
            each.result()

    assert _read(database) == 100


def test_reader_does_not_wait_for_writer(
    database: session.Database,
) -> None:
    seen = []

    def work(writer: orm.Session) -> None:
        _add_one(writer)
        with futures.ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(_read, database).result(TIMEOUT_SECONDS))

    database.write(work)

    assert seen == [0]
    assert _read(database) == 1


@pytest.mark.parametrize('error', [db_exception.DBDeadlock, db_exception.DBConnectionError])
def test_transaction_retried_after_deadlock_or_disconnect(
    database: session.Database,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    monkeypatch.setattr('nova_precache.db.engine.session.time.sleep', waited.append)
    failures = [error(), error()]

    def work(writer: orm.Session) -> str:
        _add_one(writer)
        if failures:
            raise failures.pop()
        return 'done'

    assert database.write(work) == 'done'
    assert _read(database) == 1
    assert max(waited) < 0.5  # many may wait for it


def test_failed_transaction_leaves_nothing(database: session.Database) -> None:
    def work(writer: orm.Session) -> None:
        _add_one(writer)
        raise ValueError('no')

    with pytest.raises(ValueError, match='no'):
        database.write(work)

    assert _read(database) == 0


def test_sqlite_commit_survives_power_loss(
    database_path: pathlib.Path,
) -> None:
    database = open_database(database_path)
    with database.reader() as reader:
        assert reader.scalar(sa.text('PRAGMA journal_mode')) == 'wal'
        assert reader.scalar(sa.text('PRAGMA synchronous')) == 2  # FULL
        assert reader.scalar(sa.text('PRAGMA foreign_keys')) == 1
    database.dispose()


def test_database_clock_is_naive_utc(database: session.Database) -> None:
    here = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)

    with database.reader() as reader:
        now = session.now(reader)

    assert abs(now - here) < datetime.timedelta(seconds=10)


def _connect(url: str | None) -> session.Database:
    conf = options.new(config_files=[])
    conf.set_override('connection', url, 'database')
    conf.set_override('max_retries', 0, 'database')
    return session.connect(conf)


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        (None, 'is not set'),
        ('', 'is not set'),
        ('nonsense', 'check that it is a URL'),
        ('sqlite+pysqlite://user:pass@host:word/name', 'check that it is a URL'),
        ('sqlite+pysqlite:////dev/null/x.sqlite', 'unable to open database file'),
        ('nodb://user:password@host/name', 'nodb'),
        ('mysql+nodriver://user:password@host/name', 'nodriver'),
    ],
)
def test_unreachable_database_names_option_without_password(url: str | None, why: str) -> None:
    with pytest.raises(exception.ConfigError, match=r'^\[database\] connection ') as refused:
        _connect(url)

    message = str(refused.value)
    assert why in message
    assert '\n' not in message
    assert 'word' not in message.removesuffix('and that its password is quoted')


def test_driver_message_shown_unless_password_leaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_nothing(url: str, **options: object) -> None:
        raise db_exception.DBConnectionError(OSError(f'no host {url.split("@", 1)[1]}'))

    monkeypatch.setattr(session.engines, 'create_engine', open_nothing)

    with pytest.raises(exception.ConfigError, match='cannot be used: no host host/name'):
        _connect('mysql+pymysql://user:pass@host/name')
    with pytest.raises(exception.ConfigError) as refused:
        _connect('mysql+pymysql://user:pass@word@host/name')
    assert 'word@host' not in str(refused.value)


def test_statement_error_omits_values(database: session.Database) -> None:
    def work(writer: orm.Session) -> None:
        writer.add(cell_models.CellMapping(uuid='u' * 36, transport_url='rabbit://u:secret@h/'))
        writer.add(cell_models.CellMapping(uuid='u' * 36, transport_url='rabbit://u:secret@h/'))

    with pytest.raises(db_exception.DBDuplicateEntry) as refused:
        database.write(work)

    assert 'secret' not in ''.join(traceback.format_exception(refused.value))


def test_file_without_database_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'precache.sqlite'
    path.write_text('A letter. ' * 1000)

    with pytest.raises(exception.ConfigError, match='is not a database'):
        open_database(path)


def test_readers_share_one_snapshot(database: session.Database) -> None:
    begun: list[object] = []
    sa.event.listen(database.engine, 'begin', begun.append)

    with database.one_snapshot():
        before = _read(database)
        database.write(_add_one)
        assert (_read(database), len(begun)) == (before, 2)  # one of them writes

    assert _read(database) == before + 1


def test_reader_is_rolled_back_once(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollback, ended = database.engine.dialect.do_rollback, []

    def note(connection: Any) -> None:
        ended.append(connection)
        rollback(connection)

    with database.reader() as reader:
        assert reader.scalars(sa.select(models.Job)).all() == []
        monkeypatch.setattr(database.engine.dialect, 'do_rollback', note)

    assert len(ended) == 1


@pytest.mark.parametrize('kind', backend.Backend)
def test_only_green_threads_take_turns_after_transactions(
    database_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: backend.Backend
) -> None:
    monkeypatch.setattr(backend, 'current', lambda: kind)

    with open_database(database_path) as opened:
        takes_turns = sa.event.contains(opened.engine, 'checkin', engines._thread_yield)

    assert takes_turns == (kind is backend.Backend.EVENTLET)


def test_snapshot_ends_with_error(database: session.Database) -> None:
    before = _read(database)
    with pytest.raises(exception.NotFound), database.one_snapshot():
        raise exception.NotFound('it')
    database.write(_add_one)

    assert _read(database) == before + 1
