# SPDX-License-Identifier: Apache-2.0
"""Pins at /v1: made, shown, listed and ended; what is refused, and who sees which."""

import datetime
import hashlib
from typing import Any

import jsonschema
import pytest
from oslo_utils import timeutils

from nova_precache import exception, model
from nova_precache.api.schemas import pins as schemas
from nova_precache.db import caches, pins
from nova_precache.image import fake

IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
OTHER = '8c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
NOW = datetime.datetime(2030, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as the database keeps it


@pytest.fixture(autouse=True)
def images(api: Any) -> None:
    for image_id in (IMAGE, OTHER):
        api.images.add(b'some bytes', id=image_id)


@pytest.fixture
def store(api: Any) -> pins.Pins:
    return pins.Pins(api.database)


@pytest.fixture
def make(store: pins.Pins, aggregate: model.Aggregate) -> Any:
    """Return a function that saves a pin and returns its id."""

    def save(project_id: str | None = 'p1', where: model.Aggregate = aggregate) -> str:
        return store.create(pins.NewPin(where, (IMAGE,), project_id=project_id)).id

    return save


def asked(aggregate: object, *images: str, **more: object) -> Any:
    return {'pin': {'aggregate': aggregate, 'images': list(images or (IMAGE,)), **more}}


def ids(response: Any) -> list[str]:
    assert response.status_int == 200, response.text
    return [pin['id'] for pin in response.json['pins']]


def follow(response: Any) -> str:
    (link,) = response.json['pins_links']
    assert link['rel'] == 'next'
    return str(link['href']).removeprefix('http://api.example:8774')


def count(api: Any) -> int:
    return len(ids(api.get('/v1/pins')))


def test_new_pin_shown_at_its_location(api: Any, aggregate: Any) -> None:
    body = asked('edge', IMAGE, OTHER, until='2090-01-01T02:00:00+02:00', description='for CI')
    response = api.post('/v1/pins', body, token='u1:p1:admin')
    assert response.status_int == 201
    shown = response.json['pin']
    jsonschema.validate(shown, schemas.PIN_WITH_COVERAGE)
    assert response.headers['Location'] == f'http://api.example:8774/v1/pins/{shown["id"]}'
    assert api.get(f'/v1/pins/{shown["id"]}').json['pin'] == shown
    assert shown.pop('created_at').endswith('Z')
    del shown['id']
    assert shown == {
        'status': 'active',
        'reason': None,
        'aggregate': {'id': aggregate.id, 'uuid': aggregate.uuid, 'name': 'edge'},
        'images': [IMAGE, OTHER],
        'images_gone': {},
        'until': '2090-01-01T00:00:00.000000Z',
        'description': 'for CI',
        'project_id': 'p1',
        'user_id': 'u1',
        'checked_at': None,
        'ended_at': None,
        'coverage': {'wanted': 4, 'cached': 0},
    }


@pytest.mark.parametrize('spell', ['id', 'uuid', 'name'])
def test_aggregate_accepts_id_uuid_or_name(
    api: Any, aggregate: model.Aggregate, spell: str
) -> None:
    response = api.post('/v1/pins', asked(getattr(aggregate, spell)))
    assert response.status_int == 201
    assert response.json['pin']['aggregate']['id'] == aggregate.id


def test_image_pinned_in_glance_spelling(api: Any, aggregate: Any, rebuild: Any) -> None:
    known = api.images.show

    class AnySpelling:
        def show(self, image_id: str) -> model.Image:
            image: model.Image = known(image_id.lower())
            return image

    other = rebuild(images_for=lambda context: AnySpelling())
    response = other.post('/v1/pins', asked('edge', IMAGE.upper()))
    assert response.json['pin']['images'] == [IMAGE]


def test_coverage_counts_cached_of_wanted_files(
    api: Any, store: pins.Pins, aggregate: model.Aggregate
) -> None:
    new = store.create(pins.NewPin(aggregate, (IMAGE, OTHER)))
    reports = caches.Caches(api.database)
    for host in ('host1', 'host3'):  # host3 is in no aggregate
        name = _name(IMAGE)
        reports.record(
            [caches.Report(host, [model.CachedImage(host, name, None, 1, 1, NOW)], full=True)]
        )
    assert _coverage(api, new.id) == {'wanted': 4, 'cached': 1}
    assert store.take(new.id, 'keeper', 0) is not None
    assert store.checked(new.id, 'keeper', None, {OTHER: 'it was deleted'})
    assert _coverage(api, new.id) == {'wanted': 2, 'cached': 1}


def test_pin_without_aggregate_wants_nothing(api: Any, store: pins.Pins) -> None:
    gone = api.inventory.create_aggregate('gone')
    pin_id = store.create(pins.NewPin(gone, (IMAGE,))).id
    api.inventory.delete_aggregate(gone.id)
    assert _coverage(api, pin_id) == {'wanted': 0, 'cached': 0}


def _name(image: str) -> str:
    return hashlib.sha1(image.encode()).hexdigest()  # noqa: S324


def _coverage(api: Any, pin_id: str) -> Any:
    return api.get(f'/v1/pins/{pin_id}').json['pin']['coverage']


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'aggregate': None}, 'aggregate'),
        ({'aggregate': 0}, 'aggregate'),
        ({'aggregate': 1.5}, 'aggregate'),
        ({'aggregate': ''}, 'aggregate'),
        ({'aggregate': 'a\0b'}, 'aggregate'),
        ({'images': []}, 'images'),
        ({'images': ['cirros']}, 'images.0'),
        ({'images': [IMAGE, IMAGE]}, 'images'),
        ({'images': [IMAGE, IMAGE.upper()]}, 'images'),
        ({'until': 'tomorrow'}, 'until'),
        ({'until': '2090-01-01'}, 'until'),
        ({'until': '2090-02-30T00:00:00Z'}, 'until'),
        ({'until': '9999-12-31T23:59:59-01:00'}, 'until'),
        ({'until': 5}, 'until'),
        ({'description': 'x' * 1025}, 'description'),
        ({'description': '\ud800'}, 'description'),
        ({'colour': 'red'}, 'colour'),
    ],
)
def test_bad_body_refused_naming_field(
    api: Any, aggregate: Any, change: dict[str, object], field: str
) -> None:
    body = {'pin': {**asked('edge')['pin'], **change}}
    response = api.post('/v1/pins', body)
    assert response.status_int == 400
    assert field in response.json['badRequest']['message']
    assert count(api) == 0


@pytest.mark.parametrize('body', [None, [], {}, {'pin': {}}, {'pin': None}, 'pin'])
def test_body_without_pin_refused(api: Any, body: Any) -> None:
    assert api.post('/v1/pins', body).status_int == 400


def test_pin_must_end_in_future(api: Any, aggregate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeutils, 'utcnow', lambda: NOW)
    refused = api.post('/v1/pins', asked('edge', until='2030-01-02T03:04:05Z'))
    assert refused.status_int == 400
    assert refused.json['badRequest']['message'] == (
        'Invalid input for field/attribute until. Value: 2030-01-02T03:04:05Z. '
        'It must be later than now.'
    )
    assert api.post('/v1/pins', asked('edge', until='2030-01-02T03:04:06Z')).status_int == 201


@pytest.mark.parametrize('unknown', [7, 'nowhere', IMAGE, '99999999999999999999'])
def test_pin_of_unknown_aggregate_refused(api: Any, unknown: object) -> None:
    response = api.post('/v1/pins', asked(unknown))
    assert response.status_int == 404
    message = f'Aggregate {unknown} could not be found.'
    assert response.json['itemNotFound']['message'] == message
    assert count(api) == 0


def test_pin_of_inaccessible_image_refused(api: Any, aggregate: Any) -> None:
    unknown = '9c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
    api.images.add(b'', id=(queued := '9c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e60'), status='queued')
    for image, why in ((unknown, 'could not be found.'), (queued, 'is queued, not active.')):
        response = api.post('/v1/pins', asked('edge', IMAGE, image))
        assert response.status_int == 400
        assert response.json['badRequest']['message'] == f'Image {image} {why}'
    assert count(api) == 0


def test_images_looked_up_as_caller(api: Any, aggregate: Any, rebuild: Any) -> None:
    tokens: list[str | None] = []

    def images_for(context: Any) -> fake.FakeImageService:
        tokens.append(context.auth_token)
        return api.images

    other = rebuild(images_for=images_for)
    assert other.post('/v1/pins', asked('edge'), token='u:p1:admin').status_int == 201
    assert tokens == ['u:p1:admin']


def test_too_many_images_refused_naming_limit(
    api: Any, aggregate: Any, conf: Any, rebuild: Any
) -> None:
    conf.set_override('max_images_per_request', 1, 'image_cache')
    response = rebuild().post('/v1/pins', asked('edge', IMAGE, OTHER))
    assert response.status_int == 413
    assert 'max_images_per_request is 1' in response.json['overLimit']['message']


def test_pin_below_rpc_version_refused(api: Any, aggregate: Any, rebuild: Any) -> None:
    pinned_down = rebuild(why_unsupported=lambda: 'the computes are too old')
    response = pinned_down.post('/v1/pins', asked('edge'))
    assert response.status_int == 409
    assert response.json['conflictingRequest']['message'] == 'the computes are too old'


def test_glance_outage_refuses_pin(api: Any, aggregate: Any, rebuild: Any) -> None:
    def images_for(context: Any) -> Any:
        raise exception.ImageServiceUnavailable('it is away')

    response = rebuild(images_for=images_for).post('/v1/pins', asked('edge'))
    assert response.status_int == 503
    assert response.headers['Retry-After'] == '10'
    assert count(api) == 0


def test_pins_paged_newest_first_without_coverage(api: Any, make: Any) -> None:
    made = [make() for _ in range(5)]
    first = api.get('/v1/pins?limit=2')
    second = api.get(follow(first))
    third = api.get(follow(second))
    assert ids(first) + ids(second) + ids(third) == made[::-1]
    assert 'pins_links' not in third.json
    jsonschema.validate(first.json['pins'][0], schemas.PIN)


def test_pin_pages_respect_max_limit(api: Any, make: Any, conf: Any, rebuild: Any) -> None:
    conf.set_override('max_limit', 2, 'api')
    for _ in range(3):
        make()
    assert len(ids(rebuild().get('/v1/pins?limit=100'))) == 2


def test_pins_filtered_by_status_and_aggregate(
    api: Any, make: Any, store: pins.Pins, aggregate: model.Aggregate
) -> None:
    other = api.inventory.create_aggregate('other')
    ended, elsewhere = make(), make(where=other)
    active = [make(), make()]
    store.end(ended, 'it was enough')
    assert ids(api.get('/v1/pins?status=ended')) == [ended]
    for spelling in (other.id, other.uuid, 'other'):
        assert ids(api.get(f'/v1/pins?aggregate={spelling}')) == [elsewhere]
    first = api.get(f'/v1/pins?status=active&aggregate={aggregate.id}&limit=1')
    assert ids(first) == [active[1]]
    assert ids(api.get(follow(first))) == [active[0]]


def test_deleted_aggregate_pins_found_by_id(api: Any, make: Any) -> None:
    gone = api.inventory.create_aggregate('gone')
    pin_id = make(where=gone)
    api.inventory.delete_aggregate(gone.id)
    assert ids(api.get(f'/v1/pins?aggregate={gone.id}')) == [pin_id]
    assert api.get('/v1/pins?aggregate=gone').status_int == 400


def test_ended_pin_shows_reason(api: Any, make: Any) -> None:
    pin_id = make()
    ended = api.call('DELETE', f'/v1/pins/{pin_id}', token='u1:p1:admin')
    assert (ended.status_int, ended.body) == (204, b'')
    shown = api.get(f'/v1/pins/{pin_id}').json['pin']
    assert (shown['status'], shown['reason']) == ('ended', 'ended by u1')
    assert shown['ended_at'].endswith('Z')


def test_pin_ends_once(api: Any, make: Any) -> None:
    pin_id = make()
    assert api.call('DELETE', f'/v1/pins/{pin_id}').status_int == 204
    again = api.call('DELETE', f'/v1/pins/{pin_id}')
    assert again.status_int == 409
    message = f'Pin {pin_id} is ended: it cannot be ended.'
    assert again.json['conflictingRequest']['message'] == message


@pytest.mark.parametrize('unknown', ['x', IMAGE, '%00'])
@pytest.mark.parametrize('method', ['GET', 'DELETE'])
def test_unknown_pin_not_found(api: Any, method: str, unknown: str) -> None:
    response = api.call(method, f'/v1/pins/{unknown}')
    assert response.status_int == 404
    assert 'itemNotFound' in response.json


@pytest.mark.parametrize(
    'query',
    ['limit=0', 'limit=1&limit=2', 'marker=x', f'marker={IMAGE}', 'status=strange', 'colour=red'],
)
def test_bad_query_refused_naming_parameter(api: Any, query: str) -> None:
    response = api.get(f'/v1/pins?{query}')
    assert response.status_int == 400
    assert query.split('=')[0] in response.json['badRequest']['message']


def test_project_sees_own_pins_admin_all(api: Any, make: Any) -> None:
    own, foreign, nobodys = make('p1'), make('p2'), make(None)
    assert ids(api.get('/v1/pins', token='u:p1:reader')) == [own]
    assert ids(api.get('/v1/pins', token='u:p1:admin')) == [nobodys, foreign, own]
    assert api.get(f'/v1/pins/{own}', token='u:p1:reader').status_int == 200
    assert api.get(f'/v1/pins/{foreign}', token='u:p1:reader').status_int == 404
    assert api.get(f'/v1/pins/{foreign}', token='u:p1:admin').status_int == 200


def test_foreign_pin_is_no_marker(api: Any, make: Any) -> None:
    response = api.get(f'/v1/pins?marker={make("p2")}', token='u:p1:reader')
    assert response.status_int == 400


def test_only_admin_creates_and_ends_pins(api: Any, make: Any, store: pins.Pins) -> None:
    pin_id = make('p1')
    assert api.post('/v1/pins', asked('edge'), token='u:p1:member').status_int == 403
    assert api.call('DELETE', f'/v1/pins/{pin_id}', token='u:p1:member').status_int == 403
    assert store.get(pin_id).status == model.PinStatus.ACTIVE
    assert count(api) == 1
