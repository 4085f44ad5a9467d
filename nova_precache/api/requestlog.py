# SPDX-License-Identifier: Apache-2.0
"""Logs one line per request: at DEBUG if it only reads, as polling clients do."""

import logging
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import webob
import webob.dec
from oslo_middleware import request_id

from nova_precache import context

LOG = logging.getLogger(__name__)

_READS = frozenset({'GET', 'HEAD', 'OPTIONS'})


class RequestLog:
    """Logs the client, the request and the response; never bodies, tokens or queries."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application

    @webob.dec.wsgify  # type: ignore[untyped-decorator]
    def __call__(self, request: webob.Request) -> webob.Response:
        # Until authentication, which creates its own context.
        with context.bind_request_id(
            request.environ.get(request_id.ENV_REQUEST_ID),
            request.environ.get(request_id.GLOBAL_REQ_ID),
        ):
            return self._answer(request)

    def _answer(self, request: webob.Request) -> webob.Response:
        started = time.monotonic()
        response = request.get_response(self._application)
        is_read = request.method in _READS and response.status_int < 400
        LOG.log(
            logging.DEBUG if is_read else logging.INFO,
            '%s "%s %s" status: %s length: %s seconds: %.3f',
            request.remote_addr,
            request.method,
            urllib.parse.quote(request.environ['PATH_INFO'], encoding='latin-1'),
            response.status_int,
            response.content_length,
            time.monotonic() - started,
        )
        return response
