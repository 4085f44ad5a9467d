# SPDX-License-Identifier: Apache-2.0
"""Requests that are cancelled, paused, retried; windows, deadlines, canaries, limits."""

import datetime

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.db import jobs, request_actions, task_counts
from nova_precache.db.engine import models
from nova_precache.db.job import outcome as job_outcome
from nova_precache.db.request import plan as request_plan
from tests.unit.conftest import BROKEN, CACHED, LONG_AGO, PLANNER, World

FAR_AHEAD = datetime.datetime(2100, 1, 1)  # noqa: DTZ001 - as the database keeps it
REFUSED = model.ImageOutcome(model.TaskStatus.ERROR, 'refused')
STOPPED = model.ImageOutcome(model.TaskStatus.CANCELLED, 'told to')


def _planned(world: World, *hosts: str, **options: object) -> model.CacheRequest:
    asked = model.RequestOptions(**options)  # type: ignore[arg-type]
    return world.planned(hosts or ['h1'], ['i1'], options=asked)


def _expire(world: World, request: model.CacheRequest) -> job_outcome.Recorded:
    world.change(models.CacheRequest, models.CacheRequest.id == request.id, deadline=LONG_AGO)
    return world.steering.expire()


def _finish(
    world: World, call: jobs.Assignment, outcome: model.ImageOutcome
) -> job_outcome.Recorded:
    recorded = world.jobs.finish(call.job_id, call.epoch, outcome)
    world.jobs.release('c1', [call.host])
    return recorded


def _ended(world: World, request: model.CacheRequest) -> str:
    assert world.requests.complete(request.id)
    return world.status(request)


def _plan_again(world: World, request: model.CacheRequest, *hosts: str) -> None:
    assert world.requests.next_to_plan(PLANNER)
    assert world.plan(request, hosts)
    assert world.requests.mark_planned(request.id, PLANNER)


# Cancel


def test_waiting_tasks_cancelled_at_once(world: World) -> None:
    request = _planned(world, 'h1', 'h2')

    shown = world.steering.cancel(request.id)

    assert (shown.status, shown.counts) == ('cancelling', {'cancelled': 2})
    assert world.tasks(request)['h1', 'i1'].reason == 'the request was cancelled'
    assert [job.status for job in world.all_jobs()] == ['cancelled', 'cancelled']
    assert world.to_announce(request) == ['start', 'cancel', 'h1', 'h2']
    assert _ended(world, request) == 'cancelled'


def test_unshared_transfer_ordered_to_stop(world: World) -> None:
    request = _planned(world)
    call = world.begun()

    world.steering.cancel(request.id, keep_partial=True)

    assert world.statuses(request) == {('h1', 'i1'): 'downloading'}
    assert world.steering.stop_orders() == [
        request_actions.StopOrder(call.job_id, 'h1', world.cell.uuid, call.epoch, 'cancelled', True)
    ]
    assert not world.jobs.begin(call.job_id, call.epoch)
    assert _finish(world, call, STOPPED).requests == (request.id,)
    assert world.steering.stop_orders() == []
    assert world.steering.discards(10) == []
    assert _ended(world, request) == 'cancelled'


def test_transfer_done_before_stop_counts(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.cancel(request.id)

    _finish(world, call, CACHED)

    assert world.statuses(request) == {('h1', 'i1'): 'cached'}
    assert _ended(world, request) == 'completed'


def test_transfer_of_other_request_continues(world: World) -> None:
    request, other = _planned(world), _planned(world)
    call = world.begun()

    world.steering.cancel(request.id)

    assert world.statuses(request) == {('h1', 'i1'): 'cancelled'}
    assert world.steering.stop_orders() == []
    _finish(world, call, CACHED)
    assert world.statuses(other) == {('h1', 'i1'): 'cached'}


def test_stopping_job_repeated_for_new_request(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.cancel(request.id)

    other = _planned(world)
    assert world.steering.stop_orders() == []
    assert world.statuses(request) == {('h1', 'i1'): 'cancelled'}
    _finish(world, call, STOPPED)

    again = world.begun()
    assert (again.job_id, again.attempts, again.joins) == (call.job_id, 1, False)
    _finish(world, again, CACHED)
    assert world.statuses(other) == {('h1', 'i1'): 'cached'}


@pytest.mark.parametrize('keep_partial', [True, False])
def test_partial_of_waiting_job_removed(world: World, keep_partial: bool) -> None:
    request = _planned(world)
    call = world.begun()
    world.jobs.retry(call.job_id, call.epoch, BROKEN, 100)

    world.steering.cancel(request.id, keep_partial)

    left = request_actions.Discard(call.job_id, 'h1', world.cell.uuid, 'i1')
    assert world.steering.discards(10) == ([] if keep_partial else [left])
    world.steering.discarded(call.job_id)
    assert world.steering.discards(10) == []


def test_partial_of_wanted_image_kept(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.jobs.retry(call.job_id, call.epoch, BROKEN, 100)
    world.steering.cancel(request.id)

    _planned(world)

    assert world.steering.discards(10) == []


@pytest.mark.parametrize('keep_partial', [True, False])
def test_lost_transfer_ends_as_ordered(world: World, keep_partial: bool) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.cancel(request.id, keep_partial)

    assert world.jobs.retry(call.job_id, call.epoch, BROKEN, 100).requests == (request.id,)

    assert world.statuses(request) == {('h1', 'i1'): 'cancelled'}
    assert len(world.steering.discards(10)) == (0 if keep_partial else 1)


def test_request_cancelled_before_planning(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1'])

    world.steering.cancel(request.id)

    assert not world.plan(request, ['h2'])
    assert not world.requests.mark_planned(request.id, PLANNER)
    assert world.statuses(request) == {('h1', 'i1'): 'cancelled'}
    assert _ended(world, request) == 'cancelled'
    assert world.to_announce(request) == ['start', 'cancel', 'h1', 'end']


def test_unexamined_request_is_cancelled(
    world: World,
) -> None:
    request = world.accept(['h1'], ['i1'])

    world.steering.cancel(request.id)

    assert _ended(world, request) == 'cancelled'
    assert world.steering.retry(request.id).status == 'accepted'


def test_ended_request_not_cancelled(world: World) -> None:
    request = world.planned([], ['i1'])
    world.requests.complete(request.id)

    with pytest.raises(exception.StatusConflict, match='is completed: it cannot be cancelled'):
        world.steering.cancel(request.id)


def test_request_is_cancelled_once(world: World) -> None:
    request = _planned(world)

    world.steering.cancel(request.id)
    world.steering.cancel(request.id)

    assert world.to_announce(request).count('cancel') == 1


def test_request_of_other_project_not_found(world: World) -> None:
    request = world.planned(['h1'], ['i1'], project_id='p1')

    for step in (world.steering.pause, world.steering.resume, world.steering.retry):
        with pytest.raises(exception.RequestNotFound):
            step(request.id, project_id='p2')
    with pytest.raises(exception.RequestNotFound):
        world.steering.cancel('unknown')


# Pause and resume


def test_paused_request_begins_nothing_until_resumed(world: World) -> None:
    request = _planned(world)

    assert world.steering.pause(request.id).status == 'paused'
    assert world.claim('c1', limit=5) is None

    assert world.steering.resume(request.id).status == 'planned'
    assert world.claim('c1', limit=5) is not None
    assert world.to_announce(request) == ['start', 'pause', 'resume']


def test_paused_transfer_keeps_bytes_and_attempts(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 60, 100, rate_bytes=7)
    world.jobs.record_progress([jobs.ProgressReport(call.job_id, call.epoch, 1, progress)])

    world.steering.pause(request.id)

    [order] = world.steering.stop_orders()
    assert (order.why, order.keep_partial) == ('paused', True)
    later = model.ImageOutcome(model.TaskStatus.ERROR, 'paused', model.Retry.LATER)
    assert world.jobs.retry(call.job_id, call.epoch, later, 100)
    world.jobs.release('c1', ['h1'])
    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.attempts, task.bytes_done) == ('retry_wait', 0, 60)
    assert world.steering.stop_orders() == []
    assert world.steering.resume(request.id).status == 'running'
    assert world.begun().attempts == 1


def test_paused_transfer_continues_for_other_request(world: World) -> None:
    request, _ = _planned(world), _planned(world)
    call = world.begun()

    world.steering.pause(request.id)

    assert world.steering.stop_orders() == []
    _finish(world, call, CACHED)
    assert world.statuses(request) == {('h1', 'i1'): 'cached'}
    assert _ended(world, request) == 'completed'


def test_paused_unknown_transfer_waits(
    world: World,
) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.pause(request.id)

    assert not world.steering.stopped(call.job_id, call.epoch - 1)
    assert world.steering.stopped(call.job_id, call.epoch)

    assert world.statuses(request) == {('h1', 'i1'): 'retry_wait'}
    assert not world.steering.stopped(call.job_id, call.epoch)


def test_request_paused_before_plan_waits_planned(
    world: World,
) -> None:
    request = world.accept(['h1'], ['i1'])
    world.steering.pause(request.id)

    _plan_again(world, request, 'h1')

    assert world.status(request) == 'paused'
    assert world.claim('c1', limit=5) is None
    world.steering.resume(request.id)
    assert world.claim('c1', limit=5) is not None


def test_request_resumed_before_plan_planned(world: World) -> None:
    request = world.accept(['h1'], ['i1'])
    world.steering.pause(request.id)
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1'])

    assert world.steering.resume(request.id).status == 'accepted'

    assert world.requests.mark_planned(request.id, PLANNER)
    assert world.claim('c1', limit=5) is not None


def test_resume_makes_waiting_retries_due(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.jobs.retry(call.job_id, call.epoch, BROKEN, 100)
    world.jobs.release('c1', ['h1'])
    world.steering.pause(request.id)

    world.steering.resume(request.id)

    assert world.claim('c1', limit=5) is not None


def test_repeated_pause_and_resume_change_nothing(world: World) -> None:
    request = _planned(world)

    for step in (world.steering.pause, world.steering.pause):
        assert step(request.id).status == 'paused'
    for step in (world.steering.resume, world.steering.resume):
        assert step(request.id).status == 'planned'

    assert world.to_announce(request) == ['start', 'pause', 'resume']


def test_cancelling_request_not_paused_or_resumed(world: World) -> None:
    request = _planned(world)
    world.steering.cancel(request.id)

    for step in (world.steering.pause, world.steering.resume):
        with pytest.raises(exception.StatusConflict, match='is cancelling'):
            step(request.id)


def test_paused_last_attempt_not_counted(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.pause(request.id)

    _finish(world, call, BROKEN)

    assert world.statuses(request) == {('h1', 'i1'): 'retry_wait'}
    world.steering.resume(request.id)
    assert world.begun().attempts == 1


def test_lost_last_attempt_ends_as_ordered(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    world.steering.cancel(request.id)

    _finish(world, call, BROKEN)

    assert world.tasks(request)['h1', 'i1'].reason == 'the request was cancelled'


def test_held_job_keeps_attempts(world: World) -> None:
    request, other = _planned(world), world.accept(['h1'], ['i1'])
    claim = world.claim('c1', limit=5)
    assert claim is not None
    call = world.assign('c1', claim.host)
    assert call is not None
    assert world.requests.next_to_plan(PLANNER)
    world.plan(other, ['h1'])
    world.steering.cancel(request.id)
    assert not world.jobs.begin(call.job_id, call.epoch)

    _finish(world, call, BROKEN)

    assert world.requests.mark_planned(other.id, PLANNER)
    assert world.begun().attempts == 1


def test_job_paused_during_choice_not_called(world: World) -> None:
    _planned(world)

    def pause(connection: sa.Connection, _: object, statement: str, *rest: object) -> None:
        if 'row_number()' in statement:  # another transaction, where they overlap
            connection.exec_driver_sql('UPDATE jobs SET ready = 0')

    sa.event.listen(world.database.engine, 'after_cursor_execute', pause)

    (claimed,) = world.jobs.claim_hosts('c1', limit=5)
    assert claimed.first is None


def test_expired_task_of_paused_request_waits(world: World) -> None:
    request = _planned(world)
    call = world.begun()
    other = _planned(world)
    world.steering.pause(other.id)
    world.change(models.CacheRequest, models.CacheRequest.id == request.id, deadline=LONG_AGO)

    _finish(world, call, model.ImageOutcome(model.TaskStatus.EXPIRED, 'too late'))

    assert world.statuses(other) == {('h1', 'i1'): 'retry_wait'}
    assert world.claim('c1', limit=5) is None
    world.steering.resume(other.id)
    assert world.begun().job_id == call.job_id


# Retry


def test_retry_repeats_only_unsuccessful_tasks(world: World) -> None:
    request = _planned(world, 'h1', 'h2')
    _finish(world, world.begun(), CACHED)
    _finish(world, world.begun(), REFUSED)
    assert _ended(world, request) == 'partial'

    again = world.steering.retry(request.id)

    assert (again.status, again.finished_at, again.reason) == ('accepted', None, None)
    assert (again.hosts_total, again.hosts_done) == (2, 1)
    assert again.counts == {'cached': 1, 'queued': 1}
    task = world.tasks(request)['h2', 'i1']
    assert (task.reason, task.attempts, task.finished_at) == (None, 0, None)
    assert world.claim('c1', limit=5) is None
    _plan_again(world, request, 'h1', 'h2')
    _finish(world, world.begun(), CACHED)
    assert _ended(world, request) == 'completed'
    announced = world.announced(request)
    assert [index for _, _, index in announced] == [None, 1, 2, None, None, None, 1, 2, None]
    assert [word for _, word, _ in announced] == [
        *('start', 'h1', 'h2', 'end', 'retry', 'start', 'h1', 'h2', 'end')
    ]


def test_task_omitted_by_retry_skipped(world: World) -> None:
    request = _planned(world, 'h1', 'h2')
    for _ in range(2):
        _finish(world, world.begun(), REFUSED)
    world.requests.complete(request.id)
    world.steering.retry(request.id)

    _plan_again(world, request, 'h2')

    assert world.statuses(request) == {('h1', 'i1'): 'skipped', ('h2', 'i1'): 'queued'}
    assert world.requests.get(request.id).hosts_done == 1


def test_retried_task_planned_with_outcome(world: World) -> None:
    request = _planned(world)
    _finish(world, world.begun(), REFUSED)
    world.requests.complete(request.id)
    world.steering.retry(request.id)
    assert world.requests.next_to_plan(PLANNER)

    down = request_plan.PlannedTask('h1', world.cell.uuid, 'i1', 'skipped', 'host down')
    world.requests.add_tasks(request.id, PLANNER, [down])

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.reason, task.finished_at is None) == ('skipped', 'host down', False)


def test_retry_of_running_or_completed_refused(world: World) -> None:
    request = _planned(world)
    with pytest.raises(exception.StatusConflict, match='is planned: it cannot be retried'):
        world.steering.retry(request.id)
    _finish(world, world.begun(), CACHED)
    world.requests.complete(request.id)

    with pytest.raises(exception.StatusConflict, match='is completed: it cannot be retried'):
        world.steering.retry(request.id)


def test_retry_drops_passed_deadline(world: World) -> None:
    request = _planned(world, deadline=LONG_AGO, wait_for_down_hosts=True)
    world.steering.expire()
    assert _ended(world, request) == 'expired'

    again = world.steering.retry(request.id)

    assert (again.options.deadline, again.options.wait_for_down_hosts) == (None, False)
    _plan_again(world, request, 'h1')
    assert world.claim('c1', limit=5) is not None


def test_retry_accepts_new_window(world: World) -> None:
    request = _planned(world, deadline=LONG_AGO)
    world.steering.expire()
    world.requests.complete(request.id)
    aware = FAR_AHEAD.replace(tzinfo=datetime.UTC)

    again = world.steering.retry(request.id, not_before=aware, deadline=FAR_AHEAD)

    assert (again.options.not_before, again.options.deadline) == (FAR_AHEAD, FAR_AHEAD)
    _plan_again(world, request, 'h1')
    assert world.claim('c1', limit=5) is None


# Windows


def test_nothing_starts_before_window(world: World) -> None:
    request = _planned(world, not_before=FAR_AHEAD)
    assert world.claim('c1', limit=5) is None
    assert world.steering.open_windows() == []
    this = models.CacheRequest.id == request.id
    world.change(models.CacheRequest, this, not_before=LONG_AGO)

    assert world.steering.open_windows() == [request.id]

    assert world.steering.open_windows() == []
    assert world.claim('c1', limit=5) is not None
    assert world.requests.get(request.id).options.not_before == FAR_AHEAD


def test_window_opens_during_pause(world: World) -> None:
    request = _planned(world, not_before=FAR_AHEAD)
    world.steering.pause(request.id)
    this = models.CacheRequest.id == request.id
    world.change(models.CacheRequest, this, not_before=LONG_AGO)

    assert world.steering.open_windows() == []
    assert world.claim('c1', limit=5) is None

    world.steering.resume(request.id)
    assert world.claim('c1', limit=5) is not None


def test_deadline_expires_waiting_and_stops_moving(world: World) -> None:
    request = _planned(world, 'h1', 'h2')
    call = world.begun()

    _expire(world, request)

    assert world.statuses(request) == {('h1', 'i1'): 'downloading', ('h2', 'i1'): 'expired'}
    [order] = world.steering.stop_orders()
    assert (order.why, order.keep_partial) == ('deadline', True)
    late = model.ImageOutcome(model.TaskStatus.EXPIRED, 'too late', bytes_done=40)
    _finish(world, call, late)
    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.bytes_done) == ('expired', 40)
    assert _ended(world, request) == 'expired'


def test_transfer_outlives_deadline_for_other_request(world: World) -> None:
    request, other = _planned(world), _planned(world)
    call = world.begun()

    _expire(world, request)

    assert world.statuses(request) == {('h1', 'i1'): 'expired'}
    assert world.steering.stop_orders() == []
    late = model.ImageOutcome(model.TaskStatus.EXPIRED, 'too late')
    _finish(world, call, late)
    assert world.statuses(other) == {('h1', 'i1'): 'retry_wait'}
    assert world.begun().attempts == 1


# Canary and failures


def test_other_hosts_start_after_canary_passes(world: World) -> None:
    request = _planned(world, 'h1', 'h2', 'h3', canary=1)
    call = world.begun()
    assert call.host == 'h1'
    assert world.claim('c1', limit=5) is None
    _finish(world, call, CACHED)
    assert world.claim('c1', limit=5) is None

    world.steering.check([request.id])

    assert {world.begun().host, world.begun().host} == {'h2', 'h3'}


def test_host_without_work_is_no_canary(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'], options=model.RequestOptions(canary=1))
    assert world.requests.next_to_plan(PLANNER)
    down = request_plan.PlannedTask('h1', None, 'i1', 'skipped', 'host down')
    world.requests.add_tasks(request.id, PLANNER, [down])
    world.plan(request, ['h2', 'h3'])
    world.requests.mark_planned(request.id, PLANNER)

    assert world.begun().host == 'h2'
    assert world.claim('c1', limit=5) is None


def test_other_hosts_cancelled_after_canary_fails(world: World) -> None:
    request = _planned(world, 'h1', 'h2', canary=1)
    _finish(world, world.begun(), REFUSED)

    assert world.steering.check().requests == (request.id,)

    task = world.tasks(request)['h2', 'i1']
    assert (task.status, task.reason) == ('cancelled', 'canary host h1: refused')
    assert _ended(world, request) == 'failed'


def test_failures_cancel_only_waiting_tasks(world: World) -> None:
    request = _planned(world, 'h1', 'h2', 'h3', 'h4', max_failures=1)
    first, second, third = world.begun(), world.begun(), world.begun()
    _finish(world, first, REFUSED)
    assert world.steering.check([request.id]).requests == ()

    _finish(world, second, REFUSED)
    world.steering.check([request.id])

    task = world.tasks(request)['h4', 'i1']
    assert (task.status, task.reason) == ('cancelled', '2 tasks failed, max_failures is 1')
    assert world.statuses(request)['h3', 'i1'] == 'downloading'
    _finish(world, third, CACHED)
    assert _ended(world, request) == 'partial'


# Hosts at a time


def test_request_limit_bounds_its_hosts(world: World) -> None:
    _planned(world, 'h1', 'h2', 'h3', max_parallel_hosts=2)

    first, second = world.begun(), world.begun()
    assert world.claim('c1', limit=10) is None

    _finish(world, first, CACHED)
    assert world.begun().host == 'h3'
    _finish(world, second, CACHED)


def test_claimed_host_counts_before_call(world: World) -> None:
    _planned(world, 'h1', 'h2', max_parallel_hosts=1)

    assert world.claim('c1', limit=10)

    assert world.claim('c2', limit=10) is None


def test_host_of_other_request_respects_limit(world: World) -> None:
    world.planned(['h1', 'h2'], ['i2'])
    _planned(world, 'h1', 'h2', max_parallel_hosts=1)
    for host in ('h1', 'h2'):
        assert world.claim('c1', limit=10)
        call = world.assign('c1', host)
        assert call
        assert call.image_id == 'i2'
        world.jobs.finish(call.job_id, call.epoch, CACHED)

    assert world.assign('c1', 'h1')

    assert world.assign('c1', 'h2') is None


def test_job_runs_when_one_request_allows(world: World) -> None:
    _planned(world, 'h1', 'h2', max_parallel_hosts=1)
    world.begun()
    assert world.claim('c1', limit=10) is None

    _planned(world, 'h2')

    assert world.begun().host == 'h2'


# Terms


def test_call_terms_suit_all_requests(world: World) -> None:
    _planned(world, max_rate_bytes=5, deadline=FAR_AHEAD)
    job = world.all_jobs()[0].uuid
    terms = world.jobs.terms(job)
    assert (terms.max_rate_bytes, terms.waits_for_host) == (5, False)
    assert terms.deadline_seconds
    assert terms.deadline_seconds > 1e6

    later = FAR_AHEAD + datetime.timedelta(seconds=100)
    _planned(world, max_rate_bytes=9, deadline=later, wait_for_down_hosts=True)
    both = world.jobs.terms(job)
    assert (both.max_rate_bytes, both.waits_for_host) == (9, True)
    assert both.deadline_seconds
    assert both.deadline_seconds > terms.deadline_seconds + 50

    _planned(world)
    free = world.jobs.terms(job)
    assert (free.max_rate_bytes, free.deadline_seconds, free.waits_for_host) == (None, None, True)


def test_unwanted_job_gets_no_time(world: World) -> None:
    request = _planned(world, max_rate_bytes=5)
    world.change(models.CacheRequest, models.CacheRequest.id == request.id, deadline=LONG_AGO)

    assert world.jobs.terms(world.all_jobs()[0].uuid).deadline_seconds == 0


def test_host_rate_comes_from_last_jobs(world: World) -> None:
    _planned(world, 'h1', 'h2')
    call = world.begun()
    _finish(world, call, CACHED)
    started = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    world.change(models.Job, models.Job.uuid == call.job_id, started_at=started)
    finished = world.job(call.job_id).finished_at
    assert finished
    seconds = (finished - started).total_seconds()

    assert world.jobs.measured_rates(['h1', 'h2', 'h3']) == {'h1': 100 / seconds}


# Mixed releases


def test_request_planned_by_older_release_completes(world: World) -> None:
    request = _planned(world, 'h1', 'h2')
    mine = models.CacheRequest.id == request.id
    world.change(models.CacheRequest, mine, is_planned=False, announced=0)
    _finish(world, world.begun(), CACHED)
    assert not world.requests.complete(request.id)

    world.steering.adopt()
    world.steering.adopt()

    assert world.requests.get(request.id).hosts_done == 1
    _finish(world, world.begun(), CACHED)
    assert _ended(world, request) == 'completed'
    assert world.announced(request) == [(0, 'start', None), (4, 'h2', 2), (5, 'end', None)]


def test_unplanned_tasks_left_to_planner(world: World) -> None:
    requests = [world.accept(['h1'], ['i1']) for _ in range(2)]
    world.steering.pause(requests[1].id)

    world.steering.adopt()

    assert [world.status(each) for each in requests] == ['accepted', 'paused']
    assert world.requests.next_to_plan(PLANNER)


# Change


def _call_of(world: World) -> jobs.Assignment:
    call = world.begun()
    world.jobs.release('c1', [call.host])
    return call


def test_waiting_job_follows_priority(world: World) -> None:
    low = world.planned(['h1'], ['i1'])
    high = world.planned(['h2'], ['i1'], priority=1)

    shown = world.steering.change(low.id, {'priority': 5})

    assert (shown.priority, world.requests.get(high.id).priority) == (5, 1)
    assert world.claim('c1', 1).host == 'h1'  # type: ignore[union-attr]
    assert world.to_announce(low) == ['start', 'change']


def test_shared_job_keeps_highest_priority(world: World) -> None:
    first = world.planned(['h1'], ['i1'], priority=5)
    second = world.planned(['h1'], ['i1'], priority=3)

    world.steering.change(first.id, {'priority': -1})
    assert [job.priority for job in world.all_jobs()] == [3]
    world.steering.cancel(second.id)

    assert [job.priority for job in world.all_jobs()] == [-1]


def test_raised_host_limit_frees_hosts(world: World) -> None:
    request = _planned(world, 'h1', 'h2', max_parallel_hosts=1)
    world.begun()
    assert world.claim('c1', 100) is None

    world.steering.change(request.id, {'max_parallel_hosts': 2})

    assert world.claim('c1', 100) is not None


def test_changed_options_saved_and_null_removes(world: World) -> None:
    request = _planned(world, max_parallel_hosts=3, max_rate_bytes=100, canary=1)

    shown = world.steering.change(request.id, {'max_rate_bytes': 7, 'deadline': FAR_AHEAD})
    assert shown.options == model.RequestOptions(3, 7, deadline=FAR_AHEAD, canary=1)
    shown = world.steering.change(
        request.id, {'max_rate_bytes': None, 'max_parallel_hosts': None, 'deadline': None}
    )

    assert shown.options == model.RequestOptions(canary=1)


def test_running_job_gets_change_order(world: World) -> None:
    request = _planned(world, 'h1', 'h2', max_rate_bytes=100)
    call = world.begun()

    world.steering.change(request.id, {'max_rate_bytes': 900})

    [order] = world.steering.change_orders()
    assert (order.job_id, order.host, order.epoch) == (call.job_id, 'h1', call.epoch)
    assert order.change == model.OptionChange(1, 900)
    world.steering.changed(order)
    assert world.steering.change_orders() == []


def test_change_during_order_sent_again(world: World) -> None:
    request = _planned(world)
    world.begun()
    world.steering.change(request.id, {'max_rate_bytes': 900})
    [order] = world.steering.change_orders()
    world.steering.change(request.id, {'max_rate_bytes': 100})

    world.steering.changed(order)

    assert [each.change.max_rate_bytes for each in world.steering.change_orders()] == [100]


def test_change_agrees_with_sharing_requests(world: World) -> None:
    request = _planned(world, max_rate_bytes=100)
    call = world.begun()
    other = _planned(world, max_rate_bytes=300)
    [order] = world.steering.change_orders()
    assert order.change.max_rate_bytes == 300

    world.steering.change(request.id, {'max_rate_bytes': 500})
    world.steering.cancel(request.id)

    [order] = world.steering.change_orders()
    assert (order.job_id, order.change.max_rate_bytes) == (call.job_id, 300)
    assert world.status(other) == 'running'


def test_extended_deadline_withdraws_stop(world: World) -> None:
    request = _planned(world, deadline=FAR_AHEAD)
    call = world.begun()
    _expire(world, request)
    assert [order.why for order in world.steering.stop_orders()] == ['deadline']

    world.steering.change(request.id, {'deadline': FAR_AHEAD})

    assert world.steering.stop_orders() == []
    _finish(world, call, CACHED)
    assert world.statuses(request) == {('h1', 'i1'): 'cached'}


def test_earlier_deadline_expires_waiting_tasks(world: World) -> None:
    request = _planned(world)
    world.steering.change(request.id, {'deadline': LONG_AGO})

    assert world.statuses(request) == {('h1', 'i1'): 'expired'}


@pytest.mark.parametrize('is_paused', [True, False])
def test_unplanned_request_changed_before_plan(world: World, is_paused: bool) -> None:
    request = world.accept(['h1'], ['i1'])
    if is_paused:
        world.steering.pause(request.id)

    world.steering.change(request.id, {'priority': 7})
    assert world.requests.next_to_plan(PLANNER)
    assert world.plan(request, ['h1'])

    assert [job.priority for job in world.all_jobs()] == [7]


def test_change_between_chunks_reaches_all_jobs(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    assert world.plan(request, ['h1'])

    world.steering.change(request.id, {'priority': 7})
    assert world.plan(request, ['h2'])

    assert [job.priority for job in world.all_jobs()] == [7, 7]


def test_ended_request_not_changed(world: World) -> None:
    request = _planned(world)
    _finish(world, world.begun(), CACHED)
    assert _ended(world, request) == 'completed'

    with pytest.raises(exception.StatusConflict, match='is completed: it cannot be changed'):
        world.steering.change(request.id, {'priority': 5})


def test_request_being_cancelled_not_changed(world: World) -> None:
    request = _planned(world)
    world.begun()
    world.steering.cancel(request.id)

    with pytest.raises(exception.StatusConflict, match='is cancelling'):
        world.steering.change(request.id, {'priority': 5})


def test_request_of_other_project_not_changed(world: World) -> None:
    request = world.accept(['h1'], ['i1'], project_id='p1')

    with pytest.raises(exception.RequestNotFound):
        world.steering.change(request.id, {'priority': 5}, project_id='p2')
    assert world.requests.get(request.id).priority == 0


def test_deadline_before_window_refused(world: World) -> None:
    begins = datetime.datetime(2099, 1, 1)  # noqa: DTZ001 - as the database keeps it
    request = _planned(world, not_before=begins, deadline=FAR_AHEAD)

    with pytest.raises(
        exception.InvalidField, match=r'deadline.*later than the start, 2099-01-01T00:00:00Z'
    ):
        world.steering.change(request.id, {'deadline': begins})

    assert world.requests.get(request.id).options.deadline == FAR_AHEAD


def test_deadline_of_waiting_request_kept(world: World) -> None:
    request = _planned(world, wait_for_down_hosts=True, deadline=FAR_AHEAD)

    with pytest.raises(exception.InvalidField, match='waits for hosts that are down needs one'):
        world.steering.change(request.id, {'deadline': None})
    world.steering.change(request.id, {'priority': 5})

    assert world.requests.get(request.id).options.deadline == FAR_AHEAD


# Retry of some hosts


def _failed(world: World, *hosts: str, **options: object) -> model.CacheRequest:
    request = _planned(world, *hosts, **options)
    for _ in hosts:
        _finish(world, world.begun(), REFUSED)
    _ended(world, request)
    return request


def test_only_tasks_of_named_hosts_retried(world: World) -> None:
    request = _failed(world, 'h1', 'h2', 'h3')

    world.steering.retry(request.id, hosts=['h1', 'h3'])
    _plan_again(world, request, 'h1', 'h3')

    assert world.statuses(request) == {
        ('h1', 'i1'): 'queued',
        ('h2', 'i1'): 'error',
        ('h3', 'i1'): 'queued',
    }
    for _ in range(2):
        _finish(world, world.begun(), CACHED)
    assert _ended(world, request) == 'partial'


def test_unknown_hosts_not_retried(world: World) -> None:
    request = _failed(world, 'h1')

    with pytest.raises(exception.InvalidField, match='The request has no task on h8, h9'):
        world.steering.retry(request.id, hosts=['h1', 'h8', 'h9'])

    assert world.status(request) == 'failed'


def test_hosts_of_unfinished_plan_not_retried(world: World) -> None:
    """The planner would plan all hosts of the request."""
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1'])
    world.steering.cancel(request.id)
    _ended(world, request)

    with pytest.raises(exception.InvalidField, match='ended before it was planned'):
        world.steering.retry(request.id, hosts=['h1'])

    assert world.steering.retry(request.id).status == 'accepted'


def test_succeeded_host_not_retried(world: World) -> None:
    request = _planned(world, 'h1', 'h2')
    call = world.begun()
    _finish(world, call, CACHED)
    _finish(world, world.begun(), REFUSED)
    _ended(world, request)

    with pytest.raises(exception.NothingToRetry, match=f'no task to retry on {call.host}'):
        world.steering.retry(request.id, hosts=[call.host])


def test_failures_of_other_hosts_not_counted(world: World) -> None:
    request = _failed(world, 'h1', 'h2', max_failures=1)
    world.steering.retry(request.id, hosts=['h1'])
    _plan_again(world, request, 'h1')

    world.steering.check([request.id])

    assert world.statuses(request)['h1', 'i1'] == 'queued'


def test_failures_read_from_tasks_before_retry(world: World) -> None:
    request = _failed(world, 'h1', 'h2', max_failures=1)
    # A conductor of an earlier release has made no counters.
    world.database.write(lambda writer: writer.execute(sa.delete(models.TaskCount)))

    world.steering.retry(request.id, hosts=['h1'])

    with world.database.reader() as reader:
        assert reader.scalars(sa.select(models.CacheRequest.max_failures)).all() == [2]
    assert task_counts.TaskCounts(world.database).check(0) == 1


def test_failed_canary_left_out_of_retry(world: World) -> None:
    request = _planned(world, 'h1', 'h2', 'h3', canary=1)
    _finish(world, world.begun(), REFUSED)
    world.steering.check()
    _ended(world, request)

    world.steering.retry(request.id, hosts=['h2', 'h3'])
    _plan_again(world, request, 'h2', 'h3')
    world.steering.check()

    call = world.begun()
    assert call.host == 'h2'
    assert world.claim('c1', limit=5) is None
    _finish(world, call, CACHED)
    world.steering.check()
    _finish(world, world.begun(), CACHED)
    assert _ended(world, request) == 'partial'
