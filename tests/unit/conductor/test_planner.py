# SPDX-License-Identifier: Apache-2.0
"""The plan of a request, host by host, before any compute is called."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from nova_precache import model
from nova_precache.conductor import planner
from nova_precache.db.request import plan as request_plan

HOSTS = ('h2', 'h1')
IMAGES = {
    'i1': planner.ImageFacts(model.Image('i1', size=100)),
    'i2': planner.ImageFacts(model.Image('i2', size=None)),
}
FILES = tuple(itertools.product(HOSTS, IMAGES))
CELLS = {'h1': 'cell-1', 'h2': 'cell-2'}
TWO_IS_OFF = model.Cell('cell-2', 'two', 'fake:///two', disabled=True)


def _plan(
    files: Sequence[tuple[str, str]] = FILES,
    cells: Mapping[str, str] = CELLS,
    known: Sequence[model.Cell] = (),
    down: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    waits: bool = False,
    **facts: Any,
) -> list[request_plan.PlannedTask]:
    hosts = planner.host_facts(HOSTS, cells, known, down or {}, **facts)
    unusable = {each: planner.ImageFacts(refused=why) for each, why in (refused or {}).items()}
    options = model.RequestOptions(wait_for_down_hosts=waits)
    return list(planner.plan(files, hosts, IMAGES | unusable, options))


def _outcomes(**facts: Any) -> dict[tuple[str, str], tuple[str, str | None]]:
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
    assert _plan(files=()) == []


def test_an_image_that_may_not_be_cached_is_an_error_on_every_host() -> None:
    outcomes = _outcomes(refused={'i2': 'is not active'})

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
    outcomes = _outcomes(known=[TWO_IS_OFF])

    assert outcomes['h2', 'i1'] == ('skipped', 'cell two is disabled')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_a_host_that_is_down_is_skipped_with_the_reason() -> None:
    outcomes = _outcomes(down={'h2': 'host down: it has never reported'})

    assert outcomes['h2', 'i1'] == ('skipped', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_with_a_pin_that_is_too_low_no_compute_is_called() -> None:
    outcomes = _outcomes(uncallable='the pin is too low')

    assert set(outcomes.values()) == {('unsupported', 'the pin is too low')}


def test_what_the_image_is_comes_before_what_the_host_is() -> None:
    """Otherwise the reason would be to repair a host, which would not help."""
    outcomes = _outcomes(
        refused={'i1': 'was deleted'},
        cells={'h1': 'cell-1'},
        down={'h1': 'host down', 'h2': 'host down'},
        uncallable='the pin is too low',
    )

    assert outcomes == {
        ('h2', 'i1'): ('error', 'was deleted'),
        ('h2', 'i2'): ('skipped', 'host is not mapped to a cell'),
        ('h1', 'i1'): ('error', 'was deleted'),
        ('h1', 'i2'): ('unsupported', 'the pin is too low'),
    }


def test_with_hosts_that_are_waited_for_one_that_is_down_is_queued_and_says_why() -> None:
    outcomes = _outcomes(waits=True, down={'h2': 'host down: it has never reported'})

    assert outcomes['h2', 'i1'] == ('queued', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_a_host_that_is_not_mapped_is_not_waited_for() -> None:
    planned = _plan(waits=True, cells={'h1': 'cell-1'}, down={'h2': 'host down'})

    assert {task.host: task.status for task in planned} == {'h2': 'skipped', 'h1': 'queued'}


def test_a_plan_made_anew_has_the_given_tasks_alone_and_skips_hosts_that_left() -> None:
    planned = _plan(files=[('h2', 'i2'), ('h1', 'i1')], left={'h1'})

    assert planned == [
        request_plan.PlannedTask('h2', 'cell-2', 'i2'),
        request_plan.PlannedTask('h1', 'cell-1', 'i1', 'skipped', planner.LEFT, bytes_total=100),
    ]


def test_the_first_reason_counts() -> None:
    """Each reason in its place: repairing what a later one names would not help."""
    facts = planner.HostFacts(
        cell_uuid='cell-1',
        cell_off='off',
        down='down',
        uncallable='uncallable',
        incapable='incapable',
        left='left',
    )
    found = []
    for name in ('left', 'cell_off', 'uncallable', 'down', 'incapable'):
        decision = planner.decide(facts, model.RequestOptions())
        found.append((decision.status.value, decision.reason))
        facts = dataclasses.replace(facts, **{name: None})

    assert found == [
        ('skipped', 'left'),
        ('skipped', 'off'),
        ('unsupported', 'uncallable'),
        ('skipped', 'down'),
        ('unsupported', 'incapable'),
    ]
    assert planner.decide(facts, model.RequestOptions()) == planner.PlanDecision(
        model.TaskStatus.QUEUED
    )


def test_an_agent_without_the_driver() -> None:
    agent = model.Agent('h1', 'a1', 'cell-1', driver='x', capabilities={'supports_cache_image': 0})

    outcomes = _outcomes(agents={'h1': agent})

    assert outcomes['h1', 'i1'] == ('unsupported', 'driver x cannot cache images')
    assert outcomes['h2', 'i1'] == ('queued', None)
