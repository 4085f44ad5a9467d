# SPDX-License-Identifier: Apache-2.0
"""The documented policy rules, one module a resource."""

import itertools
from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import aggregates, base, requests


def list_rules() -> Sequence[policy.RuleDefault]:
    """Give every rule; also the entry point of oslo.policy's sample generator."""
    return tuple(itertools.chain(base.list_rules(), aggregates.list_rules(), requests.list_rules()))
