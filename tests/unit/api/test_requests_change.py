# SPDX-License-Identifier: Apache-2.0
"""Requests changed at /v1, and the doors at which impossible ones are refused."""

import datetime
import uuid
from typing import Any

import pytest
from oslo_utils import timeutils

from nova_precache import model
from nova_precache.db import requests as store

IMAGE = str(uuid.uuid4())
PAST = '2020-01-01T00:00:00Z'


@pytest.fixture
def made(api: Any, aggregate: Any) -> model.CacheRequest:
    new = store.NewRequest(
        aggregate=aggregate,
        images=(IMAGE,),
        project_id='p1',
        options=model.RequestOptions(max_rate_bytes=100, max_parallel_hosts=1),
    )
    return api.requests.accept(new)  # type: ignore[no-any-return]


def patch(api: Any, request: Any, content: Any, **more: Any) -> Any:
    return api.call('PATCH', f'/v1/requests/{request.id}', {'request': content}, **more)


def message(response: Any, expected: int) -> str:
    (fault,) = response.json.values()
    assert response.status_int == expected, response.text
    return str(fault['message'])


def in_hours(hours: float) -> str:
    return (timeutils.utcnow() + datetime.timedelta(hours=hours)).isoformat() + 'Z'


def test_named_fields_changed_others_stay(api: Any, made: Any) -> None:
    deadline = in_hours(5)
    response = patch(api, made, {'priority': 5, 'max_rate_bytes': None, 'deadline': deadline})
    assert response.status_int == 200
    shown = response.json['request']
    assert (shown['priority'], shown['options']['max_rate_bytes']) == (5, None)
    assert shown['options']['max_parallel_hosts'] == 1
    assert shown['options']['deadline'][:19] == deadline[:19]
    assert api.get(f'/v1/requests/{made.id}').json == response.json
    assert len(api.wakes) == 1


@pytest.mark.parametrize(
    ('content', 'field'),
    [
        ({'priority': None}, 'priority'),
        ({'priority': 1001}, 'priority'),
        ({'priority': 'high'}, 'priority'),
        ({'priority': True}, 'priority'),
        ({'max_rate_bytes': 0}, 'max_rate_bytes'),
        ({'max_rate_bytes': 2**63}, 'max_rate_bytes'),
        ({'max_parallel_hosts': -1}, 'max_parallel_hosts'),
        ({'max_parallel_hosts': 2**31}, 'max_parallel_hosts'),
        ({'deadline': PAST}, 'deadline'),
        ({'deadline': 'soon'}, 'deadline'),
        ({'priority': 1, 'deadline': PAST}, 'deadline'),
        ({'canary': 1}, 'canary'),
        ({}, 'request'),
        (None, 'request'),
    ],
)
def test_invalid_change_names_field(api: Any, made: Any, content: Any, field: str) -> None:
    assert field in message(patch(api, made, content), 400)
    assert api.requests.get(made.id) == made
    assert api.wakes == []


def test_ended_request_change_conflicts(api: Any, made: Any) -> None:
    api.post(f'/v1/requests/{made.id}/action', {'cancel': None})
    assert api.requests.complete(made.id)
    assert 'is cancelled' in message(patch(api, made, {'priority': 1}), 409)


@pytest.mark.parametrize('unknown', [str(uuid.uuid4()), 'x', 'x' * 500])
def test_unknown_request_not_changed(api: Any, unknown: str) -> None:
    response = api.call('PATCH', f'/v1/requests/{unknown}', {'request': {'priority': 1}})
    assert len(message(response, 404)) < 150


def test_only_admins_change_by_default(api: Any, made: Any) -> None:
    response = patch(api, made, {'priority': 1}, token='u1:p1:member,reader')
    assert 'image_precache:requests:change' in message(response, 403)


def test_stock_computes_have_no_rate(conf: Any, api: Any, made: Any, rebuild: Any) -> None:
    conf.set_override('compute_backend', 'nova', 'image_cache')
    stock = rebuild()
    assert 'max_rate_bytes' in message(patch(stock, made, {'max_rate_bytes': 9}), 400)
    assert patch(stock, made, {'max_rate_bytes': None, 'priority': 2}).status_int == 200


# Impossible requests


@pytest.mark.parametrize('path', ['/v1/requests', '/v1/estimate'])
def test_canary_above_hosts_refused(api: Any, aggregate: Any, path: str) -> None:
    api.images.add(b'data', id=IMAGE)
    for hosts in ({'aggregate': 'edge'}, {'hosts': ['host1', 'host2']}):
        body = {'images': [IMAGE], **hosts}
        said = message(api.post(path, {'request': {**body, 'canary': 99}}), 400)
        assert said == (
            'Invalid input for field/attribute canary. Value: 99. The request is for 2 hosts.'
        )
        assert api.post(path, {'request': {**body, 'canary': 2}}).status_int in (200, 202)
    assert api.saved_requests() == (2 if path == '/v1/requests' else 0)


def test_empty_aggregate_accepts_canary(api: Any) -> None:
    api.inventory.create_aggregate('empty')
    api.images.add(b'data', id=IMAGE)
    body = {'request': {'aggregate': 'empty', 'images': [IMAGE], 'canary': 1}}
    assert api.post('/v1/requests', body).status_int == 202


def test_empty_change_says_so(api: Any, made: Any) -> None:
    (fault,) = patch(api, made, {}).json.values()
    assert (fault['field'], fault['detail']) == ('request', 'It must not be empty.')


@pytest.mark.parametrize('path', ['/v1/requests', '/v1/estimate'])
def test_few_of_many_unknown_hosts_named(api: Any, path: str) -> None:
    unknown = [f'no-{number}' for number in range(100)]
    body = {'request': {'hosts': ['host1', *unknown], 'images': [IMAGE]}}
    assert message(api.post(path, body), 400) == (
        'Invalid input for field/attribute hosts. Value: no-0, no-1, no-2 and 97 more. '
        'no-0, no-1, no-2 and 97 more are not mapped to a cell.'
    )


@pytest.mark.parametrize(
    'body',
    [
        {'aggregate': 'a' * 5000, 'images': [IMAGE]},
        {'aggregate': 'a' * 255, 'images': [IMAGE]},
        {'hosts': ['h' * 5000], 'images': [IMAGE]},
        {'hosts': [f'h{number}' for number in range(2000)], 'images': [IMAGE], 'canary': 'x'},
        {'hosts': ['h'] * 2000, 'images': [IMAGE]},
        {'aggregate': 'edge', 'images': ['x' * 5000]},
        {'aggregate': 'edge', 'images': [IMAGE], 'x' * 5000: 1},
        {'aggregate': 'edge', 'images': [IMAGE], 'deadline': 'x' * 5000},
        {'aggregate': 'edge', 'images': [IMAGE], 'description': 'x' * 5000},
        {'aggregate': ['edge'] * 2000, 'images': [IMAGE]},
    ],
)
def test_long_inputs_not_echoed_whole(api: Any, aggregate: Any, body: Any) -> None:
    for path in ('/v1/requests', '/v1/estimate'):
        response = api.post(path, {'request': body})
        assert response.status_int in (400, 404)
        assert len(message(response, response.status_int)) < 600


@pytest.mark.parametrize(
    'path',
    [
        '/v1/requests?marker={}',
        '/v1/requests?aggregate={}',
        '/v1/requests?sort={}',
        '/v1/requests?status={}',
        '/v1/tasks?host={0}{0}',
        '/v1/pins/{}',
        '/v1/hosts/{}',
        '/v1/images/{}/hosts',
        '/v1/hosts?aggregate={}',
    ],
)
def test_long_parameters_not_echoed_whole(api: Any, path: str) -> None:
    response = api.get(path.format('x' * 250))
    assert len(message(response, response.status_int)) < 600
    assert 'x' * 250 not in response.text
