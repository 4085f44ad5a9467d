# SPDX-License-Identifier: Apache-2.0
"""Images of an aggregate: the body of the request to cache them."""

from nova_precache import model

CACHE: model.Json = {
    'type': 'object',
    'properties': {
        'cache': {
            'type': 'array',
            'minItems': 1,
            'items': {
                'type': 'object',
                'properties': {'id': {'type': 'string', 'format': 'uuid'}},
                'additionalProperties': False,
                'required': ['id'],
            },
        }
    },
    'required': ['cache'],
    'additionalProperties': False,
}
