# SPDX-License-Identifier: Apache-2.0
"""All transactions lock rows in one order, or servers find them in deadlocks.

The order is that of the statements, which SQLite shares: the counter, claims, jobs by
their active keys, requests by their ids, counters of tasks by request and status.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import host_recovery, job_batch, jobs
from nova_precache.db.job import claim as job_claim, finish as job_finish
from nova_precache.db.job.call import Begin
from nova_precache.db.job_batch import NextJobRequest
from tests.unit.conftest import BROKEN, CACHED, PLANNER, World

ORDER = ('counters', 'claims', 'jobs', 'cache_requests', 'task_counts')
LEASE = datetime.timedelta(seconds=30)


class Writes:
    """The statements that change rows, in order."""

    def __init__(self, world: World) -> None:
        self._statements: list[tuple[str, Any]] = []
        sa.event.listen(world.database.engine, 'before_cursor_execute', self._note)

    def _note(self, _: object, __: object, sql: str, values: Any, *rest: object) -> None:
        if sql.startswith('UPDATE'):
            self._statements.append((' '.join(sql.split()), values))

    def forget(self) -> None:
        self._statements.clear()

    def tables(self) -> list[str]:
        """Return the tables in the order in which each was first changed."""
        found = dict.fromkeys(sql.split()[1] for sql, _ in self._statements)
        return [table for table in found if table in ORDER]

    def locked_jobs(self) -> list[tuple[str, ...]]:
        """Return the active keys that were locked, by statement, before any request was."""
        found = []
        for sql, values in self._statements:
            if sql.startswith('UPDATE cache_requests'):
                break
            if _locks_jobs(sql):
                found.append(tuple(value for value in values if isinstance(value, str)))
        return found

    def locks_of_jobs(self) -> int:
        return sum(_locks_jobs(sql) for sql, _ in self._statements)

    def locked_requests(self) -> list[str]:
        """Return the changed requests, each once, in order."""
        found = [
            value
            for sql, values in self._statements
            if sql.startswith('UPDATE cache_requests')
            for value in _flat(values)
            if isinstance(value, str) and len(value) == 36
        ]
        return list(dict.fromkeys(found))

    def counted(self) -> list[tuple[str, str]]:
        """Return the counters of the last statement, each as request and status."""
        sql, values = self._statements[-1]
        assert sql.startswith('UPDATE task_counts')
        rows = values if isinstance(values, list) else [values]
        return [row[-2:] for row in rows]


def _locks_jobs(sql: str) -> bool:
    return sql.startswith('UPDATE jobs SET priority') and 'active_key IN' in sql


def _flat(values: Any) -> Sequence[Any]:
    return [each for one in values for each in one] if isinstance(values, list) else list(values)


@pytest.fixture
def writes(world: World) -> Writes:
    return Writes(world)


def _execute(world: World, **members: Sequence[Any]) -> job_batch.BatchResult:
    batch = job_batch.Batch(**members)
    return world.database.write(lambda session: job_batch.execute_batch(session, batch))


def _calls(world: World, most: int) -> list[jobs.Assignment]:
    claimed = world.jobs.claim_hosts('c1', limit=9, most=most)
    return [each.first for each in claimed if each.first is not None]


def _finish(call: jobs.Assignment) -> job_finish.Finish:
    return job_finish.Finish(call.job_id, call.epoch, CACHED)


def test_uncontended_leases_are_renewed(world: World, writes: Writes) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    _calls(world, 2)
    writes.forget()

    world.jobs.renew('c1')

    assert writes.tables() == ['counters', 'claims']


def test_progress_locks_jobs_before_writing(world: World, writes: Writes) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    calls = _calls(world, 2)
    _execute(world, begins=[Begin(call.job_id, call.epoch) for call in calls])
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 10, 100, 5)
    writes.forget()

    world.jobs.record_progress(
        [jobs.ProgressReport(call.job_id, call.epoch, 1, progress) for call in calls]
    )

    assert writes.locked_jobs() == [('h1/i1', 'h2/i1')]


def _retry(world: World, call: jobs.Assignment) -> None:
    world.jobs.retry(call.job_id, call.epoch, BROKEN, 1)


def _leave(world: World, call: jobs.Assignment) -> None:
    world.jobs.finish(call.job_id, call.epoch, model.ImageOutcome(model.TaskStatus.CANCELLED))


def _fail_unclaimed(world: World, call: jobs.Assignment) -> None:
    world.jobs.release('c1', [call.host])
    world.jobs.fail_unclaimed([jobs.MissedCall(call.job_id, call.attempts, None)], BROKEN)


@pytest.mark.parametrize('step', [_retry, _leave, _fail_unclaimed])
def test_one_job_locks_like_many(
    world: World, writes: Writes, step: Callable[[World, jobs.Assignment], None]
) -> None:
    """A row that is locked through two indexes is a deadlock on MariaDB."""
    world.planned(['h1'], ['i1'])
    [call] = _calls(world, 1)
    writes.forget()

    step(world, call)

    assert set(writes.locked_jobs()) == {('h1/i1',)}


def test_batch_locks_each_kind_in_order(world: World, writes: Writes) -> None:
    begun, ended = world.planned(['h1'], ['i1', 'i2']), world.planned(['h2'], ['i1', 'i2'])
    calls = {call.host: call for call in _calls(world, 2)}
    world.planned(['h3'], ['i1'])
    writes.forget()

    done = _execute(
        world,
        begins=[Begin(calls['h1'].job_id, calls['h1'].epoch)],
        next_jobs=[NextJobRequest('c1', 'h2', _finish(calls['h2']))],
        claims=[job_claim.ClaimRequest('c1', limit=9, most=9, avoid_cells=(), lease=LEASE)],
    )

    assert done.begun == {calls['h1'].job_id}
    assert [each.claim.host for each in done.claimed if each.first] == ['h3']
    assert writes.tables() == list(ORDER)
    assert writes.locked_jobs() == [('h1/i1', 'h2/i1', 'h2/i2', 'h3/i1')]
    assert writes.locks_of_jobs() == 1
    assert writes.locked_requests() == sorted([begun.id, ended.id])
    changed = [(begun.id, 'queued'), (ended.id, 'cached'), (ended.id, 'queued')]
    assert writes.counted() == sorted(changed)


def test_limit_locks_candidates_before_requests(world: World, writes: Writes) -> None:
    options = model.RequestOptions(max_parallel_hosts=2)
    world.planned(['h1', 'h2'], ['i1', 'i2'], options=options)
    calls = [world.begun(), world.begun()]
    writes.forget()

    turns = [NextJobRequest('c1', call.host, _finish(call)) for call in calls]
    done = _execute(world, next_jobs=turns)

    assert all(each.assignment is not None for each in done.next_jobs.values())
    assert writes.locked_jobs() == [('h1/i1', 'h1/i2', 'h2/i1', 'h2/i2')]


def test_plan_locks_joined_jobs_before_request(world: World, writes: Writes) -> None:
    world.planned(['h1'], ['i1'])
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    writes.forget()

    assert world.plan(request, ['h1'])
    assert writes.locked_jobs() == [('h1/i1',)]
    writes.forget()
    assert world.requests.mark_planned(request.id, PLANNER)

    assert writes.locked_jobs() == [('h1/i1',)]


def test_failing_plan_locks_jobs_before_request(world: World, writes: Writes) -> None:
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    assert world.plan(request, ['h1'])
    writes.forget()

    assert world.requests.fail(request.id, PLANNER, 'no aggregate')

    assert writes.locked_jobs() == [('h1/i1',)]


def test_recovered_jobs_follow_lock_order(world: World, writes: Writes) -> None:
    world.planned(['h1'], ['i1'])
    world.living('h1')
    [call] = _calls(world, 1)
    waits = model.ImageOutcome(model.TaskStatus.ERROR, host_recovery.DOWN, model.Retry.LATER)
    world.jobs.retry(call.job_id, call.epoch, waits, 100)
    writes.forget()

    assert host_recovery.AgentHostRecovery(world.database, 60).hasten() == 1

    assert writes.locked_jobs() == [('h1/i1',)]


def test_stopped_jobs_are_locked_by_key(world: World, writes: Writes) -> None:
    request = world.planned(['h1'], ['i1'])
    [call] = _calls(world, 1)
    world.steering.pause(request.id)
    writes.forget()

    assert world.steering.stopped(call.job_id, call.epoch).current

    assert writes.locked_jobs() == [('h1/i1',)]


def test_skipped_hosts_lock_working_jobs(world: World, writes: Writes) -> None:
    """A working job may wait again before the tasks of the waiting ones end."""
    request = world.planned(['h1'], ['i1', 'i2'])
    world.begun()
    writes.forget()

    world.jobs.skip_waiting(request.id, ['h1'], 'host left')

    assert writes.locked_jobs() == [('h1/i1', 'h1/i2')]
    assert world.requests.get(request.id).counts == {'downloading': 1, 'skipped': 1}


def test_missed_calls_lock_requests_in_order(world: World, writes: Writes) -> None:
    requests = {host: world.planned([host], ['i1']).id for host in ('h1', 'h2', 'h3')}
    calls = {requests[call.host]: call for call in _calls(world, 3)}
    world.jobs.release('c1', list(requests))
    last_first = [calls[request_id] for request_id in sorted(calls, reverse=True)]
    missed = [jobs.MissedCall(call.job_id, call.attempts, None) for call in last_first]
    writes.forget()

    ended = world.jobs.fail_unclaimed(missed, BROKEN)

    assert [each.requests for each in ended] == [(each,) for each in sorted(calls, reverse=True)]
    assert writes.locked_requests() == sorted(calls)
    assert writes.locked_jobs() == [('h1/i1', 'h2/i1', 'h3/i1')]
