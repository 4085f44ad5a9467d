# SPDX-License-Identifier: Apache-2.0
"""A database that cannot serve now is a 503 in time; a value that it refuses ends no other work."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import sqlalchemy as sa
import webob

from nova_precache import conf as options, exception, model
from nova_precache.cells import inventory, services as cell_services
from nova_precache.db import jobs
from nova_precache.db.engine import schema, session
from nova_precache.db.request import plan as request_plan
from tests.conftest import running_databases
from tests.unit.api.conftest import Api, make_api
from tests.unit.conftest import World, open_world
from tools.servers import databases
from tools.waiting import wait_until

# The API promises 15 s; the rest is for a busy machine. Without a limit it would wait for ever.
ANSWER_SECONDS = 60.0
SERVERS = [databases.MARIADB, databases.POSTGRESQL]
CONDUCTOR = '00000000-0000-0000-0000-000000000001'
AGGREGATES = '/v2.1/os-aggregates'


@pytest.fixture(scope='session', params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope='session')
def server(kind: str) -> Iterator[databases.DatabaseServer]:
    with running_databases(kind) as started:
        yield cast(databases.DatabaseServer, started)


def _connect(url: str) -> session.Database:
    conf = options.new(config_files=[])
    conf.set_override('connection', url, 'database')
    return session.connect(conf)


@pytest.fixture
def url(server: databases.DatabaseServer) -> Iterator[str]:
    with server.empty() as made:
        yield made


@pytest.fixture
def api(url: str) -> Iterator[Api]:
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('connection', url, 'database')
    database = _connect(url)
    schema.sync(database)
    yield make_api(conf, database, inventory.Inventory(database))
    database.dispose()


def _ask_in_time(ask: Callable[[], webob.Response]) -> webob.Response:
    """Send a request and check that the answer comes."""
    began_at = time.monotonic()
    answer = ask()
    assert time.monotonic() - began_at < ANSWER_SECONDS
    return answer


def _create(api: Api, name: str = 'edge') -> webob.Response:
    return api.post(AGGREGATES, {'aggregate': {'name': name}})


def _assert_unavailable(answer: webob.Response) -> None:
    assert (answer.status_int, [*answer.json]) == (503, ['serviceUnavailable'])
    assert int(answer.headers['Retry-After']) > 0


def test_silent_database_returns_503_then_recovers(
    api: Api, server: databases.DatabaseServer
) -> None:
    assert api.get(AGGREGATES).status_int == 200
    with server.silent():
        _assert_unavailable(_ask_in_time(lambda: api.get(AGGREGATES)))
        _assert_unavailable(_ask_in_time(lambda: _create(api)))
    wait_until(lambda: api.get(AGGREGATES).status_int == 200, 'the API reads again')
    assert _create(api).status_int == 200


def test_locked_rows_return_503(api: Api, url: str, kind: str) -> None:
    lock = {
        databases.MARIADB: 'LOCK TABLES aggregates WRITE',
        databases.POSTGRESQL: 'LOCK TABLE aggregates',
    }
    other = sa.create_engine(url)
    with other.connect() as connection:
        connection.execute(sa.text(lock[kind]))
        _assert_unavailable(_ask_in_time(lambda: _create(api)))
        _assert_unavailable(_ask_in_time(lambda: api.get(AGGREGATES)))
    other.dispose()
    assert _create(api).status_int == 200


@contextlib.contextmanager
def _read_only(server: databases.DatabaseServer, url: str, kind: str) -> Iterator[str]:
    """Make the server read-only, and yield a URL of a user whose writes it refuses."""
    if kind == databases.MARIADB:
        server.execute('CREATE OR REPLACE USER writer@localhost')
        server.execute('GRANT ALL ON *.* TO writer@localhost')
        server.execute('REVOKE SUPER, READ ONLY ADMIN ON *.* FROM writer@localhost')
        server.execute('SET GLOBAL read_only = 1')
        yield url.replace('root@', 'writer@')
        server.execute('SET GLOBAL read_only = 0')
    else:
        name = sa.make_url(url).database
        server.execute(f'ALTER DATABASE {name} SET default_transaction_read_only = on')
        yield url
        server.execute(f'ALTER DATABASE {name} RESET default_transaction_read_only')


def test_read_only_server_still_serves_reads(
    api: Api, server: databases.DatabaseServer, url: str, kind: str
) -> None:
    with _read_only(server, url, kind) as theirs:
        conf = options.new(config_files=[])
        conf.set_override('auth_strategy', 'noauth2', 'api')
        database = _connect(theirs)
        reading = make_api(conf, database, inventory.Inventory(database))
        _assert_unavailable(_create(reading))
        assert reading.get(AGGREGATES).status_int == 200
        database.dispose()


def test_newly_refused_user_is_unavailable(
    server: databases.DatabaseServer, url: str, kind: str
) -> None:
    if kind == databases.MARIADB:
        server.execute('CREATE OR REPLACE USER guest@localhost')
        server.execute('GRANT ALL ON *.* TO guest@localhost')
        refuse = 'ALTER USER guest@localhost ACCOUNT LOCK'
        admit = 'ALTER USER guest@localhost ACCOUNT UNLOCK'
        theirs = url.replace('root@', 'guest@')
    else:
        server.execute('DROP ROLE IF EXISTS guest')
        server.execute('CREATE ROLE guest LOGIN SUPERUSER')
        refuse, admit = 'ALTER ROLE guest NOLOGIN', 'ALTER ROLE guest LOGIN'
        theirs = sa.make_url(url).set(username='guest').render_as_string(hide_password=False)
    database = _connect(theirs)
    schema.sync(database)
    stock = inventory.Inventory(database)
    server.execute(refuse)
    database.dispose()
    with pytest.raises(exception.DatabaseUnavailable):
        stock.list_aggregates()
    server.execute(admit)
    assert stock.list_aggregates() == []
    database.dispose()
    server.execute(refuse)
    with pytest.raises(exception.ConfigError, match=r'guest|locked'):
        _connect(theirs)


@pytest.mark.parametrize(
    ('what', 'codes'),
    [
        ('too many connections', "SIGNAL SQLSTATE '08004' SET MYSQL_ERRNO = 1040|53300"),
        ('the disk is full', "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114|53100"),
        ('out of memory', "SIGNAL SQLSTATE 'HY001' SET MYSQL_ERRNO = 1041|53200"),
        ('it is shutting down', "SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 1053|57P01"),
        ('a statement was interrupted', "SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317|57014"),
        ('a table is damaged', "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1194|XX001"),
        ('it cannot be read', "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1030|58030"),
    ],
)
def test_transient_server_errors_return_503(api: Api, kind: str, what: str, codes: str) -> None:
    statement, _, state = codes.partition('|')
    if kind == databases.MARIADB:
        body = f"{statement}, MESSAGE_TEXT = '{what}'"
        trigger = [f'CREATE TRIGGER fails BEFORE INSERT ON aggregates FOR EACH ROW {body}']
    else:
        body = f"BEGIN RAISE EXCEPTION '{what}' USING ERRCODE = '{state}'; END"
        trigger = [
            f'CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$',
            'CREATE TRIGGER fails BEFORE INSERT ON aggregates EXECUTE FUNCTION fails()',
        ]
    with api.database.engine.begin() as connection:
        for each in trigger:
            connection.exec_driver_sql(each)
    _assert_unavailable(_ask_in_time(lambda: _create(api)))


def test_missing_table_stays_internal_error(api: Api) -> None:
    with api.database.engine.begin() as connection:
        connection.exec_driver_sql('ALTER TABLE aggregates RENAME TO elsewhere')
    assert api.get(AGGREGATES).status_int == 500


def test_killed_session_costs_one_503(
    api: Api, server: databases.DatabaseServer, kind: str
) -> None:
    assert api.get(AGGREGATES).status_int == 200
    if kind == databases.POSTGRESQL:
        server.execute(
            'SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
            'WHERE pid <> pg_backend_pid() AND datname IS NOT NULL'
        )
    else:
        with api.database.engine.connect() as connection:
            number = connection.exec_driver_sql('SELECT CONNECTION_ID()').scalar_one()
        server.execute(f'KILL {number}')
    assert api.get(AGGREGATES).status_int == 200
    assert _create(api).status_int == 200


def test_silent_cell_database_wait_bounded(server: databases.DatabaseServer, url: str) -> None:
    engine = cell_services.connect(url)
    with engine.connect() as connection:
        connection.execute(sa.text('SELECT 1'))
    with server.silent():
        began_at = time.monotonic()
        with pytest.raises(Exception, match='time'), engine.connect() as again:
            again.execute(sa.text('SELECT 1'))
        assert time.monotonic() - began_at < ANSWER_SECONDS
    engine.dispose()


@pytest.fixture(params=['utf8', 'latin1'])
def narrow(
    request: pytest.FixtureRequest, server: databases.DatabaseServer, url: str, kind: str
) -> Iterator[World]:
    """A database whose encoding lacks some characters."""
    made = sa.make_url(url)
    if kind == databases.MARIADB:
        server.execute(f'ALTER DATABASE {made.database} CHARACTER SET {request.param}')
    else:
        name = f'narrow_{request.param}'
        server.execute(
            f"CREATE DATABASE {name} ENCODING '{request.param}' TEMPLATE template0 LOCALE 'C'"
        )
        made = made.set(database=name)
    database = _connect(made.render_as_string(hide_password=False))
    schema.sync(database)
    yield open_world(database)
    database.dispose()
    if kind == databases.POSTGRESQL:
        server.execute(f'DROP DATABASE {made.database} WITH (FORCE)')


REASONS = {
    'half a character': 'broken \ud800 text',
    'no character': 'NUL \x00 in it',
    'four bytes': 'a \U0001f600 face',
    'another script': 'no space: \u65e5\u672c \u202e',
    'codes': 'red \x1b[31m\r\n\x07 line',
    'an error page': '<html>' + '\xe9' * 200_000,
}


def _reasons_of(world: World, request: model.CacheRequest) -> list[str]:
    return [each.reason for each in world.requests.tasks(request.id) if each.reason]


def _assert_is_a_line(reason: str) -> None:
    assert reason.isprintable()
    assert 0 < len(reason) <= 2000


@pytest.mark.parametrize('reason', REASONS.values(), ids=REASONS.keys())
def test_any_final_reason_recorded(narrow: World, reason: str) -> None:
    request = narrow.planned(['h1'], ['i1', 'i2'])
    call = narrow.begun()
    outcome = model.ImageOutcome(model.TaskStatus.ERROR, reason)
    ended = jobs.Finish(call.job_id, call.epoch, outcome)
    turned = narrow.jobs.next_job('c1', 'h1', ended)
    assert turned.recorded.current
    assert turned.assignment is not None
    [recorded] = _reasons_of(narrow, request)
    _assert_is_a_line(recorded)


@pytest.mark.parametrize('reason', REASONS.values(), ids=REASONS.keys())
def test_any_retry_reason_recorded(narrow: World, reason: str) -> None:
    request = narrow.planned(['h1'], ['i1'])
    call = narrow.begun()
    outcome = model.ImageOutcome(model.TaskStatus.ERROR, reason, model.Retry.BACKOFF)
    assert narrow.jobs.retry(call.job_id, call.epoch, outcome, 60)
    [task] = narrow.requests.tasks(request.id)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    _assert_is_a_line(task.reason or '')


@pytest.mark.parametrize('reason', REASONS.values(), ids=REASONS.keys())
def test_any_plan_reason_recorded(narrow: World, reason: str) -> None:
    request = narrow.accept(['h1'], ['i1'])
    assert narrow.requests.next_to_plan(CONDUCTOR) is not None
    narrow.requests.postpone_plan(request.id, CONDUCTOR, 0, reason)
    _assert_is_a_line(narrow.requests.get(request.id).reason or '')
    assert narrow.requests.next_to_plan(CONDUCTOR) is not None
    skipped = request_plan.PlannedTask('h1', None, 'i1', model.TaskStatus.SKIPPED, reason)
    assert narrow.requests.add_tasks(request.id, CONDUCTOR, [skipped])
    [recorded] = _reasons_of(narrow, request)
    _assert_is_a_line(recorded)


def test_unstorable_group_member_fails_alone(narrow: World) -> None:
    narrow.planned(['h1'], ['i1'])
    call = narrow.begun()
    good = jobs.Finish(call.job_id, call.epoch, model.ImageOutcome('cached'))
    too_long = model.ImageOutcome('c' * 300)
    with pytest.raises(exception.DataRefused):
        narrow.jobs.next_job('c1', 'h1', jobs.Finish(call.job_id, call.epoch, too_long))
    assert narrow.jobs.next_job('c1', 'h1', good).recorded.current


def test_unstorable_caller_text_returns_400(api: Api, kind: str) -> None:
    with api.database.engine.begin() as connection:
        if kind == databases.MARIADB:
            connection.exec_driver_sql('ALTER TABLE aggregates CONVERT TO CHARACTER SET latin1')
        else:
            connection.exec_driver_sql('ALTER TABLE aggregates ALTER name TYPE varchar(3)')
    assert _create(api, 'name \u65e5\u672c').status_int == 400
