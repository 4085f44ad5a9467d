# SPDX-License-Identifier: Apache-2.0
"""Requests for images at /v1: what is accepted, and what saves nothing and why."""

import datetime
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_utils import timeutils

from nova_precache import model

NOW = datetime.datetime(2035, 5, 1, 12)  # noqa: DTZ001 - as the database keeps it
ID = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
LATER = '2035-05-02T06:00:00Z'


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock of the validation to noon."""
    monkeypatch.setattr(timeutils, 'utcnow', lambda: NOW)


@pytest.fixture
def image(api: Any) -> str:
    return str(api.images.add(b'data', id=ID).id)


@pytest.fixture
def nothing_saved(api: Any) -> Iterator[None]:
    """Check that a refusal leaves no trace."""
    yield
    assert api.saved_requests() == 0
    assert api.wakes == []


def ask(api: Any, token: str | None = None, **fields: Any) -> Any:
    return api.post('/v1/requests', {'request': fields}, token=token)


def accepted(response: Any) -> Any:
    assert response.status_int == 202, response.text
    return response.json['request']


def refused(response: Any, status: int = 400) -> str:
    (fault,) = response.json.values()
    assert (response.status_int, fault['code']) == (status, status)
    return str(fault['message'])


def test_request_saved_shown_and_cast(api: Any, aggregate: Any, image: str) -> None:
    response = ask(api, 'u1:p1:admin', aggregate='edge', images=[image])
    shown = accepted(response)
    assert response.headers['Location'] == f'http://api.example:8774/v1/requests/{shown["id"]}'
    assert shown['aggregate'] == {'id': aggregate.id, 'uuid': aggregate.uuid, 'name': 'edge'}
    assert (shown['hosts'], shown['images'], shown['status']) == (None, [image], 'accepted')
    assert (shown['user_id'], shown['project_id']) == ('u1', 'p1')
    assert shown['request_id'] == response.headers['x-openstack-request-id']
    assert shown == api.get(f'/v1/requests/{shown["id"]}').json['request']
    assert len(api.wakes) == 1


def test_every_option_is_kept(api: Any, aggregate: Any, image: str) -> None:
    options = {
        'max_parallel_hosts': 2,
        'max_rate_bytes': 2**40,
        'not_before': '2035-05-01T22:00:00.000000Z',
        'deadline': '2035-05-02T06:00:00.000000Z',
        'wait_for_down_hosts': True,
        'canary': 1,
        'max_failures': 0,
    }
    others = {'priority': -5, 'description': 'before the rollout', 'client_request_id': 'mine'}
    made = accepted(ask(api, aggregate=aggregate.id, images=[image], **options, **others))
    shown = api.get(f'/v1/requests/{made["id"]}').json['request']
    assert shown['options'] == options
    assert {name: shown[name] for name in others} == others


def test_null_equals_absent(api: Any, aggregate: Any, image: str) -> None:
    names = (
        'hosts', 'priority', 'max_parallel_hosts', 'max_rate_bytes', 'not_before', 'deadline',
        'wait_for_down_hosts', 'canary', 'max_failures', 'description', 'client_request_id',
    )  # fmt: skip
    made = accepted(ask(api, aggregate='edge', images=[image], **dict.fromkeys(names)))
    assert made['priority'] == 0
    (saved,) = _all(api)
    assert saved.options == model.RequestOptions()


def _all(api: Any) -> list[model.CacheRequest]:
    ids = [request['id'] for request in api.get('/v1/requests').json['requests']]
    return [api.requests.get(request_id) for request_id in ids]


def test_aggregate_accepts_id_uuid_or_name(api: Any, aggregate: Any, image: str) -> None:
    for asked in (aggregate.id, str(aggregate.id), aggregate.uuid, aggregate.uuid.upper(), 'edge'):
        made = accepted(ask(api, aggregate=asked, images=[image]))
        assert made['aggregate']['id'] == aggregate.id


@pytest.mark.parametrize('name', ['ärger & söhne/☃', '4711', ID, 'a%20b', "x' OR '1'='1"])
def test_aggregate_found_under_any_name(api: Any, image: str, name: str) -> None:
    made = api.inventory.create_aggregate(name)
    assert accepted(ask(api, aggregate=name, images=[image]))['aggregate']['id'] == made.id
    query = urllib.parse.urlencode({'aggregate': name})
    listed = api.get(f'/v1/requests?{query}').json
    assert [request['aggregate']['name'] for request in listed['requests']] == [name]


def test_id_and_uuid_precede_name(api: Any, aggregate: Any, image: str) -> None:
    for name in (str(aggregate.id), aggregate.uuid):
        api.inventory.create_aggregate(name)
        found = accepted(ask(api, aggregate=name, images=[image]))['aggregate']
        assert found['id'] == aggregate.id


def test_hosts_can_replace_aggregate(api: Any, image: str) -> None:
    made = accepted(ask(api, hosts=['host3', 'host1'], images=[image]))
    assert made['hosts'] == ['host3', 'host1']
    assert made['aggregate'] is None
    assert made == api.get(f'/v1/requests/{made["id"]}').json['request']


def test_client_id_identifies_request_per_project(api: Any, aggregate: Any, image: str) -> None:
    def again(token: str) -> str:
        fields = {'aggregate': 'edge', 'images': [image], 'client_request_id': 'mine'}
        return str(accepted(ask(api, token, **fields))['id'])

    first = again('u:p1:admin')
    assert again('u:p1:admin') == first
    assert again('u:p2:admin') != first
    assert api.saved_requests() == 2


def test_repeated_post_skips_new_checks(api: Any, aggregate: Any, image: str) -> None:
    fields = {'aggregate': 'edge', 'images': [image], 'client_request_id': 'mine'}
    first = accepted(ask(api, **fields))
    late = {**fields, 'deadline': '2001-01-01T00:00:00Z', 'aggregate': 'deleted meanwhile'}
    assert accepted(ask(api, **late)) == first
    assert api.saved_requests() == 1


def test_times_converted_to_utc(api: Any, aggregate: Any, image: str) -> None:
    made = accepted(
        ask(
            api,
            aggregate='edge',
            images=[image],
            not_before='2035-05-01T22:00:00',
            deadline='2035-05-02T06:00:00.5+02:00',
        )
    )
    assert made['options']['not_before'] == '2035-05-01T22:00:00.000000Z'
    assert made['options']['deadline'] == '2035-05-02T04:00:00.500000Z'


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize(
    ('fields', 'field'),
    [
        ({'aggregate': 0}, 'aggregate'),
        ({'aggregate': ''}, 'aggregate'),
        ({'aggregate': True}, 'aggregate'),
        ({'aggregate': 'a\0b'}, 'aggregate'),
        ({'aggregate': None, 'hosts': []}, 'hosts'),
        ({'aggregate': None, 'hosts': ['host1', 'host1']}, 'hosts'),
        ({'aggregate': None, 'hosts': ['host1', 5]}, 'hosts.1'),
        ({'hosts': ['host1']}, 'Either aggregate or hosts is required'),
        ({'aggregate': None}, 'Either aggregate or hosts is required'),
        ({'images': []}, 'images'),
        ({'images': None}, 'images'),
        ({'images': ['cirros']}, 'images.0'),
        ({'images': [ID, ID]}, 'images'),
        ({'images': [ID, ID.upper()]}, 'Duplicate images'),
        ({'images': [ID, ID.replace('-', '')]}, 'Duplicate images'),
        ({'priority': 1001}, 'priority'),
        ({'priority': 1.5}, 'priority'),
        ({'max_parallel_hosts': 0}, 'max_parallel_hosts'),
        ({'max_parallel_hosts': 2**31}, 'max_parallel_hosts'),
        ({'max_rate_bytes': 0}, 'max_rate_bytes'),
        ({'max_rate_bytes': 2**63}, 'max_rate_bytes'),
        ({'canary': 0}, 'canary'),
        ({'max_failures': -1}, 'max_failures'),
        ({'wait_for_down_hosts': 'yes', 'deadline': LATER}, 'wait_for_down_hosts'),
        ({'wait_for_down_hosts': True}, 'wait_for_down_hosts'),
        ({'description': 'x' * 1025}, 'description'),
        ({'description': '\0'}, 'description'),
        ({'client_request_id': ''}, 'client_request_id'),
        ({'client_request_id': 'x' * 256}, 'client_request_id'),
        ({'not_before': 'tomorrow'}, 'not_before'),
        ({'not_before': '2035-02-30T00:00:00Z'}, 'not_before'),
        ({'not_before': '0001-01-01T00:00:00+01:00'}, 'not_before'),
        ({'deadline': '9999-12-31T23:59:59-01:00'}, 'deadline'),
        ({'deadline': 5}, 'deadline'),
        ({'deadline': '2035-05-01T12:00:00Z'}, 'deadline'),
        ({'deadline': LATER, 'not_before': LATER}, 'deadline'),
        ({'colour': 'red'}, 'colour'),
    ],
)
def test_bad_field_is_named(api: Any, aggregate: Any, image: str, fields: Any, field: str) -> None:
    whole = {'aggregate': 'edge', 'images': [image], **fields}
    assert field in refused(ask(api, **whole))


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('raw', [b'', b'null', b'5', b'[]', b'{}', b'{"request": null}', b'{'])
def test_bad_body_is_refused(api: Any, raw: bytes) -> None:
    assert refused(api.post('/v1/requests', raw=raw))


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('asked', [4711, '4711', 'nowhere', ID, 2**31 - 1, '9' * 80])
def test_unknown_aggregate_not_found(api: Any, image: str, asked: Any) -> None:
    message = refused(ask(api, aggregate=asked, images=[image]), 404)
    assert message == f'Aggregate {asked} could not be found.'


@pytest.mark.usefixtures('nothing_saved')
def test_host_without_cell_named(api: Any, image: str) -> None:
    message = refused(ask(api, hosts=['host1', 'host9'], images=[image]))
    assert 'hosts' in message
    assert 'host9' in message


@pytest.mark.usefixtures('nothing_saved')
def test_inaccessible_image_is_named(api: Any, aggregate: Any, image: str) -> None:
    unknown, queued = str(uuid.uuid4()), api.images.add(b'1', status='queued').id
    for asked, why in ((unknown, 'could not be found.'), (queued, 'is queued, not active.')):
        message = refused(ask(api, aggregate='edge', images=[image, asked]))
        assert message == f'Image {asked} {why}'


@pytest.mark.usefixtures('nothing_saved')
def test_glance_outage_returns_retry_later(api: Any, aggregate: Any, image: str) -> None:
    api.images.faults.unavailable = 1
    response = ask(api, aggregate='edge', images=[image])
    refused(response, 503)
    assert response.headers['Retry-After'] == '10'


@pytest.mark.usefixtures('nothing_saved')
def test_too_many_images_or_tasks_refused(rebuild: Any, conf: Any, aggregate: Any) -> None:
    conf.set_override('max_images_per_request', 2, 'image_cache')
    conf.set_override('max_tasks_per_request', 3, 'image_cache')
    api = rebuild()
    images = [api.images.add(b'%d' % number).id for number in range(3)]
    many = refused(ask(api, aggregate='edge', images=images), 413)
    assert many == 'Too many images: 3 asked, max_images_per_request is 2'
    for where in ({'aggregate': 'edge'}, {'hosts': ['host1', 'host2']}):
        tasks = refused(ask(api, images=images[:2], **where), 413)
        assert tasks == 'Too many tasks: 4 asked, max_tasks_per_request is 3'
    assert api.saved_requests() == 0


@pytest.mark.usefixtures('nothing_saved')
def test_forbidding_rpc_pin_is_conflict(rebuild: Any, aggregate: Any) -> None:
    api = rebuild(why_unsupported=lambda: '[upgrade_levels] compute = 0.9 is too low')
    image = api.images.add(b'1').id
    message = refused(ask(api, aggregate='edge', images=[image]), 409)
    assert message == '[upgrade_levels] compute = 0.9 is too low'
    assert api.saved_requests() == 0


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('token', ['u:p', 'u:p:reader', 'u:p:member,manager'])
def test_non_admin_is_forbidden(api: Any, aggregate: Any, image: str, token: str) -> None:
    message = refused(ask(api, token, aggregate='edge', images=[image]), 403)
    assert 'image_precache:requests:create' in message


def test_unreachable_conductor_does_not_affect_caller(
    rebuild: Any, aggregate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError('no broker')

    api = rebuild(wake=fail)
    made = accepted(ask(api, aggregate='edge', images=[api.images.add(b'1').id]))
    assert made['id'] in caplog.text
