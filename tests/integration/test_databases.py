# SPDX-License-Identifier: Apache-2.0
"""The tables and the concurrent work of SQLite, on MariaDB and PostgreSQL as well."""

import collections
import contextlib
import dataclasses
import datetime
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration
from oslo_db import exception as db_exception
from pymysql.constants import FIELD_TYPE
from sqlalchemy import orm

from nova_precache import conf as options, deadline, exception, model
from nova_precache.cells import models as cell_models, names
from nova_precache.db import (
    caches,
    explanations,
    job_batch,
    jobs,
    pages,
    pins,
    requests,
    services,
    statistics,
    task_counts,
)
from nova_precache.db.engine import models, pymysql_times, schema, session, timeouts
from nova_precache.db.job import (
    locking,
    outcome as job_outcome,
    progress as job_progress,
    share,
    turns,
)
from nova_precache.db.job.call import Begin
from tests import counting, rows_read, sorted_tasks
from tests.conftest import running_databases
from tests.integration import conducting
from tests.unit.conftest import (
    BROKEN,
    CACHED,
    DOWN_SECONDS,
    LONG_AGO,
    PLANNER,
    World,
    open_world,
)
from tests.unit.db import test_streams
from tests.unit.db.test_request_action_orders import Orders
from tests.unit.db.test_share import SharedSlots
from tools.servers import databases
from tools.waiting import TIMEOUT_SECONDS

LIMIT = 6
IMAGES = ('i1', 'i2', 'i3')
SHARED = IMAGES[:2]
SEED, STEPS = 6, 40
CONDUCTORS = ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002')
DEAD = '00000000-0000-0000-0000-00000000dead'
TURNS = 15


@pytest.fixture(scope='session', params=databases.KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[databases.Databases]:
    """A server of each kind, one after the other."""
    with running_databases(request.param) as started:
        yield started


@pytest.fixture
def url(server: databases.Databases) -> Iterator[str]:
    with server.empty() as made:
        yield made


@contextlib.contextmanager
def _opened(url: str) -> Iterator[session.Database]:
    """Open an empty database, and bring it to the current schema."""
    conf = options.new(config_files=[])
    conf.set_override('connection', url, 'database')
    opened = session.connect(conf)
    try:
        schema.sync(opened)
        yield opened
    finally:
        opened.dispose()


@pytest.fixture
def database(url: str) -> Iterator[session.Database]:
    """An empty database at the current schema."""
    with _opened(url) as opened:
        yield opened


def test_migrations_match_models(database: session.Database) -> None:
    everything = sa.MetaData()
    for base in (models.Base, cell_models.InventoryBase):
        for table in base.metadata.tables.values():
            table.to_metadata(everything)
    with database.engine.connect() as connection:
        context = migration.MigrationContext.configure(
            connection, opts={'version_table': schema.VERSION_TABLE, 'compare_type': True}
        )
        assert autogenerate.compare_metadata(context, everything) == []


def test_collation_may_differ_from_connection(server: databases.Databases, url: str) -> None:
    if isinstance(server, databases.MariaDB):
        name = sa.make_url(url).database
        server.execute(f'ALTER DATABASE {name} COLLATE utf8mb4_unicode_ci')

    with _opened(url) as database:
        world = open_world(database)
        request = world.planned(['h1'], ['i1'])
        assert world.requests.get(request.id).counts == {'queued': 1}
        known = services.Services(database, DOWN_SECONDS, 10)
        process = model.ServiceProcess(CONDUCTORS[0], model.Binary.CONDUCTOR, 'ctl1', '1.0')
        known.report(process, replaces=True)
        assert CONDUCTORS[0] in [each.id for each in known.list_page()]


def test_sorted_pages_continue_across_nulls(database: session.Database) -> None:
    world = open_world(database)
    sorted_tasks.insert(world)

    sorted_tasks.check_any_order(world, 7)


def test_snapshot_stable_except_on_postgresql(
    database: session.Database,
) -> None:
    counter = models.Counter
    add_one = session.update(counter).values(value=counter.value + 1)
    total = sa.select(sa.func.sum(counter.value))
    with database.reader() as reader:
        before = reader.scalars(total).one()
        database.write(lambda writer: writer.execute(add_one))
        after = reader.scalars(total).one()

    assert (after == before) == (database.engine.dialect.name != 'postgresql')


@pytest.fixture
def before_locks(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], None]:
    """Make other transactions commit while the next one has chosen jobs, and not locked them."""
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('it has one writer at a time')

    def add(work: Callable[[], None]) -> None:
        lock_keys = locking.lock_keys

        def work_first(*asked: Any) -> None:
            monkeypatch.setattr(locking, 'lock_keys', lock_keys)
            work()
            lock_keys(*asked)

        monkeypatch.setattr(locking, 'lock_keys', work_first)

    return add


def test_writer_sees_commits_after_autocommit(
    database: session.Database, before_locks: Callable[[Callable[[], None]], None]
) -> None:
    """A connection that was used at another level of isolation gets its own back."""
    world = open_world(database)
    world.living('h1')
    request = world.planned(['h1'], ['i1'])
    call = world.begun()
    world.agents.stop('h1', 'agent-h1', world.cell.uuid, None)
    with database.engine.connect().execution_options(isolation_level='AUTOCOMMIT') as connection:
        connection.exec_driver_sql('SELECT 1')

    before_locks(lambda: _report(world, call, 40))
    world.agents.register(model.Agent('h1', 'other', world.cell.uuid))

    [task] = world.requests.tasks(request.id)
    assert (task.status, task.bytes_done) == ('retry_wait', 40)
    assert counting.counters(database) == counting.sums(database)


def test_snapshot_is_one_after_autocommit(database: session.Database) -> None:
    """A connection that was used at another level between two snapshots is prepared again."""
    if database.engine.dialect.name == 'postgresql':
        pytest.skip('its readers see what others commit')
    world = open_world(database)
    world.living('h1')
    with database.one_snapshot():
        world.agents.list()
    with database.engine.connect().execution_options(isolation_level='AUTOCOMMIT') as connection:
        connection.exec_driver_sql('SELECT 1')

    with database.one_snapshot():
        before = world.agents.list()
        with futures.ThreadPoolExecutor() as pool:
            pool.submit(world.dead, 'h1').result(TIMEOUT_SECONDS)
        after = world.agents.list()

    assert after == before


def _report(world: World, call: jobs.Assignment, done: int) -> None:
    assert world.jobs.record_progress([_progress(call, 1, done)]) == 1


def test_takeover_fences_call_made_beside_it(
    database: session.Database, before_locks: Callable[[Callable[[], None]], None]
) -> None:
    world = open_world(database)
    world.living('h1')
    request = world.planned(['h1'], ['i1', 'i2'])
    first = world.begun()
    world.agents.stop('h1', 'agent-h1', world.cell.uuid, None)

    def call_next() -> None:
        ended = jobs.Finish(first.job_id, first.epoch, CACHED)
        call = world.jobs.next_job('c1', 'h1', ended).assignment
        assert call is not None
        assert world.jobs.begin(call.job_id, call.epoch, agent_id='agent-h1')

    before_locks(call_next)
    world.agents.register(model.Agent('h1', 'other', world.cell.uuid))

    assert world.statuses(request) == {('h1', 'i1'): 'cached', ('h1', 'i2'): 'retry_wait'}
    assert counting.counters(database) == counting.sums(database)


def test_job_planned_beside_skip_is_locked(
    database: session.Database,
    before_locks: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = open_world(database)
    request = world.planned(['h1'], ['i1'])
    failed = world.begun()
    world.jobs.finish(failed.job_id, failed.epoch, model.ImageOutcome('error', 'no space'))
    assert world.requests.complete(request.id)
    world.steering.retry(request.id)
    end_tasks, were_locked = job_outcome.end_tasks, list[bool]()

    def plan() -> None:
        assert world.requests.next_to_plan(PLANNER)
        assert world.plan(request, ['h1'])

    def end_locked(*asked: Any) -> job_outcome.Recorded:
        were_locked.append(_is_locked(database, models.Job.active_key == 'h1/i1'))
        return end_tasks(*asked)

    before_locks(plan)
    monkeypatch.setattr(job_outcome, 'end_tasks', end_locked)
    world.jobs.skip_waiting(request.id, ['h1'], 'left')

    assert were_locked == [True]
    assert world.statuses(request) == {('h1', 'i1'): 'skipped'}
    assert counting.counters(database) == counting.sums(database)


def _is_locked(database: session.Database, which: sa.ColumnElement[bool]) -> bool:
    query = sa.select(models.Job.id).where(which).with_for_update(nowait=True)
    with database.engine.connect() as other:
        try:
            other.execute(query)
        except (db_exception.DBError, sa.exc.DBAPIError):
            return True
    return False


def test_slots_shared_and_given_back(database: session.Database) -> None:
    fleet = SharedSlots(open_world(database), limit=4)
    fleet.world.planned(stalled := [f'a{number}' for number in range(9)], ['i1', 'i2'])
    fleet.claim()
    cell = fleet.cell('b')
    fleet.world.planned([f'b{number}' for number in range(9)], ['i1', 'i2'], cell)

    assert fleet.end(*stalled[:4]) == ['a0', 'a1']
    assert fleet.claim() == ['b0', 'b1']
    fleet.world.planned(['u1'], ['i1'], cell, priority=5)
    assert fleet.end('b0', 'b1') == ['b0']
    assert fleet.claim() == ['u1']


def test_streams_within_limit_in_random_order(database: session.Database) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('the unit tests do it in more orders')
    fleet, any_order = test_streams.Fleet(open_world(database)), random.Random(SEED)
    for _ in range(STEPS):
        any_order.choice(test_streams.STEPS)(fleet, any_order.randrange(6))
        fleet.look()
    fleet.complete()


def test_streams_acquired_at_once_stay_within_limit(database: session.Database) -> None:
    world = open_world(database)
    world.planned(hosts := _hosts(0, LIMIT), ['i1'])
    epochs = {each.claim.host: 1 for each in world.jobs.claim_hosts('c1', LIMIT, most=LIMIT)}
    for host in hosts:
        assert world.jobs.release_stream(host, epochs[host])
    together = threading.Barrier(len(hosts))
    most = 0

    def use(host: str) -> int:
        nonlocal most
        acquired = 0
        for _ in range(TURNS):
            together.wait(TIMEOUT_SECONDS)
            if world.jobs.acquire_stream(host, epochs[host], limit=2):
                acquired += 1
                most = max(most, sum(test_streams.in_use(world).values()))
                assert world.jobs.release_stream(host, epochs[host])
        return acquired

    with futures.ThreadPoolExecutor() as pool:
        acquired = sum(pool.map(use, hosts))

    assert most <= 2
    assert acquired >= 2 * TURNS
    assert test_streams.in_use(world) == dict.fromkeys(hosts, False)


def test_next_jobs_found_by_index(database: session.Database) -> None:
    job = {'image_id': 'i1', 'status': 'queued', 'ready': True, 'created_at': LONG_AGO}
    rows = [
        {**job, 'uuid': f'j{number}', 'host': f'h{number}', 'cell_uuid': f'c{number % 20:02}'}
        for number in range(5000)
    ]
    database.write(lambda s: s.execute(sa.insert(models.Job), rows))
    given = {'share': 'c07', 'least': -1, 'rows': 9, 'after_0': '', 'after_1': 'c07'}
    analyze = {'mysql': 'ANALYZE TABLE jobs', 'mariadb': 'ANALYZE TABLE jobs'}
    kind = database.engine.dialect.name
    explain = 'EXPLAIN QUERY PLAN' if kind == 'sqlite' else 'EXPLAIN'
    with database.engine.begin() as connection:
        connection.exec_driver_sql(analyze.get(kind, 'ANALYZE jobs'))
        for statement in (share.waiting_jobs(), share.tops(2)):
            text = str(
                statement.params(
                    {key: given[key] for key in statement.compile().params if key in given}
                ).compile(database.engine, compile_kwargs={'literal_binds': True})
            ).replace('%', '%%')
            plan = str(connection.exec_driver_sql(f'{explain} {text}').all()).lower()
            assert 'jobs_share_idx' in plan
            assert not [sign for sign in ('sort', 'temp b-tree', "jobs_due_idx'") if sign in plan]


def test_unfinished_hosts_of_pins_counted(database: session.Database) -> None:
    world, store = open_world(database), pins.Pins(database)
    made, other = (
        store.create(pins.NewPin(model.Aggregate(7, 'uuid-7', 'edge'), ('i1',))) for _ in range(2)
    )
    first = world.planned([f'h{number}' for number in range(4)], IMAGES, pin_id=made.id)
    done, stuck = world.begun(), world.begun()
    world.jobs.finish(done.job_id, done.epoch, CACHED)
    slow = model.ImageOutcome(model.TaskStatus.ERROR, 'slow', model.Retry.LATER)
    for image in IMAGES:
        assigned = stuck if image == 'i1' else world.assign('c1', stuck.host)
        assert assigned is not None
        world.jobs.retry(assigned.job_id, assigned.epoch, slow, 600)
    paused = world.planned(['h9'], ['i1'], pin_id=other.id)
    world.steering.pause(paused.id)
    new = requests.NewRequest(hosts=('h5', 'h6'), images=('i1',), pin_id=made.id)
    world.requests.accept(new)

    assert store.load() == pins.PinLoad({made.id: 5}, frozenset({other.id}))
    in_flight = {(f'h{number}', image) for number in range(4) for image in IMAGES}
    left = in_flight - {(done.host, done.image_id)} | {('h5', 'i1'), ('h6', 'i1')}
    assert store.in_flight(made.id) == left
    assert store.in_flight(made.id, ['h5', 'h9']) == {('h5', 'i1')}
    assert store.asked(made.id, 1).unfinished.keys() > {first.id}
    assert store.tried(made.id, 600, [done.host, 'h9']).keys() == {(done.host, done.image_id)}
    assert store.tried(made.id, 600, ['h9']) == {}
    world.hears()
    is_it = models.Hearing.cell_uuid == world.cell.uuid
    world.change(models.Hearing, is_it, until=LONG_AGO)
    unplanned, cells = {made.id: 2}, frozenset({world.cell.uuid})
    assert store.load() == pins.PinLoad(unplanned, frozenset({other.id}), cells)


def test_services_stop_and_replace(database: session.Database) -> None:
    world = open_world(database)
    known = services.Services(database, DOWN_SECONDS, 10)
    first, second, third = (
        model.ServiceProcess(f'c-{number}', model.Binary.CONDUCTOR, 'ctl1', '1.0')
        for number in range(3)
    )
    for process in (first, second):
        assert not known.report(process, replaces=True)
    for host in ('h1', 'h2'):
        world.living(host)
    known.stop(first.id)
    world.agents.stop('h1', 'agent-h1', world.cell.uuid, None)

    def found(**which: Any) -> list[tuple[str, str]]:
        return [(each.id, str(each.status)) for each in known.list_page(**which)]

    everything = [('agent-h1', 'down'), ('agent-h2', 'up'), ('c-0', 'down'), ('c-1', 'up')]
    assert found() == everything
    assert [found(limit=1, marker=marker) for marker, _ in everything] == [
        *([each] for each in everything[1:]),
        [],
    ]
    for status in model.HostStatus:
        assert found(status=status) == [each for each in everything if each[1] == status]
    assert world.agents.down(['h1'])['h1'].startswith('host down: stopped at ')
    assert statistics.Statistics(database, DOWN_SECONDS).hosts() == {
        world.cell.uuid: statistics.HostCount(up=1, down=1)
    }
    assert not known.report(third, replaces=True)  # in place of the second, as far as is known
    known.report(second, replaces=False)
    assert known.report(third, replaces=True)
    world.living('h1')
    assert found() == [('agent-h1', 'up'), ('agent-h2', 'up'), ('c-1', 'up'), ('c-2', 'up')]
    assert known.versions() == {'1.0'}
    world.change(models.Service, models.Service.id == second.id, seen_at=LONG_AGO)
    known.purge(7)
    assert found(binary=model.Binary.CONDUCTOR, host='ctl1') == [('c-2', 'up')]


def test_failures_summed_up_and_measured(database: session.Database) -> None:
    world = open_world(database)
    world.hears()
    request = world.planned([f'h{number}' for number in range(4)], ['i1'])
    counted = statistics.Statistics(database, DOWN_SECONDS).take()
    for reason in (None, 'needs 10 bytes, 7 free', 'needs 20 bytes, 9 free', 'host down: of late'):
        begun = world.begun()
        failed = model.ImageOutcome('error', reason)
        world.jobs.finish(begun.job_id, begun.epoch, failed if reason else CACHED)
        world.jobs.release('c1', [begun.host])

    assert world.requests.complete(request.id)

    assert world.requests.get(request.id).reason == (
        '3 of 4 copies failed: 2 × not enough disk space, 1 × host down'  # noqa: RUF001
    )
    assert 0 <= counted.oldest_ready_seconds < TIMEOUT_SECONDS
    assert counted.silent_seconds == {world.cell.uuid: 0}


def test_refused_report_dropped_from_batch(
    database: session.Database, caplog: pytest.LogCaptureFixture
) -> None:
    world = open_world(database)
    hosts = [f'h{number}' for number in range(20)]
    for host in hosts:
        world.living(host)
        world.dead(host)
    states = [model.Agent(host, f'agent-{host}', world.cell.uuid, version='1') for host in hosts]
    states[7] = dataclasses.replace(states[7], free_bytes=2**70)
    files = [
        model.CachedImage(host, 'a' * 40, None, 2**70 if host == 'h7' else 1, 1, LONG_AGO)
        for host in hosts
    ]
    store = caches.Caches(database)

    world.agents.report(states)
    store.record([caches.Report(each.host, [each], full=True) for each in files])

    assert set(world.agents.down(hosts)) == {'h7'}
    assert store.known_hosts() == set(hosts) - {'h7'}
    named = [each.partition(':')[0] for each in caplog.messages if each.startswith('Refused')]
    assert named == ['Refused a report from host h7', 'Refused an inventory from host h7']


def test_hosts_seen_when_reports_were_sent(database: session.Database) -> None:
    world = open_world(database)
    with database.reader() as reader:
        now = session.now(reader)
    ages = {'h1': 5, 'h2': DOWN_SECONDS + 5}
    for host, seconds in {**ages, 'h3': 0}.items():
        world.living(host)
        world.dead(host)
        sent_at = None if host == 'h3' else now - datetime.timedelta(seconds=seconds)
        agent = model.Agent(host, f'agent-{host}', world.cell.uuid, seen_at=sent_at)
        world.agents.report([agent])
        earlier = None if sent_at is None else sent_at - datetime.timedelta(seconds=1)
        world.agents.report([dataclasses.replace(agent, seen_at=earlier, free_bytes=7)])

    found = world.agents.get(['h1', 'h2', 'h3'])
    assert [now - found[host].seen_at for host in ages] == [  # type: ignore[operator]
        datetime.timedelta(seconds=seconds) for seconds in ages.values()
    ]
    assert {host: each.free_bytes for host, each in found.items()} == {
        'h1': None, 'h2': None, 'h3': 7,
    }  # fmt: skip
    assert set(world.agents.down(list(found))) == {'h2'}


def test_bytes_stay_bounded_in_any_order(
    database: session.Database,
) -> None:
    world = open_world(database)
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()

    def shown() -> tuple[int, int | None]:
        task = world.tasks(request)['h1', 'i1']
        return task.bytes_done, task.bytes_total

    told = [((60, 10**13), (60, 100)), ((10**12, None), (100, 100)), ((5, 9), (100, 100))]
    for sequence, ((done, total), expected) in enumerate(told, start=1):
        progress = model.Progress(model.TaskStatus.DOWNLOADING, done, total)
        report = jobs.ProgressReport(begun.job_id, begun.epoch, sequence, progress, world.cell.uuid)
        assert world.jobs.record_progress([report]) == 1
        assert shown() == expected
    foreign = dataclasses.replace(report, sequence=99, cell_uuid='another-cell')
    assert world.jobs.record_progress([foreign]) == 0
    assert not world.jobs.begin(begun.job_id, begun.epoch, cell_uuid='another-cell')
    existing = model.ImageOutcome(model.TaskStatus.EXISTING, bytes_total=0)
    assert world.jobs.finish(begun.job_id, begun.epoch, existing)
    assert shown() == (100, 100)


def _progress(call: jobs.Assignment, sequence: int, done: int) -> jobs.ProgressReport:
    progress = model.Progress(model.TaskStatus.VERIFYING, done, 100, 7)
    return jobs.ProgressReport(call.job_id, call.epoch, sequence, progress)


def _begun_in_order(world: World, count: int) -> list[jobs.Assignment]:
    world.planned(_hosts(0, count), ['i1'])
    return sorted((world.begun() for _ in range(count)), key=lambda call: call.host)


def test_bulk_progress_meets_each_fence(server: databases.Databases, url: str) -> None:
    if isinstance(server, databases.MariaDB):  # the tables may be older than the default
        name = sa.make_url(url).database
        server.execute(f'ALTER DATABASE {name} CHARACTER SET utf8mb3 COLLATE utf8mb3_unicode_ci')
        with _opened(url):
            server.execute(f'ALTER DATABASE {name} CHARACTER SET utf8mb4')
    with _opened(url) as database:
        world = open_world(database)
        for host in _hosts(0, 6):
            world.living(host)
            world.dead(host)
        heard = [model.Agent(host, f'agent-{host}', world.cell.uuid) for host in _hosts(0, 5)]
        other = model.Agent('h05', 'other', world.cell.uuid, capabilities={'odd': [1]})
        assert world.agents.report([*heard, other]) == [other]
        assert list(world.agents.down(_hosts(0, 6))) == ['h05']
        calls = _begun_in_order(world, 6)
        old, over, late = calls[2:5]
        world.jobs.record_progress([_progress(late, 5, 40)])
        world.jobs.finish(over.job_id, over.epoch, CACHED)
        assert world.jobs.assign_again('c1', old)
        reports = [_progress(call, 5, 90) for call in calls]
        reports[1] = dataclasses.replace(reports[1], progress=model.Progress('new', 30))
        reports[-1] = dataclasses.replace(reports[-1], agent_id='stranger')

        assert world.jobs.record_progress(reports) == 2

        [request] = world.requests.list()
        shown = {
            task.host: (task.status, task.bytes_done, task.rate_bytes)
            for task in world.requests.tasks(request.id)
        }
        assert [shown[call.host] for call in calls] == [
            ('verifying', 90, 7),
            ('downloading', 30, None),
            ('downloading', 0, None),
            ('cached', 100, None),
            ('verifying', 40, 7),
            ('downloading', 0, None),
        ]
        assert {job.host: job.bytes_done for job in world.all_jobs()} == {
            host: moved for host, (_, moved, _) in shown.items()
        }
        assert counting.counters(database) == counting.sums(database)


def _begun_among_many(world: World, count: int) -> list[jobs.Assignment]:
    """Begin jobs in a table that is too large to be scanned, and locked, for a few of them."""
    calls = _begun_in_order(world, count)
    world.planned(_hosts(count, 400), ['i1'])
    with world.database.engine.connect() as connection, connection.begin():
        what = 'TABLE' if connection.dialect.name in ('mysql', 'mariadb') else ''
        for table in ('jobs', 'cache_tasks'):
            connection.exec_driver_sql(f'ANALYZE {what} {table}')
    return calls


def test_locked_job_holds_up_one_chunk(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('it locks the whole database')
    monkeypatch.setattr(jobs, 'REPORTS_AT_ONCE', 2)
    world = open_world(database)
    calls = _begun_among_many(world, 4)
    reports = [_progress(call, 1, 50) for call in calls]

    with database.engine.begin() as holder, futures.ThreadPoolExecutor() as pool:
        holder.execute(
            sa.update(models.Job).where(models.Job.uuid == calls[1].job_id).values(priority=1)
        )
        counted = pool.submit(world.jobs.record_progress, reports)
        world.wait(lambda: world.job(calls[2].job_id).bytes_done == 50)
        assert world.jobs.finish(calls[3].job_id, calls[3].epoch, CACHED)
        holder.commit()
        assert counted.result(TIMEOUT_SECONDS) == 4

    moved = {job.host: job.bytes_done for job in world.all_jobs()}
    assert [moved[call.host] for call in calls] == [50, 50, 50, 100]


def test_jobs_locked_in_order_of_keys(database: session.Database) -> None:
    if database.engine.dialect.name != 'postgresql':
        pytest.skip('there, an UPDATE locks rows in the order in which it finds them')
    world = open_world(database)
    for host in ('h2', 'h1'):  # so a scan of the table finds h2 first
        world.planned([host], ['i1'])
    first, second = sorted(str(job.active_key) for job in world.all_jobs())

    with database.engine.begin() as holder, futures.ThreadPoolExecutor() as pool:
        job = sa.select(models.Job.id).where(models.Job.active_key == first)
        holder.execute(job.with_for_update())
        raised = pool.submit(
            database.write, lambda s: locking.lock_keys(s, [first, second], least_priority=5)
        )
        world.wait(lambda: _waits_for_lock(database))
        is_locked = _is_locked(database, models.Job.active_key == second)
        holder.commit()
        raised.result(TIMEOUT_SECONDS)

    assert not is_locked
    assert [job.priority for job in world.all_jobs()] == [5, 5]


def _waits_for_lock(database: session.Database) -> bool:
    waits = sa.text(
        'SELECT count(*) FROM pg_stat_activity '
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with database.reader() as reader:
        return reader.scalars(waits).one() > 0


def test_overlapping_progress_meets_no_deadlock(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('it has one writer at a time')
    monkeypatch.setattr(jobs, 'REPORTS_AT_ONCE', 3)
    world = open_world(database)
    calls = _begun_among_many(world, 12)
    errors: list[object] = []
    sa.event.listen(
        database.engine, 'handle_error', lambda each: errors.append(str(each.original_exception))
    )
    together = threading.Barrier(3)

    def write(some: Sequence[jobs.Assignment], first: int) -> None:
        for sequence in range(first, 30, 2):
            together.wait(TIMEOUT_SECONDS)
            world.jobs.record_progress([_progress(call, sequence, sequence) for call in some])

    def finish() -> None:
        for number in range(15):
            together.wait(TIMEOUT_SECONDS)
            if number < 6:
                ended = [jobs.Finish(call.job_id, call.epoch, CACHED) for call in calls[number::6]]
                _submit(database, finishes=ended)

    with futures.ThreadPoolExecutor() as pool:
        writers = [
            pool.submit(write, calls[:9], 0),
            pool.submit(write, calls[:2:-1], 1),
            pool.submit(finish),
        ]
        for each in writers:
            each.result(TIMEOUT_SECONDS)

    assert errors == []
    assert {world.job(call.job_id).status for call in calls} == {'cached'}
    assert counting.counters(database) == counting.sums(database)


def test_random_actions_lose_no_task(database: session.Database) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('the unit tests do it in more orders')
    orders = Orders(open_world(database), SEED)
    for _ in range(STEPS):
        orders.take_a_step()
        orders.look()
    orders.wait_for_completion()
    orders.look()
    assert counting.counters(database) == counting.sums(database)


def test_outage_costs_no_agent_its_name(
    database: session.Database,
) -> None:
    world = open_world(database)
    world.hears(for_seconds=1000)
    world.living('h1')
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    other = model.Agent('h1', 'other', world.cell.uuid)

    world.pass_time(10 * DOWN_SECONDS)
    for _ in range(2):  # before the first note after it, and at once after that
        with pytest.raises(exception.AgentConflict):
            world.agents.register(other)
        assert world.agents.down(['h1']) == {}
        world.hearings.note([world.cell.uuid])
    [unknown] = world.agents.list_page(status=model.HostStatus.UNKNOWN)
    world.hears(for_seconds=DOWN_SECONDS + 1)
    world.agents.register(other)

    assert unknown.agent.agent_id == 'agent-h1'
    assert not world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.statuses(request) == {('h1', 'i1'): 'retry_wait'}
    assert world.agents.report([other, model.Agent('h1', 'agent-h1', world.cell.uuid)]) == [
        model.Agent('h1', 'agent-h1', world.cell.uuid)
    ]
    again = world.assign('c1', 'h1')
    assert again is not None
    with pytest.raises(exception.AgentConflict):
        world.jobs.begin(again.job_id, again.epoch, True, agent_id='agent-h1')
    assert world.jobs.begin(again.job_id, again.epoch, True, agent_id='other')


def test_found_image_keeps_moved_bytes(
    database: session.Database,
) -> None:
    world = open_world(database)
    request = world.planned(['h1'], ['i1'])
    call = world.begun()
    found = model.ImageOutcome(model.TaskStatus.EXISTING, bytes_total=0)
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 60, 50)

    world.jobs.record_progress([jobs.ProgressReport(call.job_id, call.epoch, 1, progress)])
    [moved] = world.requests.tasks(request.id)
    world.jobs.finish(call.job_id, call.epoch, found)

    [task] = world.requests.tasks(request.id)
    assert (moved.bytes_done, moved.bytes_total) == (50, 50)
    assert (task.bytes_done, task.bytes_total) == (50, 50)
    assert world.requests.get(request.id).bytes_total == 50


# Two conductors at once


@dataclasses.dataclass
class Fleet:
    """Four requests: two that overlap, one with a limit of its own, and one of a dead conductor."""

    world: World
    kill: str | None
    asked: list[model.CacheRequest] = dataclasses.field(default_factory=list)
    dead: list[jobs.Assignment] = dataclasses.field(default_factory=list)
    over: list[str] = dataclasses.field(default_factory=list)

    def set_up(self) -> None:
        self._leave_behind(['d1', 'd2', 'd3', 'd4'])
        self._ask(_hosts(0, 30), SHARED, priority=1)
        self._ask(_hosts(15, 45), SHARED)
        self._ask(_hosts(8, 24), IMAGES[2:], options=model.RequestOptions(max_parallel_hosts=2))

    def _leave_behind(self, hosts: Sequence[str]) -> None:
        """Claim hosts and call some of them as a conductor that then dies."""
        for host in hosts:
            self.world.living(host)
        self.asked.append(self.world.planned(hosts, SHARED))
        claimed = self.world.jobs.claim_hosts(DEAD, LIMIT, most=len(hosts))
        self.dead = [each.first for each in claimed if each.first is not None]
        for call in self.dead[:2]:
            assert self.world.jobs.begin(call.job_id, call.epoch)
        for host in hosts:
            self.world.expire(host)

    def _ask(self, hosts: Sequence[str], images: Sequence[str], **fields: object) -> None:
        aggregate = self.world.aggregate(hosts)
        self.asked.append(
            self.world.accept(hosts, images, aggregate=aggregate, is_admin=True, **fields)
        )

    def wait_for_completion(self) -> None:
        """Steer the running requests, and check the limits all the time."""
        self._wait_done(15)
        self._steer(1, self.world.steering.pause)
        self._kill()
        self._wait_done(45)
        self._steer(1, self.world.steering.resume)
        self._kill()
        self._wait_done(80)
        self._steer(2, self.world.steering.cancel)
        for _ in self._looks():
            if not any(self.world.status(each) in model.REQUEST_ACTIVE for each in self.asked):
                return

    def _steer(self, number: int, step: Callable[[str], object]) -> None:
        with contextlib.suppress(exception.StatusConflict):
            step(self.asked[number].id)

    def _wait_done(self, count: int) -> None:
        final = sa.select(sa.func.count()).where(models.Task.finished_at.is_not(None))
        for _ in self._looks():
            with self.world.database.reader() as reader:
                if reader.scalars(final).one() >= count:
                    return

    def _looks(self) -> Iterator[None]:
        """Check repeatedly that no limit is exceeded, and stop the jobs that must stop."""
        pause = threading.Event()
        for _ in range(TIMEOUT_SECONDS * 50):
            self._look()
            self._stop_idle()
            yield
            pause.wait(0.02)
        pytest.fail('it did not come to an end')

    def _look(self) -> None:
        claimed, counted, limited = _claims(self.world, self.asked[3].id)
        if claimed > LIMIT:
            self.over.append(f'{claimed} claims')
        if claimed != counted:
            self.over.append(f'{claimed} claims are counted as {counted}')
        if limited > 2:
            self.over.append(f'{limited} hosts of one request')

    def _stop_idle(self) -> None:
        """Report jobs to stop on unclaimed hosts as stopped, as the computes would."""
        orders = self.world.steering.stop_orders()
        claimed = set(self.world.jobs.claimed_hosts()) if orders else set()
        for order in orders:
            if order.host not in claimed:
                self.world.steering.stopped(order.job_id, order.epoch)

    def _kill(self) -> None:
        """Cut the connections of all other processes."""
        if self.kill is None:
            return
        with self.world.database.engine.connect() as connection:
            for number in connection.exec_driver_sql(self.kill.split(';')[0]).scalars().all():
                with contextlib.suppress(sa.exc.DBAPIError):
                    connection.exec_driver_sql(self.kill.split(';')[1].format(number))


KILLS = {
    'sqlite': None,
    'mysql': 'SELECT id FROM information_schema.processlist '
    'WHERE db = database() AND id <> connection_id();KILL {}',
    'postgresql': 'SELECT pid FROM pg_stat_activity '
    'WHERE datname = current_database() AND pid <> pg_backend_pid()'
    ';SELECT pg_terminate_backend({})',
}


def _hosts(first: int, end: int) -> list[str]:
    return [f'h{number:02}' for number in range(first, end)]


def _claims(world: World, limited: str) -> tuple[int, int, int]:
    """Count the claims, read their counter, and count the hosts busy for a request."""
    claimed = sa.select(sa.func.count()).where(models.Claim.conductor_id.is_not(None))
    counted = sa.select(models.Counter.value).where(models.Counter.name == 'claimed_hosts')
    busy = sa.select(sa.func.count()).where(
        models.Task.request_id == limited, models.Task.status.in_(model.TASK_WORKING)
    )
    with world.database.reader() as reader:  # in one statement, or they are of two moments
        columns = (each.scalar_subquery() for each in (claimed, counted, busy))
        return tuple(reader.execute(sa.select(*columns)).one())  # type: ignore[return-value]


def test_two_conductors_do_each_task_once(url: str, database: session.Database) -> None:
    fleet = Fleet(open_world(database), KILLS[database.engine.dialect.name])
    fleet.set_up()
    orders = [conducting.Order(url, each, LIMIT, IMAGES) for each in CONDUCTORS]

    with contextlib.ExitStack() as running:
        processes = [running.enter_context(conducting.Process(each)) for each in orders]
        _all(processes)
        _all(processes, 'start')
        fleet.wait_for_completion()
        _all(processes, 'stop')
        stale = [_zombie(fleet.world, call) for call in fleet.dead]
        told = [each for each in _all(processes, 'announce') if each is not None]

    assert fleet.over == []
    assert [error for each in told for error in each.errors] == []
    assert stale == [job_outcome.STALE] * 4
    _check_calls([call for each in told for call in each.calls], fleet)
    _check_rows(fleet)
    _check_announced([each for one in told for each in one.announced], fleet)


def _all(
    processes: Sequence[conducting.Process], step: str | None = None
) -> list[conducting.Told | None]:
    for each in processes:
        if step is not None:
            each.begin(step)
    return [each.wait() for each in processes]


def _zombie(world: World, call: jobs.Assignment) -> job_outcome.Recorded:
    """Finish a call of the dead conductor, and return how that was recorded."""
    finish = jobs.Finish(call.job_id, call.epoch, CACHED)
    turned = world.jobs.next_job(DEAD, call.host, finish)
    assert turned.assignment is None
    return turned.recorded


def _check_calls(calls: Sequence[conducting.Call], fleet: Fleet) -> None:
    """Check the limit, one call at a time on a host, and a separate epoch for each call."""
    began = [call for call in calls if call.began]
    assert {call.host for call in began} >= {*_hosts(0, 15), 'd1', 'd2', 'd3', 'd4'}
    assert conducting.most_at_once(began) <= LIMIT
    for on_host in conducting.by_host(began).values():
        assert conducting.most_at_once(on_host) == 1
    epochs = [(call.host, call.epoch) for call in calls]
    assert len(set(epochs)) == len(epochs)
    old = {(call.host, call.epoch) for call in fleet.dead}
    assert old.isdisjoint(epochs)


def _check_rows(fleet: Fleet) -> None:
    """Check that everything is final, and that the totals are the sums of the tasks."""
    world = fleet.world
    assert counting.counters(world.database) == counting.sums(world.database)
    assert _claims(world, fleet.asked[3].id) == (0, 0, 0)
    assert world.depth() == 0
    for asked in fleet.asked:
        request, tasks = world.requests.get(asked.id), world.tasks(asked)
        assert request.status not in model.REQUEST_ACTIVE
        assert {task.status in model.TASK_IN_FLIGHT for task in tasks.values()} == {False}
        assert request.counts == collections.Counter(task.status for task in tasks.values())
        hosts = {host for host, _ in tasks}
        assert (request.hosts_total, request.hosts_done) == (len(hosts), len(hosts))
    assert world.status(fleet.asked[2]) in {'cancelled', 'completed', 'partial'}


def _check_announced(announced: Sequence[tuple[str, ...]], fleet: Fleet) -> None:
    """Check that each task was announced once, and so were each request's start and end."""
    ours = [each for each in announced if each[0].startswith('image_precache.')]
    tasks = [each[1:] for each in ours if each[0].endswith('.task')]
    assert sorted(tasks) == sorted(
        (asked.id, host, image) for asked in fleet.asked for host, image in fleet.world.tasks(asked)
    )
    words = collections.Counter((each[0].rsplit('.', 1)[1], each[1]) for each in ours)
    for word, asked in itertools.product(('start', 'end'), fleet.asked):
        assert words[word, asked.id] == 1
    assert fleet.world.to_announce(fleet.asked[0]) == []


def test_counters_add_up_in_any_order(database: session.Database) -> None:
    """One thread ends tasks of a request and begins those of another, a second the reverse.

    A third one corrects the counters meanwhile.
    """
    world = open_world(database)
    ends, begins = (
        [_hosts(0, TURNS), _hosts(30, 30 + TURNS)],
        [_hosts(60, 60 + TURNS), _hosts(80, 80 + TURNS)],
    )
    asked = [
        world.planned([*ends[0], *begins[1], 'lost'], ['i1']),
        world.planned([*ends[1], *begins[0]], ['i2']),
    ]
    claimed = world.jobs.claim_hosts(CONDUCTORS[0], limit=100, most=100)
    calls = {each.claim.host: each.first for each in claimed if each.first is not None}
    begin = {host: Begin(made.job_id, made.epoch) for host, made in calls.items()}
    finish = {host: jobs.Finish(made.job_id, made.epoch, CACHED) for host, made in calls.items()}
    _submit(database, begins=[begin[host] for host in (*ends[0], *ends[1])])
    world.change(models.Task, models.Task.host == 'lost', status='skipped')  # uncounted
    errors: list[str] = []
    sa.event.listen(database.engine, 'handle_error', lambda met: errors.append(str(met)))
    together = threading.Barrier(3)
    working = threading.Event()

    def work(number: int) -> None:
        together.wait(TIMEOUT_SECONDS)
        for ending, beginning in zip(ends[number], begins[number], strict=True):
            _submit(database, finishes=[finish[ending]], begins=[begin[beginning]])

    def correct() -> int:
        together.wait(TIMEOUT_SECONDS)
        corrected = 0
        while not working.is_set():
            corrected += task_counts.TaskCounts(database).check(0)
        return corrected

    with futures.ThreadPoolExecutor(3) as pool:
        correcting = pool.submit(correct)
        for each in [pool.submit(work, number) for number in range(2)]:
            each.result()
        working.set()

    assert errors == []
    assert correcting.result() == 1
    assert counting.counters(database) == counting.sums(database)
    assert [world.requests.get(each.id).counts for each in asked] == [
        {'cached': TURNS, 'downloading': TURNS, 'skipped': 1},
        {'cached': TURNS, 'downloading': TURNS},
    ]


def test_request_read_without_its_tasks(database: session.Database) -> None:
    """Also while the statistics of the server do not know the tasks yet."""
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('the unit test looks at its plan')
    world = open_world(database)
    request = world.planned(_hosts(0, 500), list(IMAGES))
    world.begun()

    with rows_read.counted(database) as read:
        shown = world.requests.get(request.id)

    assert shown.counts == {'downloading': 1, 'queued': 1499}
    assert read.rows < 100


def test_request_reads_its_own_work_only(database: session.Database) -> None:
    if database.engine.dialect.name not in {'mysql', 'mariadb'}:
        pytest.skip('Others find it by one index, too')
    world = open_world(database)
    world.planned(_hosts(0, 300), ['i1'])
    others = [world.begun() for _ in range(60)]
    request = world.planned(_hosts(300, 310), ['i1'])
    world.begun()
    _analyze(world)

    with rows_read.counted(database) as read:
        shown = world.requests.get(request.id)

    assert len({each.job_id for each in others}) == 60
    assert sum(shown.counts.values()) == 10
    assert read.rows < 30, read.each


def test_snapshots_need_no_preparation(database: session.Database) -> None:
    """A connection is prepared once, unless it writes in between, which needs another level."""
    if database.engine.dialect.name not in {'mysql', 'mariadb'}:
        pytest.skip('The level is not set for a transaction')
    statements: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    level = sa.text('SELECT @@tx_isolation')
    sa.event.listen(database.engine, 'before_cursor_execute', note)

    for _ in range(3):
        with database.one_snapshot(), database.reader() as reader:
            assert reader.scalars(level).one() == 'REPEATABLE-READ'
    assert [each.startswith('SET SESSION') for each in statements] == [True, False, False, False]
    with database.reader():
        assert not statements[4:]
    assert database.write(lambda writer: writer.scalars(level).one()) == 'READ-COMMITTED'
    with database.reader():
        assert statements[-1].startswith('SET TRANSACTION')
    assert database.write(lambda writer: writer.scalars(level).one()) == 'READ-COMMITTED'
    assert len([each for each in statements if 'READ COMMITTED' in each]) == 1


def test_deadline_not_checked_for_each_row(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.engine.dialect.name not in {'mysql', 'mariadb'}:
        pytest.skip('Its driver waits once for all rows')
    looks: list[float] = []
    left = deadline.left

    def note(at_most: float = math.inf) -> float:
        looks.append(left(at_most))
        return looks[-1]

    with database.reader() as reader:
        monkeypatch.setattr(deadline, 'left', note)
        monkeypatch.setattr(timeouts, '_STEP_SECONDS', TIMEOUT_SECONDS)
        assert len(reader.execute(sa.text('SELECT * FROM seq_1_to_500')).all()) == 500
        first = len(looks)
        raw: Any = reader.connection().connection.driver_connection
        until = raw._read_limit_until
        with deadline.within(TIMEOUT_SECONDS / 2):
            reader.execute(sa.text('SELECT 1')).all()

    assert first < 10
    assert any(0 < seconds < TIMEOUT_SECONDS / 2 for seconds in looks[first:])
    assert raw._read_limit_until > until, 'the limit of the statement before'


def test_times_are_read_by_own_converter(database: session.Database) -> None:
    if database.engine.dialect.driver != 'pymysql':
        pytest.skip('Its driver is fast')
    with database.reader() as reader:
        raw = reader.connection().connection.driver_connection
        read = reader.scalars(sa.text('SELECT CAST("2026-01-02 03:04:05.6" AS DATETIME(6))')).one()

    assert raw is not None
    assert raw.decoders[FIELD_TYPE.DATETIME] is pymysql_times.from_text
    assert read == datetime.datetime(2026, 1, 2, 3, 4, 5, 600000)  # noqa: DTZ001


def test_progress_rewrites_no_index(database: session.Database) -> None:
    """A report writes one version of its job and of its task, next to the one before."""
    if database.engine.dialect.name != 'postgresql':
        pytest.skip('Other servers change rows where they are')
    world = open_world(database)
    with database.engine.begin() as connection:
        for table in ('jobs', 'cache_tasks'):  # whose room would be kept for its snapshot
            connection.execute(sa.text(f'ALTER TABLE {table} SET (autovacuum_enabled = false)'))
    world.planned(_hosts(0, 60), ['i1'])
    begun = [world.begun() for _ in range(60)]
    parameters: list[int] = []

    def note(conn: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        parameters.append(len(values))

    written = sa.text(
        "SELECT pg_stat_get_xact_tuples_updated('jobs'::regclass),"
        " pg_stat_get_xact_tuples_hot_updated('jobs'::regclass),"
        " pg_stat_get_xact_tuples_updated('cache_tasks'::regclass),"
        " pg_stat_get_xact_tuples_hot_updated('cache_tasks'::regclass)"
    )
    for number in (1, 2, 3):
        moved = model.Progress('downloading', number, 100, rate_bytes=10)
        reports = [
            job_progress.ProgressReport(each.job_id, each.epoch, number, moved) for each in begun
        ]

        def record(writer: orm.Session, reports: Any = reports) -> Any:
            before = writer.execute(written).one()
            chosen = job_progress.choose(writer, reports)
            assert job_progress.record(writer, chosen) == 60
            return [
                now - old for now, old in zip(writer.execute(written).one(), before, strict=True)
            ]

        changed = database.write(record)
        if number == 1:
            sa.event.listen(database.engine, 'before_cursor_execute', note)

    assert changed == [60, 60, 60, 60]
    assert max(parameters) < 20


def _submit(database: session.Database, **members: Sequence[Any]) -> None:
    batch = job_batch.Batch(**members)
    database.write(lambda writer: job_batch.execute_batch(writer, batch))


def test_waits_explained(database: session.Database) -> None:
    world = open_world(database)
    options = model.RequestOptions(canary=1, max_parallel_hosts=1)
    for host in ('h1', 'h2'):
        world.living(host)
    request = world.planned(['h1', 'h2'], list(SHARED), options=options)
    assigned = world.begun()
    progress = model.Progress('downloading', 10, 100, rate_bytes=9)
    report = jobs.ProgressReport(assigned.job_id, assigned.epoch, 1, progress)
    assert world.jobs.record_progress([report]) == 1
    explained = explanations.Explanations(
        database,
        explanations.Rules(3600, 30, 3600, precache_concurrency=lambda: 1),
        names.CellNames(world.inventory).cells,
        world.agents.why_down,
    )

    def reasons() -> list[str | None]:
        return [task.reason for task in explained.tasks(world.requests.tasks(request.id))]

    assert reasons() == [
        None,
        'waits for another image on the same host',
        'waits for the canary hosts: 0 of 1 done',
        'waits for the canary hosts: 0 of 1 done',
    ]
    (shown,) = explained.requests([world.requests.get(request.id)])
    assert (shown.reason, shown.rate_bytes) == (None, 9)
    world.dead('h1')
    world.change(models.Agent, models.Agent.host == 'h1', started_at=LONG_AGO)
    world.change(models.Job, models.Job.host == 'h1', progress_at=LONG_AGO)

    (shown,) = explained.requests([world.requests.get(request.id)])

    assert shown.rate_bytes == 0
    assert str(shown.reason).startswith('h1: no sign of the compute for ')
    assert str(reasons()[1]).startswith('no sign of the compute for ')


def _fill(world: World, hosts: int) -> list[model.CacheRequest]:
    """Plan three requests, of which the first ones have many tasks on other hosts."""
    options = model.RequestOptions(canary=1, max_parallel_hosts=1)
    found = []
    for prefix, chosen in (('a', None), ('b', options), ('c', None)):
        on = [f'{prefix}{number}' for number in range(hosts)]
        more: dict[str, Any] = {} if chosen is None else {'options': chosen}
        found.append(world.planned(on, list(SHARED), **more))
        for host in (*on[:2], on[-1]):
            world.living(host)
    world.hears(for_seconds=3600)
    _analyze(world)
    return found


def _analyze(world: World) -> None:
    tables = ('cache_requests', 'cache_tasks', 'jobs', 'agents', 'claims')
    mysql = world.database.engine.dialect.name != 'postgresql'
    with world.database.engine.connect() as connection:
        for table in tables:
            connection.exec_driver_sql(f'ANALYZE {"TABLE " if mysql else ""}{table}')
        connection.commit()


def test_old_server_is_refused(database: session.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if database.engine.dialect.name not in {'mysql', 'mariadb'}:
        pytest.skip('Any version will do')
    schema.require(database)
    monkeypatch.setattr(database.engine.dialect, 'server_version_info', (10, 5, 29))

    for refused in (schema.require, schema.sync):
        with pytest.raises(
            exception.ConfigError, match=r'MariaDB 10\.5\.29; .* needs 10\.6 or newer'
        ):
            refused(database)


def test_work_reads_few_rows(database: session.Database) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('Its plans are tested without a server')
    world = open_world(database)
    hosts = [f'h{number}' for number in range(2400)]
    world.planned(hosts, list(SHARED))
    for host in hosts[:20]:
        world.living(host)
    if database.engine.dialect.name == 'postgresql':
        _analyze(world)  # else it takes so small a table for even smaller

    with rows_read.counted(database) as work:
        world.jobs.claim_hosts('c1', 100, most=16)
        first, second = world.begun(), world.begun()
        world.jobs.finish(first.job_id, first.epoch, CACHED)
        world.jobs.retry(second.job_id, second.epoch, BROKEN, 100)
        assert world.jobs.askers(second.job_id)

    assert max(work.each)[0] < 1000, max(work.each)


def test_bytes_before_far_host_not_read(
    database: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('It counts no rows')
    monkeypatch.setattr(turns, 'MOST_JOBS', 20)
    world = open_world(database)
    before = [f'h{number:02}' for number in range(20)]
    world.planned([*before, 'last'], ['i'])

    def rows() -> int:
        _analyze(world)
        with database.reader() as reader:
            now = session.now(reader)
            with rows_read.counted(database) as read:
                found = turns.places(reader, now, {world.cell.uuid: ['last']})
        assert found == {'last': turns.Place(20, is_beyond=True)}
        return read.rows

    few = rows()
    for number in range(10):
        world.planned(before, [f'{number}{letter}' for letter in 'abc'])

    assert rows() < few + 20 * 30  # jobs that these hosts have got


def test_pages_read_few_rows(database: session.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if database.engine.dialect.name == 'sqlite':
        pytest.skip('Its plans are tested without a server')
    monkeypatch.setattr(turns, 'MOST_JOBS', 20)
    world = open_world(database)
    first, guarded, last = _fill(world, hosts=800)
    begun = world.begun()
    progress = model.Progress('downloading', 1, 100, rate_bytes=10)
    world.jobs.record_progress([jobs.ProgressReport(begun.job_id, begun.epoch, 1, progress)])
    explained = explanations.Explanations(
        database,
        explanations.Rules(3600, 30, 3600, precache_concurrency=lambda: 1),
        names.CellNames(world.inventory).cells,
        world.agents.why_down,
    )
    newest = [model.SortKey('id', is_descending=True)]

    for request in (first, guarded, last):
        for status in (None, 'queued', 'error'):
            for sort in ([], newest):
                chosen = requests.TaskFilter(request.id, status=status)
                with rows_read.counted(database) as page:
                    explained.tasks(world.requests.list_tasks(chosen, pages.Page(sort, 20)))
                assert page.rows < 1000, (status, sort, max(page.each))
        with rows_read.counted(database) as one:
            (shown,) = explained.requests([world.requests.get(request.id)])
        assert one.rows < 1000, max(one.each)
    assert shown.reason == (
        'c0: waits for a slot: 1 of 1 hosts are at work, more than 10 hosts before it'
    )
