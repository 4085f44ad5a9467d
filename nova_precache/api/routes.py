# SPDX-License-Identifier: Apache-2.0
"""The URL table: path → method → handler.

Each path under /v2.1 is there with a project in it, too: /v2.1/{project_id}/…. As in
Nova, documents are given to whatever method asks for them, and who names no API at all
gets a choice of them.
"""

from nova_precache.api import dispatch, microversion
from nova_precache.api.handlers import aggregates, images, requests, versions

VERSION_DOCUMENTS: dispatch.Table = {
    '/': {dispatch.ANY_METHOD: versions.index},
    '/v2.1': {dispatch.ANY_METHOD: versions.compute},
    '/v2.1/': {dispatch.ANY_METHOD: versions.compute},
    '/v1': {'GET': versions.precache, 'HEAD': versions.precache},
    '/v1/': {'GET': versions.precache, 'HEAD': versions.precache},
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
    '/v1/requests': {'GET': requests.index},
    '/v1/requests/{id}': {'GET': requests.show},
    '/v1/requests/{id}/tasks': {'GET': requests.tasks},
}


def _in_project(path: str) -> str:
    prefix = microversion.COMPUTE.prefix
    return f'{prefix}{_PROJECT}{path.removeprefix(prefix)}'


RESOURCES: dispatch.Table = {
    **_COMPUTE,
    **{_in_project(path): methods for path, methods in _COMPUTE.items()},
    **_PRECACHE,
}
