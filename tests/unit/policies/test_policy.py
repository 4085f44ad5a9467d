# SPDX-License-Identifier: Apache-2.0
"""Every rule, for every kind of caller; and the operator's file."""

import pathlib
from typing import Any

import pytest

from nova_precache import conf as options
from nova_precache import context as request_context
from nova_precache import exception, policies, policy
from nova_precache.policies import aggregates, base, requests

ADMIN_RULES = [rule.name for rule in aggregates.list_rules()]
READER_RULES = [rule.name for rule in requests.list_rules()]
ROLES = {
    'admin': ['admin', 'member', 'reader'],
    'member': ['member', 'reader'],
    'reader': ['reader'],
    'none': [],
}


@pytest.fixture
def enforcer() -> policy.Enforcer:
    return policy.Enforcer(options.new(config_files=[]))


def caller(persona: str, **more: Any) -> request_context.RequestContext:
    return request_context.RequestContext(
        user_id='u1', project_id='p1', roles=ROLES[persona], overwrite=False, **more
    )


def may(
    enforcer: policy.Enforcer, persona: str, rule: str, project_id: str = 'p1', **more: Any
) -> bool:
    try:
        enforcer.authorize(caller(persona, **more), rule, {'project_id': project_id})
    except exception.PolicyNotAuthorized:
        return False
    return True


@pytest.mark.parametrize('rule', ADMIN_RULES)
def test_only_admins_touch_aggregates(enforcer: policy.Enforcer, rule: str) -> None:
    assert [may(enforcer, persona, rule) for persona in ROLES] == [True, False, False, False]


@pytest.mark.parametrize('rule', READER_RULES)
def test_readers_see_the_requests_of_their_project(enforcer: policy.Enforcer, rule: str) -> None:
    assert [may(enforcer, persona, rule) for persona in ROLES] == [True, True, True, False]
    assert [may(enforcer, persona, rule, 'p2') for persona in ROLES] == [True, False, False, False]


@pytest.mark.parametrize('rule', ADMIN_RULES + READER_RULES)
def test_a_token_for_the_system_is_no_token_for_a_project(
    enforcer: policy.Enforcer, rule: str
) -> None:
    assert not may(enforcer, 'admin', rule, system_scope='all')


def test_a_refusal_names_the_rule(enforcer: policy.Enforcer) -> None:
    with pytest.raises(exception.PolicyNotAuthorized) as refused:
        enforcer.authorize(caller('member'), aggregates.INDEX)
    assert str(refused.value) == (
        "Policy doesn't allow os_compute_api:os-aggregates:index to be performed."
    )


def test_the_rules_of_aggregates_have_novas_names() -> None:
    root = 'os_compute_api:os-aggregates:'
    assert sorted(ADMIN_RULES) == [
        'compute:aggregates:images',
        f'{root}add_host',
        f'{root}create',
        f'{root}delete',
        f'{root}index',
        f'{root}remove_host',
        f'{root}set_metadata',
        f'{root}show',
        f'{root}update',
    ]


def test_every_rule_is_listed_once_and_described() -> None:
    rules = policies.list_rules()
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.description for rule in rules)


def test_a_policy_file_of_nova_carries_over(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'policy.yaml').write_text(
        '"os_compute_api:os-aggregates:index": "rule:project_reader_api"\n'
        '"os_compute_api:os-aggregates:show": "rule:admin_api"\n'
        '"compute:aggregates:images": "role:precacher or rule:context_is_admin"\n'
        '"os_compute_api:servers:index": "@"\n'
    )
    (tmp_path / 'own.conf').write_text(f'[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n')
    own = policy.Enforcer(options.new(config_files=[f'{tmp_path}/own.conf']))
    assert may(own, 'reader', aggregates.INDEX)
    assert not may(own, 'reader', aggregates.SHOW)
    assert may(own, 'none', aggregates.SHOW, is_admin=True)
    assert not may(own, 'reader', aggregates.IMAGES)
    precacher = request_context.RequestContext(roles=['precacher'], overwrite=False)
    own.authorize(precacher, aggregates.IMAGES)


def test_who_is_an_admin_is_a_rule_too(enforcer: policy.Enforcer) -> None:
    assert [enforcer.is_admin(caller(persona)) for persona in ROLES] == [True, False, False, False]
    assert base.CONTEXT_IS_ADMIN in {rule.name for rule in base.list_rules()}
