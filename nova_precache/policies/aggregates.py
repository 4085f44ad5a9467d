# SPDX-License-Identifier: Apache-2.0
"""Who may see and change aggregates, and request images on their hosts; names as in Nova."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

INDEX = 'os_compute_api:os-aggregates:index'
SHOW = 'os_compute_api:os-aggregates:show'
CREATE = 'os_compute_api:os-aggregates:create'
UPDATE = 'os_compute_api:os-aggregates:update'
DELETE = 'os_compute_api:os-aggregates:delete'
ADD_HOST = 'os_compute_api:os-aggregates:add_host'
REMOVE_HOST = 'os_compute_api:os-aggregates:remove_host'
SET_METADATA = 'os_compute_api:os-aggregates:set_metadata'
IMAGES = 'compute:aggregates:images'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        _admin_rule(INDEX, 'List the aggregates', 'GET', '/os-aggregates'),
        _admin_rule(SHOW, 'Show an aggregate', 'GET', '/os-aggregates/{aggregate_id}'),
        _admin_rule(CREATE, 'Create an aggregate', 'POST', '/os-aggregates'),
        _admin_rule(
            UPDATE,
            "Change an aggregate's name or availability zone",
            'PUT',
            '/os-aggregates/{aggregate_id}',
        ),
        _admin_rule(DELETE, 'Delete an aggregate', 'DELETE', '/os-aggregates/{aggregate_id}'),
        _action_rule(ADD_HOST, 'Add a host to an aggregate'),
        _action_rule(REMOVE_HOST, 'Remove a host from an aggregate'),
        _action_rule(SET_METADATA, "Set or remove an aggregate's metadata"),
        _admin_rule(
            IMAGES,
            "Cache images on an aggregate's hosts",
            'POST',
            '/os-aggregates/{aggregate_id}/images',
        ),
    )


def _action_rule(name: str, description: str) -> policy.RuleDefault:
    action = name.rpartition(':')[2]
    path = f'/os-aggregates/{{aggregate_id}}/action ({action})'
    return _admin_rule(name, description, 'POST', path)


def _admin_rule(name: str, description: str, method: str, path: str) -> policy.RuleDefault:
    return base.operation(name, base.ADMIN, description, method, path)
