# SPDX-License-Identifier: Apache-2.0
"""Counters of tasks: what a request shows without a read of each task, and their correction.

Each test of this directory also checks at its end that counters are the sums over the tasks.
"""

import datetime
from collections.abc import Callable, Sequence

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import (
    job_batch,
    jobs,
    pins,
    request_actions,
    statistics,
    task_counts,
)
from nova_precache.db.engine import models, session
from nova_precache.db.job.call import Begin
from nova_precache.db.request import plan as request_plan
from tests import counting, statements
from tests.unit.conftest import BROKEN, CACHED, DOWN_SECONDS, LONG_AGO, PLANNER, World
from tests.unit.db.conftest import Changes

PERIOD = 60.0
REFUSED = model.ImageOutcome(model.TaskStatus.ERROR, 'refused')


@pytest.fixture
def counts(world: World) -> task_counts.TaskCounts:
    return task_counts.TaskCounts(world.database)


def _corrections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if 'counters' in text]


def _tasks_read(database: session.Database, sent: Sequence[statements.Statement]) -> set[str]:
    """Return the ways in which SQLite finds the tasks of these statements."""
    with database.engine.connect() as connection:
        plans = [
            connection.exec_driver_sql(
                f'EXPLAIN QUERY PLAN {each.sql}', ('x',) * each.sql.count('?')
            )
            for each in sent
        ]
        return {row[3] for plan in plans for row in plan if 'cache_tasks' in row[3]}


# What requests show


def test_page_read_by_two_statements(world: World) -> None:
    for host in ('h1', 'h2', 'h3'):
        world.planned([host], ['i1', 'i2'])
    world.begun()

    with statements.recorded(world.database) as sent:
        page = world.requests.list()

    assert [request.counts for request in page] == [
        {'queued': 2},
        {'queued': 2},
        {'downloading': 1, 'queued': 1},
    ]
    assert len(sent) == 2


def test_only_tasks_at_work_are_read(world: World) -> None:
    request = world.planned(['h1'], ['i1'])

    with statements.recorded(world.database) as sent:
        world.requests.get(request.id)

    assert _tasks_read(world.database, sent) == {
        'SEARCH cache_tasks USING INDEX cache_tasks_status_idx (request_id=? AND status=?)'
    }


def test_work_reads_no_other_tasks(world: World) -> None:
    actions = request_actions.RequestActions(world.database)
    with statements.recorded(world.database) as sent:
        request = world.planned(['h1', 'h2', 'h3'], ['i1'])
        first, second = world.begun(), world.begun()
        progress = model.Progress(model.TaskStatus.DOWNLOADING, 1)
        world.jobs.record_progress([jobs.ProgressReport(first.job_id, first.epoch, 1, progress)])
        world.jobs.finish(first.job_id, first.epoch, CACHED)
        world.jobs.retry(second.job_id, second.epoch, BROKEN, 100)
        actions.pause(request.id)
        actions.resume(request.id)
        actions.cancel(request.id)
        pins.Pins(world.database).load()

    found = _tasks_read(world.database, sent)
    assert any('cache_tasks_job_idx' in step for step in found)
    assert [step for step in found if 'cache_tasks_state_idx' in step] == []


def test_totals_are_sums_over_tasks(world: World) -> None:
    request = world.accept(['h1', 'h2', 'h3', 'h4', 'h5'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    known = {'h1': 100, 'h2': None, 'h3': 30, 'h4': 7}
    queued = [
        request_plan.PlannedTask(host, world.cell.uuid, 'i1', bytes_total=size)
        for host, size in known.items()
    ]
    known_end = request_plan.PlannedTask('h5', world.cell.uuid, 'i1', 'skipped', bytes_total=9)
    assert world.requests.add_tasks(request.id, PLANNER, [*queued, known_end])
    assert world.requests.mark_planned(request.id, PLANNER)
    calls = {call.host: call for call in (world.begun(), world.begun(), world.begun())}
    for sequence, (host, moved) in enumerate({'h1': 40, 'h2': 20, 'h3': 10}.items(), start=1):
        progress = model.Progress(model.TaskStatus.CONVERTING, moved, rate_bytes=5)
        report = jobs.ProgressReport(calls[host].job_id, calls[host].epoch, sequence, progress)
        assert world.jobs.record_progress([report]) == 1
    world.jobs.finish(calls['h2'].job_id, calls['h2'].epoch, REFUSED)
    world.jobs.retry(calls['h3'].job_id, calls['h3'].epoch, BROKEN, 100)

    shown = world.requests.get(request.id)

    assert shown.counts == {
        'converting': 1,
        'error': 1,
        'queued': 1,
        'retry_wait': 1,
        'skipped': 1,
    }
    assert (shown.bytes_done, shown.bytes_total) == (40 + 20 + 10, 100 + 20 + 30 + 7 + 9)
    assert (shown.rate_bytes, shown.bytes_to_come) == (5, 60 + 20 + 7)


def test_statistics_count_active_requests(world: World) -> None:
    ended = world.planned(['h1'], ['i1'])
    call = world.begun()
    world.jobs.finish(call.job_id, call.epoch, CACHED)
    assert world.requests.complete(ended.id)
    world.planned(['h2', 'h3'], ['i1'])
    world.begun()

    counted = statistics.Statistics(world.database, DOWN_SECONDS).take()

    assert counted.tasks == {'downloading': 1, 'queued': 1}


# Changes


def test_transaction_sees_its_own_changes(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    call = world.begun()

    def work(writer: orm.Session) -> dict[str, int]:
        batch = job_batch.Batch(finishes=[jobs.Finish(call.job_id, call.epoch, CACHED)])
        job_batch.execute_batch(writer, batch)
        totals = task_counts.load(writer, [request.id])[request.id]
        return {status: total.tasks for status, total in totals.items()}

    assert world.database.write(work) == {'cached': 1, 'queued': 1}


def test_retried_transaction_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('nova_precache.db.engine.session.time.sleep', lambda seconds: None)
    request = world.planned(['h1'], ['i1'])
    claim = world.claim('c1', limit=1)
    assert claim is not None
    call = world.assign('c1', claim.host)
    assert call is not None
    failures: list[Exception] = [db_exception.DBDeadlock(), db_exception.DBConnectionError()]

    def work(writer: orm.Session) -> None:
        job_batch.execute_batch(writer, job_batch.Batch(begins=[Begin(call.job_id, call.epoch)]))
        if failures:
            raise failures.pop()

    world.database.write(work)

    assert world.requests.get(request.id).counts == {'downloading': 1}
    assert counting.counters(world.database) == {}


def test_plan_reads_its_hosts_once(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    assert world.plan(request, ['h1'])

    with statements.recorded(world.database) as sent:
        assert world.plan(request, ['h1', 'h2'])

    assert sum('FROM cache_tasks' in each.sql for each in sent) == 1
    assert world.requests.get(request.id).counts == {'queued': 2}


def test_retried_tasks_keep_counters_right(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    for outcome in (REFUSED, CACHED):
        call = world.begun()
        world.jobs.finish(call.job_id, call.epoch, outcome)
    assert world.requests.complete(request.id)

    world.steering.retry(request.id, hosts=['h1'])
    queued = world.requests.get(request.id)
    assert world.requests.next_to_plan(PLANNER)
    known = request_plan.PlannedTask('h1', None, 'i1', 'skipped', bytes_total=30)
    assert world.requests.add_tasks(request.id, PLANNER, [known])

    assert queued.counts == {'cached': 1, 'queued': 1}
    skipped = world.requests.get(request.id)
    assert (skipped.counts, skipped.bytes_total) == ({'cached': 1, 'skipped': 1}, 130)


def test_nothing_is_written_without_change(world: World) -> None:
    world.planned(['h1'], ['i1'])
    call = world.begun()
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 10, 100, 5)

    with statements.recorded(world.database) as sent:
        report = jobs.ProgressReport(call.job_id, call.epoch, 1, progress)
        assert world.jobs.record_progress([report]) == 1
        world.jobs.renew('c1')

    assert not [each for each in sent if 'task_counts' in each.sql]


def test_unknown_status_is_counted(world: World, changes: Changes) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    for _ in range(2):
        call = world.begun()
        outcome = model.ImageOutcome('thawed', bytes_done=3)
        world.jobs.finish(call.job_id, call.epoch, outcome)

    assert world.requests.get(request.id).counts == {'thawed': 2}
    changes.discard('thawed')


def test_purged_request_leaves_no_counters(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    call = world.begun()
    world.jobs.finish(call.job_id, call.epoch, CACHED)
    assert world.requests.complete(request.id)
    world.change(models.CacheRequest, sa.true(), finished_at=LONG_AGO)

    assert world.requests.purge(1) == 1

    with world.database.reader() as reader:
        assert reader.scalars(sa.select(models.TaskCount)).all() == []


# Beside conductors of an earlier release, which do not count


def _end_uncounted(world: World, request: model.CacheRequest, host: str, status: str) -> None:
    job, task = models.Job, models.Task
    world.change(job, job.host == host, status=status, active_key=None)
    its_task = sa.and_(task.request_id == request.id, task.host == host)
    world.change(task, its_task, status=status, bytes_done=70, finished_at=LONG_AGO)


def test_uncounted_changes_corrected_and_logged(
    world: World, counts: task_counts.TaskCounts, caplog: pytest.LogCaptureFixture
) -> None:
    request, right = world.planned(['h1', 'h2'], ['i1']), world.planned(['h3'], ['i1'])
    _end_uncounted(world, request, 'h1', 'downloading')
    _end_uncounted(world, request, 'h1', 'cached')

    assert counts.check(PERIOD) == 1

    difference = 'cached: +1 tasks, +70 of +100 bytes, queued: -1 tasks, +0 of -100 bytes'
    logged = f'Request {request.id}: correcting its counters of tasks by {difference}'
    assert _corrections(caplog) == [logged]
    assert world.requests.get(request.id).counts == {'cached': 1, 'queued': 1}
    assert world.requests.get(right.id).counts == {'queued': 1}
    assert counts.check(0) == 0
    assert len(_corrections(caplog)) == 1


def test_missing_counters_are_made(world: World, counts: task_counts.TaskCounts) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    world.database.write(lambda writer: writer.execute(sa.delete(models.TaskCount)))
    world.begun()

    assert counts.check(PERIOD) == 1

    assert world.requests.get(request.id).counts == {'downloading': 1, 'queued': 1}


def test_one_check_in_a_period(world: World, counts: task_counts.TaskCounts) -> None:
    request = world.planned(['h1'], ['i1'])
    assert counts.check(PERIOD) == 0
    _end_uncounted(world, request, 'h1', 'downloading')
    _end_uncounted(world, request, 'h1', 'error')

    assert counts.check(PERIOD) == 0
    earlier = models.Counter.value - PERIOD
    world.change(models.Counter, models.Counter.name == task_counts.CHECKED, value=earlier)
    assert counts.check(PERIOD) == 1


def test_set_back_clock_stops_no_check(world: World, counts: task_counts.TaskCounts) -> None:
    request = world.planned(['h1'], ['i1'])
    ahead = models.Counter.value + 2**35
    world.change(models.Counter, models.Counter.name == task_counts.CHECKED, value=ahead)
    _end_uncounted(world, request, 'h1', 'downloading')

    assert counts.check(PERIOD) == 1


@pytest.mark.parametrize(
    ('ago', 'corrected'), [(datetime.timedelta(0), 1), (2 * task_counts.ENDED, 0)]
)
def test_ended_request_checked_for_an_hour(
    world: World, counts: task_counts.TaskCounts, ago: datetime.timedelta, corrected: int
) -> None:
    assert counts.check(PERIOD) == 0
    request = world.planned(['h1'], ['i1'])
    _end_uncounted(world, request, 'h1', 'downloading')
    _end_uncounted(world, request, 'h1', 'cached')
    assert world.requests.complete(request.id)
    ended = world.requests.get(request.id)
    assert ended.finished_at is not None
    world.change(models.CacheRequest, sa.true(), finished_at=ended.finished_at - ago)

    assert counts.check(0) == corrected

    world.change(models.CacheRequest, sa.true(), finished_at=ended.finished_at)
    counts.check(0)


def test_first_check_covers_all_requests(world: World, counts: task_counts.TaskCounts) -> None:
    request = world.planned(['h1'], ['i1'])
    _end_uncounted(world, request, 'h1', 'downloading')
    _end_uncounted(world, request, 'h1', 'cached')
    assert world.requests.complete(request.id)
    long_ago = datetime.datetime(2020, 1, 1)  # noqa: DTZ001 - as the database keeps it
    world.change(models.CacheRequest, sa.true(), finished_at=long_ago)

    assert counts.check(PERIOD) == 1


@pytest.mark.parametrize(
    ('ended', 'status'), [('cached', 'completed'), ('error', 'failed'), ('expired', 'expired')]
)
def test_completion_is_exact_beside_earlier_release(
    world: World, counts: task_counts.TaskCounts, ended: str, status: str
) -> None:
    request = world.planned(['h1'], ['i1'])
    _end_uncounted(world, request, 'h1', 'downloading')
    _end_uncounted(world, request, 'h1', ended)

    assert world.requests.complete(request.id)

    assert world.status(request) == status
    assert counts.check(PERIOD) == 1


def _begin(world: World) -> None:
    world.begun()


def _begin_and_finish(world: World) -> None:
    call = world.begun()
    world.jobs.finish(call.job_id, call.epoch, CACHED)


@pytest.mark.parametrize('work', [_begin, _begin_and_finish])
def test_work_between_comparison_and_correction(
    world: World,
    counts: task_counts.TaskCounts,
    work: Callable[[World], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    _end_uncounted(world, request, 'h3', 'downloading')
    _end_uncounted(world, request, 'h3', 'skipped')
    write = world.database.write
    turns: list[str] = []

    def work_first(step: Callable[[orm.Session], object]) -> object:
        turns.append('write')
        if len(turns) == 2:  # after the turn was taken, the correction
            monkeypatch.setattr(world.database, 'write', write)
            work(world)
        return write(step)

    monkeypatch.setattr(world.database, 'write', work_first)

    assert counts.check(PERIOD) == 1

    assert counting.counters(world.database) == counting.sums(world.database)
    assert world.requests.get(request.id).counts['skipped'] == 1
