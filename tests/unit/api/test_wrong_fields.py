# SPDX-License-Identifier: Apache-2.0
"""The errors of /v1 name the wrong field; those of /v2.1 are Nova's."""

from typing import Any

import pytest

UNKNOWN = 'b1f1c0de-0000-4000-8000-000000000000'
IMAGE = '0b5f7c40-0000-4000-8000-000000000001'


@pytest.mark.parametrize(
    ('fields', 'field', 'detail'),
    [
        ({'priority': 1001}, 'priority', 'It must be at most 1000.'),
        ({'max_rate_bytes': 0}, 'max_rate_bytes', 'It must be at least 1.'),
        ({'priority': 'high'}, 'priority', 'It must be of type integer.'),
        ({'aggregate': ''}, 'aggregate', 'It must not be empty.'),
        ({'aggregate': 'x' * 256}, 'aggregate', 'It has 256 characters; 255 are allowed.'),
        ({'aggregate': 'nowhere'}, 'aggregate', 'Aggregate nowhere could not be found.'),
        ({'images': ['debian']}, 'images', 'It must be a UUID.'),
        ({'images': []}, 'images', 'It must not be empty.'),
        ({'images': [IMAGE, IMAGE]}, 'images', f'{IMAGE} is listed twice.'),
        ({'images': [UNKNOWN]}, 'images', f'Image {UNKNOWN} could not be found.'),
        ({'not_before': 'noon'}, 'not_before', 'It must be an ISO 8601 time.'),
        ({'deadline': '2020-01-01T00:00:00Z'}, 'deadline', 'It must be later than now.'),
        (
            {'not_before': '2999-01-02T00:00:00Z', 'deadline': '2999-01-01T00:00:00Z'},
            'deadline',
            'It must be later than the start, 2999-01-02T00:00:00.000000Z.',
        ),
        ({'wait_for_down_hosts': True}, 'wait_for_down_hosts', 'It requires a deadline.'),
    ],
)
def test_wrong_field_named_with_detail(
    api: Any, aggregate: Any, fields: dict[str, Any], field: str, detail: str
) -> None:
    body = {'request': {'aggregate': 'edge', 'images': [api.images.add(b'image').id], **fields}}

    (fault,) = api.post('/v1/requests', body).json.values()

    assert (fault['field'], fault['detail']) == (field, detail)


@pytest.mark.parametrize(
    ('path', 'field', 'detail'),
    [
        ('requests?limit=0', 'limit', 'It must be a positive integer.'),
        ('requests?marker=xyz', 'marker', 'It must be a UUID.'),
        (f'requests?marker={UNKNOWN}', 'marker', 'It is not in the list.'),
        ('requests?sort=size', 'sort', 'The keys are'),
        ('requests?aggregate=nowhere', 'aggregate', 'Aggregate nowhere could not be found.'),
        ('requests?sort_dir=up', 'sort_dir', 'It must be one of asc, desc.'),
        (f'requests/{UNKNOWN}', 'request', f'Cache request {UNKNOWN} could not be found.'),
        (f'pins/{UNKNOWN}', 'pin', f'Pin {UNKNOWN} could not be found.'),
        ('hosts/nobody/images', 'host', 'Compute host nobody could not be found.'),
    ],
)
def test_wrong_parameter_named_with_detail(api: Any, path: str, field: str, detail: str) -> None:
    (fault,) = api.get(f'/v1/{path}').json.values()

    assert fault['field'] == field
    assert fault['detail'].startswith(detail)


@pytest.mark.parametrize(
    ('method', 'path', 'body'),
    [
        ('POST', '/v2.1/os-aggregates', {'aggregate': {'name': ''}}),
        ('GET', '/v2.1/os-aggregates/999', None),
        ('POST', '/v2.1/os-aggregates/1/images', {'cache': [{'id': UNKNOWN}]}),
    ],
)
def test_errors_of_nova_unchanged(
    api: Any, aggregate: Any, method: str, path: str, body: Any
) -> None:
    response = api.get(path) if method == 'GET' else api.post(path, body)

    (fault,) = response.json.values()
    assert response.status_int >= 400
    assert set(fault) == {'code', 'message'}
