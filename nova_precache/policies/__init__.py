# SPDX-License-Identifier: Apache-2.0
"""The documented policy rules, one module a resource."""

import itertools
from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import aggregates, base, estimate, hosts, pins, requests, services


def list_rules() -> Sequence[policy.RuleDefault]:
    """List every rule; also the entry point of oslo.policy's sample generator."""
    modules = (base, aggregates, requests, estimate, hosts, pins, services)
    return tuple(itertools.chain.from_iterable(module.list_rules() for module in modules))
