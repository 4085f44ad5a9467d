# SPDX-License-Identifier: Apache-2.0
"""What a caller may not see is not revealed by a filter, a marker, an id or an error either."""

import hashlib
import uuid
from typing import Any

import pytest
import webob

from nova_precache import model
from nova_precache.db import caches, requests
from nova_precache.db.engine import models
from tests.unit.policies.conftest import HOST, IMAGE, PROJECT, MakeSite, Site

OTHER = 'u:p2:reader'
OWN = f'u:{PROJECT}:reader'
LISTS = ['/v1/requests', '/v1/pins']
# A policy file of an operator who opens the hosts to the readers of every project.
OPENED = ''.join(
    f'"image_precache:{rule}": "role:reader or rule:context_is_admin"\n'
    for rule in ('hosts:list', 'hosts:show', 'hosts:images', 'images:hosts')
)


def same(answers: list[webob.Response]) -> bool:
    return len({(answer.status_int, answer.text) for answer in answers}) == 1


def listed(answer: webob.Response) -> list[str]:
    assert answer.status_int == 200, answer.text
    (found,) = (value for name, value in answer.json.items() if not name.endswith('_links'))
    return [each['id'] for each in found]


@pytest.mark.parametrize('path', LISTS)
def test_filter_reveals_no_aggregates_to_reader(make_site: MakeSite, path: str) -> None:
    site = make_site()
    known = [site.aggregate.name, site.aggregate.uuid, site.aggregate.id, site.empty.name]
    unknown = ['nowhere', str(uuid.uuid4()), 77, '99999999999', 'edge2']

    def ask(asked: Any, token: str) -> webob.Response:
        return site.ask('GET', f'{path}?aggregate={asked}', None, token)

    answers = [ask(asked, OTHER) for asked in [*known, *unknown]]

    assert same(answers)
    assert listed(answers[0]) == []
    # Nor the readers of a project that has used one of them.
    assert same([ask(asked, OWN) for asked in ['empty', site.empty.id, *unknown]])
    # An admin is still told of a mistyped name.
    assert ask('nowhere', 'u:p2:admin').status_int == 400


@pytest.mark.parametrize('path', LISTS)
def test_reader_filters_own_requests_by_aggregate(make_site: MakeSite, path: str) -> None:
    site = make_site()
    own = listed(site.ask('GET', path, None, OWN))
    assert len(own) == 1
    for asked in (site.aggregate.name, site.aggregate.uuid, site.aggregate.id):
        assert listed(site.ask('GET', f'{path}?aggregate={asked}', None, OWN)) == own
    page = site.ask('GET', f'{path}?aggregate=edge&limit=1&marker={own[0]}', None, OWN)
    assert listed(page) == []


@pytest.mark.parametrize('path', LISTS)
def test_renamed_aggregate_not_revealed(make_site: MakeSite, path: str) -> None:
    site = make_site()
    site.api.inventory.update_aggregate(site.aggregate.id, name='secret')
    assert listed(site.ask('GET', f'{path}?aggregate=secret', None, OWN)) == []
    assert len(listed(site.ask('GET', f'{path}?aggregate=edge', None, OWN))) == 1
    assert len(listed(site.ask('GET', f'{path}?aggregate=secret', None, 'u:p2:admin'))) == 1


@pytest.mark.parametrize('path', LISTS)
def test_aggregate_lister_learns_of_missing_name(make_site: MakeSite, path: str) -> None:
    site = make_site('"os_compute_api:os-aggregates:index": "role:reader"')
    assert site.ask('GET', f'{path}?aggregate=nowhere', None, OTHER).status_int == 400
    assert site.ask('GET', f'{path}?aggregate=edge', None, OTHER).status_int == 200


def test_foreign_id_equals_unknown_id(make_site: MakeSite) -> None:
    site = make_site('"image_precache:requests:cancel": "rule:project_member_or_admin"')
    never = str(uuid.uuid4())
    for method, path, body in (
        ('GET', '/v1/requests/{id}', None),
        ('GET', '/v1/requests/{id}/tasks', None),
        ('GET', '/v1/requests?marker={id}', None),
        ('GET', '/v1/requests?pin={pin}', None),
        ('GET', '/v1/pins/{pin}', None),
        ('GET', '/v1/pins?marker={pin}', None),
        ('DELETE', '/v1/pins/{pin}', None),
        ('POST', '/v1/requests/{id}/action', {'cancel': None}),
        ('POST', '/v1/requests/{id}/action', {'pause': None}),
        ('POST', '/v1/requests/{id}/action', {'retry': None}),
    ):
        answers = [
            site.ask(
                method, path.replace('{id}', request).replace('{pin}', pin), body, 'u:p2:member'
            )
            for request, pin in ((site.request.id, site.pin.id), (never, never))
        ]
        texts = [
            answer.text.replace(site.request.id, never).replace(site.pin.id, never)
            for answer in answers
        ]
        assert answers[0].status_int == answers[1].status_int, path
        assert texts[0] == texts[1], path
        assert answers[0].status_int in (200, 400, 403, 404)


@pytest.fixture
def opened(make_site: MakeSite) -> Site:
    """A site that lets readers see its hosts, one of which has the image."""
    site = make_site(OPENED)
    name = hashlib.sha1(IMAGE.encode()).hexdigest()  # noqa: S324
    file = model.CachedImage(
        HOST, name, None, size_bytes=9, disk_bytes=9, touched_at=site.request.created_at, used_by=0
    )
    caches.Caches(site.api.database).record([caches.Report(HOST, [file], full=True)])
    row = models.ImageName(name=name, image_id=IMAGE)
    site.api.database.write(lambda session: session.merge(row))
    return site


def test_opened_hosts_hide_image_ids(opened: Site) -> None:
    path = f'/v1/hosts/{HOST}/images'
    assert opened.ask('GET', '/v1/hosts', None, OTHER).status_int == 200
    answer = opened.ask('GET', path, None, OTHER)
    (shown,) = answer.json['images']
    assert (shown['image_id'], shown['size_bytes'], shown['pinned']) == (None, 9, True)
    assert IMAGE not in answer.text
    (shown,) = opened.ask('GET', path, None, 'u:p2:admin').json['images']
    assert shown['image_id'] == IMAGE


def test_glance_decides_images_of_opened_hosts(
    opened: Site,
) -> None:
    hidden = str(uuid.uuid4())  # cached or not, the image service shows it to no caller here
    path = f'/v1/images/{hidden}/hosts'
    seen = opened.ask('GET', f'/v1/images/{IMAGE}/hosts', None, OTHER)
    assert [each['host'] for each in seen.json['hosts']] == [HOST]
    answer = opened.ask('GET', path, None, OTHER)
    assert answer.status_int == 404
    assert answer.json['itemNotFound']['message'] == f'Image {hidden} could not be found.'
    assert opened.ask('GET', path, None, 'u:p2:admin').json == {'hosts': []}


def test_named_host_requests_have_no_aggregate(make_site: MakeSite) -> None:
    site = make_site()
    new = requests.NewRequest(aggregate=None, hosts=(HOST,), images=(IMAGE,), project_id=PROJECT)
    site.api.requests.accept(new)
    assert listed(site.ask('GET', '/v1/requests?aggregate=0', None, OWN)) == []
    assert site.ask('GET', '/v1/requests?aggregate=0', None, 'u:p2:admin').status_int == 400
