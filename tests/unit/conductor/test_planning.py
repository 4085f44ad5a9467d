# SPDX-License-Identifier: Apache-2.0
"""How an accepted request becomes tasks, with and without failures."""

import dataclasses
import logging
import threading
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import models as cell_models
from nova_precache.conductor import planner, planning
from nova_precache.db import requests
from nova_precache.db.engine import models
from nova_precache.db.request import plan as request_plan
from tests.unit.conductor.conftest import Parts
from tests.unit.conftest import DOWN_SECONDS, LONG_AGO
from tools.waiting import TIMEOUT_SECONDS, wait_until


@dataclasses.dataclass
class _Asked:
    request: model.CacheRequest
    aggregate: model.Aggregate
    images: list[str]


def _ask(parts: Parts, hosts: Sequence[str], images: int = 1, **fields: object) -> _Asked:
    aggregate = parts.world.aggregate(hosts)
    made = [parts.images.add(b'some data').id for _ in range(images)]
    new = requests.NewRequest(images=tuple(made), aggregate=aggregate, **fields)  # type: ignore[arg-type]
    return _Asked(parts.world.requests.accept(new), aggregate, made)


def _reasons(parts: Parts, asked: _Asked) -> dict[str, tuple[str, str | None]]:
    tasks = parts.world.requests.tasks(asked.request.id)
    return {task.host: (task.status, task.reason) for task in tasks}


def _make_plannable(parts: Parts) -> None:
    """Make every postponed request due."""
    is_held = models.CacheRequest.planner_lease_until.is_not(None)
    parts.world.change(models.CacheRequest, is_held, planner_lease_until=LONG_AGO)


def test_no_request_waits_for_plan(parts: Parts) -> None:
    assert not parts.planning().plan_next()


def test_plan_has_task_per_host_image(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2'], images=2)

    assert parts.planning().plan_next()

    planned = parts.world.requests.get(asked.request.id)
    assert (planned.status, planned.hosts_total, planned.counts) == ('planned', 2, {'queued': 4})
    assert planned.bytes_total == 4 * len(b'some data')
    tasks = parts.world.tasks(planned)
    assert set(tasks) == {(host, image) for host in ('h1', 'h2') for image in asked.images}
    assert {task.cell_uuid for task in tasks.values()} == {parts.world.cell.uuid}
    assert parts.announced.events() == ['start']
    assert not parts.planning().plan_next()


def test_plan_in_chunks_is_complete(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3'], images=3)

    assert parts.planning(chunk_tasks=2).plan_next()

    assert parts.world.requests.get(asked.request.id).counts == {'queued': 9}


def test_stopping_conductor_hands_back_plan(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3'])
    stops = iter([False, True])

    parts.planning('c1', chunk_tasks=1).plan_next(lambda: next(stops))

    begun = parts.world.requests.get(asked.request.id)
    assert (begun.status, begun.counts) == ('accepted', {'queued': 1})
    assert begun.reason == 'the conductor that planned it was stopped'
    assert parts.planning('c2').plan_next()
    whole = parts.world.requests.get(asked.request.id)
    assert (whole.status, whole.counts, whole.reason) == ('planned', {'queued': 3}, None)


def test_request_without_hosts_completes_at_once(parts: Parts) -> None:
    asked = _ask(parts, [])

    parts.planning().plan_next()

    assert parts.world.status(asked.request) == 'completed'
    assert parts.announced.events() == ['start', 'end']


def test_uncallable_hosts_skipped_and_announced(
    parts: Parts,
) -> None:
    asked = _ask(parts, ['up', 'down', 'unmapped'])
    parts.world.dead('down')
    parts.world.database.write(
        lambda s: s.execute(
            sa.delete(cell_models.HostMapping).where(cell_models.HostMapping.host == 'unmapped')
        )
    )

    parts.planning().plan_next()

    assert _reasons(parts, asked) == {
        'up': ('queued', None),
        'down': ('skipped', f'host down: last report at {LONG_AGO:%Y-%m-%dT%H:%M:%SZ}'),
        'unmapped': ('skipped', 'host is not mapped to a cell'),
    }
    progress = parts.announced.data('progress')
    assert [(data['host'], data['index'], data['total']) for data in progress] == [
        ('down', 1, 3),
        ('unmapped', 2, 3),
    ]


def test_hosts_of_disabled_cell_skipped(parts: Parts) -> None:
    asked = _ask(parts, ['h1'])
    is_it = cell_models.CellMapping.uuid == parts.world.cell.uuid
    parts.world.change(cell_models.CellMapping, is_it, disabled=True)

    parts.planning().plan_next()

    assert _reasons(parts, asked) == {'h1': ('skipped', 'cell cell1 is disabled')}
    assert parts.world.status(asked.request) == 'failed'


def test_deleted_image_fails_only_its_tasks(parts: Parts) -> None:
    asked = _ask(parts, ['h1'], images=2)
    parts.images.delete(asked.images[0])

    parts.planning().plan_next()

    tasks = parts.world.tasks(asked.request)
    gone, kept = (tasks['h1', image] for image in asked.images)
    assert (gone.status, kept.status) == ('error', 'queued')
    assert gone.reason == f'Image {asked.images[0]} could not be found.'


def test_hidden_image_fails_its_tasks(parts: Parts) -> None:
    asked = _ask(parts, ['h1'], project_id='p1')
    parts.images.update(asked.images[0], visibility='private', owner='p2')

    parts.planning().plan_next()

    [(status, reason)] = _reasons(parts, asked).values()
    assert (status, reason) == ('error', f'Image {asked.images[0]} is not visible to project p1')


def test_low_rpc_pin_ends_request_unsupported(parts: Parts) -> None:
    asked = _ask(parts, ['h1'])
    parts.why_no_call = lambda: 'the pin is too low'

    parts.planning().plan_next()

    assert _reasons(parts, asked) == {'h1': ('unsupported', 'the pin is too low')}
    assert parts.world.depth() == 0


def test_request_waits_for_image_service(parts: Parts) -> None:
    asked = _ask(parts, ['h1'])
    parts.images.faults.unavailable = 1

    assert parts.planning().plan_next()
    assert parts.world.status(asked.request) == 'accepted'
    assert not parts.planning().plan_next()

    _make_plannable(parts)
    assert parts.planning('c2').plan_next()
    assert parts.world.status(asked.request) == 'planned'


def test_unreported_host_delays_plan_after_outage(
    parts: Parts,
) -> None:
    parts.world.hears(for_seconds=1000)
    asked = _ask(parts, ['h1', 'h2'])
    parts.world.pass_time(10 * DOWN_SECONDS)
    parts.world.hears()
    parts.world.living('h1')

    assert parts.planning().plan_next()
    assert parts.world.status(asked.request) == 'accepted'

    _make_plannable(parts)
    parts.world.living('h2')
    assert parts.planning().plan_next()
    assert _reasons(parts, asked) == {'h1': ('queued', None), 'h2': ('queued', None)}


def test_silent_host_skipped_after_outage(parts: Parts) -> None:
    parts.world.hears(for_seconds=1000)
    asked = _ask(parts, ['h1', 'h2', 'never'])
    parts.world.change(models.Agent, models.Agent.host == 'never', host='other')
    parts.world.pass_time(10 * DOWN_SECONDS)
    parts.world.hears(for_seconds=DOWN_SECONDS + 1)
    parts.world.living('h1')

    assert parts.planning().plan_next()

    reasons = {host: (word, str(why)[:25]) for host, (word, why) in _reasons(parts, asked).items()}
    assert reasons == {
        'h1': ('queued', 'None'),
        'h2': ('skipped', 'host down: last report at'),
        'never': ('skipped', 'host down: it has never r'),
    }


def test_request_after_outage_skips_no_host(parts: Parts) -> None:
    """No conductor has recorded yet that it hears the cell: the calls show which hosts are up."""
    parts.world.hears(for_seconds=1000)
    asked = _ask(parts, ['h1', 'h2', 'restored'])
    parts.world.change(models.Agent, models.Agent.host == 'restored', host='other')
    parts.world.pass_time(10 * DOWN_SECONDS)

    assert parts.planning().plan_next()
    for _ in range(3):
        parts.serve()

    assert _reasons(parts, asked) == dict.fromkeys(('h1', 'h2', 'restored'), ('cached', None))


def test_deleted_aggregate_fails_request_with_reason(parts: Parts) -> None:
    asked = _ask(parts, [])
    parts.world.inventory.delete_aggregate(asked.aggregate.id)

    parts.planning().plan_next()

    failed = parts.world.requests.get(asked.request.id)
    assert failed.status == 'failed'
    assert failed.reason == 'the aggregate was deleted before the request was planned'
    assert parts.announced.events() == ['start', 'end']


@pytest.mark.parametrize(
    ('error', 'traces'),
    [(exception.ImageUnauthorized('the token was refused'), 0), (RuntimeError('a bug'), 1)],
)
def test_unplannable_request_does_not_block_others(
    parts: Parts,
    error: Exception,
    traces: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = _ask(parts, ['h1']), _ask(parts, ['h2'])
    show = parts.images.show

    def show_or_fail(image_id: str) -> model.Image:
        if image_id in bad.images:
            raise error
        return show(image_id)

    monkeypatch.setattr(parts.images, 'show', show_or_fail)
    plans = parts.planning()

    with caplog.at_level(logging.WARNING):
        assert [plans.plan_next() for _ in range(3)] == [True, True, False]

    assert parts.world.status(bad.request) == 'accepted'
    assert parts.world.status(good.request) == 'planned'
    assert f'Planning of request {bad.request.id} is postponed' in caplog.text
    assert len([record for record in caplog.records if record.exc_info]) == traces


def test_silent_glance_is_reason_meanwhile(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, 'NOTE_SECONDS', 0.01)
    asked = [_ask(parts, ['h1']).request.id, _ask(parts, ['h2']).request.id]
    answers, show = threading.Event(), parts.images.show

    def show_later(image_id: str) -> model.Image:
        answers.wait(TIMEOUT_SECONDS)
        return show(image_id)

    def reasons() -> list[str | None]:
        return [parts.world.requests.get(request_id).reason for request_id in asked]

    def are_noted() -> bool:
        return all(why and why.startswith('no answer from Glance for ') for why in reasons())

    monkeypatch.setattr(parts.images, 'show', show_later)
    waits = threading.Thread(target=parts.planning().plan_next)
    waits.start()
    try:
        wait_until(are_noted, 'both have the reason')
    finally:
        answers.set()
        waits.join()

    assert parts.planning().plan_next()
    assert reasons() == [None, None]


def test_planner_without_lease_writes_nothing(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2'])
    taken_over: list[requests.ToPlan | None] = []

    def lose() -> str | None:
        """Stand in for a slow check of the pin, during which the lease expires."""
        _make_plannable(parts)
        taken_over.append(parts.world.requests.next_to_plan('c2'))
        return None

    parts.why_no_call = lose

    parts.planning('c1').plan_next()

    assert taken_over[0] is not None
    assert parts.world.tasks(asked.request) == {}
    assert parts.announced.events() == []
    parts.why_no_call = lambda: None
    assert parts.planning('c2').plan_next()
    assert parts.world.requests.get(asked.request.id).counts == {'queued': 2}


def test_interrupted_plan_completed_by_other_conductor(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3'])
    assert parts.world.requests.next_to_plan('dead')
    done = request_plan.PlannedTask('h1', parts.world.cell.uuid, asked.images[0])
    assert parts.world.requests.add_tasks(asked.request.id, 'dead', [done])
    _make_plannable(parts)

    assert parts.planning().plan_next()

    assert _reasons(parts, asked) == dict.fromkeys(('h1', 'h2', 'h3'), ('queued', None))
    assert len(parts.world.all_jobs()) == 3


# Hosts that a request names itself


def _ask_for_hosts(parts: Parts, *hosts: str, **options: object) -> _Asked:
    image = parts.images.add(b'some data').id
    new = requests.NewRequest(
        images=(image,),
        hosts=hosts,
        options=model.RequestOptions(**options),  # type: ignore[arg-type]
    )
    aggregate = model.Aggregate(0, '', '')
    return _Asked(parts.world.requests.accept(new), aggregate, [image])


def test_named_hosts_planned_in_order(
    parts: Parts,
) -> None:
    for host in ('h1', 'h2'):
        parts.world.living(host)
    asked = _ask_for_hosts(parts, 'h2', 'unknown', 'h1')

    assert parts.planning().plan_next()

    assert list(_reasons(parts, asked).items()) == [
        ('h2', ('queued', None)),
        ('unknown', ('skipped', 'host is not mapped to a cell')),
        ('h1', ('queued', None)),
    ]


def test_awaited_host_planned_without_report(
    parts: Parts,
) -> None:
    parts.world.living('h1')
    parts.world.dead('h1')
    parts.world.hears()
    asked = _ask_for_hosts(parts, 'h1', wait_for_down_hosts=True)

    assert parts.planning().plan_next()

    assert list(_reasons(parts, asked).values()) == [('queued', None)]
    assert parts.world.status(asked.request) == 'planned'


# Requests with actions before they had a plan, or after


def test_request_paused_before_plan_stays_paused(parts: Parts) -> None:
    asked = _ask(parts, ['h1'])
    parts.world.requests.get(asked.request.id)
    parts.steering.pause(asked.request.id)

    assert parts.planning().plan_next()

    assert parts.world.status(asked.request) == 'paused'
    assert _reasons(parts, asked) == {'h1': ('queued', None)}
    assert parts.world.claim('c1', limit=5) is None
    assert not parts.planning().plan_next()


def _fail_all(parts: Parts, asked: _Asked) -> None:
    """Fail all hosts of a request but the first."""
    parts.planning().plan_next()
    outcomes = iter([model.ImageOutcome('cached')])
    while (claim := parts.world.claim('c1', limit=5)) is not None:
        assigned = parts.world.assign('c1', claim.host)
        assert assigned is not None
        assert parts.world.jobs.begin(assigned.job_id, assigned.epoch)
        outcome = next(outcomes, model.ImageOutcome('error', 'unsafe image'))
        parts.tracker.attempted(assigned, outcome)
        parts.world.jobs.release('c1', [claim.host])
    assert parts.world.status(asked.request) == 'partial'


def test_retry_plans_only_failed_tasks(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3'])
    _fail_all(parts, asked)
    parts.world.living('h4')
    parts.world.inventory.add_host(asked.aggregate.id, 'h4')

    parts.steering.retry(asked.request.id)
    assert parts.planning(chunk_tasks=1).plan_next()

    assert _reasons(parts, asked) == {
        'h1': ('cached', None),
        'h2': ('queued', None),
        'h3': ('queued', None),
    }
    assert {parts.serve(), parts.serve()} == {'h2', 'h3'}
    assert parts.world.status(asked.request) == 'completed'


def test_retry_skips_departed_and_down_hosts(parts: Parts) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3', 'h4'])
    _fail_all(parts, asked)
    parts.world.inventory.remove_host(asked.aggregate.id, 'h2')
    parts.world.dead('h3')

    parts.steering.retry(asked.request.id)
    assert parts.planning().plan_next()

    reasons = _reasons(parts, asked)
    assert reasons['h2'] == ('skipped', planner.LEFT)
    assert reasons['h3'][0] == 'skipped'
    assert reasons['h4'] == ('queued', None)


def test_retry_after_aggregate_deletion_keeps_plan(
    parts: Parts,
) -> None:
    asked = _ask(parts, ['h1', 'h2'])
    _fail_all(parts, asked)
    for host in ('h1', 'h2'):
        parts.world.inventory.remove_host(asked.aggregate.id, host)
    parts.world.inventory.delete_aggregate(asked.aggregate.id)

    parts.steering.retry(asked.request.id)
    assert parts.planning().plan_next()

    assert _reasons(parts, asked)['h2'] == ('queued', None)


def test_request_cancelled_during_plan_ends_cancelled(
    parts: Parts,
) -> None:
    asked = _ask(parts, ['h1', 'h2', 'h3'])
    chunks = iter(range(9))

    def cancel_after_the_first() -> bool:
        if next(chunks) == 1:
            parts.steering.cancel(asked.request.id)
        return False

    parts.planning(chunk_tasks=1).plan_next(cancel_after_the_first)
    parts.helm().run_once()
    parts.tracker.complete(parts.world.requests.ids_to_complete())

    assert parts.world.requests.get(asked.request.id).counts == {'cancelled': 1}
    assert parts.world.status(asked.request) == 'cancelled'
    assert not parts.planning().plan_next()
