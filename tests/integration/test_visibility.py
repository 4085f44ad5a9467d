# SPDX-License-Identifier: Apache-2.0
"""Who may use which image: what a real Glance returns for their tokens, and our decision.

Users of several projects ask Glance for each image, for its description and its data;
``conductor.visibility`` decides with the service's own credentials, and over the fake.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from nova_precache import exception
from nova_precache.conductor import image_access
from nova_precache.image import fake, glance, service
from tests import glance_policy
from tests.leaks import SECRETS
from tools.servers import keystone as keystone_server
from tools.servers.glance import GlanceUnderKeystone
from tools.waiting import TIMEOUT_SECONDS

DATA = os.urandom(100)
STATUSES = (None, 'pending', 'accepted', 'rejected')
# Visibility, whether it has an owner, the other project's relation to it, os_hidden.
CASES = [
    *itertools.product(('public', 'community', 'private'), (True, False), (None,), (False,)),
    *itertools.product(('shared',), (True, False), STATUSES, (False,)),
    ('public', True, None, True),
    ('shared', True, 'pending', True),
]
OCTETS = {'Content-Type': 'application/octet-stream'}
PATCH = {'Content-Type': 'application/openstack-images-v2.1-json-patch'}


@dataclasses.dataclass(frozen=True)
class Caller:
    token: str
    project_id: str
    is_admin: bool = False


@dataclasses.dataclass
class World:
    """A Glance under a Keystone, and its users."""

    url: str
    callers: dict[str, Caller]
    images: service.ImageService

    def ask(self, who: str, method: str, path: str, **more: Any) -> requests.Response:
        headers = {'X-Auth-Token': self.callers[who].token, **more.pop('headers', {})}
        url = f'{self.url}/v2/images{path}'
        return requests.request(method, url, headers=headers, timeout=TIMEOUT_SECONDS, **more)

    def make(self, who: str, method: str, path: str, **more: Any) -> Any:
        answer = self.ask(who, method, path, **more)
        assert answer.ok, f'{method} {path}: {answer.status_code} {answer.text}'
        return answer.json() if answer.content else None

    def is_given(self, who: str, image_id: str) -> bool:
        """Return whether Glance returns an image to a user: all of it, or nothing."""
        shown = self.ask(who, 'GET', f'/{image_id}').status_code
        data = self.ask(who, 'GET', f'/{image_id}/file')
        assert (shown, data.status_code) in {(200, 200), (404, 403), (404, 404), (403, 403)}
        return data.content == DATA


@pytest.fixture(scope='module')
def world(
    keystone: keystone_server.KeystoneServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    users = {
        'owner': keystone.make_user('member', 'reader'),
        'other': keystone.make_user('member', 'reader'),
        'admin': keystone.make_user('admin', 'member', 'reader'),
        'service': keystone.make_user(glance_policy.ROLE, project='service'),
    }
    callers = {
        who: Caller(keystone.token(user), keystone.project_id(user), who == 'admin')
        for who, user in users.items()
    }
    directory = tmp_path_factory.mktemp('visibility') / 'glance'
    with GlanceUnderKeystone(directory, keystone, glance_policy.SHIPPED) as server:
        SECRETS.expect(server.log)
        images = glance.GlanceImageService.with_token(
            glance.GlanceSettings(num_retries=0),
            endpoint=server.url,
            token=callers['service'].token,
        )
        yield World(server.url, callers, images)


@pytest.mark.parametrize(
    ('visible_to', 'has_owner', 'status', 'hidden'),
    CASES,
    ids=str,
)
def test_access_matches_glance(
    world: World, visible_to: str, has_owner: bool, status: str | None, hidden: bool
) -> None:
    owner = world.callers['owner'].project_id if has_owner else None
    image_id = world.make(
        'admin', 'POST', '',
        json={
            'disk_format': 'raw', 'container_format': 'bare', 'visibility': visible_to,
            'os_hidden': hidden, 'owner': owner,
        },
    )['id']  # fmt: skip
    world.make('admin', 'PUT', f'/{image_id}/file', data=DATA, headers=OCTETS)
    other = world.callers['other'].project_id
    faked = fake.FakeImageService()
    faked.add(DATA, id=image_id, visibility=visible_to, owner=owner)
    if status is not None:
        members = f'/{image_id}/members'
        world.make('admin', 'POST', members, json={'member': other})
        world.make('admin', 'PUT', f'{members}/{other}', json={'status': status})
        faked.share(image_id, other)

    assert world.make('admin', 'GET', f'/{image_id}')['owner'] == owner
    for who in ('owner', 'other', 'admin'):
        given = world.is_given(who, image_id)
        for images in (world.images, faked):
            decided = _may_have(images, image_id, world.callers[who])
            assert (who, type(images).__name__, decided) == (who, type(images).__name__, given)


def test_member_refused_after_image_becomes_private(
    world: World,
) -> None:
    other = world.callers['other']
    described = {'disk_format': 'raw', 'container_format': 'bare', 'visibility': 'shared'}
    image_id = world.make('owner', 'POST', '', json=described)['id']
    world.make('owner', 'PUT', f'/{image_id}/file', data=DATA, headers=OCTETS)
    world.make('owner', 'POST', f'/{image_id}/members', json={'member': other.project_id})
    given, decided = [], []

    def look() -> None:
        given.append(world.is_given('other', image_id))
        decided.append(_may_have(world.images, image_id, other))

    look()
    for visible_to in ('private', 'shared'):
        change = [{'op': 'replace', 'path': '/visibility', 'value': visible_to}]
        world.make('owner', 'PATCH', f'/{image_id}', json=change, headers=PATCH)
        look()
    world.make('owner', 'DELETE', f'/{image_id}/members/{other.project_id}')
    look()

    assert given == decided == [True, False, True, False]


def _may_have(images: service.ImageService, image_id: str, caller: Caller) -> bool:
    with contextlib.suppress(exception.ImageNotUsable):
        image_access.check(images, image_id, caller.project_id, caller.is_admin)
        return True
    return False
