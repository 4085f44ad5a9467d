# SPDX-License-Identifier: Apache-2.0
"""Actions on a request at /v1: cancel, pause, resume, retry, by whom and when."""

import datetime
import uuid
from typing import Any

import pytest
from oslo_utils import timeutils

from nova_precache import model
from nova_precache.db import requests as store
from nova_precache.db.request import plan as request_plan

UNKNOWN = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
ACTIONS = ('cancel', 'pause', 'resume', 'retry')


@pytest.fixture
def planned(api: Any, aggregate: Any) -> Any:
    """Return a function that saves and plans a request for one image on two hosts."""

    def plan(project_id: str | None = 'p1', **options: Any) -> str:
        request = api.requests.accept(
            store.NewRequest(
                aggregate=aggregate,
                images=(str(uuid.uuid4()),),
                project_id=project_id,
                options=model.RequestOptions(**options),
            )
        )
        assert api.requests.next_to_plan('c1') is not None
        cell = api.inventory.list_cells()[0].uuid
        tasks = [
            request_plan.PlannedTask(host, cell, request.images[0]) for host in aggregate.hosts
        ]
        assert api.requests.add_tasks(request.id, 'c1', tasks)
        assert api.requests.mark_planned(request.id, 'c1')
        return str(request.id)

    return plan


def act(api: Any, request_id: str, action: str, content: Any = None, **more: Any) -> Any:
    return api.post(f'/v1/requests/{request_id}/action', {action: content}, **more)


def status(response: Any) -> str:
    assert response.status_int == 202, response.text
    return str(response.json['request']['status'])


def message(response: Any, expected: int) -> str:
    (fault,) = response.json.values()
    assert (response.status_int, fault['code']) == (expected, expected)
    return str(fault['message'])


def cancelled(api: Any, request_id: str) -> None:
    """Cancel the request, and let a conductor end it."""
    assert status(act(api, request_id, 'cancel')) == 'cancelling'
    assert api.requests.complete(request_id)


def counts(api: Any, request_id: str) -> Any:
    return api.get(f'/v1/requests/{request_id}').json['request']['counts']


def in_hours(hours: float) -> str:
    return (timeutils.utcnow() + datetime.timedelta(hours=hours)).isoformat() + 'Z'


def test_waiting_tasks_cancelled_at_once(api: Any, planned: Any) -> None:
    request_id = planned()
    assert status(act(api, request_id, 'cancel', {'keep_partial': True})) == 'cancelling'
    assert counts(api, request_id) == {'cancelled': 2}
    assert api.requests.complete(request_id)
    assert api.get(f'/v1/requests/{request_id}').json['request']['status'] == 'cancelled'


def test_pause_and_resume_cast_to_conductors(api: Any, planned: Any) -> None:
    request_id = planned()
    assert status(act(api, request_id, 'pause')) == 'paused'
    assert status(act(api, request_id, 'pause')) == 'paused'
    assert status(act(api, request_id, 'resume')) in {'planned', 'running'}
    assert len(api.wakes) == 3


def test_cancelled_request_retried_in_new_window(api: Any, planned: Any) -> None:
    request_id = planned()
    cancelled(api, request_id)
    window = {
        'not_before': '2030-01-01T00:00:00.000000Z',
        'deadline': '2036-01-01T00:00:00.000000Z',
    }
    response = act(api, request_id, 'retry', window)
    assert status(response) == 'accepted'
    shown = response.json['request']
    assert {name: shown['options'][name] for name in window} == window
    assert shown['finished_at'] is None
    assert counts(api, request_id) == {'queued': 2}


@pytest.mark.parametrize(
    ('is_over', 'action'), [(True, 'cancel'), (True, 'pause'), (True, 'resume'), (False, 'retry')]
)
def test_action_in_wrong_state_conflicts(
    api: Any, planned: Any, is_over: bool, action: str
) -> None:
    request_id = planned()
    if is_over:
        cancelled(api, request_id)
    wakes = len(api.wakes)
    assert request_id in message(act(api, request_id, action), 409)
    assert len(api.wakes) == wakes


@pytest.mark.parametrize('action', ACTIONS)
@pytest.mark.parametrize('unknown', [UNKNOWN, 'x', '%00'])
def test_unknown_request_not_found(api: Any, action: str, unknown: str) -> None:
    assert 'could not be found' in message(act(api, unknown, action), 404)
    assert api.wakes == []


@pytest.mark.parametrize('action', ACTIONS)
def test_non_admin_is_forbidden(api: Any, planned: Any, action: str) -> None:
    request_id = planned()
    why = message(act(api, request_id, action, token='u:p1:member,reader'), 403)
    assert f'image_precache:requests:{action}' in why


@pytest.mark.parametrize('action', ACTIONS)
def test_project_admin_sees_no_other_project(
    rebuild: Any, conf: Any, tmp_path: Any, planned: Any, action: str
) -> None:
    rules = tmp_path / 'policy.yaml'
    rules.write_text(f'image_precache:requests:{action}: rule:project_member_or_admin\n')
    conf.set_override('policy_file', str(rules), 'oslo_policy')
    api, own, foreign = rebuild(), planned('p1'), planned('p2')
    assert 'could not be found' in message(act(api, foreign, action, token='u:p1:member'), 404)
    assert api.requests.get(foreign).status == 'planned'
    expected = 409 if action == 'retry' else 202
    assert act(api, own, action, token='u:p1:member').status_int == expected


@pytest.mark.parametrize(
    ('body', 'field'),
    [
        ({}, 'Malformed'),
        (None, 'Malformed'),
        ({'cancel': None, 'pause': None}, 'Malformed'),
        ({'explode': None}, 'explode'),
        ({'cancel': {'keep_partial': 'yes'}}, 'keep_partial'),
        ({'cancel': {'force': True}}, 'force'),
        ({'cancel': []}, 'cancel'),
        ({'pause': {'seconds': 5}}, 'pause'),
        ({'resume': 1}, 'resume'),
        ({'retry': {'priority': 5}}, 'priority'),
        ({'retry': {'not_before': 'soon'}}, 'not_before'),
        ({'retry': {'deadline': '2001-01-01T00:00:00Z'}}, 'deadline'),
    ],
)
def test_bad_action_refused_naming_fault(api: Any, planned: Any, body: Any, field: str) -> None:
    request_id = planned()
    response = api.post(f'/v1/requests/{request_id}/action', body)
    assert field in message(response, 400)
    assert api.requests.get(request_id).status == 'planned'


@pytest.mark.parametrize('raw', [b'null', b'5', b'[5]', b'"x"', b'true'])
def test_non_object_action_malformed(api: Any, raw: bytes) -> None:
    response = api.post(f'/v1/requests/{UNKNOWN}/action', raw=raw)
    assert message(response, 400) == 'Malformed request body'


def test_retry_cannot_start_after_deadline(api: Any, planned: Any) -> None:
    deadline = timeutils.utcnow() + datetime.timedelta(hours=2)
    request_id = planned(deadline=deadline)
    cancelled(api, request_id)
    assert 'not_before' in message(act(api, request_id, 'retry', {'not_before': in_hours(3)}), 400)
    assert status(act(api, request_id, 'retry', {'not_before': in_hours(1)})) == 'accepted'


def test_retry_below_rpc_pin_refused(api: Any, rebuild: Any, planned: Any) -> None:
    request_id = planned()
    cancelled(api, request_id)
    pinned = rebuild(why_unsupported=lambda: 'the pin is too low')
    assert message(act(pinned, request_id, 'retry'), 409) == 'the pin is too low'
    assert api.requests.get(request_id).status == 'cancelled'


def test_named_hosts_retried(api: Any, planned: Any) -> None:
    request_id = planned()
    cancelled(api, request_id)

    assert 'host9' in message(act(api, request_id, 'retry', {'hosts': ['host1', 'host9']}), 400)
    assert 'hosts' in message(act(api, request_id, 'retry', {'hosts': []}), 400)
    assert status(act(api, request_id, 'retry', {'hosts': ['host1']})) == 'accepted'
    assert counts(api, request_id) == {'queued': 1, 'cancelled': 1}
