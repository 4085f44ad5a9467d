# SPDX-License-Identifier: Apache-2.0
"""The plan of a request, host by host, before any compute is called."""

import dataclasses

from nova_precache import model
from nova_precache.conductor import planner
from nova_precache.db.request import plan as request_plan

REQUEST = model.CacheRequest(
    id='r1',
    status='accepted',
    aggregate_id=1,
    aggregate_uuid='uuid-1',
    aggregate_name='edge',
    images=('i1', 'i2'),
    project_id=None,
    user_id=None,
    request_id=None,
)
FACTS = planner.Facts(
    hosts=('h2', 'h1'),
    cells={'h1': 'cell-1', 'h2': 'cell-2'},
    down={},
    images={'i1': model.Image('i1', size=100), 'i2': model.Image('i2', size=None)},
)


def _plan(**facts: object) -> list[request_plan.PlannedTask]:
    return list(planner.plan(REQUEST, dataclasses.replace(FACTS, **facts)))  # type: ignore[arg-type]


def _outcomes(**facts: object) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(task.host, task.image_id): (task.status, task.reason) for task in _plan(**facts)}


def test_every_image_is_queued_on_every_host_in_the_order_of_the_aggregate() -> None:
    assert _plan() == [
        request_plan.PlannedTask('h2', 'cell-2', 'i1', bytes_total=100),
        request_plan.PlannedTask('h2', 'cell-2', 'i2'),
        request_plan.PlannedTask('h1', 'cell-1', 'i1', bytes_total=100),
        request_plan.PlannedTask('h1', 'cell-1', 'i2'),
    ]


def test_the_same_facts_give_the_same_plan() -> None:
    assert _plan() == _plan()


def test_an_aggregate_without_hosts_comes_to_nothing() -> None:
    assert _plan(hosts=()) == []


def test_an_image_that_may_not_be_cached_is_an_error_on_every_host() -> None:
    outcomes = _outcomes(images={'i1': model.Image('i1')}, refused={'i2': 'is not active'})

    assert outcomes == {
        ('h2', 'i1'): ('queued', None),
        ('h2', 'i2'): ('error', 'is not active'),
        ('h1', 'i1'): ('queued', None),
        ('h1', 'i2'): ('error', 'is not active'),
    }


def test_a_host_without_a_cell_is_skipped_and_the_others_go_on() -> None:
    outcomes = _outcomes(cells={'h1': 'cell-1'})

    assert outcomes['h2', 'i1'] == ('skipped', 'host is not mapped to a cell')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_the_hosts_of_a_disabled_cell_are_skipped() -> None:
    outcomes = _outcomes(cells_off={'cell-2': 'cell two is disabled'})

    assert outcomes['h2', 'i1'] == ('skipped', 'cell two is disabled')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_a_host_that_is_down_is_skipped_with_the_reason() -> None:
    outcomes = _outcomes(down={'h2': 'host down: it has never reported'})

    assert outcomes['h2', 'i1'] == ('skipped', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_with_a_pin_that_is_too_low_no_compute_is_called() -> None:
    outcomes = _outcomes(unsupported='the pin is too low')

    assert set(outcomes.values()) == {('unsupported', 'the pin is too low')}


def test_what_the_image_is_comes_before_what_the_host_is() -> None:
    """Otherwise the reason would be to repair a host, which would not help."""
    outcomes = _outcomes(
        refused={'i1': 'was deleted'},
        cells={'h1': 'cell-1'},
        down={'h1': 'host down', 'h2': 'host down'},
        unsupported='the pin is too low',
    )

    assert outcomes == {
        ('h2', 'i1'): ('error', 'was deleted'),
        ('h2', 'i2'): ('skipped', 'host is not mapped to a cell'),
        ('h1', 'i1'): ('error', 'was deleted'),
        ('h1', 'i2'): ('unsupported', 'the pin is too low'),
    }


def test_with_hosts_that_are_waited_for_one_that_is_down_is_queued_and_says_why() -> None:
    waits = dataclasses.replace(REQUEST, options=model.RequestOptions(wait_for_down_hosts=True))
    facts = dataclasses.replace(FACTS, down={'h2': 'host down: it has never reported'})

    outcomes = {(t.host, t.image_id): (t.status, t.reason) for t in planner.plan(waits, facts)}

    assert outcomes['h2', 'i1'] == ('queued', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_a_host_that_is_not_mapped_is_not_waited_for() -> None:
    waits = dataclasses.replace(REQUEST, options=model.RequestOptions(wait_for_down_hosts=True))
    facts = dataclasses.replace(FACTS, cells={'h1': 'cell-1'}, down={'h2': 'host down'})

    outcomes = {task.host: task.status for task in planner.plan(waits, facts)}

    assert outcomes == {'h2': 'skipped', 'h1': 'queued'}


def test_a_plan_made_anew_has_the_given_tasks_alone_and_skips_hosts_that_left() -> None:
    queued = [
        model.Task(number, 'r1', host, None, image_id, 'queued')
        for number, (host, image_id) in enumerate([('h2', 'i2'), ('h1', 'i1')])
    ]
    facts = dataclasses.replace(FACTS, left={'h1'})

    assert list(planner.replan(REQUEST, queued, facts)) == [
        request_plan.PlannedTask('h2', 'cell-2', 'i2'),
        request_plan.PlannedTask('h1', 'cell-1', 'i1', 'skipped', planner.LEFT, bytes_total=100),
    ]
