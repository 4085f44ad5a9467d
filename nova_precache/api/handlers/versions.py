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
_DOORS = (microversion.COMPUTE, microversion.PRECACHE)
# Characters that need no quoting in the path of a URL.
_SAFE = "/~!$&'()*+,;=:@"


def index(req: Request) -> Reply:
    """List both APIs."""
    return Reply(body={'versions': [_summary(req, door) for door in _DOORS]})


def choices(req: Request) -> Reply:
    """List the possible URLs of a path that names no API."""
    return Reply(status=300, body={'choices': [_choice(req, door) for door in _DOORS]})


def compute(req: Request) -> Reply:
    return Reply(body={'version': _document(req, microversion.COMPUTE)})


def precache(req: Request) -> Reply:
    return Reply(body={'version': _document(req, microversion.PRECACHE)})


def _choice(req: Request, door: microversion.Api) -> model.Json:
    path = urllib.parse.quote(req.path['path'].strip('/'), _SAFE, encoding='latin-1')
    return {
        'id': _IDS[door],
        'status': 'CURRENT',
        'links': [{'rel': 'self', 'href': f'{req.base_url}{door.prefix}/{path}'}],
        'media-types': _media_types(door),
    }


def _media_types(door: microversion.Api) -> list[model.Json]:
    return [{'base': 'application/json', 'type': _MEDIA_TYPES[door]}]


def _document(req: Request, door: microversion.Api) -> model.Json:
    document = _summary(req, door)
    document['links'].append(
        {'rel': 'describedby', 'type': 'text/html', 'href': 'http://docs.openstack.org/'}
    )
    document['media-types'] = _media_types(door)
    return document


def _summary(req: Request, door: microversion.Api) -> model.Json:
    return {
        'id': _IDS[door],
        'status': 'CURRENT',
        'version': str(door.maximum),
        'min_version': str(door.minimum),
        'updated': _UPDATED[door],
        'links': [{'rel': 'self', 'href': f'{req.base_url}{door.prefix}/'}],
    }
