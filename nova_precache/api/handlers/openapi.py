# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of /v1, which needs no token."""

from nova_precache.api import operations
from nova_precache.api.call import Call, Reply


def show(call: Call) -> Reply:
    return Reply(body={**operations.document(), 'servers': [{'url': call.base_url}]})
