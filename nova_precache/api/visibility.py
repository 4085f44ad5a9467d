# SPDX-License-Identifier: Apache-2.0
"""Decides whose requests and pins a caller may see or change: those of the project, or all."""

from nova_precache import exception
from nova_precache.api import paging
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


def project(req: Request, rule: str) -> str | None:
    """Check the rule of a list, and return the project to list; None means all.

    :raises nova_precache.exception.PolicyNotAuthorized: the caller may not, or the query names a
        project that the caller is not confined to
    """
    confined, asked = authorize(req, rule), paging.first(req, 'project_id')
    if confined is not None and asked not in (None, confined):
        raise exception.PolicyNotAuthorized(rule)
    return confined if asked is None else asked
