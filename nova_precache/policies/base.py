# SPDX-License-Identifier: Apache-2.0
"""The personas that other rules refer to, named as in Nova so that policy files carry over."""

from collections.abc import Sequence

from oslo_policy import policy

CONTEXT_IS_ADMIN = 'context_is_admin'
# Prefix of the operations that Nova does not have.
OWN_PREFIX = 'image_precache:'

ADMIN = f'rule:{CONTEXT_IS_ADMIN}'
PROJECT_READER_OR_ADMIN = 'rule:project_reader_or_admin'

_RULES = (
    policy.RuleDefault(
        CONTEXT_IS_ADMIN, 'role:admin', 'Admins, who may do everything in every project.'
    ),
    policy.RuleDefault(
        'admin_api',
        'is_admin:True',
        'Older name of context_is_admin, for policy files that use it.',
    ),
    policy.RuleDefault(
        'admin_or_owner',
        'is_admin:True or project_id:%(project_id)s',
        'Admins and all users of the project, for policy files that use it.',
    ),
    policy.RuleDefault(
        'project_manager_api',
        'role:manager and project_id:%(project_id)s',
        'Managers of the project, for policy files that use it.',
    ),
    policy.RuleDefault(
        'project_member_api',
        'role:member and project_id:%(project_id)s',
        'Members of the project.',
    ),
    policy.RuleDefault(
        'project_reader_api',
        'role:reader and project_id:%(project_id)s',
        'Readers of the project.',
    ),
    policy.RuleDefault(
        'service_api',
        'role:service',
        'Other services, for policy files that use it.',
    ),
    policy.RuleDefault(
        'project_manager_or_admin',
        f'rule:project_manager_api or {ADMIN}',
        'Managers of the project, and admins, for policy files that use it.',
    ),
    policy.RuleDefault(
        'project_member_or_admin',
        f'rule:project_member_api or {ADMIN}',
        'Members of the project, and admins.',
    ),
    policy.RuleDefault(
        'project_reader_or_admin',
        f'rule:project_reader_api or {ADMIN}',
        'Readers of the project, and admins.',
    ),
    policy.RuleDefault(
        'service_or_admin',
        f'rule:service_api or {ADMIN}',
        'Other services, and admins, for policy files that use it.',
    ),
)


def list_rules() -> Sequence[policy.RuleDefault]:
    return _RULES


def operation(
    name: str, check: str, description: str, method: str, path: str
) -> policy.RuleDefault:
    """Build the rule of one operation of the API."""
    return policy.DocumentedRuleDefault(
        name=name,
        check_str=check,
        description=description,
        operations=[{'method': method, 'path': path}],
        scope_types=['project'],
    )
