# SPDX-License-Identifier: Apache-2.0
"""Requests, tasks and the estimate: bodies, queries and answers.

A null field in a body counts as absent. Query parameters are lists of their values.
"""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described, nullable
from nova_precache.db.request import queries

_REQUEST_ID = described(common.UUID, 'The id of the request.')
BY_ID = {'id': _REQUEST_ID}


def _least(least: int, description: str, most: int = 2**31 - 1) -> model.Json:
    return described(nullable({'type': 'integer', 'minimum': least, 'maximum': most}), description)


_PRIORITY: model.Json = {'type': 'integer', 'minimum': -1000, 'maximum': 1000}


def _either(statuses: type[model.RequestStatus | model.TaskStatus], description: str) -> model.Json:
    enum = [str(status) for status in statuses]
    return common.once(described({'type': 'string', 'enum': enum}, description))


_HOSTS: model.Json = {
    'type': 'array',
    'items': common.HOST,
    'minItems': 1,
    'uniqueItems': True,
}
_NOT_BEFORE = described(nullable(common.TIME), 'The time before which no task starts.')
_WINDOW: model.Json = {
    'not_before': _NOT_BEFORE,
    'deadline': described(
        nullable(common.TIME),
        'The time, later than now, at which unfinished tasks end ``expired``; partial downloads '
        'are kept.',
    ),
}

# The body of a request: one of ``aggregate`` and ``hosts``, the images, and the options.
CREATE = common.only(
    'request',
    described(
        common.strict(
            {
                'aggregate': described(
                    nullable(common.AGGREGATE),
                    'The id, UUID or name of the aggregate. Either this or ``hosts``.',
                ),
                'hosts': described(
                    nullable(_HOSTS),
                    'The names of the hosts, each mapped to a cell. Either this or ``aggregate``.',
                ),
                'images': common.IMAGES,
                'priority': described(
                    nullable(_PRIORITY),
                    'Requests with a higher priority are served first; 0 by default.',
                ),
                'max_parallel_hosts': _least(
                    1,
                    'The number of hosts that download at a time, within '
                    '``[image_cache] precache_concurrency``.',
                ),
                'max_rate_bytes': _least(1, 'Bytes per second on each host.', 2**63 - 1),
                **_WINDOW,
                'wait_for_down_hosts': described(
                    nullable(common.BOOLEAN),
                    'Whether to wait for hosts that are down until the deadline, which is '
                    'required then.',
                ),
                'canary': _least(
                    1,
                    'The number of hosts, the first in the plan, that must succeed before '
                    'the others start. If one of them fails, the tasks of the others are '
                    'cancelled.',
                ),
                'max_failures': _least(
                    0, 'If more tasks fail, those that have not started are cancelled.'
                ),
                'description': nullable(common.DESCRIPTION),
                'client_request_id': described(
                    nullable(common.NAME),
                    'An id that the client chooses, unique among the requests of the project.',
                ),
            },
            required=['images'],
        ),
        'The request.',
    ),
)

# Here, null removes a limit.
CHANGE = common.only(
    'request',
    described(
        common.strict(
            {
                'priority': described(
                    _PRIORITY, 'Requests with a higher priority are served first.'
                ),
                'max_rate_bytes': _least(
                    1,
                    'Bytes per second on each host, also of running transfers; null for no limit.',
                    2**63 - 1,
                ),
                'max_parallel_hosts': _least(
                    1,
                    'The number of hosts that download at a time; null for the configured '
                    'limit. Hosts that download continue.',
                ),
                'deadline': described(
                    nullable(common.TIME),
                    'The time, later than now, at which unfinished tasks end ``expired``; null '
                    'for never, unless the request waits for hosts that are down.',
                ),
            },
            minProperties=1,
        ),
        'The fields to change; others stay.',
    ),
)
CANCEL = common.only(
    'cancel',
    described(
        nullable(
            common.strict(
                {
                    'keep_partial': described(
                        nullable(common.BOOLEAN),
                        'Whether to keep partial downloads on the hosts for another request; '
                        'false by default.',
                    )
                }
            )
        ),
        'The action; null is the same as an empty object.',
    ),
)
PAUSE = common.only('pause', described({'type': 'null'}, 'The action.'))
RESUME = common.only('resume', described({'type': 'null'}, 'The action.'))
RETRY = common.only(
    'retry',
    described(
        nullable(
            common.strict(
                {
                    'not_before': _NOT_BEFORE,
                    'deadline': described(
                        nullable(common.TIME),
                        'A new deadline; without one, the old one stays unless it has passed.',
                    ),
                    'hosts': described(
                        nullable(_HOSTS),
                        'Only the tasks of these hosts; without them, those of all hosts.',
                    ),
                }
            )
        ),
        'The action; null is the same as an empty object.',
    ),
)
ACTION: model.Json = {'oneOf': [CANCEL, PAUSE, RESUME, RETRY]}

SORT_KEYS = tuple(queries.REQUESTS.keys)

INDEX = common.strict(
    {
        'status': _either(model.RequestStatus, 'Only requests in this status.'),
        'aggregate': common.AGGREGATE_FILTER,
        'image': common.once(described(common.UUID, 'Only requests for this image.')),
        'since': common.once(
            described(common.TIME, 'Only requests created at this time or later.')
        ),
        'pin': common.once(described(common.UUID, 'Only requests that this pin created.')),
        'sort_key': common.once(
            described(
                {'type': 'string', 'enum': list(SORT_KEYS)},
                'The field to sort by; ``created_at`` by default.',
            )
        ),
        'sort_dir': common.once(
            described(
                {'type': 'string', 'enum': ['asc', 'desc']},
                'The direction of sorting; ``desc`` by default.',
            )
        ),
        'sort': common.sort(SORT_KEYS),
        'project_id': common.PROJECT_FILTER,
        'limit': common.LIMIT,
        'marker': common.marker(common.UUID, 'id'),
    }
)
SORT_TASKS = tuple(queries.TASKS.keys)
_TASKS: model.Json = {
    'status': _either(model.TaskStatus, 'Only tasks in this status.'),
    'host': common.once(described(common.NAME, 'Only tasks of this host.')),
    'image': common.once(described(common.UUID, 'Only tasks of this image.')),
    'sort': common.sort(SORT_TASKS),
    'limit': common.LIMIT,
    'marker': common.marker(common.POSITIVE, 'id'),
}
TASKS = common.strict(_TASKS)
ALL_TASKS = common.strict(
    {
        **_TASKS,
        'request': common.once(described(common.UUID, 'Only tasks of this request.')),
        'project_id': common.PROJECT_FILTER,
    }
)
ESTIMATE_QUERY = common.strict(
    {'limit': common.LIMIT, 'marker': common.marker(common.NAME, 'host')}
)

_OPTIONAL_STRING = nullable(common.STRING)
_OPTIONAL_TIME = nullable(common.TIME)
_OPTIONAL_COUNT = nullable(common.COUNT)
_CREATED_AT = described(common.TIME, 'The time of creation.')
_STARTED_AT = described(_OPTIONAL_TIME, 'The time of the first download; null until then.')
_FINISHED_AT = described(_OPTIONAL_TIME, 'The time of the end; null until then.')
_BYTES_DONE = described(common.COUNT, 'Bytes downloaded so far.')
_ETA_SECONDS = described(
    _OPTIONAL_COUNT,
    'Seconds until all bytes are downloaded, at the current rate; null without a transfer.',
)
_IMAGE_ID = described(common.UUID, 'The id of the image.')
_CELL = described(
    nullable(common.UUID), 'The UUID of the cell of the host; null if it is not mapped to one.'
)

_OPTIONS = common.whole(
    {
        'max_parallel_hosts': described(
            _OPTIONAL_COUNT,
            'The number of hosts that download at a time; null for the configured limit.',
        ),
        'max_rate_bytes': described(
            _OPTIONAL_COUNT, 'Bytes per second on each host; null for no limit.'
        ),
        'not_before': described(
            _OPTIONAL_TIME, 'The time before which no task starts; null to start at once.'
        ),
        'deadline': described(
            _OPTIONAL_TIME, 'The time at which unfinished tasks end ``expired``; null for never.'
        ),
        'wait_for_down_hosts': described(
            common.BOOLEAN, 'Whether to wait for hosts that are down.'
        ),
        'canary': described(
            _OPTIONAL_COUNT,
            'The number of hosts that must succeed before the others start; null for none.',
        ),
        'max_failures': described(
            _OPTIONAL_COUNT,
            'If more tasks fail, those that have not started are cancelled; null for never.',
        ),
    }
)
REQUEST = described(
    common.whole(
        {
            'id': _REQUEST_ID,
            'status': described(
                common.STRING,
                'The status: ``accepted``, ``planned``, ``running``, ``completed``, ``partial``, '
                '``failed`` and others.',
            ),
            'reason': described(
                _OPTIONAL_STRING,
                'Until the request has ended, why it does not move now; afterwards, a summary of '
                'its failures. Null if there is none.',
            ),
            'aggregate': described(
                nullable(common.RECORDED_AGGREGATE),
                'The aggregate; null if only hosts were named.',
            ),
            'hosts': described(
                nullable(common.items(common.STRING)),
                'The hosts that were named, or that the pin chose; null for all hosts of the '
                'aggregate.',
            ),
            'images': described(common.items(common.UUID), 'The ids of the images.'),
            'priority': described(
                {'type': 'integer'}, 'Requests with a higher priority are served first.'
            ),
            'options': described(_OPTIONS, 'The options.'),
            'description': described(_OPTIONAL_STRING, 'The text of the caller; null without one.'),
            'client_request_id': described(
                _OPTIONAL_STRING, 'The id that the client chose; null without one.'
            ),
            'pin_id': described(
                nullable(common.UUID), 'The id of the pin that created it; null without one.'
            ),
            **common.OWNER,
            'request_id': described(
                _OPTIONAL_STRING, 'The id of the API request that created it, ``req-…``.'
            ),
            'created_at': _CREATED_AT,
            'planned_at': described(
                _OPTIONAL_TIME, 'The time at which all tasks were planned; null until then.'
            ),
            'started_at': _STARTED_AT,
            'finished_at': _FINISHED_AT,
            'hosts_total': described(common.COUNT, 'The number of hosts in the plan.'),
            'hosts_done': described(
                common.COUNT, 'The number of hosts whose tasks have all ended.'
            ),
            'counts': described(
                {'type': 'object', 'additionalProperties': common.COUNT},
                'The number of tasks in each status.',
            ),
            'bytes_done': _BYTES_DONE,
            'bytes_total': described(common.COUNT, 'Bytes to download, as far as known.'),
            'rate_bytes': described(
                common.COUNT, 'Bytes per second of all running transfers together.'
            ),
            'eta_seconds': _ETA_SECONDS,
        }
    ),
    'The request.',
)
TASK = described(
    common.whole(
        {
            'id': described(common.COUNT, 'The id of the task.'),
            'request_id': _REQUEST_ID,
            'host': common.HOST_NAME,
            'cell': _CELL,
            'cell_name': common.CELL_NAME,
            'image_id': _IMAGE_ID,
            'status': described(
                common.STRING,
                'The status: ``queued``, ``retry_wait``, ``downloading``, ``verifying``, '
                '``converting`` or, at the end, ``cached``, ``existing``, ``unsupported``, '
                '``error``, ``skipped`` and others.',
            ),
            'reason': described(
                _OPTIONAL_STRING,
                'Until the task has ended, why it does not move now; afterwards, the reason for '
                'the status. Null if there is none.',
            ),
            'attempts': described(common.COUNT, 'The number of attempts.'),
            'bytes_done': _BYTES_DONE,
            'bytes_total': described(_OPTIONAL_COUNT, 'Bytes to download; null if unknown.'),
            'rate_bytes': described(
                _OPTIONAL_COUNT,
                'Bytes per second; null without a transfer, 0 if its compute is silent.',
            ),
            'eta_seconds': _ETA_SECONDS,
            'next_attempt_at': described(
                _OPTIONAL_TIME, 'The time of the next attempt, in ``retry_wait``; else null.'
            ),
            'created_at': _CREATED_AT,
            'started_at': _STARTED_AT,
            'finished_at': _FINISHED_AT,
        }
    ),
    'The task.',
)
REQUEST_ANSWER = common.only('request', REQUEST)
REQUESTS_ANSWER = common.page('requests', REQUEST)
TASKS_ANSWER = common.page('tasks', TASK)

_BYTES_TO_MOVE = described(common.COUNT, 'Bytes to download.')
_SPACE_NEEDED_BYTES = described(common.COUNT, 'Bytes of disk needed during the work.')
ESTIMATED_HOST = described(
    common.whole(
        {
            'host': common.HOST_NAME,
            'cell': _CELL,
            'cell_name': common.CELL_NAME,
            'status': described(
                {'type': 'string', 'enum': ['up', 'down', 'unmapped']},
                'Whether the host can be called.',
            ),
            'reason': described(
                _OPTIONAL_STRING,
                'Why the host would do nothing, or which hosts share its cache; else null.',
            ),
            'images': described(
                common.items(
                    common.whole(
                        {
                            'image_id': _IMAGE_ID,
                            'state': described(
                                {'type': 'string', 'enum': ['cached', 'missing', 'unknown']},
                                'Whether the image is on the host; ``unknown`` if the host has '
                                'not reported its cache yet.',
                            ),
                            'bytes_to_move': _BYTES_TO_MOVE,
                            'space_needed_bytes': _SPACE_NEEDED_BYTES,
                        }
                    )
                ),
                'The images on this host.',
            ),
            'bytes_to_move': _BYTES_TO_MOVE,
            'space_needed_bytes': _SPACE_NEEDED_BYTES,
            'free_bytes': common.FREE_BYTES,
            'fits': described(
                nullable(common.BOOLEAN), 'Whether there is enough space; null if unknown.'
            ),
            'rate_bytes': described(
                _OPTIONAL_COUNT,
                'The expected bytes per second, by recent downloads; null if none was measured.',
            ),
            'seconds': described(
                _OPTIONAL_COUNT, 'The time for this host; null if no rate is known.'
            ),
        }
    ),
    'The host.',
)
_TOTALS = common.whole(
    {
        'hosts': described(common.COUNT, 'The number of hosts.'),
        'hosts_down': described(common.COUNT, 'The number of hosts that cannot be called.'),
        'tasks': described(common.COUNT, 'The number of hosts times that of images.'),
        'tasks_cached': described(common.COUNT, 'Tasks whose files are all cached.'),
        'bytes_to_move': _BYTES_TO_MOVE,
        'space_needed_bytes': _SPACE_NEEDED_BYTES,
        'parallel_hosts': described(common.COUNT, 'The number of hosts that download at a time.'),
        'seconds': described(
            _OPTIONAL_COUNT, 'The time for all hosts; null if a rate is not known.'
        ),
    }
)
_GLANCE = common.whole(
    {
        'bytes': described(common.COUNT, 'Bytes that it would send.'),
        'parallel_downloads': described(common.COUNT, 'Downloads at a time.'),
        'rate_bytes': described(
            _OPTIONAL_COUNT, 'Bytes per second of all downloads together; null if unknown.'
        ),
    }
)
ESTIMATE = described(
    common.whole(
        {
            'hosts': described(common.items(ESTIMATED_HOST), 'The hosts of this page.'),
            'totals': described(_TOTALS, 'Totals of all hosts, including those of other pages.'),
            'glance': described(_GLANCE, 'The load on the image service.'),
        }
    ),
    'The estimate.',
)
ESTIMATE_ANSWER = common.strict(
    {'estimate': ESTIMATE, 'hosts_links': common.PAGE_LINKS}, required=['estimate']
)
