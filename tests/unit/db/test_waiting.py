# SPDX-License-Identifier: Apache-2.0
"""Why a task or a request does not move: each cause, and which of several comes first."""

import dataclasses
import datetime
from typing import Any

import pytest

from nova_precache import model
from nova_precache.db.request import waiting

NOW = datetime.datetime(2026, 11, 29, 1, 0, 0)  # noqa: DTZ001 - as the database keeps it
PAUSED = model.RequestStatus.PAUSED
CANCELLING = model.RequestStatus.CANCELLING
DOWN = 'host down: last report at 2026-11-29T00:50:00Z'


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


SERVICE = waiting.ServiceFacts(
    now=NOW,
    conductor_seen_at=ago(3),
    conductor_silent=datetime.timedelta(seconds=15),
    compute_silent=datetime.timedelta(seconds=15),
    streams=1,
    precache_concurrency=16,
)
RUNNING = waiting.RequestFacts(status='running', created_at=ago(100))
HOST = waiting.HostFacts('h1', seen_at=ago(5), registered_at=ago(1000))
READY = waiting.JobFacts(is_ready=True, progress_at=ago(1))
HELD = waiting.JobFacts(is_ready=False)


def task(status: str = 'queued', **fields: Any) -> model.Task:
    return model.Task(1, 'r1', 'h1', 'c1', 'i1', status, **fields)


def facts(
    status: str = 'queued',
    *,
    request: waiting.RequestFacts = RUNNING,
    host: waiting.HostFacts = HOST,
    job: waiting.JobFacts = READY,
    **fields: Any,
) -> waiting.TaskFacts:
    return waiting.TaskFacts(task(status, **fields), request, host, job)


def reason(*args: Any, service: waiting.ServiceFacts = SERVICE, **fields: Any) -> str | None:
    return waiting.task_reason(service, facts(*args, **fields))


def request(**fields: Any) -> waiting.RequestFacts:
    return dataclasses.replace(RUNNING, **fields)


def host(**fields: Any) -> waiting.HostFacts:
    return dataclasses.replace(HOST, **fields)


def service(**fields: Any) -> waiting.ServiceFacts:
    return dataclasses.replace(SERVICE, **fields)


@pytest.mark.parametrize(
    'status', ['error', 'cached', 'skipped', 'cancelled', 'of a newer release']
)
def test_final_task_keeps_its_reason(status: str) -> None:
    silent = service(conductor_seen_at=ago(1000))

    assert reason(status, reason='no space', service=silent) == 'no space'


@pytest.mark.parametrize('status', sorted(model.TASK_IN_FLIGHT))
def test_silent_conductors_come_first(status: str) -> None:
    paused = request(status=PAUSED)

    why = reason(status, request=paused, service=service(conductor_seen_at=ago(40)))

    assert why == 'no conductor has answered for 40 s'


def test_conductors_silent_only_after_limit() -> None:
    assert reason('downloading', service=service(conductor_seen_at=ago(15))) is None


def test_no_conductor_since_request_began() -> None:
    assert reason(service=service(conductor_seen_at=None)) == 'no conductor has answered for 100 s'


@pytest.mark.parametrize(
    ('held_by', 'why'),
    [
        ({'status': CANCELLING}, 'its request is being cancelled'),
        ({'status': PAUSED}, 'its request is paused'),
        ({'status': 'accepted', 'is_planned': False}, 'its request is not planned yet'),
        (
            {'is_planned': False, 'reason': 'Glance does not answer'},
            'its request is not planned yet: Glance does not answer',
        ),
        (
            {'not_before': NOW + datetime.timedelta(hours=1)},
            'waits for its window, which begins at 2026-11-29T02:00:00Z',
        ),
        ({'canary': (1, 3)}, 'waits for the canary hosts: 1 of 3 done'),
    ],
)
@pytest.mark.parametrize('status', ['queued', 'retry_wait'])
def test_request_holds_its_tasks(held_by: dict[str, Any], why: str, status: str) -> None:
    assert reason(status, request=request(**held_by), job=HELD) == why


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ({'status': PAUSED}, {'canary': (0, 1)}),
        ({'status': PAUSED}, {'not_before': NOW + datetime.timedelta(hours=1)}),
        ({'is_planned': False}, {'not_before': NOW + datetime.timedelta(hours=1)}),
        ({'not_before': NOW + datetime.timedelta(hours=1)}, {'canary': (0, 1)}),
    ],
)
def test_earlier_cause_counts(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = reason(request=request(**first, **second), job=HELD)

    assert both == reason(request=request(**first), job=HELD)


def test_shared_job_ignores_own_pause() -> None:
    assert reason(request=request(status=PAUSED)) == 'waits for a conductor to call its host'


def test_begun_window_holds_no_task() -> None:
    begun = request(not_before=ago(1))

    assert reason(request=begun, job=HELD) == 'waits for a conductor to call its host'


def test_retry_counts_down_with_reason() -> None:
    due = NOW + datetime.timedelta(seconds=11.2)

    assert reason('retry_wait', reason='503 from Glance', next_attempt_at=due) == (
        'retry in 12 s: 503 from Glance'
    )


def test_due_retry_names_last_reason() -> None:
    why = reason('retry_wait', reason='503 from Glance', next_attempt_at=ago(1))

    assert why == 'retry now: 503 from Glance'


@pytest.mark.parametrize('why', [DOWN, 'host disabled: maintenance'])
def test_retry_waits_for_absent_host(why: str) -> None:
    due = NOW + datetime.timedelta(seconds=600)

    assert reason('retry_wait', reason=why, next_attempt_at=due) == f'{why}; waits until it is back'


@pytest.mark.parametrize(
    ('waits', 'why'), [(True, f'{DOWN}; waits until it is back'), (False, DOWN)]
)
def test_queued_task_of_down_host(waits: bool, why: str) -> None:
    down = host(down=DOWN)

    assert reason(host=down, request=request(waits_for_down_hosts=waits)) == why


@pytest.mark.parametrize('seen_at', [None, ago(5)])
def test_absence_of_stock_compute_kept(seen_at: datetime.datetime | None) -> None:
    waits = request(waits_for_down_hosts=True)

    why = reason(reason='host disabled: mended', host=host(seen_at=seen_at), request=waits)

    assert why == (
        'host disabled: mended; waits until it is back'
        if seen_at is None
        else 'waits for a conductor to call its host'
    )


@pytest.mark.parametrize('status', ['queued', 'retry_wait', 'downloading', 'converting'])
def test_unheard_cell_named(status: str) -> None:
    unheard = waiting.cell_problem('site7', None, ago(33), NOW)

    assert reason(status, host=host(cell_problem=unheard)) == (
        'no conductor has heard cell site7 for 33 s'
    )


def test_disabled_cell_named() -> None:
    why = waiting.cell_problem('site7', 'cell site7 is disabled', ago(33), NOW)

    assert reason(host=host(cell_problem=why)) == 'cell site7 is disabled'


def test_task_waits_for_image_before() -> None:
    claimed = host(is_claimed=True, is_at_work=True)

    assert reason(host=claimed) == 'waits for another image on the same host'


def test_task_waits_for_another_call() -> None:
    assert reason(host=host(is_claimed=True)) == 'waits for another call to its host'


def test_called_task_not_begun() -> None:
    called = dataclasses.replace(READY, is_called=True)

    assert reason(host=host(is_claimed=True, is_at_work=True), job=called) == (
        'its host has been called and has not begun yet'
    )


def test_claimed_silent_host_named() -> None:
    silent = host(is_claimed=True, is_at_work=True, seen_at=ago(40))

    assert reason(host=silent, job=waiting.JobFacts(is_ready=True)) == (
        'no sign of the compute for 40 s'
    )


def test_unanswered_call_of_stock_compute() -> None:
    until = NOW + datetime.timedelta(minutes=20)

    assert reason(host=host(unanswered_until=until)) == (
        'its nova-compute has not answered an earlier call, which may run until '
        '2026-11-29T01:20:00Z'
    )
    assert reason(host=host(unanswered_until=ago(1))) == 'waits for a conductor to call its host'


def test_request_limit_of_hosts_reached() -> None:
    full = request(max_parallel_hosts=2, busy_hosts=('h2', 'h3'))

    assert reason(request=full) == 'waits for a slot of its request: 2 of 2 hosts are at work'


@pytest.mark.parametrize('busy', [(), ('h2',), ('h1', 'h2')])
def test_request_limit_leaves_host(busy: tuple[str, ...]) -> None:
    limited = request(max_parallel_hosts=2, busy_hosts=busy)

    assert reason(request=limited) == 'waits for a conductor to call its host'


@pytest.mark.parametrize('claimed', [16, 17])
def test_all_slots_taken(claimed: int) -> None:
    assert reason(service=service(streams=claimed)) == (
        f'waits for a slot: {claimed} of 16 hosts are at work'
    )


@pytest.mark.parametrize('status', sorted(model.TASK_WORKING))
def test_silent_compute_has_no_rate(status: str) -> None:
    silent: dict[str, Any] = {
        'host': host(seen_at=ago(40)),
        'job': dataclasses.replace(READY, progress_at=ago(41)),
        'rate_bytes': 5000,
    }

    assert reason(status, **silent) == 'no sign of the compute for 40 s'
    assert waiting.rate_bytes(SERVICE, facts(status, **silent)) == 0


@pytest.mark.parametrize(
    ('seen', 'progress'), [(14, 900), (900, 14)], ids=['its state', 'its progress']
)
def test_any_recent_report_keeps_rate(seen: float, progress: float) -> None:
    slow: dict[str, Any] = {
        'host': host(seen_at=ago(seen)),
        'job': dataclasses.replace(READY, progress_at=ago(progress)),
        'rate_bytes': 3,
    }

    assert reason('downloading', **slow) is None
    assert waiting.rate_bytes(SERVICE, facts('downloading', **slow)) == 3


def test_restarted_compute_has_no_rate() -> None:
    again: dict[str, Any] = {
        'host': host(registered_at=ago(3)),
        'job': dataclasses.replace(READY, progress_at=ago(9)),
        'rate_bytes': 5000,
    }

    assert reason('downloading', **again) == 'no progress since its compute registered'
    assert waiting.rate_bytes(SERVICE, facts('downloading', **again)) == 0


@pytest.mark.parametrize(
    ('status', 'rate', 'progress', 'why'),
    [
        ('downloading', 0, 1, 'no bytes have arrived for 11 s'),
        ('downloading', None, 16, 'no bytes have arrived for 16 s'),
        ('downloading', None, 1, None),
        ('downloading', 1, 1, None),
        ('verifying', 0, 1, None),
        ('converting', 0, 1, None),
    ],
)
def test_still_download_named(
    status: str, rate: int | None, progress: float, why: str | None
) -> None:
    job = dataclasses.replace(READY, progress_at=ago(progress))

    assert reason(status, job=job, rate_bytes=rate) == why


def test_stock_compute_reports_no_progress() -> None:
    stock = waiting.HostFacts('h1', is_claimed=True, is_at_work=True)
    job = dataclasses.replace(READY, progress_at=ago(500))

    assert reason('downloading', host=stock, job=job) is None


@pytest.mark.parametrize(
    ('stop_why', 'why'),
    [
        ('cancelled', 'its request is being cancelled'),
        ('paused', 'its request is paused; the transfer is being stopped'),
        ('deadline', 'the deadline of its request has passed; the transfer is being stopped'),
        ('of a newer release', None),
    ],
)
def test_transfer_being_stopped_named(stop_why: str, why: str | None) -> None:
    job = dataclasses.replace(READY, is_ready=False, stop_why=stop_why)

    assert reason('downloading', job=job, rate_bytes=7) == why


@pytest.mark.parametrize('status', ['completed', 'partial', 'failed', 'cancelled', 'expired'])
def test_ended_request_keeps_its_reason(status: str) -> None:
    ended = request(status=status, reason='3 of 4 tasks failed')
    silent = service(conductor_seen_at=ago(1000))

    assert waiting.request_reason(silent, ended, None) == '3 of 4 tasks failed'


@pytest.mark.parametrize(
    ('about', 'why'),
    [
        ({'status': CANCELLING}, 'waits for running transfers to stop'),
        ({'status': PAUSED}, 'it is paused'),
        ({'status': 'accepted', 'is_planned': False}, None),
        (
            {'status': 'accepted', 'is_planned': False, 'reason': 'Glance does not answer'},
            'not planned yet: Glance does not answer',
        ),
        (
            {'not_before': NOW + datetime.timedelta(hours=1)},
            'waits for its window, which begins at 2026-11-29T02:00:00Z',
        ),
        ({'canary': (0, 1)}, None),
    ],
)
def test_request_explains_itself(about: dict[str, Any], why: str | None) -> None:
    assert waiting.request_reason(SERVICE, request(**about), None) == why


def test_request_names_silent_conductors() -> None:
    silent = service(conductor_seen_at=ago(40))

    assert waiting.request_reason(silent, request(status=PAUSED), None) == (
        'no conductor has answered for 40 s'
    )


def test_request_names_host_of_task() -> None:
    stands = facts(host=host(down=DOWN))

    assert waiting.request_reason(SERVICE, RUNNING, stands) == f'h1: {DOWN}'
    assert waiting.request_reason(SERVICE, RUNNING, facts('verifying')) is None


@pytest.mark.parametrize(
    ('turn', 'said'),
    [
        (waiting.Turn(0), ', 0 hosts before it'),
        (waiting.Turn(1), ', 1 host before it'),
        (waiting.Turn(3), ', 3 hosts before it'),
        (waiting.Turn(1000, is_beyond=True), ', more than 1,000 hosts before it'),
        (waiting.Turn(0, is_beyond=True), ''),
        (None, ''),
    ],
)
def test_hosts_before_it_named(turn: waiting.Turn | None, said: str) -> None:
    full = service(streams=16)

    assert reason(service=full, host=host(turn=turn)) == (
        f'waits for a slot: 16 of 16 hosts are at work{said}'
    )


FULL = dataclasses.replace(SERVICE, streams=16)
PACED = dataclasses.replace(HOST, rate_bytes=10, turn=waiting.Turn(2, seconds=7))


def expected(
    status: str = 'queued', service: waiting.ServiceFacts = FULL, **fields: Any
) -> float | None:
    fields = {'host': PACED, 'bytes_done': 20, 'bytes_total': 100, **fields}
    return waiting.expected_seconds(service, facts(status, **fields))


def test_eta_adds_turn_and_bytes() -> None:
    assert expected() == 7 + 80 / 10
    assert expected('retry_wait') == 7 + 80 / 10


def test_eta_counts_bytes_before_on_host() -> None:
    after = dataclasses.replace(READY, bytes_before=200)

    assert expected(job=after) == 7 + 280 / 10


def test_free_slot_needs_no_turn() -> None:
    assert expected(service=SERVICE) == 8
    assert expected(host=dataclasses.replace(PACED, is_claimed=True, turn=None)) == 8


def test_eta_waits_for_next_attempt() -> None:
    due = NOW + datetime.timedelta(seconds=30)

    assert expected('retry_wait', next_attempt_at=due) == 30 + 8


@pytest.mark.parametrize(
    'fields',
    [
        {'host': dataclasses.replace(PACED, rate_bytes=None)},
        {'host': dataclasses.replace(PACED, turn=None)},
        {'host': dataclasses.replace(PACED, turn=waiting.Turn(2))},
        {'host': dataclasses.replace(PACED, down=DOWN)},
        {'host': dataclasses.replace(PACED, cell_problem='cell site7 is disabled')},
        {'job': HELD},
        {'bytes_total': None},
        {'service': dataclasses.replace(FULL, conductor_seen_at=ago(1000))},
        {'request': request(max_parallel_hosts=1, busy_hosts=('h2',))},
        {'status': 'error'},
        {'status': 'downloading'},
    ],
)
def test_eta_of_task_unknown(fields: dict[str, Any]) -> None:
    assert expected(**fields) is None
