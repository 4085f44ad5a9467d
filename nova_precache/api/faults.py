# SPDX-License-Identifier: Apache-2.0
"""Converts exceptions to HTTP errors: the one table of status and title, and its middleware."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import webob
import webob.dec
from oslo_middleware import request_id

from nova_precache import exception, model, shown
from nova_precache.api import dispatch, microversion

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Status and title of the response to a kind of error."""

    status: int
    title: str


BAD_REQUEST = Fault(400, 'badRequest')
UNAUTHORIZED = Fault(401, 'unauthorized')
FORBIDDEN = Fault(403, 'forbidden')
NOT_FOUND = Fault(404, 'itemNotFound')
BAD_METHOD = Fault(405, 'badMethod')
NOT_ACCEPTABLE = Fault(406, 'notAcceptable')
CONFLICT = Fault(409, 'conflictingRequest')
OVER_LIMIT = Fault(413, 'overLimit')
BAD_MEDIA_TYPE = Fault(415, 'badMediaType')
UNEXPECTED = Fault(500, 'computeFault')
UNAVAILABLE = Fault(503, 'serviceUnavailable')

# The most specific class applies.
FAULTS: Mapping[type[Exception], Fault] = {
    exception.InvalidInput: BAD_REQUEST,
    exception.NotFound: NOT_FOUND,
    exception.Conflict: CONFLICT,
    exception.Forbidden: FORBIDDEN,
    exception.ImageUnauthorized: UNAUTHORIZED,
    exception.Unavailable: UNAVAILABLE,
    dispatch.UnsupportedMediaType: BAD_MEDIA_TYPE,
    dispatch.MethodNotAllowed: BAD_METHOD,
    microversion.UnsupportedVersion: Fault(406, 'computeFault'),
}
PRECACHE_FAULTS: Mapping[type[Exception], Fault] = {
    **FAULTS,
    exception.TooMany: OVER_LIMIT,
    microversion.UnsupportedVersion: NOT_ACCEPTABLE,
}


class Middleware:
    """Converts every exception of the inner layers to a response, and names the microversion."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application

    @webob.dec.wsgify  # type: ignore[untyped-decorator]
    def __call__(self, request: webob.Request) -> webob.Response:
        try:
            response = request.get_response(self._application)
        except Exception as error:  # noqa: BLE001 the edge: every error gets a response
            response = _answer(error, request)
        microversion.announce(request.environ, response.headers)
        return response


def find(error: Exception, api: microversion.Api) -> Fault:
    """Return the fault of an error, by its class or its nearest base class."""
    table = PRECACHE_FAULTS if api is microversion.PRECACHE else FAULTS
    return next((table[cls] for cls in type(error).__mro__ if cls in table), UNEXPECTED)


def _answer(error: Exception, request: webob.Request) -> webob.Response:
    api = microversion.api_for_path(request.environ.get('PATH_INFO', ''))
    fault = find(error, api)
    # Nova's messages show inputs of any length.
    message = shown.text(str(error)) if api is microversion.PRECACHE else str(error)
    if fault is UNEXPECTED:
        LOG.error('%s %s failed', request.method, request.environ.get('PATH_INFO'), exc_info=error)
        message = _unexpected(request)
    elif isinstance(error, exception.DatabaseUnavailable):
        LOG.debug('%s: %s', error, error.reason)  # logged as an outage already
    content: model.Json = {'code': fault.status, 'message': message}
    if api is microversion.PRECACHE:  # the bodies of /v2.1 are Nova's
        content |= _field(error)
    return webob.Response(
        status=fault.status,
        body=json.dumps({fault.title: content}).encode(),
        headerlist=[('Content-Type', 'application/json; charset=UTF-8'), *_headers(error)],
    )


def _field(error: Exception) -> model.Json:
    """Name the field that is wrong, for a client that calls it something else."""
    if not isinstance(error, exception.PrecacheError) or error.field is None:
        return {}
    return {'field': error.field, 'detail': shown.text(error.detail or str(error))}


def _unexpected(request: webob.Request) -> str:
    """Return a message without details, but with the id to look up in the log."""
    number = request.environ.get(request_id.ENV_REQUEST_ID, 'unknown')
    return f'Unexpected API Error. See the log of the service for {number}.'


def _headers(error: Exception) -> list[tuple[str, str]]:
    if isinstance(error, exception.Unavailable):
        return [('Retry-After', str(error.retry_after_seconds))]
    if isinstance(error, dispatch.MethodNotAllowed):
        return [('Allow', ', '.join(error.allowed))]
    return []
