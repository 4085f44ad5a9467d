# SPDX-License-Identifier: Apache-2.0
"""Announcements: a start, each host once, and always an end."""

import dataclasses
import datetime
import logging

import pytest

from nova_precache import model
from nova_precache.conductor import tracker
from nova_precache.db import jobs, requests
from nova_precache.db.request import plan as request_plan
from tests.unit.conductor.conftest import POLICY, Parts
from tests.unit.conftest import BROKEN, CACHED, PLANNER

SOON = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)


def _attempt(parts: Parts, outcome: model.ImageOutcome) -> jobs.Assignment:
    assigned = parts.world.begun()
    parts.tracker.attempted(assigned, outcome)
    parts.world.jobs.release('c1', [assigned.host])
    return assigned


def test_planned_request_announced_with_aggregate(parts: Parts) -> None:
    aggregate = parts.world.aggregate(['h1'])
    new = requests.NewRequest(images=('i1',), aggregate=aggregate)
    request = parts.world.requests.accept(new)
    parts.world.requests.next_to_plan(PLANNER)
    parts.world.plan(request, ['h1'])
    parts.world.requests.mark_planned(request.id, PLANNER)

    parts.tracker.planned(request.id)

    assert parts.announced.events() == ['start']
    [start] = parts.announced.data('start')
    assert (start['name'], start['hosts']) == (aggregate.name, ['h1'])


def test_plan_failures_count_before_calls(parts: Parts) -> None:
    request = parts.world.accept(['h1'], ['i1', 'i2'], options=model.RequestOptions(max_failures=0))
    assert parts.world.requests.next_to_plan(PLANNER)
    gone = request_plan.PlannedTask('h1', parts.world.cell.uuid, 'i2', 'error', 'it is gone')
    assert parts.world.requests.add_tasks(request.id, PLANNER, [gone])
    parts.world.plan(request, ['h1'], images=['i1'])
    parts.world.requests.mark_planned(request.id, PLANNER)

    parts.tracker.planned(request.id)

    assert parts.world.statuses(request) == {('h1', 'i1'): 'cancelled', ('h1', 'i2'): 'error'}
    assert parts.announced.events() == ['start', 'progress', 'end']


def test_request_of_deleted_aggregate_announced(parts: Parts) -> None:
    request = parts.world.planned(['h2', 'h1'], ['i1'])

    parts.tracker.planned(request.id)

    [start] = parts.announced.data('start')
    assert (start['id'], start['uuid'], start['name']) == (1, 'uuid-1', 'edge')
    assert (start['hosts'], start['metadata']) == (['h2', 'h1'], {})


def test_host_announced_once_when_done(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1', 'i2'])
    for outcome in (CACHED, BROKEN, CACHED):
        _attempt(parts, outcome if outcome is CACHED else model.ImageOutcome('error', 'unsafe'))

    assert parts.announced.events() == ['start', 'progress']
    [host] = parts.announced.data('progress')
    assert (host['host'], host['index'], host['total']) == ('h1', 1, 2)
    assert (host['images_cached'], host['images_failed']) == (['i1'], ['i2'])

    _attempt(parts, CACHED)

    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']
    assert [host['index'] for host in parts.announced.data('progress')] == [1, 2]
    assert parts.world.status(request) == 'partial'


def test_both_requests_of_shared_job_announced(parts: Parts) -> None:
    for _ in range(2):
        parts.world.planned(['h1'], ['i1'])

    _attempt(parts, CACHED)

    events = ['start', 'progress', 'end']
    assert sorted(parts.announced.events()) == sorted(events * 2)


def test_retried_attempt_not_announced(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    _attempt(parts, BROKEN)
    parts.announcer.announce()

    assert parts.announced.events() == ['start']
    assert parts.world.statuses(request) == {('h1', 'i1'): 'retry_wait'}


def test_request_with_only_failures_ends(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    _attempt(parts, model.ImageOutcome('error', 'unsafe image'))

    assert parts.announced.events() == ['start', 'progress', 'end']
    assert parts.world.status(request) == 'failed'


def test_late_outcome_not_announced_again(parts: Parts) -> None:
    parts.world.planned(['h1'], ['i1'])
    assigned = _attempt(parts, CACHED)
    before = list(parts.announced.emitted)

    parts.tracker.attempted(assigned, BROKEN)
    parts.tracker.attempted(assigned, CACHED)

    assert parts.announced.emitted == before


def test_end_announced_by_ending_conductor(parts: Parts) -> None:
    request = parts.world.planned([], ['i1'])

    for _ in range(2):
        parts.tracker.complete([request.id])

    assert parts.announced.events() == ['start', 'end']


def test_unplannable_request_has_start_and_end(parts: Parts) -> None:
    request = parts.world.accept(['h1'], ['i1'])
    parts.world.requests.next_to_plan(PLANNER)
    parts.world.requests.fail(request.id, PLANNER, 'the aggregate was deleted')

    parts.tracker.failed(request.id)

    assert parts.announced.events() == ['start', 'end']


def test_planned_hosts_counted_first(parts: Parts) -> None:
    request = parts.world.accept(['h1', 'h2'], ['i1'])
    parts.world.requests.next_to_plan(PLANNER)
    down = request_plan.PlannedTask('h2', parts.world.cell.uuid, 'i1', 'skipped', 'host down')
    parts.world.requests.add_tasks(request.id, PLANNER, [down])
    parts.world.plan(request, ['h1'])
    parts.world.requests.mark_planned(request.id, PLANNER)

    parts.tracker.planned(request.id)
    _attempt(parts, CACHED)

    assert [(host['host'], host['index']) for host in parts.announced.data('progress')] == [
        ('h2', 1),
        ('h1', 2),
    ]
    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']


def test_dead_cell_ends_exhausted_jobs(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1'])
    for _ in range(POLICY.max_attempts):
        assert parts.world.status(request) == 'planned'
        parts.tracker.cell_failed(parts.world.cell.uuid, BROKEN)
        parts.world.make_due()

    assert set(parts.world.statuses(request).values()) == {'error'}
    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']


def test_dead_cell_ends_many_jobs(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, 'CELL_BATCH_JOBS', 2)
    request = parts.world.planned([f'h{number}' for number in range(5)], ['i1'])

    parts.tracker.cell_failed(parts.world.cell.uuid, BROKEN)

    assert set(parts.world.statuses(request).values()) == {'retry_wait'}


def test_awaiting_jobs_of_dead_cell_stay(parts: Parts) -> None:
    request = parts.world.planned(
        ['h1'], ['i1'], options=model.RequestOptions(wait_for_down_hosts=True, deadline=SOON)
    )
    for _ in range(POLICY.max_attempts + 1):
        parts.tracker.cell_failed(parts.world.cell.uuid, BROKEN)
        parts.world.make_due()

    assert parts.world.statuses(request) == {('h1', 'i1'): 'retry_wait'}


# Requests in which one task decides about the others


def test_failed_canary_cancels_others_at_once(parts: Parts) -> None:
    request = parts.world.planned(
        ['h1', 'h2', 'h3'], ['i1'], options=model.RequestOptions(canary=1)
    )

    _attempt(parts, model.ImageOutcome('error', 'unsafe image'))

    assert parts.world.requests.get(request.id).counts == {'cancelled': 2, 'error': 1}
    assert parts.world.status(request) == 'failed'
    assert parts.announced.events() == ['start', *['progress'] * 3, 'end']


def test_successful_canary_starts_others(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1'], options=model.RequestOptions(canary=1))

    assert [_attempt(parts, CACHED).host for _ in range(2)] == ['h1', 'h2']

    assert parts.world.status(request) == 'completed'


def test_request_without_guards_checked_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    outline = parts.world.requests.outline

    def count(request_id: str) -> model.CacheRequest:
        looked.append(request_id)
        return outline(request_id)

    quiet = tracker.Tracker(
        parts.world.jobs, parts.world.requests, parts.steering, lambda: None, POLICY
    )
    parts = dataclasses.replace(parts, tracker=quiet)
    monkeypatch.setattr(parts.world.requests, 'outline', count)
    monkeypatch.setattr(parts.steering, 'check', None)
    request = parts.world.planned(['h1', 'h2', 'h3'], ['i1'])

    for _ in range(3):
        _attempt(parts, CACHED)

    assert looked == [request.id]


# The log


def _logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == tracker.__name__]


@pytest.mark.parametrize(
    ('outcome', 'level', 'text'),
    [
        (
            dataclasses.replace(CACHED, seconds=2.0),
            'INFO',
            'cached, 100 bytes in 2.0 s (50 bytes/s)',
        ),
        (
            model.ImageOutcome('error', 'unsafe image: x'),
            'WARNING',
            'error, 0 bytes: unsafe image: x',
        ),
        (
            model.ImageOutcome('unsupported', 'no cache'),
            'WARNING',
            'unsupported, 0 bytes: no cache',
        ),
    ],
)
def test_end_of_job_has_one_line(
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
    outcome: model.ImageOutcome,
    level: str,
    text: str,
) -> None:
    caplog.set_level(logging.INFO)
    request = parts.world.planned(['h1'], ['i1'])

    assigned = _attempt(parts, outcome)
    parts.tracker.attempted(assigned, outcome)  # it comes late

    job = f'Job {assigned.job_id} (image i1 on host h1), attempt 1 ended for request {request.id}'
    assert [line for line in _logged(caplog) if line[1].startswith('Job ')] == [
        (level, f'{job}: {text}')
    ]


def test_many_requests_of_job_abbreviated(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ids = sorted(parts.world.planned(['h1'], ['i1']).id for _ in range(5))

    _attempt(parts, CACHED)

    [line] = [text for _, text in _logged(caplog) if text.startswith('Job ')]
    assert f'for request {", ".join(ids[:3])} and 2 more: cached' in line


def test_retried_failure_is_info(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    parts.world.planned(['h1'], ['i1'])

    _attempt(parts, BROKEN)

    [(level, text)] = _logged(caplog)
    assert (level, text.endswith('attempt 1: the line is dead; next attempt in 10 s')) == (
        'INFO',
        True,
    )


def test_failed_request_warns_with_summary(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    request = parts.world.planned(['h1'], ['i1'])

    _attempt(parts, model.ImageOutcome('error', 'unsafe image: x'))

    assert _logged(caplog)[-1] == (
        'WARNING',
        f"Request {request.id} is failed: {{'error': 1}}, 1 of 1 copies failed: 1 × unsafe image",  # noqa: RUF001
    )
