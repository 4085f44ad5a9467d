# SPDX-License-Identifier: Apache-2.0
"""Who may estimate a request; the answer describes all of its hosts."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

ESTIMATE = 'image_precache:estimate'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        base.operation(
            ESTIMATE, base.ADMIN, 'Estimate a request without creating it', 'POST', '/v1/estimate'
        ),
    )
