# SPDX-License-Identifier: Apache-2.0
"""Our rules beside those of a stock Nova, and a policy file as its own tool writes one."""

import json
import pathlib
import subprocess
from typing import Any

import pytest
import yaml

from nova_precache import (
    conf as configuration,
    context as request_context,
    exception,
    policies,
    policy,
)
from nova_precache.policies import aggregates
from tests.conftest import require_environment
from tests.leaks import SECRETS
from tools.servers import nova

_LIST_RULES = """\
import json
from nova import policies
print(json.dumps({
    rule.name: {
        'check': rule.check_str,
        'scopes': rule.scope_types,
        'operations': getattr(rule, 'operations', None),
    }
    for rule in policies.list_rules()
}))
"""
OURS_ALONE = 'image_precache:'
ROLES = ('admin', 'manager', 'member', 'reader', 'service', 'dreamer')


@pytest.fixture(scope='module')
def nova_home() -> pathlib.Path:
    require_environment(nova.ENVIRONMENT)
    return nova.ENVIRONMENT.path


def test_rules_match_those_of_nova(nova_home: pathlib.Path) -> None:
    novas = json.loads(_run(nova_home / 'bin' / 'python', '-c', _LIST_RULES))
    ours = {
        rule.name: {
            'check': rule.check_str,
            'scopes': rule.scope_types,
            'operations': getattr(rule, 'operations', None),
        }
        for rule in policies.list_rules()
        if not rule.name.startswith(OURS_ALONE)
    }
    assert ours == {name: novas[name] for name in ours}
    assert {rule for rule in novas if 'aggregates' in rule} <= set(ours)
    # Every name that a rule of Nova may refer to is known here, too.
    assert {rule for rule in novas if ':' not in rule} <= set(ours)


def test_policy_generated_by_nova_changes_nothing(
    nova_home: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    written = tmp_path / 'policy.yaml'
    _run(
        nova_home / 'bin' / 'oslopolicy-policy-generator',
        *('--namespace', 'nova', '--output-file', str(written)),
    )
    rules = yaml.safe_load(written.read_text())
    assert len(rules) > 100
    assert rules[aggregates.IMAGES] == 'rule:context_is_admin'
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text(f'[oslo_policy]\npolicy_file = {written}\n')

    assert _decisions([str(conf)]) == _decisions([])


def _decisions(config_files: list[str]) -> dict[tuple[str, str], bool]:
    enforcer = policy.Enforcer(configuration.new(config_files=config_files))
    return {
        (rule.name, role): _allows(enforcer, rule.name, role)
        for rule in policies.list_rules()
        for role in ROLES
    }


def _allows(enforcer: policy.Enforcer, rule: str, role: str) -> bool:
    caller = request_context.RequestContext(
        user_id='u1', project_id='p1', roles=[role], overwrite=False
    )
    caller.is_admin = enforcer.is_admin(caller)
    try:
        enforcer.authorize(caller, rule, {'project_id': 'p1'})
    except exception.PolicyNotAuthorized:
        return False
    return True


def _run(program: pathlib.Path, *arguments: str) -> Any:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert SECRETS.look_at(done).returncode == 0, done.stderr
    return done.stdout
