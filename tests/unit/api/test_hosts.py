# SPDX-License-Identifier: Apache-2.0
"""Hosts and their caches at /v1: their shapes, pages and filters, and what is pinned."""

import datetime
import hashlib
import types
from typing import Any

import jsonschema
import pytest
from oslo_utils import timeutils

from nova_precache import exception, model
from nova_precache.api.schemas import hosts as schemas
from nova_precache.db import agents, caches, pins
from nova_precache.db.engine import models, session as db_session
from tests import statements

NOW = datetime.datetime(2030, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as the database keeps it
LONG_AGO = datetime.datetime(2001, 1, 1)  # noqa: DTZ001
IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
NAME = '6a4c1f3fc77e9b6f2a1d9a3d3a1f6c0b7d2e8f90'


@pytest.fixture
def report(api: Any) -> Any:
    """Return a function that reports a host as alive."""
    store = agents.Agents(api.database, api.conf.service_down_time)

    def register(host: str, **fields: Any) -> None:
        cell = api.inventory.list_cells()[0].uuid
        store.register(model.Agent(host, f'agent-{host}', **{'cell_uuid': cell, **fields}))

    return register


@pytest.fixture
def hold(api: Any) -> Any:
    """Return a function that records a host's inventory, by image or else by name."""
    store = caches.Caches(api.database)

    def record(host: str, *images: str, **fields: Any) -> None:
        files = [_file(host, image, **fields) for image in images]
        store.record([caches.Report(host, files, full=True)])
        for image in images:
            _remember(api, image)

    return record


def _file(host: str, image: str, **fields: Any) -> model.CachedImage:
    values = {'size_bytes': 100, 'disk_bytes': 60, 'touched_at': NOW, 'used_by': 2, **fields}
    return model.CachedImage(host=host, name=_name(image), image_id=None, **values)


def _name(image: str) -> str:
    return hashlib.sha1(image.encode()).hexdigest()  # noqa: S324


def _remember(api: Any, image: str) -> None:
    row = models.ImageName(name=_name(image), image_id=image)
    api.database.write(lambda session: session.merge(row))


def silence(api: Any, host: str) -> None:
    """Set a host's last report long into the past."""
    silent = db_session.update(models.Agent).where(models.Agent.host == host)
    api.database.write(lambda session: session.execute(silent.values(seen_at=LONG_AGO)))


def names(response: Any) -> list[str]:
    assert response.status_int == 200, response.text
    return [host['host'] for host in response.json['hosts']]


def follow(response: Any, collection: str) -> str:
    (link,) = response.json[f'{collection}_links']
    assert link['rel'] == 'next'
    return str(link['href']).removeprefix('http://api.example:8774')


def pin(api: Any, aggregate: model.Aggregate, *images: str) -> str:
    return pins.Pins(api.database).create(pins.NewPin(aggregate, images)).id


def test_host_shown_in_full(api: Any, report: Any) -> None:
    report('host1', version='1.0', driver='libvirt', store_id='s1', cache_bytes=7, free_bytes=2**40)
    shown = api.get('/v1/hosts/host1').json['host']
    jsonschema.validate(shown, schemas.HOST)
    assert shown.pop('seen_at').endswith('Z')
    assert shown == {
        'host': 'host1',
        'cell': api.inventory.list_cells()[0].uuid,
        'cell_name': 'cell1',
        'status': 'up',
        'reason': None,
        'version': '1.0',
        'driver': 'libvirt',
        'store_id': 's1',
        'cache_bytes': 7,
        'free_bytes': 2**40,
    }
    assert api.get('/v1/hosts').json == {'hosts': [api.get('/v1/hosts/host1').json['host']]}


def test_silent_host_shows_down_since(api: Any, report: Any) -> None:
    report('host1')
    silence(api, 'host1')
    shown = api.get('/v1/hosts/host1').json['host']
    assert (shown['status'], shown['reason']) == (
        'down',
        'host down: last report at 2001-01-01T00:00:00Z',
    )


def test_hosts_paged_by_name(api: Any, report: Any) -> None:
    for host in ('host3', 'host1', 'host2'):
        report(host)
    first = api.get('/v1/hosts?limit=2')
    second = api.get(follow(first, 'hosts'))
    assert names(first) + names(second) == ['host1', 'host2', 'host3']
    assert 'hosts_links' not in second.json


def test_host_pages_respect_max_limit(api: Any, rebuild: Any, conf: Any, report: Any) -> None:
    conf.set_override('max_limit', 2, 'api')
    for host in ('host1', 'host2', 'host3'):
        report(host)
    page = rebuild().get('/v1/hosts?limit=100')
    assert names(page) == ['host1', 'host2']
    assert 'limit=2&marker=host2' in follow(page, 'hosts')


def test_hosts_filtered_by_status_and_cell(api: Any, report: Any) -> None:
    other = api.inventory.create_cell('cell2', 'fake:///cell2')
    for host in ('host1', 'host2', 'host3'):
        report(host)
    report('far', cell_uuid=other.uuid)
    silence(api, 'host2')
    assert names(api.get('/v1/hosts?status=down')) == ['host2']
    assert names(api.get(f'/v1/hosts?cell={other.uuid}')) == ['far']
    first = api.get(f'/v1/hosts?status=up&cell={api.inventory.list_cells()[0].uuid}&limit=1')
    assert names(first) == ['host1']
    assert names(api.get(follow(first, 'hosts'))) == ['host3']


def test_host_cache_shown_in_full(
    api: Any, report: Any, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report('host1')
    hold('host1', IMAGE, touched_at=NOW)
    monkeypatch.setattr(timeutils, 'utcnow', lambda: NOW + datetime.timedelta(hours=1))
    answer = api.get('/v1/hosts/host1/images')
    jsonschema.validate(answer.json['images'][0], schemas.HOST_IMAGE)
    assert answer.json == {
        'images': [
            {
                'name': _name(IMAGE),
                'image_id': IMAGE,
                'size_bytes': 100,
                'disk_bytes': 60,
                'touched_at': '2030-01-02T03:04:05.000000Z',
                'age_seconds': 3600,
                'used_by': 2,
                'pinned': False,
            }
        ]
    }


def test_unrequested_file_has_no_image_id(api: Any, report: Any) -> None:
    report('host1')
    file = model.CachedImage('host1', NAME, None, 1, 1, NOW)
    caches.Caches(api.database).record([caches.Report('host1', [file], full=True)])
    (shown,) = api.get('/v1/hosts/host1/images').json['images']
    assert (shown['name'], shown['image_id'], shown['used_by']) == (NAME, None, None)


def test_file_age_is_never_negative(api: Any, report: Any, hold: Any) -> None:
    report('host1')
    hold('host1', IMAGE, touched_at=timeutils.utcnow() + datetime.timedelta(hours=1))
    (shown,) = api.get('/v1/hosts/host1/images').json['images']
    assert shown['age_seconds'] == 0


def test_host_files_come_in_pages(api: Any, report: Any, hold: Any) -> None:
    report('host1')
    ids = [f'7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e{n:02}' for n in range(5)]
    hold('host1', *ids)
    seen, path = [], '/v1/hosts/host1/images?limit=2'
    for _ in range(3):
        page = api.get(path)
        seen += [image['image_id'] for image in page.json['images']]
        path = follow(page, 'images') if 'images_links' in page.json else ''
    assert sorted(seen) == ids
    assert path == ''


def test_image_pinned_through_aggregate_of_host(
    api: Any, aggregate: Any, report: Any, hold: Any
) -> None:
    other = IMAGE.replace('7', '8')
    for host in ('host1', 'host3'):  # host3 is in no aggregate
        report(host)
        hold(host, IMAGE, other)
    pin_id = pin(api, aggregate, IMAGE)

    def pinned(host: str) -> set[str]:
        found = api.get(f'/v1/hosts/{host}/images').json['images']
        return {image['image_id'] for image in found if image['pinned']}

    assert pinned('host1') == {IMAGE}
    assert pinned('host3') == set()
    pins.Pins(api.database).end(pin_id, 'no longer wanted')
    assert pinned('host1') == set()


def test_pinned_image_known_before_any_request(api: Any, aggregate: Any, report: Any) -> None:
    report('host1')
    names = [_name(IMAGE), f'{_name(IMAGE)}_10']
    files = [model.CachedImage('host1', name, None, 1, 1, NOW) for name in names]
    caches.Caches(api.database).record([caches.Report('host1', files, full=True)])
    pin(api, aggregate, IMAGE)
    shown = api.get('/v1/hosts/host1/images').json['images']
    assert [image['name'] for image in shown] == names
    assert all(image['image_id'] == IMAGE and image['pinned'] for image in shown)


def test_image_hosts_shown_in_full_pages(
    api: Any, report: Any, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ('host1', 'host2', 'host3'):
        report(host)
        hold(host, IMAGE if host != 'host2' else IMAGE.replace('7', '8'))
    monkeypatch.setattr(timeutils, 'utcnow', lambda: NOW)
    first = api.get(f'/v1/images/{IMAGE}/hosts?limit=1')
    jsonschema.validate(first.json['hosts'][0], schemas.IMAGE_HOST)
    assert first.json['hosts'] == [
        {
            'host': 'host1',
            'cell': api.inventory.list_cells()[0].uuid,
            'cell_name': 'cell1',
            'size_bytes': 100,
            'disk_bytes': 60,
            'touched_at': '2030-01-02T03:04:05.000000Z',
            'age_seconds': 0,
            'used_by': 2,
        }
    ]
    second = api.get(follow(first, 'hosts'))
    assert names(second) == ['host3']
    assert 'hosts_links' not in second.json


def test_uncached_image_has_no_hosts(api: Any) -> None:
    assert api.get(f'/v1/images/{IMAGE}/hosts').json == {'hosts': []}


@pytest.mark.parametrize('path', ['/v1/hosts/nobody', '/v1/hosts/nobody/images'])
def test_never_reported_host_not_found(api: Any, path: str) -> None:
    response = api.get(path)
    assert response.status_int == 404
    assert response.json['itemNotFound']['message'] == 'Compute host nobody could not be found.'


@pytest.mark.parametrize('image', ['x', '%00', 'cirros'])
def test_invalid_uuid_is_no_image(api: Any, image: str) -> None:
    assert api.get(f'/v1/images/{image}/hosts').status_int == 404


@pytest.mark.parametrize(
    ('path', 'query'),
    [
        ('/v1/hosts', 'limit=0'),
        ('/v1/hosts', 'limit=1&limit=2'),
        ('/v1/hosts', 'status=strange'),
        ('/v1/hosts', 'cell=x'),
        ('/v1/hosts', 'marker=%00'),
        ('/v1/hosts', 'colour=red'),
        ('/v1/hosts/host1/images', 'marker=%00'),
        ('/v1/hosts/host1/images', 'limit=x'),
        (f'/v1/images/{IMAGE}/hosts', 'marker=a%20b'),
        (f'/v1/images/{IMAGE}/hosts', 'status=up'),
    ],
)
def test_bad_query_refused_naming_parameter(api: Any, path: str, query: str) -> None:
    response = api.get(f'{path}?{query}')
    assert response.status_int == 400
    assert query.split('=')[0] in response.json['badRequest']['message']


@pytest.mark.parametrize(
    'path',
    ['/v1/hosts', '/v1/hosts/host1', '/v1/hosts/host1/images', f'/v1/images/{IMAGE}/hosts'],
)
def test_only_admins_see_hosts(api: Any, report: Any, path: str) -> None:
    report('host1')
    assert api.get(path, token='u:p1:admin').status_int == 200
    for role in ('manager', 'member', 'reader', ''):
        answer = api.get(path, token=f'u:p1:{role}')
        assert answer.status_int == 403
        missing = path.replace('host1', 'nobody').replace(IMAGE, 'x')
        assert api.get(missing, token=f'u:p1:{role}').json == answer.json


def test_cache_page_takes_constant_statements(
    api: Any, aggregate: Any, report: Any, hold: Any
) -> None:
    report('host1')
    pin(api, aggregate, IMAGE)

    def count(images: int) -> int:
        hold('host1', *(f'7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4{n:03}' for n in range(images)))
        with statements.recorded(api.database) as sent:
            page = api.get('/v1/hosts/host1/images')
        assert len(page.json['images']) == images
        return len(sent)

    assert count(1) == count(300)


@pytest.mark.parametrize(
    ('path', 'most'),
    [
        ('/v1/hosts', 2),
        ('/v1/hosts/host1', 2),
        ('/v1/hosts/host1/images', 6),
        (f'/v1/images/{IMAGE}/hosts', 3),
    ],
)
def test_reads_take_few_statements(api: Any, report: Any, hold: Any, path: str, most: int) -> None:
    report('host1')
    hold('host1', IMAGE)
    api.get(path)  # the names of cells are kept

    with statements.recorded(api.database, 'SELECT') as sent:
        assert api.get(path).status_int == 200

    assert len(sent) <= most, sent


def removal_path(host: str = 'host1', image: str = IMAGE) -> str:
    return f'/v1/hosts/{host}/images/{image}'


def test_removal_shown_in_full(api: Any, report: Any) -> None:
    report('host1')
    answer = api.call('DELETE', removal_path())
    assert answer.json == {
        'removal': {
            'host': 'host1',
            'image_id': IMAGE,
            'status': 'removed',
            'reason': None,
            'freed_bytes': 2048,
        }
    }


@pytest.mark.parametrize('status', ['absent', 'used', 'pinned'])
def test_kept_image_is_an_answer(api: Any, rebuild: Any, report: Any, status: str) -> None:
    asked = []

    def remove(ctxt: Any, host: str, image_id: str) -> model.ImageRemoval:
        asked.append((ctxt.request_id, host, image_id))
        return model.ImageRemoval(status, 'so it is')

    report('host1')
    answer = rebuild(remove=remove).call('DELETE', removal_path())
    shown = answer.json['removal']
    assert (shown['status'], shown['reason']) == (status, 'so it is')
    assert asked == [(answer.headers['x-openstack-request-id'], 'host1', IMAGE)]


def refuse_to_remove(error: Exception) -> Any:
    def remove(ctxt: Any, host: str, image_id: str) -> model.ImageRemoval:
        raise error

    return remove


@pytest.mark.parametrize(
    ('error', 'status', 'title'),
    [
        (exception.NoAnswer('no conductor'), 503, 'serviceUnavailable'),
        (exception.RemovalRefused('the disk'), 409, 'conflictingRequest'),
        (exception.VersionUnsupported('too old'), 409, 'conflictingRequest'),
        (exception.NotByNova('by Nova'), 409, 'conflictingRequest'),
        (exception.NotFound('no such host'), 404, 'itemNotFound'),
    ],
)
def test_failed_removal_keeps_message(
    api: Any, rebuild: Any, report: Any, error: Exception, status: int, title: str
) -> None:
    report('host1')
    answer = rebuild(remove=refuse_to_remove(error)).call('DELETE', removal_path())
    assert answer.status_int == status
    assert answer.json == {title: {'code': status, 'message': str(error)}}


def test_removal_from_down_host_refused(api: Any, rebuild: Any, report: Any) -> None:
    report('host1')
    silence(api, 'host1')
    answer = rebuild(remove=refuse_to_remove(AssertionError())).call('DELETE', removal_path())
    assert (answer.status_int, answer.json['conflictingRequest']['message']) == (
        409,
        'Host host1 is down: host down: last report at 2001-01-01T00:00:00Z',
    )


def test_removal_from_unheard_host_retried(api: Any, rebuild: Any) -> None:
    agent = model.Agent('host1', 'agent-1', api.inventory.list_cells()[0].uuid)
    unheard = model.Host(agent, model.HostStatus.UNKNOWN, 'no conductor is connected')
    known = types.SimpleNamespace(look=lambda hosts: {'host1': unheard})
    answer = rebuild(agents=known).call('DELETE', removal_path())
    assert (answer.status_int, answer.headers['Retry-After']) == (503, '10')
    assert answer.json['serviceUnavailable']['message'] == (
        'Host host1 is unknown: no conductor is connected'
    )


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        (removal_path('host9'), 'Compute host host9 could not be found.'),
        (removal_path(image='cirros'), 'Image cirros could not be found.'),
        (removal_path(image=IMAGE.replace('-', '')), 'could not be found.'),
    ],
)
def test_removal_of_unknown_refused(api: Any, report: Any, path: str, message: str) -> None:
    report('host1')
    answer = api.call('DELETE', path)
    assert answer.status_int == 404
    assert message in answer.json['itemNotFound']['message']


@pytest.mark.parametrize('by', ['id', 'uuid', 'name'])
def test_hosts_of_aggregate_listed(
    api: Any, aggregate: Any, report: Any, hold: Any, by: str
) -> None:
    for host in ('host1', 'host2', 'host3'):
        report(host)
        hold(host, IMAGE)
    asked = getattr(aggregate, by)

    for path in ('hosts', f'images/{IMAGE}/hosts'):
        listed = api.get(f'/v1/{path}?aggregate={asked}&sort=host:desc').json['hosts']
        assert [each['host'] for each in listed] == ['host2', 'host1']


def test_unknown_aggregate_of_hosts_refused(api: Any, report: Any) -> None:
    report('host1')

    for path in ('hosts', f'images/{IMAGE}/hosts'):
        response = api.get(f'/v1/{path}?aggregate=nowhere')
        assert response.status_int == 400
        assert 'aggregate. Value: nowhere' in response.json['badRequest']['message']


def test_sorted_hosts_continue_across_nulls(api: Any, report: Any) -> None:
    for host, free_bytes in (('host1', None), ('host2', 5), ('host3', None), ('host4', 9)):
        report(host, free_bytes=free_bytes)

    def walk(query: str) -> list[str]:
        seen: list[str] = []
        path = f'/v1/hosts?{query}&limit=1'
        while path:
            page = api.get(path).json
            seen += [each['host'] for each in page['hosts']]
            links = page.get('hosts_links', [])
            path = links[0]['href'].removeprefix('http://api.example:8774') if links else ''
        return seen

    assert walk('sort=free_bytes:asc') == ['host2', 'host4', 'host1', 'host3']
    assert walk('sort=free_bytes:desc') == ['host3', 'host1', 'host4', 'host2']
    assert walk('sort=free_bytes:desc,host:asc') == ['host1', 'host3', 'host4', 'host2']


def test_images_of_host_sorted(api: Any, report: Any, hold: Any) -> None:
    report('host1')
    hold('host1', 'a', 'b')
    names = sorted(map(_name, 'ab'))

    by_name = api.get('/v1/hosts/host1/images?sort=name:desc').json['images']
    by_size = api.get('/v1/hosts/host1/images?sort=size_bytes:asc&limit=1').json

    assert [each['name'] for each in by_name] == names[::-1]
    assert [each['name'] for each in by_size['images']] == names[:1]
    assert f'marker={names[0]}' in by_size['images_links'][0]['href']
