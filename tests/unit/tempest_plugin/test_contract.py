# SPDX-License-Identifier: Apache-2.0
"""The plugin really checks answers: it finds whatever is not documented."""

import json
from typing import Any

import pytest

from nova_precache.api import routes
from nova_precache_tempest_plugin.services import contract

URL = 'http://precache.example.org:8776/image/v1/pins'
HEADERS = {
    'openstack-api-version': 'image-precache 1.0',
    'x-openstack-request-id': 'req-1',
    'etag': '"0a1b"',
    'cache-control': 'private, no-cache',
}
REFUSAL = {'badRequest': {'code': 400, 'message': 'Invalid input for field/attribute pin.'}}


@pytest.fixture(scope='module')
def promised() -> contract.Contract:
    return contract.Contract(json.loads(json.dumps(routes.document())))


@pytest.mark.parametrize(
    ('method', 'path', 'status', 'body'),
    [
        ('GET', '', 200, {'pins': []}),
        ('GET', '?limit=1', 200, {'pins': []}),
        ('POST', '', 400, REFUSAL),
        ('DELETE', '/7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f', 204, None),
    ],
)
def test_documented_answer_passes(
    promised: contract.Contract, method: str, path: str, status: int, body: Any
) -> None:
    text = '' if body is None else json.dumps(body)
    promised.check(method, URL + path, status, HEADERS, text)


@pytest.mark.parametrize(
    ('method', 'path', 'status', 'headers', 'body', 'why'),
    [
        ('GET', '', 500, HEADERS, '{}', '500 is not documented'),
        ('PATCH', '', 200, HEADERS, '{}', 'PATCH .* is not documented'),
        ('GET', '/a/b', 200, HEADERS, '{}', 'GET .* is not documented'),
        ('GET', '', 200, {}, '{"pins": []}', 'has no header OpenStack-API-Version'),
        ('GET', '', 200, HEADERS, '{"pens": []}', r'\$: .*pins'),
        ('GET', '', 200, HEADERS, '{"pins": [{"id": 7}]}', r'\$\.pins\[0\]'),
        ('POST', '', 400, HEADERS, '{"error": "no"}', r'\$: .*badRequest'),
        ('DELETE', '/a', 204, HEADERS, '{}', 'has a body'),
    ],
)
def test_undocumented_answer_is_reported(
    promised: contract.Contract,
    method: str,
    path: str,
    status: int,
    headers: dict[str, str],
    body: str,
    why: str,
) -> None:
    with pytest.raises(contract.ContractBroken, match=why):
        promised.check(method, URL + path, status, headers, body)
