# SPDX-License-Identifier: Apache-2.0
"""Pins: the body that creates one, the query of their list, and answers."""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described, nullable
from nova_precache.db import pins

_STATUS: model.Json = {'type': 'string', 'enum': [str(status) for status in model.PinStatus]}
_PIN_ID = described(common.UUID, 'The id of the pin.')
BY_ID = {'id': _PIN_ID}

CREATE = common.only(
    'pin',
    described(
        common.strict(
            {
                'aggregate': common.AGGREGATE,
                'images': common.IMAGES,
                'until': described(
                    nullable(common.TIME),
                    'The time at which it ends, later than now; without one, it stays until '
                    'it is deleted.',
                ),
                'description': nullable(common.DESCRIPTION),
            },
            required=['aggregate', 'images'],
        ),
        'The pin.',
    ),
)
SORT_KEYS = tuple(pins.PINS.keys)
INDEX = common.strict(
    {
        'sort': common.sort(SORT_KEYS),
        'limit': common.LIMIT,
        'marker': common.marker(common.UUID, 'id'),
        'status': common.once(described(_STATUS, 'Only pins in this status.')),
        'aggregate': common.AGGREGATE_FILTER,
    }
)

_PIN = {
    'id': _PIN_ID,
    'status': described(common.STRING, 'The status: ``active`` or ``ended``.'),
    'reason': described(
        nullable(common.STRING), 'Why it ended, or its current problem; else null.'
    ),
    'aggregate': described(common.RECORDED_AGGREGATE, 'The aggregate.'),
    'images': described(common.items(common.UUID), 'The ids of the images.'),
    'images_gone': described(
        {'type': 'object', 'additionalProperties': common.STRING},
        'The images that are no longer available, each with the reason.',
    ),
    'until': described(
        nullable(common.TIME), 'The time at which it ends; null if it stays until it is deleted.'
    ),
    'description': described(nullable(common.STRING), 'The text of the caller; null without one.'),
    **common.OWNER,
    'created_at': described(common.TIME, 'The time of creation.'),
    'checked_at': described(
        nullable(common.TIME), 'When a conductor last checked it; null until then.'
    ),
    'ended_at': described(nullable(common.TIME), 'The time of the end; null until then.'),
}
PIN = described(common.whole(_PIN), 'The pin.')
_COVERAGE = common.whole(
    {
        'wanted': described(
            common.COUNT, 'Files that it keeps cached: hosts of the aggregate times images.'
        ),
        'cached': described(
            nullable(common.COUNT),
            'The number of them that are cached, as reported by the hosts; null with '
            '``[image_cache] compute_backend = nova``, since those hosts report no inventory.',
        ),
    }
)
PIN_WITH_COVERAGE = described(
    common.whole(
        {
            **_PIN,
            'coverage': described(
                _COVERAGE, 'The number of its files, and of those that are cached.'
            ),
        }
    ),
    'The pin.',
)
