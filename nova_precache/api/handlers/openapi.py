# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of /v1, which needs no token."""

from nova_precache.api import operations
from nova_precache.api.request import Reply, Request


def show(req: Request) -> Reply:
    return Reply(body={**operations.document(), 'servers': [{'url': req.base_url}]})
