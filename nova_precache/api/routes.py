# SPDX-License-Identifier: Apache-2.0
"""The URL table: path → method → handler.

Each path under /v2.1 also exists with a project in it: /v2.1/{project_id}/…. As in Nova,
version documents are served for any method, and a path that names no API is answered with a
choice of the APIs.
"""

from nova_precache.api import dispatch, microversion
from nova_precache.api.handlers import (
    aggregates,
    estimate,
    hosts,
    images,
    openapi,
    pins,
    requests,
    versions,
)

VERSION_DOCUMENTS: dispatch.Table = {
    '/': {dispatch.ANY_METHOD: versions.index},
    '/v2.1': {dispatch.ANY_METHOD: versions.compute},
    '/v2.1/': {dispatch.ANY_METHOD: versions.compute},
    '/v1': {'GET': versions.precache, 'HEAD': versions.precache},
    '/v1/': {'GET': versions.precache, 'HEAD': versions.precache},
    '/v1/openapi.json': {'GET': openapi.show},
}

CHOICES: dispatch.Table = {r'/{path:[\s\S]*}': {dispatch.ANY_METHOD: versions.choices}}

_PROJECT = '/{project_id:[0-9a-f-]+}'
_COMPUTE: dispatch.Table = {
    '/v2.1/': {'GET': versions.compute},
    '/v2.1/os-aggregates': {'GET': aggregates.index, 'POST': aggregates.create},
    '/v2.1/os-aggregates/{id}': {
        'GET': aggregates.show,
        'PUT': aggregates.update,
        'DELETE': aggregates.delete,
    },
    '/v2.1/os-aggregates/{id}/action': {
        'POST': {
            'add_host': aggregates.add_host,
            'remove_host': aggregates.remove_host,
            'set_metadata': aggregates.set_metadata,
        }
    },
    '/v2.1/os-aggregates/{id}/images': {'POST': images.create},
}
_PRECACHE: dispatch.Table = {
    '/v1/requests': {'GET': requests.index, 'POST': requests.create},
    '/v1/requests/{id}': {'GET': requests.show},
    '/v1/requests/{id}/action': {
        'POST': {
            'cancel': requests.cancel,
            'pause': requests.pause,
            'resume': requests.resume,
            'retry': requests.retry,
        }
    },
    '/v1/requests/{id}/tasks': {'GET': requests.tasks},
    '/v1/estimate': {'POST': estimate.create},
    '/v1/hosts': {'GET': hosts.index},
    '/v1/hosts/{host}': {'GET': hosts.show},
    '/v1/hosts/{host}/images': {'GET': hosts.images},
    '/v1/images/{id}/hosts': {'GET': hosts.of_image},
    '/v1/pins': {'GET': pins.index, 'POST': pins.create},
    '/v1/pins/{id}': {'GET': pins.show, 'DELETE': pins.delete},
}


def _in_project(path: str) -> str:
    prefix = microversion.COMPUTE.prefix
    return f'{prefix}{_PROJECT}{path.removeprefix(prefix)}'


RESOURCES: dispatch.Table = {
    **_COMPUTE,
    **{_in_project(path): methods for path, methods in _COMPUTE.items()},
    **_PRECACHE,
}
