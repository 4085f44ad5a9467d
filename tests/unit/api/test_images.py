# SPDX-License-Identifier: Apache-2.0
"""Asking for images on an aggregate's hosts: what is accepted, and what saves nothing."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from nova_precache import exception


@pytest.fixture
def nothing_saved(api: Any) -> Iterator[None]:
    """Check that a refusal leaves no trace."""
    yield
    assert api.saved_requests() == 0
    assert api.wakes == []


def path(aggregate: Any) -> str:
    return f'/v2.1/os-aggregates/{aggregate.id}/images'


def asking_for(*image_ids: Any) -> Any:
    return {'cache': [{'id': image_id} for image_id in image_ids]}


def message(response: Any) -> str:
    (fault,) = response.json.values()
    assert fault['code'] == response.status_int
    return str(fault['message'])


def test_request_returns_202_with_location(api: Any, aggregate: Any) -> None:
    images = [api.images.add(b'1').id, api.images.add(b'2').id]
    response = api.post(path(aggregate), asking_for(*images), token='u1:abc:admin')
    assert (response.status_int, response.body) == (202, b'')
    assert response.headers['Content-Length'] == '0'
    assert response.headers['OpenStack-API-Version'] == 'compute 2.81'

    (saved,) = api.requests.list()
    assert response.headers['Location'] == f'http://api.example:8774/v1/requests/{saved.id}'
    assert saved.images == tuple(images)
    assert (saved.status, saved.aggregate_id, saved.aggregate_uuid, saved.aggregate_name) == (
        'accepted', aggregate.id, aggregate.uuid, 'edge'
    )  # fmt: skip
    assert (saved.user_id, saved.project_id) == ('u1', 'abc')
    assert saved.request_id == response.headers['x-openstack-request-id']
    assert len(api.wakes) == 1


def test_project_may_be_in_path(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'1').id
    response = api.post(
        f'/v2.1/abc/os-aggregates/{aggregate.id}/images',
        asking_for(image),
        token='u:abc:admin',
    )
    assert response.status_int == 202
    assert '/v2.1/' not in response.headers['Location']


def test_location_uses_public_endpoint(api: Any, rebuild: Any, conf: Any, aggregate: Any) -> None:
    conf.set_override('public_endpoint', 'https://cloud.example/compute', 'api')
    other = rebuild()
    response = other.post(path(aggregate), asking_for(other.images.add(b'1').id))
    assert response.headers['Location'].startswith('https://cloud.example/compute/v1/requests/')


def test_aggregate_without_hosts_accepted(api: Any) -> None:
    empty = api.inventory.create_aggregate('empty')
    assert api.post(path(empty), asking_for(api.images.add(b'1').id)).status_int == 202
    assert api.saved_requests() == 1


def test_ids_saved_in_glance_spelling(api: Any, rebuild: Any, aggregate: Any) -> None:
    image = api.images.add(b'1').id
    known = api.images.show

    class AnySpelling:
        def show(self, image_id: str) -> Any:
            return known(image_id.lower())

    api = rebuild(images_for=lambda context: AnySpelling())
    assert api.post(path(aggregate), asking_for(image.upper())).status_int == 202
    assert api.requests.list()[0].images == (image,)

    twice = api.post(path(aggregate), asking_for(image.upper(), image))
    assert twice.status_int == 400
    assert message(twice).startswith('Duplicate images in request')
    assert image.upper() in message(twice)
    assert api.saved_requests() == 1


def test_unreachable_conductor_does_not_affect_caller(
    rebuild: Any, aggregate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError('no broker')

    api = rebuild(wake=fail)
    response = api.post(path(aggregate), asking_for(api.images.add(b'1').id))
    assert response.status_int == 202
    assert api.saved_requests() == 1
    assert api.requests.list()[0].id in caplog.text


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('version', ['2.1', '2.80', None])
def test_images_are_absent_before_2_81(api: Any, aggregate: Any, version: str | None) -> None:
    response = api.post(path(aggregate), asking_for(api.images.add(b'1').id), version=version)
    assert response.status_int == 404
    assert message(response) == 'The resource could not be found.'
    assert response.headers['OpenStack-API-Version'] == f'compute {version or "2.1"}'


@pytest.mark.usefixtures('nothing_saved')
def test_unknown_aggregate_not_found(api: Any) -> None:
    image = api.images.add(b'1').id
    response = api.post('/v2.1/os-aggregates/4711/images', asking_for(image))
    assert response.status_int == 404
    assert message(response) == 'Aggregate 4711 could not be found.'
    named = api.post('/v2.1/os-aggregates/edge/images', asking_for(image))
    assert named.status_int == 400
    assert message(named) == 'Invalid input received: id must be an integer'


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('token', ['u:p', 'u:p:reader', 'u:p:member,manager'])
def test_non_admin_is_forbidden(api: Any, aggregate: Any, token: str) -> None:
    response = api.post(path(aggregate), asking_for(api.images.add(b'1').id), token=token)
    assert response.status_int == 403
    assert response.json == {
        'forbidden': {
            'code': 403,
            'message': "Policy doesn't allow compute:aggregates:images to be performed.",
        }
    }


ID = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize(
    ('body', 'expected'),
    [
        ({}, "'cache' is a required property"),
        ([], "[] is not of type 'object'"),
        (
            {'cache': []},
            'Invalid input for field/attribute cache. Value: []. [] should be non-empty',
        ),
        (
            {'cache': ID},
            f"Invalid input for field/attribute cache. Value: {ID}. '{ID}' is not of type 'array'",
        ),
        (
            {'cache': [ID]},
            f"Invalid input for field/attribute 0. Value: {ID}. '{ID}' is not of type 'object'",
        ),
        (
            {'cache': [{}]},
            "Invalid input for field/attribute 0. Value: {}. 'id' is a required property",
        ),
        (
            asking_for('cirros'),
            "Invalid input for field/attribute id. Value: cirros. 'cirros' is not a 'uuid'",
        ),
        (
            asking_for(5),
            "Invalid input for field/attribute id. Value: 5. 5 is not of type 'string'",
        ),
        (
            {'cache': [{'id': ID, 'name': 'x'}]},
            (
                f"Invalid input for field/attribute 0. Value: {{'id': '{ID}', 'name': 'x'}}. "
                "Additional properties are not allowed ('name' was unexpected)"
            ),
        ),
        (
            {'cache': [{'id': ID}], 'force': True},
            "Additional properties are not allowed ('force' was unexpected)",
        ),
        (asking_for(ID, ID), 'Duplicate images in request'),
    ],
)
def test_bad_body_refused_naming_field(api: Any, aggregate: Any, body: Any, expected: str) -> None:
    api.images.add(b'1', id=ID)
    response = api.post(path(aggregate), body)
    assert response.status_int == 400
    assert message(response) == expected


@pytest.mark.usefixtures('nothing_saved')
def test_too_many_images_refused_naming_limit(api: Any, aggregate: Any) -> None:
    images = [api.images.add(b'%d' % number).id for number in range(33)]
    response = api.post(path(aggregate), asking_for(*images))
    assert response.status_int == 400
    assert message(response) == 'Too many images: 33 asked, max_images_per_request is 32'


def test_too_many_tasks_refused_naming_limit(
    api: Any, rebuild: Any, conf: Any, aggregate: Any
) -> None:
    conf.set_override('max_tasks_per_request', 3, 'image_cache')
    api = rebuild()
    images = [api.images.add(b'1').id, api.images.add(b'2').id]
    response = api.post(path(aggregate), asking_for(*images))
    assert response.status_int == 400
    assert message(response) == 'Too many tasks: 4 asked, max_tasks_per_request is 3'
    assert api.saved_requests() == 0


def test_too_many_requests_refused_naming_limit(rebuild: Any, conf: Any, aggregate: Any) -> None:
    conf.set_override('max_active_requests_per_project', 1, 'image_cache')
    api = rebuild()
    image = api.images.add(b'1').id
    assert api.post(path(aggregate), asking_for(image), token='u:p1:admin').status_int == 202
    response = api.post(path(aggregate), asking_for(image), token='u:p1:admin')
    assert response.status_int == 400
    assert 'max_active_requests_per_project is 1' in message(response)
    assert api.post(path(aggregate), asking_for(image), token='u:p2:admin').status_int == 202


@pytest.mark.usefixtures('nothing_saved')
def test_unknown_image_is_named(api: Any, aggregate: Any) -> None:
    known, unknown = api.images.add(b'1').id, str(uuid.uuid4())
    response = api.post(path(aggregate), asking_for(known, unknown))
    assert response.status_int == 400
    assert message(response) == f'Image {unknown} could not be found.'


@pytest.mark.usefixtures('nothing_saved')
@pytest.mark.parametrize('status', ['queued', 'saving', 'deactivated', 'killed'])
def test_inactive_image_is_named(api: Any, aggregate: Any, status: str) -> None:
    image = api.images.add(b'1', status=status).id
    response = api.post(path(aggregate), asking_for(image))
    assert response.status_int == 400
    assert message(response) == f'Image {image} is {status}, not active.'


@pytest.mark.usefixtures('nothing_saved')
def test_glance_outage_returns_retry_later(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'1').id
    api.images.faults.unavailable = 1
    response = api.post(path(aggregate), asking_for(image))
    assert response.status_int == 503
    assert next(iter(response.json)) == 'serviceUnavailable'
    assert response.headers['Retry-After'] == '10'
    assert response.headers['OpenStack-API-Version'] == 'compute 2.81'


@pytest.mark.usefixtures('nothing_saved')
def test_token_refused_by_glance_unauthorized(api: Any, rebuild: Any, aggregate: Any) -> None:
    class Refusing:
        def show(self, image_id: str) -> Any:
            raise exception.ImageUnauthorized('The token was refused')

    api = rebuild(images_for=lambda context: Refusing())
    response = api.post(path(aggregate), asking_for(ID))
    assert response.status_int == 401
    assert next(iter(response.json)) == 'unauthorized'
