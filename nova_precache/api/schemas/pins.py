# SPDX-License-Identifier: Apache-2.0
"""Pins: the body that creates one, the query of their list, and answers."""

from nova_precache import model
from nova_precache.api.schemas import common

_STATUS = {'type': 'string', 'enum': [str(status) for status in model.PinStatus]}

CREATE = common.only(
    'pin',
    common.strict(
        {
            'aggregate': common.AGGREGATE,
            'images': common.IMAGES,
            'until': common.nullable(common.TIME),
            'description': common.nullable(common.DESCRIPTION),
        },
        required=['aggregate', 'images'],
    ),
)
INDEX = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.once(common.UUID),
        'status': common.once(_STATUS),
        'aggregate': common.once(common.AGGREGATE_TEXT),
    }
)

_PIN = {
    'id': common.UUID,
    'status': common.STRING,
    'reason': common.nullable(common.STRING),
    'aggregate': common.whole(
        {'id': {'type': 'integer'}, 'uuid': common.STRING, 'name': common.STRING}
    ),
    'images': common.items(common.UUID),
    'images_gone': {'type': 'object', 'additionalProperties': common.STRING},
    'until': common.nullable(common.TIME),
    'description': common.nullable(common.STRING),
    'project_id': common.nullable(common.STRING),
    'user_id': common.nullable(common.STRING),
    'created_at': common.TIME,
    'checked_at': common.nullable(common.TIME),
    'ended_at': common.nullable(common.TIME),
}
PIN = common.whole(_PIN)
_COVERAGE = common.whole({'wanted': common.COUNT, 'cached': common.nullable(common.COUNT)})
PIN_WITH_COVERAGE = common.whole({**_PIN, 'coverage': _COVERAGE})
