# SPDX-License-Identifier: Apache-2.0
"""Who may see requests: readers those of their project, admins all."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

LIST = 'image_precache:requests:list'
SHOW = 'image_precache:requests:show'
TASKS = 'image_precache:requests:tasks'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        _reader_rule(LIST, 'List the requests', '/v1/requests'),
        _reader_rule(SHOW, 'Show a request', '/v1/requests/{request_id}'),
        _reader_rule(TASKS, 'List the tasks of a request', '/v1/requests/{request_id}/tasks'),
    )


def _reader_rule(name: str, description: str, path: str) -> policy.RuleDefault:
    return policy.DocumentedRuleDefault(
        name=name,
        check_str=base.PROJECT_READER_OR_ADMIN,
        description=description,
        operations=[{'method': 'GET', 'path': path}],
        scope_types=['project'],
    )
