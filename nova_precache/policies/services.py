# SPDX-License-Identifier: Apache-2.0
"""Who may see the services and the cells of the deployment: admins."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

LIST = 'image_precache:services:list'
LIST_CELLS = 'image_precache:cells:list'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        _rule(LIST, 'List the conductors, the APIs and the computes', '/v1/services'),
        _rule(LIST_CELLS, 'List the cells, with the numbers of their hosts', '/v1/cells'),
    )


def _rule(name: str, description: str, path: str) -> policy.RuleDefault:
    return base.operation(name, base.ADMIN, description, 'GET', path)
