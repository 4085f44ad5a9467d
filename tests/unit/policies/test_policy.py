# SPDX-License-Identifier: Apache-2.0
"""Every rule for every kind of caller of the API; and the operator's file."""

import dataclasses
import os
import pathlib
import re
from typing import Any

import pytest
from oslo_policy import policy as oslo_policy

from nova_precache import (
    conf as configuration,
    context as request_context,
    exception,
    policies,
    policy,
)
from nova_precache.api import routes
from nova_precache.db import pins as pin_store
from nova_precache.policies import aggregates, base, estimate, hosts, pins, requests, services
from tests.unit.policies.conftest import FREE_HOST, HOST, IMAGE, PROJECT, MakeSite, Site

# The token that each kind of caller sends, as noauth2 reads it.
TOKENS: dict[str, str | None] = {
    'admin': f'u:{PROJECT}:admin',
    'manager': f'u:{PROJECT}:manager',
    'member': f'u:{PROJECT}:member',
    'reader': f'u:{PROJECT}:reader',
    'a role that means nothing': f'u:{PROJECT}:dreamer',
    'no role': f'u:{PROJECT}:',
    'noauth': None,
}
ADMINS = {'admin', 'noauth'}
READERS = ADMINS | {'manager', 'member', 'reader'}


@dataclasses.dataclass(frozen=True)
class Row:
    """The request that a rule guards, who may send it by default, and the answer."""

    method: str
    path: str
    body: Any
    status: int
    allowed: frozenset[str]


def row(
    method: str, path: str, body: Any = None, *, status: int = 200, allowed: set[str] = ADMINS
) -> Row:
    return Row(method, path, body, status, frozenset(allowed))


AGGREGATE = '/v2.1/os-aggregates/{aggregate}'
REQUEST = '/v1/requests/{request}'
ASKED = {'request': {'aggregate': 'edge', 'images': [IMAGE]}}
ROWS = {
    aggregates.INDEX: row('GET', '/v2.1/os-aggregates'),
    aggregates.SHOW: row('GET', AGGREGATE),
    aggregates.CREATE: row('POST', '/v2.1/os-aggregates', {'aggregate': {'name': 'new'}}),
    aggregates.UPDATE: row('PUT', AGGREGATE, {'aggregate': {'name': 'other'}}),
    aggregates.DELETE: row('DELETE', '/v2.1/os-aggregates/{empty}'),
    aggregates.ADD_HOST: row('POST', f'{AGGREGATE}/action', {'add_host': {'host': FREE_HOST}}),
    aggregates.REMOVE_HOST: row('POST', f'{AGGREGATE}/action', {'remove_host': {'host': HOST}}),
    aggregates.SET_METADATA: row(
        'POST', f'{AGGREGATE}/action', {'set_metadata': {'metadata': {'a': 'b'}}}
    ),
    aggregates.IMAGES: row('POST', f'{AGGREGATE}/images', {'cache': [{'id': IMAGE}]}, status=202),
    requests.CREATE: row('POST', '/v1/requests', ASKED, status=202),
    requests.LIST: row('GET', '/v1/requests', allowed=READERS),
    requests.SHOW: row('GET', REQUEST, allowed=READERS),
    requests.TASKS: row('GET', f'{REQUEST}/tasks', allowed=READERS),
    requests.ALL_TASKS: row('GET', '/v1/tasks', allowed=READERS),
    requests.CHANGE: row('PATCH', REQUEST, {'request': {'priority': 1}}),
    requests.CANCEL: row('POST', f'{REQUEST}/action', {'cancel': None}, status=202),
    requests.PAUSE: row('POST', f'{REQUEST}/action', {'pause': None}, status=202),
    requests.RESUME: row('POST', f'{REQUEST}/action', {'resume': None}, status=202),
    # An allowed caller learns that the request has not ended.
    requests.RETRY: row('POST', f'{REQUEST}/action', {'retry': None}, status=409),
    estimate.ESTIMATE: row('POST', '/v1/estimate', ASKED),
    hosts.LIST: row('GET', '/v1/hosts'),
    hosts.SHOW: row('GET', f'/v1/hosts/{HOST}'),
    hosts.IMAGES: row('GET', f'/v1/hosts/{HOST}/images'),
    hosts.REMOVE_IMAGE: row('DELETE', f'/v1/hosts/{HOST}/images/{IMAGE}'),
    services.LIST: row('GET', '/v1/services'),
    services.LIST_CELLS: row('GET', '/v1/cells'),
    hosts.IMAGE_HOSTS: row('GET', f'/v1/images/{IMAGE}/hosts'),
    pins.CREATE: row(
        'POST', '/v1/pins', {'pin': {'aggregate': 'edge', 'images': [IMAGE]}}, status=201
    ),
    pins.LIST: row('GET', '/v1/pins', allowed=READERS),
    pins.SHOW: row('GET', '/v1/pins/{pin}', allowed=READERS),
    pins.DELETE: row('DELETE', '/v1/pins/{pin}', status=204),
}

OPERATIONS = [
    rule for rule in policies.list_rules() if isinstance(rule, oslo_policy.DocumentedRuleDefault)
]


@pytest.mark.parametrize('persona', TOKENS)
@pytest.mark.parametrize('rule', [rule.name for rule in OPERATIONS])
def test_each_rule_admits_its_roles(make_site: MakeSite, rule: str, persona: str) -> None:
    site, guarded = make_site(), ROWS[rule]
    before = _everything(site)

    answer = site.ask(guarded.method, guarded.path, guarded.body, TOKENS[persona])

    if persona in guarded.allowed:
        assert answer.status_int == guarded.status, answer.text
    else:
        assert answer.status_int == 403
        assert answer.json == {
            'forbidden': {
                'code': 403,
                'message': f"Policy doesn't allow {rule} to be performed.",
            }
        }
        assert _everything(site) == before


# The answers to a reader, a member and a manager of another project: they learn nothing
# about resources of a project that is not theirs.
ELSEWHERE = {
    requests.LIST: 200,
    requests.SHOW: 404,
    requests.TASKS: 404,
    requests.ALL_TASKS: 200,
    pins.LIST: 200,
    pins.SHOW: 404,
}


@pytest.mark.parametrize('rule', [rule.name for rule in OPERATIONS])
def test_each_rule_separates_projects(make_site: MakeSite, rule: str) -> None:
    site, guarded = make_site(), ROWS[rule]
    before = _everything(site)
    for role in ('reader', 'member', 'manager', 'dreamer', ''):
        answer = site.ask(guarded.method, guarded.path, guarded.body, f'u:p2:{role}')
        is_reader = role in {'reader', 'member', 'manager'}
        assert answer.status_int == (ELSEWHERE.get(rule, 403) if is_reader else 403), role
        assert PROJECT not in answer.text
    assert _everything(site) == before

    answer = site.ask(guarded.method, guarded.path, guarded.body, 'u:p2:admin')
    assert answer.status_int == guarded.status


@pytest.mark.parametrize('token', [None, 'garbage', ''])
def test_unauthenticated_caller_refused_everywhere(make_site: MakeSite, token: str | None) -> None:
    site = make_site(strategy='keystone')
    before = _everything(site)
    for rule, guarded in ROWS.items():
        answer = site.ask(guarded.method, guarded.path, guarded.body, token)
        # No Keystone can validate a token here.
        assert answer.status_int == (503 if token == 'garbage' else 401), rule
    assert _everything(site) == before


def test_table_has_exactly_every_rule() -> None:
    assert set(ROWS) == {rule.name for rule in OPERATIONS}
    assert set(PERSONAS) == {rule.name for rule in base.list_rules()}
    assert set(ELSEWHERE) == {rule for rule in ROWS if ROWS[rule].allowed == READERS}


def _everything(site: Site) -> tuple[Any, ...]:
    api = site.api
    return (
        api.inventory.list_aggregates(),
        api.saved_requests(),
        api.requests.get(site.request.id),
        pin_store.Pins(api.database).list(),
    )


def test_operations_and_rules_correspond() -> None:
    served = {
        (method, re.sub(r'\{\w+\}', '{}', path), action)
        for path, methods in routes.RESOURCES.items()
        if '{project_id' not in path and path != '/v2.1/'  # a document is for every caller
        for method, operation in methods.items()
        for action in operation.actions or [None]
    }
    ruled = {
        _parse(operation['method'], operation['path'])
        for rule in OPERATIONS
        for operation in rule.operations
    }
    assert ruled == served


def _parse(method: str, documented: str) -> tuple[str, str, str | None]:
    """Split a rule's path: Nova names an action in brackets, and no version."""
    found = re.fullmatch(r'(\S+)(?: \((\w+)\))?', documented)
    assert found is not None, documented
    path = re.sub(r'\{\w+\}', '{}', found[1])
    return method, path if path.startswith('/v1/') else f'/v2.1{path}', found[2]


@pytest.mark.parametrize('path', [REQUEST, f'{REQUEST}/tasks', '/v1/pins/{pin}'])
def test_other_projects_data_needs_admin(make_site: MakeSite, path: str) -> None:
    site = make_site()
    assert site.ask('GET', path, None, 'u:p2:admin').status_int == 200
    assert site.ask('GET', path, None, 'u:p2:member').status_int == 404


def test_only_admins_list_other_projects_requests(make_site: MakeSite) -> None:
    site = make_site()

    def listed(token: str) -> list[str]:
        return [
            each['id'] for each in site.ask('GET', '/v1/requests', None, token).json['requests']
        ]

    assert listed('u:p2:admin') == listed(f'u:{PROJECT}:reader') == [site.request.id]
    assert listed('u:p2:member') == []


# The rules that other rules refer to: who meets them, in their own project.
PERSONAS = {
    'context_is_admin': {'admin'},
    'admin_api': {'admin'},
    'admin_or_owner': {'admin', 'manager', 'member', 'reader', 'service', 'none'},
    'project_manager_api': {'admin', 'manager'},
    'project_member_api': {'admin', 'manager', 'member'},
    'project_reader_api': {'admin', 'manager', 'member', 'reader'},
    'service_api': {'service'},
    'project_manager_or_admin': {'admin', 'manager'},
    'project_member_or_admin': {'admin', 'manager', 'member'},
    'project_reader_or_admin': {'admin', 'manager', 'member', 'reader'},
    'service_or_admin': {'admin', 'service'},
}
ROLES = {
    'admin': ['admin', 'manager', 'member', 'reader'],
    'manager': ['manager', 'member', 'reader'],
    'member': ['member', 'reader'],
    'reader': ['reader'],
    'service': ['service'],
    'none': [],
}
# Those of them that mean the same in any project.
ANYWHERE = {'context_is_admin', 'admin_api', 'service_api', 'service_or_admin'}


@pytest.fixture
def enforcer() -> policy.Enforcer:
    return policy.Enforcer(configuration.new(config_files=[]))


@pytest.mark.parametrize('rule', [rule.name for rule in base.list_rules()])
def test_each_persona_has_expected_roles(enforcer: policy.Enforcer, rule: str) -> None:
    def met(project_id: str) -> set[str]:
        return {each for each in ROLES if _may(enforcer, each, rule, project_id)}

    assert met(PROJECT) == PERSONAS[rule]
    admins = {'admin'} if rule.endswith(('_or_admin', '_or_owner')) else set()
    assert met('p2') == (PERSONAS[rule] if rule in ANYWHERE else admins)


@pytest.mark.parametrize('rule', [rule.name for rule in OPERATIONS])
@pytest.mark.parametrize('scope', [{'system_scope': 'all'}, {'domain_id': 'default'}])
def test_unscoped_token_has_no_project(
    enforcer: policy.Enforcer, rule: str, scope: dict[str, str]
) -> None:
    assert _may(enforcer, 'admin', rule, PROJECT)
    assert not _may(enforcer, 'admin', rule, PROJECT, project_id=None, **scope)


def _may(
    enforcer: policy.Enforcer, persona: str, rule: str, target: str, **more: str | None
) -> bool:
    values: dict[str, Any] = {'project_id': PROJECT, 'roles': ROLES[persona], **more}
    caller = request_context.RequestContext(user_id='u1', overwrite=False, **values)
    caller.is_admin = enforcer.is_admin(caller)
    try:
        enforcer.authorize(caller, rule, {'project_id': target})
    except exception.PolicyNotAuthorized:
        return False
    return True


def test_every_rule_listed_and_described() -> None:
    rules = policies.list_rules()
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.description for rule in rules)


# As an operator of Nova may have one: rules of its other resources, older names,
# references to rules that only Nova has, and to rules that do not exist.
NOVAS_FILE = """\
"context_is_admin": "role:admin or role:operator"
"admin_api": "is_admin:True"
"admin_or_owner": "is_admin:True or project_id:%(project_id)s"
"operators": "role:operator or rule:nobody_knows_this_one"
"os_compute_api:os-aggregates": "rule:admin_api"
"os_compute_api:os-aggregates:discoverable": "@"
"os_compute_api:servers:index": "rule:project_reader_or_admin"
"os_compute_api:os-hypervisors:list": "rule:service_or_admin"
"os_compute_api:os-migrate-server:migrate_live": "rule:project_manager_or_admin"
"os_compute_api:os-aggregates:index": "@"
"os_compute_api:os-aggregates:show": "rule:admin_or_owner"
"os_compute_api:os-aggregates:create": "rule:operators"
"os_compute_api:os-aggregates:delete": "!"
"os_compute_api:os-aggregates:update": [["role:updater"], ["rule:admin_api"]]
"os_compute_api:os-aggregates:set_metadata": "rule:project_manager_or_admin"
"compute:aggregates:images": "role:precacher or (role:member and not role:trainee)"
"""
TO_DO = {
    'index': aggregates.INDEX,
    'show': aggregates.SHOW,
    'create': aggregates.CREATE,
    'delete': aggregates.DELETE,
    'update': aggregates.UPDATE,
    'set_metadata': aggregates.SET_METADATA,
    'add_host': aggregates.ADD_HOST,
    'images': aggregates.IMAGES,
}


@pytest.mark.parametrize(
    ('roles', 'may'),
    [
        ('', 'index'),
        ('reader', 'index'),
        # The target of aggregates has no project, in Nova too: it has no owner.
        ('member', 'index images'),
        ('manager', 'index images'),
        ('precacher', 'index images'),
        ('member,trainee', 'index'),
        ('updater', 'index update'),
        ('operator', 'index show create update set_metadata add_host'),
        ('admin', 'index show update set_metadata add_host images'),
    ],
)
def test_policy_file_of_nova_carries_over(make_site: MakeSite, roles: str, may: str) -> None:
    site = make_site(NOVAS_FILE)
    allowed = []
    for action, rule in TO_DO.items():
        to_do = ROWS[rule]
        answer = site.ask(to_do.method, to_do.path, to_do.body, f'u:{PROJECT}:{roles}')
        assert answer.status_int in (to_do.status, 403), answer.text
        allowed += [action] if answer.status_int != 403 else []
    assert sorted(allowed) == sorted(may.split())


def test_admin_of_policy_file_sees_everything(make_site: MakeSite) -> None:
    path = '/v1/requests/{request}'
    site = make_site(NOVAS_FILE)
    assert site.ask('GET', path, None, 'u:p2:operator').status_int == 200
    assert site.ask('GET', path, None, 'u:p2:precacher').status_int == 403


def test_admin_rule_may_depend_on_project(make_site: MakeSite) -> None:
    site = make_site(
        '"context_is_admin": "role:member and project_id:%(project_id)s"\n'
        '"os_compute_api:os-aggregates:show": "rule:admin_api"\n'
    )
    assert site.ask('GET', AGGREGATE, None, 'u:p2:member').status_int == 200
    assert site.ask('GET', AGGREGATE, None, 'u:p2:reader').status_int == 403


@pytest.mark.parametrize(
    ('project', 'status', 'listed'), [(PROJECT, 200, 1), ('p2', 404, 0)], ids=['own', 'other']
)
def test_project_admin_sees_only_its_requests(
    make_site: MakeSite, project: str, status: int, listed: int
) -> None:
    site = make_site('"context_is_admin": "role:operator and project_id:%(project_id)s"')
    token = f'u:{project}:operator'
    for path in ('/v1/requests/{request}', '/v1/requests/{request}/tasks'):
        assert site.ask('GET', path, None, token).status_int == status
    assert len(site.ask('GET', '/v1/requests', None, token).json['requests']) == listed


def test_admin_outside_rule_becomes_reader(make_site: MakeSite) -> None:
    site = make_site('"image_precache:requests:list": "rule:project_reader_api"')
    assert len(site.ask('GET', '/v1/requests', None, TOKENS['admin']).json['requests']) == 1
    assert site.ask('GET', '/v1/requests', None, 'u:p2:admin').json['requests'] == []
    assert site.ask('GET', '/v1/requests', None, TOKENS['noauth']).status_int == 403


def test_custom_role_sees_project_requests(
    make_site: MakeSite,
) -> None:
    site = make_site('"image_precache:requests:show": "role:watcher"')
    path = '/v1/requests/{request}'
    assert site.ask('GET', path, None, f'u:{PROJECT}:watcher').status_int == 200
    assert site.ask('GET', path, None, 'u:p2:watcher').status_int == 404
    assert site.ask('GET', path, None, 'u:p2:admin').status_int == 403


def test_rule_opened_to_members_respects_project(make_site: MakeSite) -> None:
    opened = {requests.CANCEL, pins.CREATE, pins.DELETE}
    site = make_site('\n'.join(f'"{rule}": "rule:project_member_or_admin"' for rule in opened))
    for rule in (requests.CANCEL, pins.DELETE):
        to_do = ROWS[rule]
        path, body = to_do.path, to_do.body
        assert site.ask(to_do.method, path, body, f'u:{PROJECT}:reader').status_int == 403
        assert site.ask(to_do.method, path, body, 'u:p2:member').status_int == 404
        done = site.ask(to_do.method, path, body, f'u:{PROJECT}:member')
        assert done.status_int == to_do.status
    to_do = ROWS[pins.CREATE]
    made = site.ask(to_do.method, to_do.path, to_do.body, 'u:p2:member')
    assert made.json['pin']['project_id'] == 'p2'


def test_changed_file_applies_to_next_request(make_site: MakeSite, tmp_path: pathlib.Path) -> None:
    site = make_site('"os_compute_api:os-aggregates:show": "@"')
    assert site.ask('GET', AGGREGATE, None, f'u:{PROJECT}').status_int == 200
    file = tmp_path / 'policy.yaml'
    later = file.stat().st_mtime + 10
    file.write_text('"os_compute_api:os-aggregates:show": "!"')
    os.utime(file, (later, later))
    assert site.ask('GET', AGGREGATE, None, f'u:{PROJECT}').status_int == 403


def test_caller_checked_by_one_state_of_file(tmp_path: pathlib.Path) -> None:
    conf, file = tmp_path / 'nova-precache.conf', tmp_path / 'policy.yaml'
    conf.write_text(f'[oslo_policy]\npolicy_file = {file}\n')
    file.write_text('"os_compute_api:os-aggregates:show": "@"')
    enforcer = policy.Enforcer(configuration.new(config_files=[str(conf)]))
    caller = request_context.RequestContext(user_id='u1', project_id=PROJECT, overwrite=False)
    later = file.stat().st_mtime + 10

    assert not enforcer.is_admin(caller)
    file.write_text('"os_compute_api:os-aggregates:show": "!"')
    os.utime(file, (later, later))
    enforcer.authorize(caller, aggregates.SHOW)
    enforcer.is_admin(caller)

    with pytest.raises(exception.PolicyNotAuthorized):
        enforcer.authorize(caller, aggregates.SHOW)


@pytest.mark.parametrize('text', ['"a": [', '- "a"', '"a"', '"a": 5'])
def test_invalid_policy_file_fails_at_start(make_site: MakeSite, text: str) -> None:
    with pytest.raises(
        exception.ConfigError, match=r'^\[oslo_policy\] policy_file = .*'
    ) as refused:
        make_site(text)
    assert '\n' not in str(refused.value)
