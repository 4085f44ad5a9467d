# SPDX-License-Identifier: Apache-2.0
"""The tables of transitions agree with what the statuses mean."""

from typing import Any

import pytest

from nova_precache import model, states
from nova_precache.states import Event

KINDS = pytest.mark.parametrize(
    ('transitions', 'statuses', 'active'),
    [
        (states.REQUESTS, model.RequestStatus, model.REQUEST_ACTIVE),
        (states.TASKS, model.TaskStatus, model.TASK_IN_FLIGHT),
        (states.JOBS, model.TaskStatus, model.TASK_IN_FLIGHT),
    ],
    ids=['requests', 'tasks', 'jobs'],
)


@KINDS
def test_every_status_can_be_reached(
    transitions: states.Transitions[Any], statuses: Any, active: frozenset[str]
) -> None:
    reached: set[str | None] = {None}
    for _ in statuses:
        reached |= {each.target for each in transitions.arrows if each.origin in reached}

    assert reached - {None} == set(statuses)


@KINDS
def test_only_retry_leaves_final_status(
    transitions: states.Transitions[Any], statuses: Any, active: frozenset[str]
) -> None:
    final = set(statuses) - active

    assert {each.event for each in transitions.arrows if each.origin in final} <= {Event.RETRY}


def test_no_arrow_is_listed_twice() -> None:
    for transitions in (states.REQUESTS, states.TASKS, states.JOBS):
        arrows: tuple[Any, ...] = transitions.arrows
        assert len(set(arrows)) == len(arrows)
