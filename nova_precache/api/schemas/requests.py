# SPDX-License-Identifier: Apache-2.0
"""Requests and tasks: the queries of their lists. Each parameter is a list of its values."""

from nova_precache import model


def _once(schema: model.Json) -> model.Json:
    return {'type': 'array', 'items': schema, 'maxItems': 1}


def _strict(properties: model.Json) -> model.Json:
    return {'type': 'object', 'properties': properties, 'additionalProperties': False}


# Up to 18 digits, which fit the integers of every database.
_POSITIVE: model.Json = {'type': 'string', 'pattern': '^0*[1-9][0-9]{0,17}$'}

INDEX = _strict(
    {
        'limit': _once(_POSITIVE),
        'marker': _once({'type': 'string', 'format': 'uuid'}),
        'status': _once(
            {'type': 'string', 'enum': [str(status) for status in model.RequestStatus]}
        ),
    }
)
TASKS = _strict({'limit': _once(_POSITIVE), 'marker': _once(_POSITIVE)})
