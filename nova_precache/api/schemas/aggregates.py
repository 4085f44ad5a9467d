# SPDX-License-Identifier: Apache-2.0
"""Aggregates: the bodies of create, update and the actions.

The order of keywords decides which of two errors is reported.
"""

from nova_precache import model


def _name(kind: str) -> model.Json:
    return {'type': 'string', 'format': kind, 'minLength': 1, 'maxLength': 255}


def _strict(properties: model.Json, **more: object) -> model.Json:
    return {
        'type': 'object',
        'properties': properties,
        **more,
        'additionalProperties': False,
    }


def _only(key: str, content: model.Json) -> model.Json:
    return _strict({key: content}, required=[key])


_ZONE: model.Json = {'oneOf': [_name('az_name'), {'type': 'null'}]}
_HOST: model.Json = {
    'type': 'string',
    'pattern': '^[a-zA-Z0-9-._]*$',
    'minLength': 1,
    'maxLength': 255,
}
_METADATA: model.Json = {
    'type': 'object',
    'patternProperties': {
        '^[a-zA-Z0-9-_:. ]{1,255}$': {
            'type': ['string', 'null'],
            'maxLength': 255,
            'format': 'text',
        }
    },
    'additionalProperties': False,
}

CREATE = _only(
    'aggregate',
    _strict({'name': _name('name'), 'availability_zone': _ZONE}, required=['name']),
)
UPDATE = _only(
    'aggregate',
    {
        **_strict(
            {
                'name': _name('name_with_leading_trailing_spaces'),
                'availability_zone': _ZONE,
            }
        ),
        'anyOf': [{'required': ['name']}, {'required': ['availability_zone']}],
    },
)
ADD_HOST = _only('add_host', _only('host', _HOST))
REMOVE_HOST = _only('remove_host', _only('host', _HOST))
SET_METADATA = _only('set_metadata', _only('metadata', _METADATA))
