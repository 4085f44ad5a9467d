# SPDX-License-Identifier: Apache-2.0
"""Whose requests and pins somebody may see or change: those of the project, or all."""

from nova_precache import exception
from nova_precache.api.request import Request


def authorize(req: Request, rule: str) -> str | None:
    """Apply the rule, and give the project whose things the caller may have; None is all.

    :raises nova_precache.exception.PolicyNotAuthorized: the caller may not
    """
    # Where the rule asks for the caller's own project, an admin has only that, too.
    if req.context.is_admin and req.may(rule):
        return None
    project_id = req.context.project_id
    if project_id is None:
        raise exception.PolicyNotAuthorized(rule)
    req.authorize(rule, {'project_id': project_id})
    return project_id
