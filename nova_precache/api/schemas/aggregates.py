# SPDX-License-Identifier: Apache-2.0
"""Aggregates: the bodies of create, update and the actions, and the answers.

The order of keywords decides which of two errors is reported.
"""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described, nullable


def _name(kind: str) -> model.Json:
    return {'type': 'string', 'format': kind, 'minLength': 1, 'maxLength': 255}


_ZONE: model.Json = {
    'oneOf': [_name('az_name'), {'type': 'null'}],
    'description': 'The availability zone of its hosts; null for none.',
}
_HOST: model.Json = {
    'type': 'string',
    'pattern': '^[a-zA-Z0-9-._]*$',
    'minLength': 1,
    'maxLength': 255,
    'description': 'The name of the host.',
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
    'description': 'Keys and values; null as a value removes its key.',
}
_ID = described({'type': 'integer'}, 'The id of the aggregate.')
BY_ID = {'id': _ID}

CREATE = common.only(
    'aggregate',
    described(
        common.strict(
            {
                'name': described(_name('name'), 'A name that no other aggregate has.'),
                'availability_zone': _ZONE,
            },
            required=['name'],
        ),
        'The aggregate.',
    ),
)
UPDATE = common.only(
    'aggregate',
    {
        **common.strict(
            {
                'name': described(
                    _name('name_with_leading_trailing_spaces'),
                    'A name that no other aggregate has.',
                ),
                'availability_zone': _ZONE,
            }
        ),
        'anyOf': [{'required': ['name']}, {'required': ['availability_zone']}],
        'description': 'The fields to change; at least one.',
    },
)
ADD_HOST = common.only('add_host', described(common.only('host', _HOST), 'The action.'))
REMOVE_HOST = common.only('remove_host', described(common.only('host', _HOST), 'The action.'))
SET_METADATA = common.only(
    'set_metadata', described(common.only('metadata', _METADATA), 'The action.')
)
CACHE: model.Json = common.only(
    'cache',
    {
        'type': 'array',
        'minItems': 1,
        'items': {
            'type': 'object',
            'properties': {'id': described(common.UUID, 'The id of the image.')},
            'additionalProperties': False,
            'required': ['id'],
        },
        'description': 'The images, without duplicates.',
    },
)

_BEFORE_HOSTS: model.Json = {
    'id': _ID,
    'name': described(common.STRING, 'The name.'),
    'availability_zone': described(
        nullable(common.STRING), 'The availability zone of its hosts; null for none.'
    ),
}
_HOSTS: model.Json = {
    'hosts': described(common.items(common.STRING), 'The names of its hosts.'),
    'metadata': described(
        {'type': 'object', 'additionalProperties': common.STRING},
        'Keys and values, the availability zone among them.',
    ),
}
_AFTER_HOSTS: model.Json = {
    'created_at': described(common.STRING, 'The time of creation, in UTC, without a zone.'),
    'updated_at': described(
        nullable(common.STRING),
        'The time of the last change, in UTC, without a zone; null if never.',
    ),
    'deleted': described(common.BOOLEAN, 'Always false.'),
    'deleted_at': described({'type': 'null'}, 'Always null.'),
}
_UUID: model.Json = {
    'uuid': described(common.UUID, 'The UUID of the aggregate, since microversion 2.41.')
}


def _answer(properties: model.Json) -> model.Json:
    aggregate = common.strict({**properties, **_UUID}, required=list(properties))
    return described(aggregate, 'The aggregate.')


_AGGREGATE = _answer({**_BEFORE_HOSTS, **_HOSTS, **_AFTER_HOSTS})
CREATED = common.only('aggregate', _answer({**_BEFORE_HOSTS, **_AFTER_HOSTS}))
SHOWN = common.only('aggregate', _AGGREGATE)
LISTED = common.only('aggregates', described(common.items(_AGGREGATE), 'The aggregates, by id.'))
