# SPDX-License-Identifier: Apache-2.0
"""The API as one table: path → method → operation, with its handler, schemas and errors.

Each path under /v2.1 also exists with a project in it: /v2.1/{project_id}/…. As in Nova,
version documents are served for any method, and a path that names no API is answered with a
choice of the APIs.
"""

import functools

import microversion_parse

from nova_precache import model
from nova_precache.api import microversion, openapi
from nova_precache.api.handlers import (
    aggregates,
    estimate,
    hosts,
    images,
    pins,
    requests,
    services,
    versions,
)
from nova_precache.api.operations import ANY_METHOD, Action, Operation, Table
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import (
    aggregates as aggregate_schemas,
    common,
    hosts as host_schemas,
    pins as pin_schemas,
    requests as request_schemas,
    services as service_schemas,
    versions as version_schemas,
)

_IMAGE_REFUSED = (
    'The body, the query or a header is invalid; an image is listed twice, unknown, not visible '
    'to the caller or not ``active``.'
)
_NO_AGGREGATE = {404: 'There is no such aggregate.'}
_NEW_WORK = {
    400: _IMAGE_REFUSED,
    **_NO_AGGREGATE,
    409: '``[upgrade_levels] compute`` holds computes at a version that cannot cache images.',
    413: (
        'The body is too long; or ``[image_cache] max_images_per_request``, '
        '``max_tasks_per_request`` or ``max_active_requests_per_project`` would be exceeded, '
        'which the message names.'
    ),
}
_NOT_YOURS = {404: 'Nothing has this id, or it belongs to another project.'}
_NO_HOST = {404: 'There is no such host.'}
_NO_INVENTORY = {409: 'With ``[image_cache] compute_backend = nova``, hosts report no inventory.'}
_WRONG_STATE = {409: 'The status of the request does not allow it.'}
_TWO_ZONES = {409: 'The change would put a host into two availability zones.'}

_IMAGE_ID = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
_NEW_REQUEST: model.Json = {
    'request': {
        'aggregate': 'edge',
        'images': [_IMAGE_ID],
        'max_rate_bytes': 50_000_000,
        'canary': 1,
        'max_failures': 3,
        'deadline': '2036-01-01T00:00:00Z',
        'description': 'before the new release',
        'client_request_id': 'release-7',
    }
}
_NEW_PIN: model.Json = {
    'pin': {'aggregate': 'edge', 'images': [_IMAGE_ID], 'until': '2036-01-01T00:00:00Z'}
}

_SHOW_COMPUTE = Operation(
    'showComputeApi',
    'Show the compute API',
    'versions',
    versions.compute,
    answer=version_schemas.SHOW,
    is_public=True,
)
_SHOW_PRECACHE = Operation(
    'showPrecacheApi',
    'Show the pre-caching API',
    'versions',
    versions.precache,
    answer=version_schemas.SHOW,
    is_public=True,
)


def _show_openapi(req: Request) -> Reply:
    return Reply(body={**document(), 'servers': [{'url': req.base_url}]})


VERSION_DOCUMENTS: Table = {
    '/': {
        ANY_METHOD: Operation(
            'listApis',
            'List the APIs',
            'versions',
            versions.index,
            answer=version_schemas.LIST,
            is_public=True,
        )
    },
    '/v2.1': {ANY_METHOD: _SHOW_COMPUTE},
    '/v2.1/': {ANY_METHOD: _SHOW_COMPUTE},
    '/v1': {'GET': _SHOW_PRECACHE, 'HEAD': _SHOW_PRECACHE},
    '/v1/': {'GET': _SHOW_PRECACHE, 'HEAD': _SHOW_PRECACHE},
    '/v1/openapi.json': {
        'GET': Operation(
            'showOpenapi',
            'Show the OpenAPI document',
            'documents',
            _show_openapi,
            answer={'type': 'object', 'required': ['openapi', 'info', 'paths']},
            is_public=True,
        )
    },
}

CHOICES: Table = {
    r'/{path:[\s\S]*}': {
        ANY_METHOD: Operation(
            'listChoices',
            'Find the APIs from any other path',
            'versions',
            versions.choices,
            status=300,
            path=version_schemas.BY_PATH,
            answer=version_schemas.CHOICES,
            is_public=True,
        )
    }
}

_COMPUTE: Table = {
    '/v2.1/': {'GET': _SHOW_COMPUTE},
    '/v2.1/os-aggregates': {
        'GET': Operation(
            'listAggregates',
            'List aggregates',
            'aggregates',
            aggregates.index,
            answer=aggregate_schemas.LISTED,
        ),
        'POST': Operation(
            'createAggregate',
            'Create an aggregate',
            'aggregates',
            aggregates.create,
            body=aggregate_schemas.CREATE,
            answer=aggregate_schemas.CREATED,
            errors={409: 'Another aggregate has this name.'},
        ),
    },
    '/v2.1/os-aggregates/{id}': {
        'GET': Operation(
            'showAggregate',
            'Show an aggregate',
            'aggregates',
            aggregates.show,
            path=aggregate_schemas.BY_ID,
            answer=aggregate_schemas.SHOWN,
            errors=_NO_AGGREGATE,
        ),
        'PUT': Operation(
            'updateAggregate',
            'Update an aggregate',
            'aggregates',
            aggregates.update,
            path=aggregate_schemas.BY_ID,
            body=aggregate_schemas.UPDATE,
            answer=aggregate_schemas.SHOWN,
            errors={
                **_NO_AGGREGATE,
                409: 'Another aggregate has this name, or the change would put a host into two '
                'availability zones.',
            },
        ),
        'DELETE': Operation(
            'deleteAggregate',
            'Delete an aggregate',
            'aggregates',
            aggregates.delete,
            path=aggregate_schemas.BY_ID,
            errors={
                400: 'The aggregate still has hosts, or the id is not an integer.',
                **_NO_AGGREGATE,
            },
        ),
    },
    '/v2.1/os-aggregates/{id}/action': {
        'POST': Operation(
            'actOnAggregate',
            'Change the hosts or the metadata of an aggregate',
            'aggregates',
            actions={
                'add_host': Action(
                    'Add a host',
                    aggregates.add_host,
                    aggregate_schemas.ADD_HOST,
                    {409: 'The host is in the aggregate already, or in another zone.'},
                ),
                'remove_host': Action(
                    'Remove a host', aggregates.remove_host, aggregate_schemas.REMOVE_HOST
                ),
                'set_metadata': Action(
                    'Set metadata',
                    aggregates.set_metadata,
                    aggregate_schemas.SET_METADATA,
                    _TWO_ZONES,
                ),
            },
            path=aggregate_schemas.BY_ID,
            answer=aggregate_schemas.SHOWN,
            errors=_NO_AGGREGATE,
        )
    },
    '/v2.1/os-aggregates/{id}/images': {
        'POST': Operation(
            'cacheImages',
            'Cache images',
            'aggregates',
            images.create,
            status=202,
            path=aggregate_schemas.BY_ID,
            body=aggregate_schemas.CACHE,
            headers=['Location'],
            errors={
                400: f'{_IMAGE_REFUSED[:-1]}; or there are more images than '
                '``[image_cache] max_images_per_request``.',
                404: 'There is no such aggregate, or the microversion is older than 2.81.',
            },
            since=microversion_parse.Version(2, 81),
        )
    },
}
_PRECACHE: Table = {
    '/v1/requests': {
        'POST': Operation(
            'createRequest',
            'Create a request for images on hosts',
            'requests',
            requests.create,
            status=202,
            body=request_schemas.CREATE,
            example=_NEW_REQUEST,
            answer=request_schemas.REQUEST_ANSWER,
            errors=_NEW_WORK,
            headers=['Location'],
            links=dict.fromkeys(
                ('showRequest', 'changeRequest', 'actOnRequest', 'listTasks'), '/request/id'
            ),
        ),
        'GET': Operation(
            'listRequests',
            'List the requests',
            'requests',
            requests.index,
            query=request_schemas.INDEX,
            answer=request_schemas.REQUESTS_ANSWER,
        ),
    },
    '/v1/requests/{id}': {
        'GET': Operation(
            'showRequest',
            'Show a request',
            'requests',
            requests.show,
            path=request_schemas.BY_ID,
            answer=request_schemas.REQUEST_ANSWER,
            errors=_NOT_YOURS,
        ),
        'PATCH': Operation(
            'changeRequest',
            'Change a request that has not ended',
            'requests',
            requests.change,
            path=request_schemas.BY_ID,
            body=request_schemas.CHANGE,
            example={'request': {'priority': 5, 'max_rate_bytes': None}},
            answer=request_schemas.REQUEST_ANSWER,
            errors=_NOT_YOURS | {409: 'The request has ended or is being cancelled.'},
        ),
    },
    '/v1/tasks': {
        'GET': Operation(
            'listAllTasks',
            'List the tasks of all requests',
            'requests',
            requests.all_tasks,
            query=request_schemas.ALL_TASKS,
            answer=request_schemas.TASKS_ANSWER,
        )
    },
    '/v1/requests/{id}/tasks': {
        'GET': Operation(
            'listTasks',
            'List the tasks of a request, in the order of its plan',
            'requests',
            requests.tasks,
            path=request_schemas.BY_ID,
            query=request_schemas.TASKS,
            answer=request_schemas.TASKS_ANSWER,
            errors=_NOT_YOURS,
        )
    },
    '/v1/requests/{id}/action': {
        'POST': Operation(
            'actOnRequest',
            'Cancel, pause, resume or retry a request',
            'requests',
            status=202,
            actions={
                'cancel': Action(
                    'Cancel a request', requests.cancel, request_schemas.CANCEL, _WRONG_STATE
                ),
                'pause': Action(
                    'Pause a request', requests.pause, request_schemas.PAUSE, _WRONG_STATE
                ),
                'resume': Action(
                    'Resume a request', requests.resume, request_schemas.RESUME, _WRONG_STATE
                ),
                'retry': Action(
                    'Retry a request',
                    requests.retry,
                    request_schemas.RETRY,
                    {409: 'The request has not ended, or all of the tasks to retry succeeded.'},
                ),
            },
            path=request_schemas.BY_ID,
            body=request_schemas.ACTION,
            example={'cancel': {'keep_partial': True}},
            answer=request_schemas.REQUEST_ANSWER,
            errors=_NOT_YOURS | _WRONG_STATE,
        )
    },
    '/v1/estimate': {
        'POST': Operation(
            'estimateRequest',
            'Estimate a request without creating it',
            'estimate',
            estimate.create,
            query=request_schemas.ESTIMATE_QUERY,
            body=request_schemas.CREATE,
            example=_NEW_REQUEST,
            answer=request_schemas.ESTIMATE_ANSWER,
            errors=_NEW_WORK,
        )
    },
    '/v1/hosts': {
        'GET': Operation(
            'listHosts',
            'List the hosts',
            'hosts',
            hosts.index,
            query=host_schemas.INDEX,
            answer=common.page('hosts', host_schemas.HOST),
        )
    },
    '/v1/hosts/{host}': {
        'GET': Operation(
            'showHost',
            'Show a host',
            'hosts',
            hosts.show,
            path=host_schemas.BY_HOST,
            answer=common.whole({'host': host_schemas.HOST}),
            errors=_NO_HOST,
        )
    },
    '/v1/hosts/{host}/images': {
        'GET': Operation(
            'listHostImages',
            'List the images in the cache of a host; ids of images are for admins',
            'hosts',
            hosts.images,
            path=host_schemas.BY_HOST,
            query=host_schemas.IMAGES,
            answer=common.page('images', host_schemas.HOST_IMAGE),
            errors=_NO_HOST | _NO_INVENTORY,
        )
    },
    '/v1/hosts/{host}/images/{image_id}': {
        'DELETE': Operation(
            'removeHostImage',
            'Remove an image from the cache of a host, unless it is used or pinned there',
            'hosts',
            hosts.remove,
            path=host_schemas.BY_HOST_IMAGE,
            answer=common.whole({'removal': host_schemas.REMOVAL}),
            errors={
                404: 'There is no such host, or the image id is not a UUID.',
                409: 'The host is not up; its compute or the conductors are too old or held at an '
                'older version by ``[upgrade_levels]``; its disk refuses; or it runs a stock '
                'nova-compute.',
            },
        )
    },
    '/v1/images/{id}/hosts': {
        'GET': Operation(
            'listImageHosts',
            'List the hosts that have an image in their cache',
            'hosts',
            hosts.of_image,
            path=host_schemas.BY_IMAGE,
            query=host_schemas.IMAGE_HOSTS,
            answer=common.page('hosts', host_schemas.IMAGE_HOST),
            errors={404: 'The id is not a UUID, or the image is not visible to the caller.'}
            | _NO_INVENTORY,
        )
    },
    '/v1/services': {
        'GET': Operation(
            'listServices',
            'List the services',
            'services',
            services.index,
            query=service_schemas.INDEX,
            answer=common.page('services', service_schemas.SERVICE),
        )
    },
    '/v1/cells': {
        'GET': Operation(
            'listCells',
            'List the cells',
            'services',
            services.cells,
            query=service_schemas.CELLS,
            answer=service_schemas.CELLS_ANSWER,
        )
    },
    '/v1/pins': {
        'POST': Operation(
            'createPin',
            "Keep images cached on an aggregate's hosts",
            'pins',
            pins.create,
            status=201,
            body=pin_schemas.CREATE,
            example=_NEW_PIN,
            answer=common.whole({'pin': pin_schemas.PIN_WITH_COVERAGE}),
            errors=_NEW_WORK,
            headers=['Location'],
            links={'showPin': '/pin/id', 'deletePin': '/pin/id'},
        ),
        'GET': Operation(
            'listPins',
            'List the pins',
            'pins',
            pins.index,
            query=pin_schemas.INDEX,
            answer=common.page('pins', pin_schemas.PIN),
        ),
    },
    '/v1/pins/{id}': {
        'GET': Operation(
            'showPin',
            'Show a pin',
            'pins',
            pins.show,
            path=pin_schemas.BY_ID,
            answer=common.whole({'pin': pin_schemas.PIN_WITH_COVERAGE}),
            errors=_NOT_YOURS,
        ),
        'DELETE': Operation(
            'deletePin',
            'End a pin',
            'pins',
            pins.delete,
            status=204,
            path=pin_schemas.BY_ID,
            errors=_NOT_YOURS | {409: 'The pin has ended already.'},
        ),
    },
}


def _in_project(path: str) -> str:
    prefix = microversion.COMPUTE.prefix
    return f'{prefix}/{{project_id:[0-9a-f-]+}}{path.removeprefix(prefix)}'


RESOURCES: Table = {
    **_COMPUTE,
    **{_in_project(path): methods for path, methods in _COMPUTE.items()},
    **_PRECACHE,
}


@functools.cache
def document() -> model.Json:
    """Build the OpenAPI document of /v1, without the URL of a server."""
    path = '/v1/openapi.json'
    return openapi.document({**_PRECACHE, path: VERSION_DOCUMENTS[path]})
