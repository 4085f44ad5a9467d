# SPDX-License-Identifier: Apache-2.0
"""The work on one claimed host: the effect of each answer, error and silence."""

import datetime
import logging

import pytest

from nova_precache import exception, model
from nova_precache.compute import rpcapi
from nova_precache.conductor import host_worker
from nova_precache.db.engine import models
from tests.unit.conductor.conftest import POLICY, REST_SECONDS, Parts
from tests.unit.conftest import BROKEN, CACHED, LONG_AGO

NEVER = model.ImageOutcome('error', 'unsafe image: it has a backing file')
MISMATCH = model.ImageOutcome('error', 'wrong hash', model.Retry.ONCE)


@pytest.fixture
def parts(parts: Parts) -> Parts:
    for host in ('h1', 'h2', 'h3'):
        parts.world.living(host)
    return parts


def _task(parts: Parts, request: model.CacheRequest, host: str = 'h1') -> model.Task:
    [task] = [task for task in parts.world.requests.tasks(request.id) if task.host == host]
    return task


# Answers


def test_due_jobs_called_in_turn(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2', 'i3'])

    assert parts.serve() == 'h1'

    assert parts.compute.called() == [('h1', 'i1'), ('h1', 'i2'), ('h1', 'i3')]
    assert parts.world.requests.get(request.id).counts == {'cached': 3}
    assert parts.world.status(request) == 'completed'
    assert parts.world.claimed() == 0


def test_call_carries_endpoint_and_unlogged_token(parts: Parts) -> None:
    parts.world.planned(['h1'], ['i1'])

    parts.serve()

    [(_, call)] = parts.compute.calls
    assert (call.image_id, call.image_endpoint, call.token) == ('i1', 'http://glance', 'token-1')
    assert 'token-1' not in repr(call)


def test_transient_error_waits_and_releases_host(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    parts.compute.script('h1', 'i1', parts.compute.answers(BROKEN))

    parts.serve()

    assert parts.compute.called() == [('h1', 'i1')]
    assert parts.world.statuses(request) == {('h1', 'i1'): 'retry_wait', ('h1', 'i2'): 'queued'}
    assert parts.world.tasks(request)['h1', 'i1'].reason == 'the line is dead'
    assert parts.world.claimed() == 0


def test_compute_knows_last_attempt(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for _ in range(POLICY.max_attempts):
        parts.compute.script('h1', image.id, parts.compute.answers(BROKEN))
        parts.serve()
        parts.world.make_due()

    told = [call.options.is_last_attempt for _, call in parts.compute.calls]
    assert told == [False] * (POLICY.max_attempts - 1) + [True]
    assert _task(parts, request).status == 'error'


def test_repeated_last_attempt_stays_last(
    parts: Parts,
) -> None:
    image = parts.images.add(b'data')
    parts.world.planned(['h1'], [image.id])
    stopping = model.ImageOutcome('error', 'the compute is shutting down', model.Retry.LATER)
    for outcome in (BROKEN, BROKEN, stopping, CACHED):
        parts.compute.script('h1', image.id, parts.compute.answers(outcome))
        parts.serve()
        parts.world.make_due()

    told = [call.options.is_last_attempt for _, call in parts.compute.calls]
    assert told == [False, False, True, True]


@pytest.mark.parametrize(
    ('status', 'reason'),
    [
        ('cancelled', 'the request was cancelled'),
        ('expired', 'the deadline of the request passed'),
    ],
)
def test_stopped_job_is_final_with_reason(parts: Parts, status: str, reason: str) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def stop(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        if status == 'cancelled':
            parts.steering.cancel(request.id)
        else:
            this = models.CacheRequest.id == request.id
            parts.world.change(models.CacheRequest, this, deadline=LONG_AGO)
        return model.ImageOutcome(status, 'somebody stopped it')

    parts.compute.script('h1', 'i1', stop)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.reason) == (status, reason)
    assert parts.world.requests.get(request.id).counts == {status: 1}
    assert parts.world.status(request) not in model.REQUEST_ACTIVE
    assert parts.world.depth() == 0


def test_last_transient_error_is_final(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for _ in range(POLICY.max_attempts):
        parts.compute.script('h1', image.id, parts.compute.answers(BROKEN))
        parts.serve()
        parts.world.make_due()

    task = _task(parts, request)
    assert (task.status, task.attempts, task.reason) == ('error', 3, 'the line is dead')
    assert parts.world.status(request) == 'failed'


def test_permanent_error_is_final_at_once(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    parts.compute.script('h1', 'i1', parts.compute.answers(NEVER))

    parts.serve()

    assert parts.world.statuses(request) == {('h1', 'i1'): 'error', ('h1', 'i2'): 'cached'}
    assert parts.world.tasks(request)['h1', 'i1'].reason == NEVER.reason
    assert parts.world.status(request) == 'partial'


def test_mismatch_retried_once_at_once(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    parts.compute.script('h1', image.id, *[parts.compute.answers(MISMATCH)] * 3)

    parts.serve()

    assert len(parts.compute.calls) == 2
    task = _task(parts, request)
    assert (task.status, task.attempts, task.reason) == ('error', 2, 'wrong hash')


def test_mismatch_retry_can_succeed(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    parts.compute.script('h1', image.id, parts.compute.answers(MISMATCH))

    parts.serve()

    assert _task(parts, request).status == 'cached'


def test_unconfirmed_call_repeated_at_once(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.compute.script('h1', 'i1', lambda host, call: None)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('cached', 1)
    first, second = (call.epoch for _, call in parts.compute.calls)
    assert first < second


def test_call_unconfirmed_twice_waits(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.compute.script('h1', 'i1', *[lambda host, call: None] * 2)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.reason) == ('retry_wait', 'the compute could not confirm the call')


def test_unsupported_version_not_retried(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    too_old = exception.VersionUnsupported('cache_image 1.0 is not supported by the called service')
    parts.compute.script('h1', 'i1', parts.compute.fails(too_old))

    parts.serve()

    tasks = {task.image_id: task for task in parts.world.requests.tasks(request.id)}
    assert (tasks['i1'].status, tasks['i1'].reason) == ('unsupported', str(too_old))
    assert tasks['i1'].attempts == 1
    assert tasks['i2'].status == 'cached'
    assert parts.compute.called() == [('h1', 'i1'), ('h1', 'i2')]


def test_answer_to_fenced_call_ignored(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def lose_the_claim(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        parts.world.expire('h1')
        assert parts.world.jobs.take_over('c2')
        assert parts.world.assign('c2', 'h1')
        return CACHED

    parts.compute.script('h1', 'i1', lose_the_claim)

    parts.serve()

    assert _task(parts, request).status == 'queued'
    assert parts.world.held_by('c2') == ['h1']
    assert parts.announced.events() == []


# Silence


def test_timeout_with_progress_counts_no_attempt(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    silent = parts.compute.fails(TimeoutError(), begins=True)
    parts.compute.script('h1', 'i1', silent, silent)

    parts.serve()

    epochs = [call.epoch for _, call in parts.compute.calls]
    assert len(epochs) == 3
    assert epochs == sorted(set(epochs))
    assert len({call.job_id for _, call in parts.compute.calls}) == 1
    task = _task(parts, request)
    assert (task.status, task.attempts) == ('cached', 1)


def test_timeout_without_progress_fails_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def fall_silent(host: str, call: rpcapi.CacheImageCall) -> None:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.world.change(models.Job, models.Job.uuid == call.job_id, progress_at=LONG_AGO)
        raise TimeoutError

    parts.compute.script('h1', 'i1', fall_silent)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    assert task.reason == 'no answer from the compute'


def test_undelivered_call_fails_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.compute.script('h1', 'i1', parts.compute.fails(TimeoutError()))

    parts.serve()

    assert _task(parts, request).reason == 'no answer from the compute'


def test_inherited_transfer_joined_without_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.world.begun('dead')
    parts.world.jobs.release_all('dead')

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('cached', 1)


# A host or a cell that is gone


def test_down_host_not_called(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.world.dead('h1')

    parts.serve()

    assert parts.compute.calls == []
    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    assert task.reason is not None
    assert task.reason.startswith('host down: last report at')


def test_stopped_host_not_called(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.world.stopped('h1')
    times = dict.fromkeys(('started_at', 'seen_at', 'stopped_at'), LONG_AGO)
    parts.world.change(models.Agent, models.Agent.host == 'h1', **times)

    parts.serve()

    assert parts.compute.calls == []
    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    assert (task.reason or '').startswith('host down: stopped at 2')


def test_restart_costs_no_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    parts.world.stopped('h1')
    parts.serve()
    assert parts.compute.calls == []
    waiting = parts.world.requests.tasks(request.id)
    assert [(task.status, task.attempts) for task in waiting] == [('retry_wait', 0)] * 2
    assert (waiting[0].reason or '').startswith('host down: stopped at 2')

    parts.world.living('h1')
    parts.helm().run_once()
    parts.serve()

    done = parts.world.requests.tasks(request.id)
    assert [(task.status, task.attempts) for task in done] == [('cached', 1)] * 2


def test_stopped_host_is_waited_for(parts: Parts) -> None:
    waiting = model.RequestOptions(deadline=_in_an_hour(), wait_for_down_hosts=True)
    request = parts.world.planned(['h1'], ['i1'], options=waiting)
    parts.world.stopped('h1')
    parts.serve()
    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 0)

    parts.world.living('h1')
    parts.helm().run_once()
    parts.serve()

    assert _task(parts, request).status == 'cached'


def test_dead_cell_fails_all_due_jobs(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2', 'h3'], ['i1'])
    unreachable = parts.compute.fails(exception.CellUnreachable('no route to host'))
    parts.compute.script('h1', 'i1', unreachable)

    parts.serve()

    assert parts.compute.called() == [('h1', 'i1')]
    assert parts.breakers.avoid() == {parts.world.cell.uuid}
    for task in parts.world.requests.tasks(request.id):
        assert (task.status, task.attempts) == ('retry_wait', 1)
        assert task.reason == f'cell {parts.world.cell.uuid} is unreachable: no route to host'
    assert parts.world.claimed() == 0


def test_dead_cell_jobs_end_with_reason(parts: Parts) -> None:
    images = [parts.images.add(b'data').id]
    request = parts.world.planned(['h1', 'h2', 'h3'], images)
    unreachable = parts.compute.fails(exception.CellUnreachable('no route to host'))
    for host in ('h1', 'h2', 'h3'):
        parts.compute.script(host, images[0], *[unreachable] * 9)

    for _ in range(POLICY.max_attempts):
        parts.serve()
        parts.world.make_due()
        parts.now[0] += REST_SECONDS + 1

    assert len(parts.compute.calls) == POLICY.max_attempts
    for task in parts.world.requests.tasks(request.id):
        assert (task.status, task.attempts) == ('error', 3)
        assert 'no route to host' in (task.reason or '')
    assert parts.world.status(request) == 'failed'


def test_dead_cell_spares_other_cell_attempts(parts: Parts) -> None:
    parts.world.planned(['h1'], ['i1'])
    other = parts.world.planned(['h2'], ['i1'], cell_uuid='alive')
    parts.compute.script('h1', 'i1', parts.compute.fails(exception.CellUnreachable('dead')))

    parts.serve()

    assert (_task(parts, other, 'h2').status, _task(parts, other, 'h2').attempts) == ('queued', 0)
    assert parts.serve() == 'h2'
    assert _task(parts, other, 'h2').status == 'cached'


@pytest.mark.parametrize('answer', [CACHED, TimeoutError()], ids=['an answer', 'a timeout'])
def test_recovered_cell_called_again(
    parts: Parts, answer: model.ImageOutcome | TimeoutError
) -> None:
    parts.world.planned(['h1'], ['i1'])
    parts.breakers.failed(parts.world.cell.uuid)
    parts.now[0] += REST_SECONDS + 1
    if isinstance(answer, TimeoutError):
        parts.compute.script('h1', 'i1', parts.compute.fails(answer))

    parts.serve()
    parts.breakers.enter(parts.world.cell.uuid)

    assert parts.breakers.avoid() == set()


def test_cell_dying_between_calls_avoided(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.compute.script(
        'h1',
        'i1',
        parts.compute.fails(TimeoutError(), begins=True),
        parts.compute.fails(exception.CellUnreachable('no route to host')),
    )

    parts.serve()

    assert _task(parts, request).status == 'retry_wait'
    assert parts.breakers.avoid() == {parts.world.cell.uuid}


# Other errors


@pytest.mark.parametrize(
    'error',
    [
        exception.ImageServiceUnavailable('Glance is away'),
        exception.ImageUnauthorized('the credentials were refused'),
    ],
)
def test_without_image_access_attempt_fails_uncalled(parts: Parts, error: Exception) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def no_access() -> tuple[str | None, str | None]:
        raise error

    parts.access = no_access

    parts.serve()

    assert parts.compute.calls == []
    task = _task(parts, request)
    assert (task.status, task.reason) == ('retry_wait', str(error))


def test_unmapped_cell_fails_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def no_cell(cell_uuid: str) -> host_worker.ComputeClient:
        raise exception.CellNotFound(cell_uuid)

    parts.compute_of = no_cell

    parts.serve()

    task = _task(parts, request)
    assert task.status == 'retry_wait'
    assert task.reason == f'Cell {parts.world.cell.uuid} has no mapping.'


def test_unexpected_error_logged_once(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    """Without an outcome the job would be due again at once, and for ever."""
    request = parts.world.planned(['h1'], ['i1'])
    parts.compute.script('h1', 'i1', parts.compute.fails(RuntimeError('a bug')))

    with caplog.at_level(logging.ERROR):
        parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    assert task.reason == 'unexpected RuntimeError: a bug'
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_stopping_conductor_calls_nothing(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    parts.world.claim('dead', limit=1)
    parts.world.expire('h1')
    (claim,) = parts.world.jobs.take_over('c1')

    parts.caller().serve(claim, lambda: True)

    assert parts.compute.calls == []
    assert (_task(parts, request).status, _task(parts, request).attempts) == ('queued', 1)
    assert parts.world.claimed() == 0


# Visibility at a retry


def _fail_once(parts: Parts, host: str, image_id: str) -> None:
    parts.compute.script(host, image_id, parts.compute.answers(BROKEN))
    parts.serve()
    parts.compute.calls.clear()
    parts.world.make_due()


def test_retry_checks_access_for_each_request(parts: Parts) -> None:
    image = parts.images.add(b'data', owner='p1')
    mine = parts.world.planned(['h1'], [image.id], project_id='p1')
    other = parts.world.planned(['h1'], [image.id], project_id='p2')
    _fail_once(parts, 'h1', image.id)
    parts.images.update(image.id, visibility='private')

    parts.serve()

    assert _task(parts, mine).status == 'cached'
    refused = _task(parts, other)
    assert refused.status == 'error'
    assert refused.reason == f'Image {image.id} is not visible to project p2'
    assert parts.world.status(other) == 'failed'
    assert parts.compute.called() == [('h1', image.id)]


def test_inaccessible_image_not_retried(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id, 'i2'])
    _fail_once(parts, 'h1', image.id)
    parts.images.update(image.id, status='deactivated')

    parts.serve()

    assert parts.compute.called() == [('h1', 'i2')]
    task = parts.world.tasks(request)['h1', image.id]
    assert (task.status, task.reason) == ('error', f'Image {image.id} is deactivated, not active')
    assert parts.world.depth() == 0


def test_running_transfer_of_hidden_image_joined(parts: Parts) -> None:
    """Its bytes move already, and the conductor that takes it over must still fetch its outcome."""
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    _fail_once(parts, 'h1', image.id)
    parts.world.begun('dead')
    parts.world.jobs.release_all('dead')
    parts.images.delete(image.id)

    parts.serve()

    assert _task(parts, request).status == 'cached'


@pytest.mark.parametrize('fault', ['unavailable', 'unauthorized'])
def test_retry_continues_without_image_service(
    parts: Parts, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    _fail_once(parts, 'h1', image.id)
    errors = {
        'unavailable': exception.ImageServiceUnavailable('Glance is away'),
        'unauthorized': exception.ImageUnauthorized('the token was refused'),
    }

    def show(image_id: str) -> model.Image:
        raise errors[fault]

    monkeypatch.setattr(parts.images, 'show', show)

    parts.serve()

    assert _task(parts, request).status == 'cached'


def test_restarted_moving_compute_called_again(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def start_anew(host: str, call: rpcapi.CacheImageCall) -> None:
        assert parts.world.jobs.begin(call.job_id, call.epoch, starts=True)
        raise TimeoutError

    parts.compute.script('h1', 'i1', start_anew, start_anew)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts, len(parts.compute.calls)) == ('cached', 2, 3)


def test_repeatedly_restarting_compute_ends_in_error(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def start_anew(host: str, call: rpcapi.CacheImageCall) -> None:
        assert parts.world.jobs.begin(call.job_id, call.epoch, starts=True)
        raise TimeoutError

    parts.compute.script('h1', 'i1', *[start_anew] * 20)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.reason) == ('error', 'no answer from the compute')
    assert len(parts.compute.calls) == POLICY.max_attempts + 1


def test_compute_shutdown_counts_no_attempt(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    stops = model.ImageOutcome('error', 'the compute is shutting down', model.Retry.LATER)
    parts.compute.script('h1', 'i1', lambda host, call: stops)

    parts.serve()

    waiting, other = parts.world.requests.tasks(request.id)
    assert (waiting.status, waiting.attempts) == ('retry_wait', 0)
    assert (other.status, parts.compute.called()) == ('queued', [('h1', 'i1')])


# Limits of a request


def _in_an_hour() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)


def test_call_carries_rate_and_remaining_time(parts: Parts) -> None:
    options = model.RequestOptions(max_rate_bytes=1000, deadline=_in_an_hour())
    parts.world.planned(['h1'], ['i1'], options=options)
    parts.world.planned(['h2'], ['i1'], options=options)
    parts.world.planned(['h2'], ['i1'])

    parts.serve()
    parts.serve()

    first, shared = (call.options for _, call in parts.compute.calls)
    assert first.max_rate_bytes == 1000
    assert first.deadline_seconds is not None
    assert 0 < first.deadline_seconds <= 3600
    assert (shared.max_rate_bytes, shared.deadline_seconds) == (None, None)


def test_awaited_host_postponed_without_attempt(
    parts: Parts,
) -> None:
    options = model.RequestOptions(wait_for_down_hosts=True, deadline=_in_an_hour())
    request = parts.world.planned(['h1'], ['i1', 'i2'], options=options)
    parts.world.dead('h1')

    parts.serve()

    assert parts.compute.calls == []
    reason = f'host down: last report at {LONG_AGO:%Y-%m-%dT%H:%M:%SZ}'
    for task in parts.world.requests.tasks(request.id):
        assert (task.status, task.attempts, task.reason) == ('retry_wait', 0, reason)
    assert parts.world.claim('c1', limit=5) is None
    assert parts.breakers.avoid() == set()


def test_awaited_host_called_after_many_outages(parts: Parts) -> None:
    options = model.RequestOptions(wait_for_down_hosts=True, deadline=_in_an_hour())
    request = parts.world.planned(['h1'], ['i1'], options=options)
    parts.world.dead('h1')
    for _ in range(POLICY.max_attempts + 1):
        parts.serve()
        parts.world.make_due()

    parts.world.living('h1')
    parts.serve()

    assert (_task(parts, request).status, _task(parts, request).attempts) == ('cached', 1)


def test_unreachable_cell_spares_awaiting_jobs(
    parts: Parts,
) -> None:
    options = model.RequestOptions(wait_for_down_hosts=True, deadline=_in_an_hour())
    request = parts.world.planned(['h1'], ['i1'], options=options)
    parts.compute.script('h1', 'i1', parts.compute.fails(exception.CellUnreachable('no route')))

    parts.serve()

    assert (_task(parts, request).status, _task(parts, request).attempts) == ('retry_wait', 0)


def test_paused_transfer_waits_until_resumed(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def pause(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.steering.pause(request.id)
        return model.ImageOutcome('error', 'the request is paused', model.Retry.LATER)

    parts.compute.script('h1', 'i1', pause)
    parts.serve()
    assert (_task(parts, request).status, _task(parts, request).attempts) == ('retry_wait', 0)
    assert parts.world.claim('c1', limit=5) is None

    parts.steering.resume(request.id)
    parts.serve()

    assert (_task(parts, request).status, _task(parts, request).attempts) == ('cached', 1)


def test_job_cancelled_by_one_request_repeated(parts: Parts) -> None:
    first = parts.world.planned(['h1'], ['i1'])

    def cancel(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        """The order is on its way when another request joins the transfer."""
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.steering.cancel(first.id)
        parts.world.planned(['h1'], ['i1'])
        return model.ImageOutcome('cancelled', 'the request was cancelled')

    parts.compute.script('h1', 'i1', cancel)

    parts.serve()
    if parts.world.depth():
        parts.serve()

    second = next(r for r in parts.world.requests.list() if r.id != first.id)
    assert _task(parts, first).status == 'cancelled'
    assert (_task(parts, second).status, len(parts.compute.calls)) == ('cached', 2)
    parts.tracker.complete(parts.world.requests.ids_to_complete())  # as each sweep does
    assert parts.world.status(first) == 'cancelled'
    assert parts.world.status(second) == 'completed'


def test_failed_call_ends_cancelled_job(
    parts: Parts,
) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def lose(host: str, call: rpcapi.CacheImageCall) -> None:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.steering.cancel(request.id)
        raise TimeoutError

    parts.compute.script('h1', 'i1', lose)

    parts.serve()

    assert len(parts.compute.calls) == 1
    assert _task(parts, request).status == 'cancelled'
    assert parts.world.status(request) == 'cancelled'
