# SPDX-License-Identifier: Apache-2.0
"""The URL table: path → method → handler.

Each path under /v2.1 is there with a project in it, too: /v2.1/{project_id}/….
"""

from nova_precache.api import dispatch
from nova_precache.api.handlers import aggregates, images, requests, versions

VERSION_DOCUMENTS: dispatch.Table = {
    '/': {'GET': versions.index, 'HEAD': versions.index},
    '/v2.1': {'GET': versions.compute, 'HEAD': versions.compute},
    '/v2.1/': {'GET': versions.compute, 'HEAD': versions.compute},
    '/v1': {'GET': versions.precache, 'HEAD': versions.precache},
    '/v1/': {'GET': versions.precache, 'HEAD': versions.precache},
}

RESOURCES: dispatch.Table = {
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
    '/v1/requests': {'GET': requests.index},
    '/v1/requests/{id}': {'GET': requests.show},
    '/v1/requests/{id}/tasks': {'GET': requests.tasks},
}
