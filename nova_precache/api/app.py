# SPDX-License-Identifier: Apache-2.0
"""The WSGI application: the order in which a request passes its parts."""

from collections.abc import Callable
from typing import Any

import oslo_middleware
from oslo_config import cfg
from oslo_middleware import http_proxy_to_wsgi, request_id

from nova_precache.api import auth, call, dispatch, faults, requestlog, routes
from nova_precache.api.call import Services as Services

Application = Callable[..., Any]


class RequestId(request_id.RequestId):
    """Gives every request an id, and tells it under Nova's older name, too."""

    def __init__(self, application: Application, conf: cfg.ConfigOpts) -> None:
        super().__init__(application, conf)
        self.compat_headers = ['x-compute-request-id']


def build(conf: cfg.ConfigOpts, services: call.Services) -> Application:
    """Build the application; what comes first here sees a request first."""
    layers: list[Callable[[Application], Application]] = [
        lambda inner: RequestId(inner, conf),
        lambda inner: http_proxy_to_wsgi.HTTPProxyToWSGI(inner, conf),
        requestlog.RequestLog,
        lambda inner: oslo_middleware.RequestBodySizeLimiter(inner, conf),
        faults.Middleware,
    ]
    application: Application = _doors(conf, services)
    for layer in reversed(layers):
        application = layer(application)
    return application


def _doors(conf: cfg.ConfigOpts, services: call.Services) -> Application:
    """The version documents are for everybody, the rest for those who have logged in."""
    settings = call.Settings.from_conf(conf)
    documents = dispatch.Dispatcher(routes.VERSION_DOCUMENTS, services, settings)
    resources = dispatch.Dispatcher(routes.RESOURCES, services, settings)
    protected = auth.protect(resources, conf, services.enforcer)

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        is_document = documents.knows(environ['PATH_INFO'])
        return (documents if is_document else protected)(environ, start_response)

    return choose
