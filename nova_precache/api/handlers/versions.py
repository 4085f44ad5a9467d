# SPDX-License-Identifier: Apache-2.0
"""The version documents, through which clients discover the APIs and their microversions."""

import urllib.parse

from nova_precache import model
from nova_precache.api import microversion
from nova_precache.api.request import Reply, Request

_UPDATED = {
    microversion.COMPUTE: '2013-07-23T11:33:21Z',
    microversion.PRECACHE: '2026-01-01T00:00:00Z',
}
_IDS = {microversion.COMPUTE: 'v2.1', microversion.PRECACHE: 'v1.0'}
_MEDIA_TYPES = {
    microversion.COMPUTE: 'application/vnd.openstack.compute+json;version=2.1',
    microversion.PRECACHE: 'application/json',
}
_APIS = (microversion.COMPUTE, microversion.PRECACHE)
# Characters that need no quoting in the path of a URL.
_SAFE = "/~!$&'()*+,;=:@"


def index(req: Request) -> Reply:
    """List both APIs."""
    return Reply(body={'versions': [_summary(req, api) for api in _APIS]})


def choices(req: Request) -> Reply:
    """List the possible URLs of a path that names no API."""
    return Reply(status=300, body={'choices': [_choice(req, api) for api in _APIS]})


def compute(req: Request) -> Reply:
    return Reply(body={'version': _document(req, microversion.COMPUTE)})


def precache(req: Request) -> Reply:
    return Reply(body={'version': _document(req, microversion.PRECACHE)})


def _choice(req: Request, api: microversion.Api) -> model.Json:
    path = urllib.parse.quote(req.path['path'].strip('/'), _SAFE, encoding='latin-1')
    return {
        'id': _IDS[api],
        'status': 'CURRENT',
        'links': [{'rel': 'self', 'href': f'{req.base_url}{api.prefix}/{path}'}],
        'media-types': _media_types(api),
    }


def _media_types(api: microversion.Api) -> list[model.Json]:
    return [{'base': 'application/json', 'type': _MEDIA_TYPES[api]}]


def _document(req: Request, api: microversion.Api) -> model.Json:
    document = _summary(req, api)
    document['links'].append(
        {'rel': 'describedby', 'type': 'text/html', 'href': 'http://docs.openstack.org/'}
    )
    document['media-types'] = _media_types(api)
    return document


def _summary(req: Request, api: microversion.Api) -> model.Json:
    return {
        'id': _IDS[api],
        'status': 'CURRENT',
        'version': str(api.maximum),
        'min_version': str(api.minimum),
        'updated': _UPDATED[api],
        'links': [{'rel': 'self', 'href': f'{req.base_url}{api.prefix}/'}],
    }
