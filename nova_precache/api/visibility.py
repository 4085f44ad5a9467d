# SPDX-License-Identifier: Apache-2.0
"""Decides whose requests and pins a caller may see or change: those of the project, or all."""

from nova_precache import exception
from nova_precache.api.request import Request


def authorize(req: Request, rule: str) -> str | None:
    """Check the rule, and return the project that the caller is confined to; None means all.

    :raises nova_precache.exception.PolicyNotAuthorized: the caller may not
    """
    # If the rule requires the caller's own project, it confines an admin, too.
    if req.context.is_admin and req.may(rule):
        return None
    project_id = req.context.project_id
    if project_id is None:
        raise exception.PolicyNotAuthorized(rule)
    req.authorize(rule, {'project_id': project_id})
    return project_id
