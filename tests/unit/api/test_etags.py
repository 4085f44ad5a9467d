# SPDX-License-Identifier: Apache-2.0
"""Reads of /v1 have an ETag, and 304 tells a client that it has the answer already."""

from collections.abc import Callable

import pytest
from oslo_config import cfg

from nova_precache import model
from nova_precache.db import requests
from tests.unit.api.conftest import Api

IMAGE = '0b5f7c40-0000-4000-8000-000000000001'
LISTS = ('requests', 'tasks', 'hosts', 'services', 'cells', 'pins', 'openapi.json', '')


def ask(api: Api, path: str, known: str, **headers: str) -> tuple[int, bytes]:
    response = api.get(path, headers={'If-None-Match': known, **headers})
    return response.status_int, response.body


@pytest.fixture
def request_path(api: Api, aggregate: model.Aggregate) -> str:
    made = api.requests.accept(requests.NewRequest(aggregate=aggregate, images=(IMAGE,)))
    return f'/v1/requests/{made.id}'


@pytest.mark.parametrize('name', LISTS)
def test_every_read_has_etag(api: Api, name: str) -> None:
    response = api.get(f'/v1/{name}')

    assert response.status_int == 200
    assert response.headers['Cache-Control'] == 'private, no-cache'
    assert response.headers['ETag'].startswith('"')
    assert ask(api, f'/v1/{name}', response.headers['ETag']) == (304, b'')


@pytest.mark.parametrize(
    'known', ['{}', 'W/{}', '"other", {}', '{},"other"', 'W/"other" , W/{}', '*']
)
def test_known_answer_not_repeated(api: Api, request_path: str, known: str) -> None:
    etag = api.get(request_path).headers['ETag']

    assert ask(api, request_path, known.format(etag)) == (304, b'')


@pytest.mark.parametrize('known', ['"other"', 'W/"other"', '""', '', 'nonsense', '"'])
def test_other_etags_get_answer(api: Api, request_path: str, known: str) -> None:
    status, body = ask(api, request_path, known)

    assert (status, bool(body)) == (200, True)


def test_304_names_version_and_request(api: Api, request_path: str) -> None:
    etag = api.get(request_path).headers['ETag']

    response = api.get(request_path, headers={'If-None-Match': etag})

    assert response.headers['ETag'] == etag
    assert response.headers['Cache-Control'] == 'private, no-cache'
    assert response.headers['OpenStack-API-Version'] == 'image-precache 1.0'
    assert 'OpenStack-API-Version' in response.headers['Vary']
    assert response.headers['x-openstack-request-id'].startswith('req-')
    assert 'Content-Type' not in response.headers


def test_change_of_request_changes_etag(api: Api, request_path: str) -> None:
    etag = api.get(request_path).headers['ETag']
    assert api.get(request_path).headers['ETag'] == etag

    changed = api.call('PATCH', request_path, {'request': {'priority': 7}})

    assert changed.status_int == 200
    assert 'ETag' not in changed.headers
    assert ask(api, request_path, etag)[0] == 200


def test_media_type_changes_etag(api: Api, request_path: str) -> None:
    accept = {'Accept': 'application/vnd.openstack.compute+json'}
    etag = api.get(request_path).headers['ETag']

    assert api.get(request_path, headers=accept).headers['ETag'] != etag
    assert ask(api, request_path, etag, **accept)[0] == 200


def test_refused_reads_have_no_etag(api: Api) -> None:
    response = api.get(f'/v1/requests/{IMAGE}', headers={'If-None-Match': '*'})

    assert response.status_int == 404
    assert 'ETag' not in response.headers


def test_policy_comes_before_etag(api: Api, request_path: str) -> None:
    etag = api.get(request_path).headers['ETag']

    response = api.get(
        request_path, token='u:another-project:member', headers={'If-None-Match': etag}
    )

    assert response.status_int == 404


def test_polls_see_own_writes_and_rights(api: Api, request_path: str) -> None:
    etag = api.get(request_path).headers['ETag']
    assert ask(api, request_path, etag) == (304, b'')

    api.call('PATCH', request_path, {'request': {'priority': 7}})

    status, body = ask(api, request_path, etag)
    assert (status, b'"priority": 7' in body) == (200, True)
    for token, expected in (('u:another-project:member', 404), ('u:p:admin', 200)):
        answer = api.get(request_path, token=token, headers={'If-None-Match': etag})
        assert answer.status_int == expected


def test_compute_api_is_unchanged(api: Api, aggregate: model.Aggregate) -> None:
    response = api.get('/v2.1/os-aggregates', headers={'If-None-Match': '*'})

    assert response.status_int == 200
    assert {'ETag', 'Cache-Control'}.isdisjoint(response.headers)


def test_browsers_may_use_etags(
    api: Api, conf: cfg.ConfigOpts, rebuild: Callable[..., Api]
) -> None:
    # The API registers the options of CORS.
    conf.set_override('allowed_origin', ['https://horizon.example'], 'cors')
    origin = {'Origin': 'https://horizon.example'}
    asks = {**origin, 'Access-Control-Request-Method': 'GET'}
    asks['Access-Control-Request-Headers'] = 'If-None-Match'
    api = rebuild(api.inventory)

    assert 'ETag' in api.get('/v1/pins', headers=origin).headers['Access-Control-Expose-Headers']
    preflight = api.call('OPTIONS', '/v1/pins', headers=asks)
    assert 'If-None-Match' in preflight.headers['Access-Control-Allow-Headers']
