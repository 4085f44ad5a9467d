# SPDX-License-Identifier: Apache-2.0
"""Concurrent calls of the job store, for requests that are steered at that moment."""

import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import job_batch, jobs
from nova_precache.db.engine import models
from nova_precache.db.job import (
    claim as job_claim,
    finish as job_finish,
    outcome as job_outcome,
)
from nova_precache.db.job.call import Begin
from nova_precache.db.job_batch import NextJobRequest
from tests.unit.conftest import BROKEN, CACHED, LONG_AGO, PLANNER, World

LEASE = datetime.timedelta(seconds=30)
EXPIRED = model.ImageOutcome(model.TaskStatus.EXPIRED, 'too late')


def _execute(world: World, **members: Sequence[Any]) -> job_batch.BatchResult:
    batch = job_batch.Batch(**members)
    return world.database.write(lambda session: job_batch.execute_batch(session, batch))


def _finish(call: jobs.Assignment, outcome: model.ImageOutcome = BROKEN) -> job_finish.Finish:
    return job_finish.Finish(call.job_id, call.epoch, outcome)


def _wanted(conductor: str = 'c1') -> job_claim.ClaimRequest:
    return job_claim.ClaimRequest(conductor, limit=9, most=9, avoid_cells=(), lease=LEASE)


def _calls(world: World) -> dict[str, jobs.Assignment]:
    """Claim all hosts that are due; return the calls by host."""
    claimed = world.jobs.claim_hosts('c1', limit=9, most=9)
    return {each.claim.host: each.first for each in claimed if each.first is not None}


def _begun(world: World) -> dict[str, jobs.Assignment]:
    calls = _calls(world)
    begins = [Begin(call.job_id, call.epoch) for call in calls.values()]
    assert _execute(world, begins=begins).begun == {call.job_id for call in calls.values()}
    return calls


def _pass_deadline(world: World, request: model.CacheRequest) -> None:
    world.change(models.CacheRequest, models.CacheRequest.id == request.id, deadline=LONG_AGO)


def _ended(request: model.CacheRequest) -> job_outcome.Recorded:
    return job_outcome.Recorded(current=True, requests=(request.id,))


def _pause_when_chosen(world: World) -> None:
    """Pause jobs right after they were chosen, as another transaction may."""

    def pause(connection: sa.Connection, _: object, statement: str, *rest: object) -> None:
        if 'row_number()' in statement:
            connection.exec_driver_sql('UPDATE jobs SET ready = 0')

    sa.event.listen(world.database.engine, 'after_cursor_execute', pause)


# Last attempts


def test_lost_last_attempts_end_as_ordered(world: World) -> None:
    paused, cancelled, late, other = (world.planned([f'h{n}'], ['i1']) for n in range(1, 5))
    calls = _begun(world)
    world.steering.pause(paused.id)
    world.steering.cancel(cancelled.id)
    _pass_deadline(world, late)
    world.steering.expire()

    finishes = [_finish(calls[f'h{n}']) for n in range(1, 5)]
    recorded = _execute(world, finishes=finishes).recorded
    results = [recorded[each.job_id] for each in finishes]

    waits = job_outcome.Recorded(current=True)
    assert results == [waits, _ended(cancelled), _ended(late), _ended(other)]
    assert [each.idle for each in results] == [(), (cancelled.id,), (late.id,), (other.id,)]
    tasks = [world.tasks(each)[f'h{n}', 'i1'] for n, each in _numbered(paused, cancelled, late)]
    assert [(task.status, task.reason) for task in tasks] == [
        ('retry_wait', None),
        ('cancelled', 'the request was cancelled'),
        ('expired', 'the deadline of the request passed'),
    ]
    assert world.tasks(other)['h4', 'i1'].reason == BROKEN.reason


def _numbered(*requests: model.CacheRequest) -> Sequence[tuple[int, model.CacheRequest]]:
    return list(enumerate(requests, start=1))


def test_paused_attempt_repeated_by_newer_call(
    world: World,
) -> None:
    request = world.planned(['h1'], ['i1'])
    call = _begun(world)['h1']
    world.steering.pause(request.id)
    ended = NextJobRequest('c1', 'h1', _finish(call), goes_on=False)
    turned = _execute(world, next_jobs=[ended]).next_jobs['h1']
    assert (turned.recorded.current, turned.is_over) == (True, True)
    assert _calls(world) == {}

    world.steering.resume(request.id)

    again = _calls(world)['h1']
    assert (again.job_id, again.attempts) == (call.job_id, 1)
    assert again.epoch > call.epoch


def test_held_job_loses_no_attempt(world: World) -> None:
    request, gone = world.planned(['h1'], ['i1']), world.planned(['h2'], ['i1'])
    other = world.accept(['h1'], ['i1'])
    calls = _calls(world)
    assert world.requests.next_to_plan(PLANNER)
    world.plan(other, ['h1'])
    world.steering.cancel(request.id)

    recorded = _execute(world, finishes=[_finish(calls['h1']), _finish(calls['h2'])]).recorded

    assert recorded[calls['h1'].job_id] == job_outcome.Recorded(current=True)
    assert recorded[calls['h2'].job_id] == _ended(gone)
    assert world.statuses(other) == {('h1', 'i1'): 'retry_wait'}
    assert world.requests.mark_planned(other.id, PLANNER)
    world.jobs.release('c1', ['h1'])
    assert _calls(world)['h1'].attempts == 1


def test_success_beats_stop_order(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    call = _begun(world)['h1']
    world.steering.pause(request.id)

    recorded = _execute(world, finishes=[_finish(call, CACHED)]).recorded
    assert recorded == {call.job_id: _ended(request)}
    assert world.statuses(request) == {('h1', 'i1'): 'cached'}


def test_expired_paused_job_not_assigned(world: World) -> None:
    late, other = world.planned(['h1'], ['i1']), world.planned(['h1'], ['i1'])
    call = _begun(world)['h1']
    world.steering.pause(other.id)
    _pass_deadline(world, late)

    turned = world.jobs.next_job('c1', 'h1', _finish(call, EXPIRED))

    assert turned.recorded == _ended(late)
    assert (turned.assignment, turned.is_over) == (None, True)
    assert world.statuses(other) == {('h1', 'i1'): 'retry_wait'}
    assert _calls(world) == {}
    world.steering.resume(other.id)
    assert _calls(world)['h1'].attempts == 1


# Calls


def test_job_paused_during_assignment_not_called(world: World) -> None:
    request = world.planned(['h1'], ['i1', 'i2'])
    call = _begun(world)['h1']
    _pause_when_chosen(world)

    turned = world.jobs.next_job('c1', 'h1', _finish(call, CACHED))

    assert (turned.assignment, turned.is_over) == (None, True)
    assert world.statuses(request) == {('h1', 'i1'): 'cached', ('h1', 'i2'): 'queued'}
    assert world.tasks(request)['h1', 'i2'].attempts == 0


def test_job_paused_during_claim_not_called(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _pause_when_chosen(world)

    claimed = _execute(world, claims=[_wanted()]).claimed

    assert [(each.claim.host, each.first) for each in claimed] == [('h1', None)]
    assert world.tasks(request)['h1', 'i1'].attempts == 0
    assert world.jobs.next_job('c1', 'h1').is_over


def test_each_call_has_own_terms(
    world: World,
) -> None:
    options = model.RequestOptions(max_rate_bytes=5)
    request = world.planned(['h1'], ['i1'], options=options)
    _pass_deadline(world, world.planned(['h2'], ['i1'], options=options))

    calls = _calls(world)

    assert calls['h1'].terms == jobs.Terms(max_rate_bytes=5, asked_by=request.id)
    assert calls['h2'].terms == jobs.Terms(deadline_seconds=0)
