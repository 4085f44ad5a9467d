# SPDX-License-Identifier: Apache-2.0
"""Who may keep images on hosts: admins; readers see the pins of their project."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

CREATE = 'image_precache:pins:create'
LIST = 'image_precache:pins:list'
SHOW = 'image_precache:pins:show'
DELETE = 'image_precache:pins:delete'

_ALL, _ONE = '/v1/pins', '/v1/pins/{pin_id}'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        base.operation(
            CREATE, base.ADMIN, "Keep images cached on an aggregate's hosts", 'POST', _ALL
        ),
        base.operation(LIST, base.PROJECT_READER_OR_ADMIN, 'List the pins', 'GET', _ALL),
        base.operation(SHOW, base.PROJECT_READER_OR_ADMIN, 'Show a pin', 'GET', _ONE),
        base.operation(DELETE, base.ADMIN, 'End a pin', 'DELETE', _ONE),
    )
