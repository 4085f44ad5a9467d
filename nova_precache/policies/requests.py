# SPDX-License-Identifier: Apache-2.0
"""Who may see requests and act on them: readers see those of their project, admins may do all."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

CREATE = 'image_precache:requests:create'
LIST = 'image_precache:requests:list'
SHOW = 'image_precache:requests:show'
TASKS = 'image_precache:requests:tasks'
ALL_TASKS = 'image_precache:tasks:list'
CHANGE = 'image_precache:requests:change'
CANCEL = 'image_precache:requests:cancel'
PAUSE = 'image_precache:requests:pause'
RESUME = 'image_precache:requests:resume'
RETRY = 'image_precache:requests:retry'

_ONE = '/v1/requests/{request_id}'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        base.operation(
            CHANGE,
            base.ADMIN,
            'Change the priority, limits or deadline of a request',
            'PATCH',
            _ONE,
        ),
        base.operation(
            CREATE, base.ADMIN, 'Create a request for images on hosts', 'POST', '/v1/requests'
        ),
        _reader_rule(LIST, 'List the requests', '/v1/requests'),
        _reader_rule(SHOW, 'Show a request', _ONE),
        _reader_rule(TASKS, 'List the tasks of a request', f'{_ONE}/tasks'),
        _reader_rule(ALL_TASKS, 'List the tasks of all requests', '/v1/tasks'),
        _action_rule(CANCEL, 'Cancel a request'),
        _action_rule(PAUSE, 'Pause a request'),
        _action_rule(RESUME, 'Resume a paused request'),
        _action_rule(RETRY, 'Retry the tasks of a request that did not succeed'),
    )


def _reader_rule(name: str, description: str, path: str) -> policy.RuleDefault:
    return base.operation(name, base.PROJECT_READER_OR_ADMIN, description, 'GET', path)


def _action_rule(name: str, description: str) -> policy.RuleDefault:
    action = name.rpartition(':')[2]
    return base.operation(name, base.ADMIN, description, 'POST', f'{_ONE}/action ({action})')
