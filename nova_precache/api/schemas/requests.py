# SPDX-License-Identifier: Apache-2.0
"""Requests, tasks and the estimate: bodies, queries and answers.

A null field in a body counts as absent. Query parameters are lists of their values.
"""

from nova_precache import model
from nova_precache.api.schemas import common


def _least(least: int, most: int = 2**31 - 1) -> model.Json:
    return common.nullable({'type': 'integer', 'minimum': least, 'maximum': most})


def _either(statuses: type[model.RequestStatus | model.TaskStatus]) -> model.Json:
    return common.once({'type': 'string', 'enum': [str(status) for status in statuses]})


_NAME: model.Json = {'type': 'string', 'minLength': 1, 'maxLength': 255, 'format': 'text'}
_WINDOW: model.Json = {
    'not_before': common.nullable(common.TIME),
    'deadline': common.nullable(common.TIME),
}

# The body of a request: one of ``aggregate`` and ``hosts``, the images, and the options.
CREATE = common.only(
    'request',
    common.strict(
        {
            'aggregate': common.nullable(common.AGGREGATE),
            'hosts': common.nullable(
                {'type': 'array', 'items': common.HOST, 'minItems': 1, 'uniqueItems': True}
            ),
            'images': common.IMAGES,
            'priority': common.nullable({'type': 'integer', 'minimum': -1000, 'maximum': 1000}),
            'max_parallel_hosts': _least(1),
            'max_rate_bytes': _least(1, 2**63 - 1),
            **_WINDOW,
            'wait_for_down_hosts': common.nullable(common.BOOLEAN),
            'canary': _least(1),
            'max_failures': _least(0),
            'description': common.nullable(common.DESCRIPTION),
            'client_request_id': common.nullable(_NAME),
        },
        required=['images'],
    ),
)

CANCEL = common.only(
    'cancel', common.nullable(common.strict({'keep_partial': common.nullable(common.BOOLEAN)}))
)
PAUSE = common.only('pause', {'type': 'null'})
RESUME = common.only('resume', {'type': 'null'})
RETRY = common.only('retry', common.nullable(common.strict(_WINDOW)))
ACTION: model.Json = {'oneOf': [CANCEL, PAUSE, RESUME, RETRY]}

SORT_KEYS = ('created_at', 'finished_at', 'priority', 'status')

INDEX = common.strict(
    {
        'status': _either(model.RequestStatus),
        'aggregate': common.once(_NAME),
        'image': common.once(common.UUID),
        'since': common.once(common.TIME),
        'pin': common.once(common.UUID),
        'sort_key': common.once({'type': 'string', 'enum': list(SORT_KEYS)}),
        'sort_dir': common.once({'type': 'string', 'enum': ['asc', 'desc']}),
        'limit': common.LIMIT,
        'marker': common.once(common.UUID),
    }
)
TASKS = common.strict(
    {
        'status': _either(model.TaskStatus),
        'host': common.once(_NAME),
        'image': common.once(common.UUID),
        'limit': common.LIMIT,
        'marker': common.LIMIT,
    }
)
ESTIMATE_QUERY = common.strict({'limit': common.LIMIT, 'marker': common.once(_NAME)})

_OPTIONAL_STRING = common.nullable(common.STRING)
_OPTIONAL_TIME = common.nullable(common.TIME)
_OPTIONAL_COUNT = common.nullable(common.COUNT)

REQUEST = common.whole(
    {
        'id': common.UUID,
        'status': common.STRING,
        'reason': _OPTIONAL_STRING,
        'aggregate': common.nullable(
            common.whole({'id': common.COUNT, 'uuid': common.UUID, 'name': common.STRING})
        ),
        'hosts': common.nullable(common.items(common.STRING)),
        'images': common.items(common.UUID),
        'priority': {'type': 'integer'},
        'options': common.whole(
            {
                'max_parallel_hosts': _OPTIONAL_COUNT,
                'max_rate_bytes': _OPTIONAL_COUNT,
                'not_before': _OPTIONAL_TIME,
                'deadline': _OPTIONAL_TIME,
                'wait_for_down_hosts': common.BOOLEAN,
                'canary': _OPTIONAL_COUNT,
                'max_failures': _OPTIONAL_COUNT,
            }
        ),
        'description': _OPTIONAL_STRING,
        'client_request_id': _OPTIONAL_STRING,
        'pin_id': common.nullable(common.UUID),
        'project_id': _OPTIONAL_STRING,
        'user_id': _OPTIONAL_STRING,
        'request_id': _OPTIONAL_STRING,
        'created_at': common.TIME,
        'planned_at': _OPTIONAL_TIME,
        'started_at': _OPTIONAL_TIME,
        'finished_at': _OPTIONAL_TIME,
        'hosts_total': common.COUNT,
        'hosts_done': common.COUNT,
        'counts': {'type': 'object', 'additionalProperties': common.COUNT},
        'bytes_done': common.COUNT,
        'bytes_total': common.COUNT,
        'rate_bytes': common.COUNT,
        'eta_seconds': _OPTIONAL_COUNT,
    }
)
TASK = common.whole(
    {
        'id': common.COUNT,
        'host': common.STRING,
        'cell': common.nullable(common.UUID),
        'image_id': common.UUID,
        'status': common.STRING,
        'reason': _OPTIONAL_STRING,
        'attempts': common.COUNT,
        'bytes_done': common.COUNT,
        'bytes_total': _OPTIONAL_COUNT,
        'rate_bytes': _OPTIONAL_COUNT,
        'eta_seconds': _OPTIONAL_COUNT,
        'next_attempt_at': _OPTIONAL_TIME,
        'created_at': common.TIME,
        'started_at': _OPTIONAL_TIME,
        'finished_at': _OPTIONAL_TIME,
    }
)
REQUEST_ANSWER = common.only('request', REQUEST)
REQUESTS_ANSWER = common.page('requests', REQUEST)
TASKS_ANSWER = common.page('tasks', TASK)

ESTIMATED_HOST = common.whole(
    {
        'host': common.STRING,
        'cell': common.nullable(common.UUID),
        'status': {'type': 'string', 'enum': ['up', 'down', 'unmapped']},
        'reason': _OPTIONAL_STRING,
        'images': common.items(
            common.whole(
                {
                    'image_id': common.UUID,
                    'state': {'type': 'string', 'enum': ['cached', 'missing', 'unknown']},
                    'bytes_to_move': common.COUNT,
                    'space_needed_bytes': common.COUNT,
                }
            )
        ),
        'bytes_to_move': common.COUNT,
        'space_needed_bytes': common.COUNT,
        'free_bytes': _OPTIONAL_COUNT,
        'fits': common.nullable(common.BOOLEAN),
        'rate_bytes': _OPTIONAL_COUNT,
        'seconds': _OPTIONAL_COUNT,
    }
)
ESTIMATE = common.whole(
    {
        'hosts': common.items(ESTIMATED_HOST),
        'totals': common.whole(
            {
                'hosts': common.COUNT,
                'hosts_down': common.COUNT,
                'tasks': common.COUNT,
                'tasks_cached': common.COUNT,
                'bytes_to_move': common.COUNT,
                'space_needed_bytes': common.COUNT,
                'parallel_hosts': common.COUNT,
                'seconds': _OPTIONAL_COUNT,
            }
        ),
        'glance': common.whole(
            {
                'bytes': common.COUNT,
                'parallel_downloads': common.COUNT,
                'rate_bytes': _OPTIONAL_COUNT,
            }
        ),
    }
)
ESTIMATE_ANSWER = common.strict(
    {'estimate': ESTIMATE, 'hosts_links': common.LINKS}, required=['estimate']
)
