# SPDX-License-Identifier: Apache-2.0
"""What the shipped policy for Glance allows the role: by its rules, and on a real Glance."""

import dataclasses
import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
import yaml
from oslo_config import cfg
from oslo_policy import policy as oslo_policy

from nova_precache.standalone import environment
from tests import glance_policy
from tests.conftest import require_server
from tests.glance_policy import ROLE
from tests.leaks import SECRETS
from tools.servers import keystone as keystone_server
from tools.servers.glance import GlanceUnderKeystone
from tools.waiting import TIMEOUT_SECONDS

# Parts of other rules, which guard no URL of their own.
PARTS = {'default', 'metadef_default', 'service_api'}
READING = {
    'download_from_store',
    'download_image',
    'get_image',
    'get_images',
    'get_member',
    'get_members',
    'get_metadef_namespace',
    'get_metadef_namespaces',
    'get_metadef_object',
    'get_metadef_objects',
    'get_metadef_properties',
    'get_metadef_property',
    'get_metadef_resource_type',
    'get_metadef_tag',
    'get_metadef_tags',
    'get_task',
    'get_tasks',
    'list_metadef_resource_types',
}
# Read-only, but refused, since no download needs it.
REFUSED_READING = {
    'cache_list',
    'fetch_image_location',
    'get_image_location',
    'list_cached_nodes',
    'stores_info_detail',
}
NEEDED = ('get_image', 'download_image', 'get_member')
OWN, OTHER = 'project-of-the-caller', 'another-project'


@pytest.fixture(scope='module')
def facts() -> glance_policy.GlanceFacts:
    try:
        return glance_policy.facts()
    except environment.EnvironmentFailed as exc:
        require_server('Glance', False, str(exc))
        raise


@pytest.fixture(scope='module')
def shipped() -> dict[str, str]:
    rules = yaml.safe_load(glance_policy.SHIPPED.read_text())
    assert isinstance(rules, dict)
    return rules


# The rules


def test_every_glance_rule_reads_or_overridden(
    facts: glance_policy.GlanceFacts, shipped: dict[str, str]
) -> None:
    assert set(facts.rules) - READING - PARTS == set(shipped)
    assert set(shipped) >= REFUSED_READING


def test_only_context_is_admin_extended(shipped: dict[str, str]) -> None:
    assert shipped['context_is_admin'] == f'role:admin or role:{ROLE}'
    others = {name: check for name, check in shipped.items() if name != 'context_is_admin'}
    assert all(check.startswith('role:admin') for check in others.values())
    assert not [check for check in others.values() if 'rule:' in check]


@pytest.mark.parametrize('more', [(), ('service',), ('reader',), ('service', 'reader')])
def test_role_only_reads_any_project(
    facts: glance_policy.GlanceFacts, shipped: dict[str, str], more: tuple[str, ...]
) -> None:
    enforcer = _enforcer({**facts.rules, **shipped})
    allowed = {
        (rule, str(target))
        for rule, target in itertools.product(facts.rules, _targets())
        if _allows(enforcer, rule, (ROLE, *more), target)
    }
    names = {rule for rule, _ in allowed}
    assert names - READING - PARTS - {'context_is_admin', 'get_image_location'} == set()
    assert {(rule, str(target)) for rule in NEEDED for target in _targets()} <= allowed
    if 'reader' not in more:  # a reader of a project may read its resources
        assert 'get_image_location' not in names


@pytest.mark.parametrize(
    'roles',
    [(), ('reader',), ('member', 'reader'), ('manager', 'member', 'reader'), ('service',),
     ('service', 'member', 'reader'), ('admin',), ('admin', 'manager', 'member', 'reader')],
    ids=str,
)  # fmt: skip
def test_callers_without_role_unaffected(
    facts: glance_policy.GlanceFacts, shipped: dict[str, str], roles: tuple[str, ...]
) -> None:
    cases = list(itertools.product(facts.rules, _targets()))
    default, overridden = _enforcer(facts.rules), _enforcer({**facts.rules, **shipped})
    for rule, target in cases:
        might = _allows(default, rule, roles, target)
        assert _allows(overridden, rule, roles, target) == might, (rule, target)


def _targets() -> list[dict[str, Any]]:
    """Return images and other things, of the caller's project and of others."""
    return [
        {'project_id': project, 'owner': project, 'member_id': member, 'visibility': visibility}
        for project in (OWN, OTHER, None)
        for member in (OWN, OTHER)
        for visibility in ('private', 'shared', 'community', 'public')
    ]


def _enforcer(checks: Mapping[str, str]) -> oslo_policy.Enforcer:
    made = oslo_policy.Enforcer(cfg.ConfigOpts(), use_conf=False)
    made.set_rules(oslo_policy.Rules.from_dict(dict(checks)), use_conf=False)
    return made


def _allows(
    enforcer: oslo_policy.Enforcer, rule: str, roles: tuple[str, ...], target: dict[str, Any]
) -> bool:
    caller = {'roles': list(roles), 'project_id': OWN, 'user_id': 'the-caller'}
    return bool(enforcer.enforce(rule, target, caller))


# A real Glance under a real Keystone


@dataclasses.dataclass
class Victims:
    """A Glance with the resources of a tenant, and its users' ways to reach them."""

    url: str
    tokens: dict[str, str]
    project_id: str
    data: bytes
    image_id: str = ''
    queued_id: str = ''
    namespace: str = ''

    def ask(
        self, who: str, method: str, path: str, body: Any = None, **more: Any
    ) -> requests.Response:
        headers = {'X-Auth-Token': self.tokens[who], **more.pop('headers', {})}
        url = f'{self.url}/v2{path}'
        return requests.request(
            method, url, json=body, headers=headers, timeout=TIMEOUT_SECONDS, **more
        )

    def make(self, who: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.ask(who, method, path, body, **more)
        assert answer.ok, f'{method} {path}: {answer.status_code} {answer.text}'
        return answer.json() if answer.content else None

    def upload(self, **properties: Any) -> str:
        """Upload an image of the tenant to Glance."""
        image = self.make(
            'tenant',
            'POST',
            '/images',
            {'disk_format': 'raw', 'container_format': 'bare', 'name': 'secret', **properties},
        )
        self.make('tenant', 'PUT', f'/images/{image["id"]}/file', data=self.data, headers=OCTETS)
        return str(image['id'])

    def state(self) -> dict[str, Any]:
        """Return the state that requests could change, as the admin sees it."""
        image = f'/images/{self.image_id}'
        paths = [image, f'{image}/members', f'/images/{self.queued_id}', '/tasks', '/cache']
        paths += [f'/metadefs/namespaces/{self.namespace}', '/metadefs/namespaces?limit=1000']
        seen = {path: self.make('admin', 'GET', path) for path in paths}
        data = self.ask('admin', 'GET', f'{image}/file').content
        return {**seen, 'data': hashlib.sha256(data).hexdigest()}


OCTETS = {'Content-Type': 'application/octet-stream'}
PATCH = {'Content-Type': 'application/openstack-images-v2.1-json-patch'}


@pytest.fixture(scope='module')
def victims(
    keystone: keystone_server.KeystoneServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Victims]:
    tenant = keystone.make_user('member', 'reader')
    users = {
        'tenant': tenant,
        'admin': keystone.make_user('admin', 'member', 'reader'),
        ROLE: keystone.make_user(ROLE, project='service'),
        'service too': keystone.make_user(ROLE, 'service', project='service'),
    }
    directory = tmp_path_factory.mktemp('policy') / 'glance'
    with GlanceUnderKeystone(directory, keystone, glance_policy.SHIPPED) as glance:
        SECRETS.expect(glance.log)
        whole = Victims(
            url=glance.url,
            tokens={who: keystone.token(user) for who, user in users.items()},
            project_id=keystone.project_id(tenant),
            data=os.urandom(4096),
        )
        whole.image_id = whole.upload(visibility='shared', tags=['old'])
        image = f'/images/{whole.image_id}'
        whole.make('tenant', 'POST', f'{image}/members', {'member': 'a-friend'})
        queued = {'disk_format': 'raw', 'container_format': 'bare', 'name': 'to come'}
        whole.queued_id = whole.make('tenant', 'POST', '/images', queued)['id']
        whole.namespace = f'space-{uuid.uuid4().hex}'
        space = f'/metadefs/namespaces/{whole.namespace}'
        owned = {'namespace': whole.namespace, 'owner': whole.project_id}
        whole.make('admin', 'POST', '/metadefs/namespaces', owned)
        whole.make('admin', 'POST', f'{space}/objects', {'name': 'old'})
        whole.make('admin', 'POST', f'{space}/properties', PROPERTY)
        whole.make('admin', 'POST', f'{space}/tags/old')
        whole.make('admin', 'POST', f'{space}/resource_types', {'name': 'OS::Glance::Image'})
        yield whole


@pytest.fixture(scope='module')
def untouched(victims: Victims) -> dict[str, Any]:
    return victims.state()


PROPERTY = {'name': 'old', 'title': 'old', 'type': 'string'}


def _patches() -> list[dict[str, Any]]:
    location = [{'url': 'file:///etc/passwd', 'metadata': {}}]
    changes = [
        {'op': 'replace', 'path': '/name', 'value': 'mine'},
        {'op': 'replace', 'path': '/owner', 'value': 'a-thief'},
        {'op': 'replace', 'path': '/visibility', 'value': 'public'},
        {'op': 'replace', 'path': '/visibility', 'value': 'community'},
        {'op': 'replace', 'path': '/visibility', 'value': 'private'},
        {'op': 'replace', 'path': '/protected', 'value': True},
        {'op': 'replace', 'path': '/os_hidden', 'value': True},
        {'op': 'replace', 'path': '/tags', 'value': []},
        {'op': 'add', 'path': '/hw_firmware_type', 'value': 'uefi'},
        {'op': 'add', 'path': '/locations/1', 'value': location[0]},
        {'op': 'replace', 'path': '/locations', 'value': location},
        {'op': 'replace', 'path': '/locations', 'value': []},
        {'op': 'remove', 'path': '/locations/0'},
    ]
    return [{'body': [change], 'headers': PATCH} for change in changes]


_NEW = {'disk_format': 'raw', 'container_format': 'bare'}
# Requests to each URL of Glance that changes something; ``of`` names the path's resource.
WRITES: dict[tuple[str, str], list[dict[str, Any]]] = {
    ('POST', '/images'): [
        {'body': _NEW},
        {'body': {**_NEW, 'visibility': 'public'}},
        {'body': {**_NEW, 'visibility': 'community'}},
        {'body': {**_NEW, 'owner': '{project_id}'}},
    ],
    ('PATCH', '/images/{image_id}'): _patches(),
    ('DELETE', '/images/{image_id}'): [{}],
    ('POST', '/images/{image_id}/import'): [
        {
            'of': {'image_id': '{queued_id}'},
            'body': {'method': {'name': 'web-download', 'uri': 'http://a/'}},
        },
        {'body': {'method': {'name': 'copy-image'}, 'stores': ['local']}},
    ],
    ('DELETE', '/stores/{store_id}/{image_id}'): [{}],
    ('POST', '/images/{image_id}/actions/deactivate'): [{}],
    ('POST', '/images/{image_id}/actions/reactivate'): [{}],
    ('PUT', '/images/{image_id}/file'): [
        {'data': b'evil', 'headers': OCTETS},
        {'of': {'image_id': '{queued_id}'}, 'data': b'evil', 'headers': OCTETS},
    ],
    ('PUT', '/images/{image_id}/stage'): [
        {'of': {'image_id': '{queued_id}'}, 'data': b'evil', 'headers': OCTETS},
    ],
    ('POST', '/images/{image_id}/locations'): [
        {'of': {'image_id': '{queued_id}'}, 'body': {'url': 'http://evil.example/image'}},
    ],
    ('PUT', '/images/{image_id}/tags/{tag_value}'): [{}],
    ('DELETE', '/images/{image_id}/tags/{tag_value}'): [{'of': {'tag_value': 'old'}}],
    ('POST', '/images/{image_id}/members'): [{'body': {'member': 'a-thief'}}],
    ('PUT', '/images/{image_id}/members/{member_id}'): [
        {'of': {'member_id': 'a-friend'}, 'body': {'status': 'accepted'}},
    ],
    ('DELETE', '/images/{image_id}/members/{member_id}'): [{'of': {'member_id': 'a-friend'}}],
    ('POST', '/tasks'): [{'body': {'type': 'import', 'input': {
        'import_from': 'http://a/', 'import_from_format': 'raw', 'image_properties': {},
    }}}],
    ('DELETE', '/tasks/{task_id}'): [{}],
    ('DELETE', '/cache'): [{}],
    ('DELETE', '/cache/{image_id}'): [{}],
    ('PUT', '/cache/{image_id}'): [{}],
    ('POST', '/cache/clean'): [{}],
    ('POST', '/cache/prune'): [{}],
    ('POST', '/metadefs/namespaces'): [{'body': {'namespace': 'evil', 'visibility': 'public'}}],
    ('PUT', '/metadefs/namespaces/{namespace}'): [
        {'body': {'namespace': '{namespace}', 'visibility': 'public'}},
    ],
    ('DELETE', '/metadefs/namespaces/{namespace}'): [{}],
    ('POST', '/metadefs/namespaces/{namespace}/objects'): [{'body': {'name': 'evil'}}],
    ('DELETE', '/metadefs/namespaces/{namespace}/objects'): [{}],
    ('PUT', '/metadefs/namespaces/{namespace}/objects/{object_name}'): [{'body': {'name': 'evil'}}],
    ('DELETE', '/metadefs/namespaces/{namespace}/objects/{object_name}'): [{}],
    ('POST', '/metadefs/namespaces/{namespace}/properties'): [
        {'body': {**PROPERTY, 'name': 'evil'}},
    ],
    ('DELETE', '/metadefs/namespaces/{namespace}/properties'): [{}],
    ('PUT', '/metadefs/namespaces/{namespace}/properties/{property_name}'): [
        {'body': {**PROPERTY, 'title': 'evil'}},
    ],
    ('DELETE', '/metadefs/namespaces/{namespace}/properties/{property_name}'): [{}],
    ('POST', '/metadefs/namespaces/{namespace}/tags'): [{'body': {'tags': [{'name': 'evil'}]}}],
    ('DELETE', '/metadefs/namespaces/{namespace}/tags'): [{}],
    ('POST', '/metadefs/namespaces/{namespace}/tags/{tag_name}'): [{'of': {'tag_name': 'evil'}}],
    ('PUT', '/metadefs/namespaces/{namespace}/tags/{tag_name}'): [{'body': {'name': 'evil'}}],
    ('DELETE', '/metadefs/namespaces/{namespace}/tags/{tag_name}'): [{}],
    ('POST', '/metadefs/namespaces/{namespace}/resource_types'): [
        {'body': {'name': 'OS::Nova::Server'}},
    ],
    ('DELETE', '/metadefs/namespaces/{namespace}/resource_types/{resource_type}'): [{}],
}  # fmt: skip


def test_every_changing_glance_url_tried(
    facts: glance_policy.GlanceFacts,
) -> None:
    assert set(WRITES) == facts.writing


@pytest.mark.parametrize(
    ('method', 'path'), sorted(WRITES), ids=lambda value: value.removeprefix('/metadefs')
)
def test_role_changes_nothing(
    victims: Victims, untouched: dict[str, Any], method: str, path: str
) -> None:
    for who, arguments in itertools.product((ROLE, 'service too'), WRITES[method, path]):
        names = {**_names(victims), **_fill(arguments.get('of', {}), _names(victims))}
        rest = {key: value for key, value in arguments.items() if key not in {'of', 'body'}}
        body = _fill(arguments.get('body'), names)
        answer = victims.ask(who, method, path.format(**names), body, **rest)
        assert (arguments, answer.status_code) == (arguments, 403), answer.text

    assert victims.state() == untouched


def _names(victims: Victims) -> dict[str, str]:
    return {
        'store_id': 'local',
        'image_id': victims.image_id,
        'queued_id': victims.queued_id,
        'namespace': victims.namespace,
        'project_id': victims.project_id,
        'tag_value': 'new',
        'task_id': str(uuid.uuid4()),
        'resource_type': 'OS::Glance::Image',
        **dict.fromkeys(('object_name', 'property_name', 'tag_name', 'member_id'), 'old'),
    }


def _fill(body: Any, names: Mapping[str, str]) -> Any:
    """Replace the names in a body by the values that they stand for."""
    if not isinstance(body, dict):
        return body
    return {
        key: value.format(**names) if isinstance(value, str) else value
        for key, value in body.items()
    }


def test_role_reads_private_images_of_others(victims: Victims) -> None:
    image_id = victims.upload(visibility='private')

    shown = victims.make(ROLE, 'GET', f'/images/{image_id}')
    listed = victims.make(ROLE, 'GET', '/images?limit=1000')['images']
    part = victims.ask(ROLE, 'GET', f'/images/{image_id}/file', headers={'Range': 'bytes=96-'})
    members = victims.make(ROLE, 'GET', f'/images/{victims.image_id}/members/a-friend')

    assert (shown['owner'], shown['status']) == (victims.project_id, 'active')
    assert image_id in {each['id'] for each in listed}
    assert (part.status_code, part.content) == (206, victims.data[96:])
    assert members['status'] == 'pending'


@pytest.mark.parametrize('who', [ROLE, 'service too'])
def test_role_reads_only_needed_data(victims: Victims, who: str) -> None:
    for path in (
        f'/images/{victims.image_id}/locations', '/tasks', '/cache',
        f'/cache/nodes/{victims.image_id}', '/info/stores/detail',
    ):  # fmt: skip
        assert (path, victims.ask(who, 'GET', path).status_code) == (path, 403)


def test_role_downloads_deactivated_image(victims: Victims) -> None:
    """So the service must check the status itself."""
    image_id = victims.upload(visibility='private')
    victims.make('admin', 'POST', f'/images/{image_id}/actions/deactivate')

    assert victims.ask(ROLE, 'GET', f'/images/{image_id}').json()['status'] == 'deactivated'
    assert victims.ask(ROLE, 'GET', f'/images/{image_id}/file').content == victims.data
    assert victims.ask('tenant', 'GET', f'/images/{image_id}/file').status_code == 403


def test_tenant_still_changes_its_own(victims: Victims) -> None:
    image_id = victims.upload(visibility='shared')
    image = f'/images/{image_id}'
    victims.make('tenant', 'POST', f'{image}/members', {'member': 'a-friend'})
    rename = [{'op': 'replace', 'path': '/name', 'value': 'renamed'}]
    assert victims.make('tenant', 'PATCH', image, rename, headers=PATCH)['name'] == 'renamed'
    victims.make('tenant', 'DELETE', image)
    assert victims.ask('tenant', 'GET', image).status_code == 404
