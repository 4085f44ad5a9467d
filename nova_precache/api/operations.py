# SPDX-License-Identifier: Apache-2.0
"""The operations of /v1, with inputs and answers, from which the OpenAPI document is built."""

import functools
from collections.abc import Mapping

from nova_precache import model
from nova_precache.api import faults, microversion, openapi
from nova_precache.api.openapi import Error, Operation
from nova_precache.api.schemas import common, hosts, pins, requests

_ID = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
_BY_ID = {'id': common.UUID}
_BY_HOST = {'host': common.HOST}

_ASK: model.Json = {
    'request': {
        'aggregate': 'edge',
        'images': [_ID],
        'max_rate_bytes': 50_000_000,
        'canary': 1,
        'max_failures': 3,
        'deadline': '2036-01-01T00:00:00Z',
        'description': 'before the new release',
        'client_request_id': 'release-7',
    }
}

_REQUESTS: Mapping[tuple[str, str], Operation] = {
    ('POST', '/v1/requests'): Operation(
        'createRequest',
        'Ask for images on hosts',
        'requests',
        status=202,
        body=requests.CREATE,
        example=_ASK,
        answer=requests.REQUEST_ANSWER,
        errors=[404, 409, 413],
        headers=['Location'],
        links=dict.fromkeys(('showRequest', 'actOnRequest', 'listTasks'), '/request/id'),
    ),
    ('GET', '/v1/requests'): Operation(
        'listRequests',
        'List the requests',
        'requests',
        query=requests.INDEX,
        answer=requests.REQUESTS_ANSWER,
    ),
    ('GET', '/v1/requests/{id}'): Operation(
        'showRequest',
        'Show a request',
        'requests',
        path=_BY_ID,
        answer=requests.REQUEST_ANSWER,
        errors=[404],
    ),
    ('GET', '/v1/requests/{id}/tasks'): Operation(
        'listTasks',
        'List the tasks of a request, in the order of its plan',
        'requests',
        path=_BY_ID,
        query=requests.TASKS,
        answer=requests.TASKS_ANSWER,
        errors=[404],
    ),
    ('POST', '/v1/requests/{id}/action'): Operation(
        'actOnRequest',
        'Cancel, pause, resume or retry a request',
        'requests',
        status=202,
        path=_BY_ID,
        body=requests.ACTION,
        example={'cancel': {'keep_partial': True}},
        answer=requests.REQUEST_ANSWER,
        errors=[404, 409, 413],
    ),
    ('POST', '/v1/estimate'): Operation(
        'estimateRequest',
        'Estimate a request without making it',
        'estimate',
        query=requests.ESTIMATE_QUERY,
        body=requests.CREATE,
        example=_ASK,
        answer=requests.ESTIMATE_ANSWER,
        errors=[404, 409, 413],
    ),
}

_HOSTS: Mapping[tuple[str, str], Operation] = {
    ('GET', '/v1/hosts'): Operation(
        'listHosts',
        'List the hosts',
        'hosts',
        query=hosts.INDEX,
        answer=common.page('hosts', hosts.HOST),
    ),
    ('GET', '/v1/hosts/{host}'): Operation(
        'showHost',
        'Show a host',
        'hosts',
        path=_BY_HOST,
        answer=common.whole({'host': hosts.HOST}),
        errors=[404],
    ),
    ('GET', '/v1/hosts/{host}/images'): Operation(
        'listHostImages',
        'List the images in the cache of a host; ids of images are for admins',
        'hosts',
        path=_BY_HOST,
        query=hosts.IMAGES,
        answer=common.page('images', hosts.HOST_IMAGE),
        errors=[404, 409],
    ),
    ('GET', '/v1/images/{id}/hosts'): Operation(
        'listImageHosts',
        'List the hosts that have an image in their cache',
        'hosts',
        path=_BY_ID,
        query=hosts.IMAGE_HOSTS,
        answer=common.page('hosts', hosts.IMAGE_HOST),
        errors=[404, 409],
    ),
}

_PINS: Mapping[tuple[str, str], Operation] = {
    ('POST', '/v1/pins'): Operation(
        'createPin',
        "Keep images cached on an aggregate's hosts",
        'pins',
        status=201,
        body=pins.CREATE,
        example={'pin': {'aggregate': 'edge', 'images': [_ID], 'until': '2036-01-01T00:00:00Z'}},
        answer=common.whole({'pin': pins.PIN_WITH_COVERAGE}),
        errors=[404, 409, 413],
        headers=['Location'],
        links={'showPin': '/pin/id', 'deletePin': '/pin/id'},
    ),
    ('GET', '/v1/pins'): Operation(
        'listPins',
        'List the pins',
        'pins',
        query=pins.INDEX,
        answer=common.page('pins', pins.PIN),
    ),
    ('GET', '/v1/pins/{id}'): Operation(
        'showPin',
        'Show a pin',
        'pins',
        path=_BY_ID,
        answer=common.whole({'pin': pins.PIN_WITH_COVERAGE}),
        errors=[404],
    ),
    ('DELETE', '/v1/pins/{id}'): Operation(
        'deletePin', 'End a pin', 'pins', status=204, path=_BY_ID, errors=[404, 409]
    ),
}

_DOCUMENTS: Mapping[tuple[str, str], Operation] = {
    ('GET', '/v1/openapi.json'): Operation(
        'showOpenapi',
        'Show this document',
        'documents',
        answer={'type': 'object', 'required': ['openapi', 'info', 'paths']},
        is_public=True,
    ),
}

_ERRORS = (
    Error(400, faults.BAD_REQUEST.title, 'The body, the query or a header is not as it must be.'),
    Error(401, None, 'There is no token, or none that is good.'),
    Error(403, faults.FORBIDDEN.title, 'The policy does not allow it.'),
    Error(404, faults.NOT_FOUND.title, 'There is nothing of this id, or it is not yours.'),
    Error(406, faults.NOT_ACCEPTABLE.title, 'The microversion is not served.'),
    Error(409, faults.CONFLICT.title, 'It is not in the state for that.'),
    Error(413, faults.OVER_LIMIT.title, 'A configured limit would be exceeded.'),
    Error(415, faults.BAD_MEDIA_TYPE.title, 'The body is of a type that is not read.'),
    Error(503, None, 'Keystone or the image service does not answer.', ['Retry-After']),
)


@functools.cache
def document() -> model.Json:
    """Build the OpenAPI document of /v1, without the URL of a server."""
    return openapi.document(
        openapi.Api(
            title='nova-precache',
            description='Images are on the compute hosts before they are booted from.',
            version=str(microversion.PRECACHE.maximum),
            operations={**_REQUESTS, **_HOSTS, **_PINS, **_DOCUMENTS},
            schemas={
                'Request': requests.REQUEST,
                'NewRequest': requests.CREATE,
                'Action': requests.ACTION,
                'Task': requests.TASK,
                'Estimate': requests.ESTIMATE,
                'EstimatedHost': requests.ESTIMATED_HOST,
                'Host': hosts.HOST,
                'HostImage': hosts.HOST_IMAGE,
                'ImageHost': hosts.IMAGE_HOST,
                'NewPin': pins.CREATE,
                'Pin': pins.PIN,
                'PinWithCoverage': pins.PIN_WITH_COVERAGE,
                'Links': common.LINKS,
            },
            errors=_ERRORS,
            common_errors=[400, 401, 403, 406, 415, 503],
            parameters=_PARAMETERS,
            headers=_HEADERS,
            version_parameter=_VERSION,
            security={
                'token': {
                    'type': 'apiKey',
                    'in': 'header',
                    'name': 'X-Auth-Token',
                    'description': 'A token of Keystone, for a project.',
                }
            },
        )
    )


_PARAMETERS: Mapping[str, model.Json] = {
    'id': {'description': 'The id, a UUID.'},
    'host': {'description': 'The name of the host.'},
    'limit': {
        'description': 'Most items to give; never more than [api] max_limit.',
        'example': '10',
    },
    'marker': {'description': 'The item after which to begin: the last one of a page.'},
    'status': {'description': 'Only what is in this status.'},
    'cell': {'description': 'Only hosts of this cell, by its UUID.'},
    'aggregate': {
        'description': (
            'Only of this aggregate: its id, UUID or name. Who may not list aggregates is given '
            'what his own requests and pins say of it, and else an empty list.'
        )
    },
    'image': {'description': 'Only of this image.'},
    'pin': {'description': 'Only requests that this pin made.'},
    'since': {'description': 'Only what was made at this time or later.'},
    'sort_key': {'description': 'What to sort by.'},
    'sort_dir': {'description': 'Which way to sort.'},
}
_HEADERS: Mapping[str, model.Json] = {
    openapi.VERSION_HEADER: {
        'description': 'The microversion of the answer.',
        'required': True,
        'schema': common.STRING,
        'example': f'{microversion.PRECACHE.service_type} {microversion.PRECACHE.maximum}',
    },
    'x-openstack-request-id': {
        'description': 'The id of the call, which the log of the service has, too.',
        'required': True,
        'schema': common.STRING,
    },
    'Location': {
        'description': 'Where it is shown.',
        'required': True,
        'schema': {'type': 'string', 'format': 'uri'},
    },
    'Retry-After': {
        'description': 'After how many seconds to ask again, where that is known.',
        'schema': {'type': 'integer'},
    },
}
_VERSION: model.Json = {
    'name': openapi.VERSION_HEADER,
    'in': 'header',
    'description': (
        'The microversion that is asked for, after the type of the service; '
        f'{microversion.PRECACHE.minimum} where none is. "latest" is the newest.'
    ),
    'schema': common.STRING,
    'example': f'{microversion.PRECACHE.service_type} {microversion.PRECACHE.maximum}',
}
