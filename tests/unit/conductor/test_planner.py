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


def test_every_image_queued_on_every_host() -> None:
    assert _plan() == [
        request_plan.PlannedTask('h2', 'cell-2', 'i1', bytes_total=100),
        request_plan.PlannedTask('h2', 'cell-2', 'i2'),
        request_plan.PlannedTask('h1', 'cell-1', 'i1', bytes_total=100),
        request_plan.PlannedTask('h1', 'cell-1', 'i2'),
    ]


def test_same_facts_give_same_plan() -> None:
    assert _plan() == _plan()


def test_aggregate_without_hosts_plans_nothing() -> None:
    assert _plan(files=()) == []


def test_uncacheable_image_fails_on_every_host() -> None:
    outcomes = _outcomes(refused={'i2': 'is not active'})

    assert outcomes == {
        ('h2', 'i1'): ('queued', None),
        ('h2', 'i2'): ('error', 'is not active'),
        ('h1', 'i1'): ('queued', None),
        ('h1', 'i2'): ('error', 'is not active'),
    }


def test_host_without_cell_skipped() -> None:
    outcomes = _outcomes(cells={'h1': 'cell-1'})

    assert outcomes['h2', 'i1'] == ('skipped', 'host is not mapped to a cell')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_hosts_of_disabled_cell_skipped() -> None:
    outcomes = _outcomes(known=[TWO_IS_OFF])

    assert outcomes['h2', 'i1'] == ('skipped', 'cell two is disabled')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_down_host_skipped_with_reason() -> None:
    outcomes = _outcomes(down={'h2': 'host down: it has never reported'})

    assert outcomes['h2', 'i1'] == ('skipped', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_low_rpc_pin_calls_no_compute() -> None:
    outcomes = _outcomes(uncallable='the pin is too low')

    assert set(outcomes.values()) == {('unsupported', 'the pin is too low')}


def test_image_reason_comes_before_host_reason() -> None:
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


def test_awaited_down_host_queued_with_reason() -> None:
    outcomes = _outcomes(waits=True, down={'h2': 'host down: it has never reported'})

    assert outcomes['h2', 'i1'] == ('queued', 'host down: it has never reported')
    assert outcomes['h1', 'i1'] == ('queued', None)


def test_unmapped_host_not_awaited() -> None:
    planned = _plan(waits=True, cells={'h1': 'cell-1'}, down={'h2': 'host down'})

    assert {task.host: task.status for task in planned} == {'h2': 'skipped', 'h1': 'queued'}


def test_replan_has_only_given_tasks() -> None:
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
