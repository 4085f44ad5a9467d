# SPDX-License-Identifier: Apache-2.0
"""Builds the WSGI application: the layers that a request passes, in order."""

import re
import time
import types
from collections.abc import Callable
from typing import Any

import oslo_middleware
from oslo_config import cfg
from oslo_middleware import cors, exceptions as middleware_errors, http_proxy_to_wsgi, request_id

from nova_precache import deadline, exception
from nova_precache.api import (
    auth,
    dispatch,
    faults,
    microversion,
    readiness,
    request,
    requestlog,
    routes,
)
from nova_precache.api.request import Services as Services
from nova_precache.wsgi import gateway

Application = Callable[..., Any]

# Callers are promised an answer within 15 s; an outage is detected only when a wait ends.
ANSWER_SECONDS = 12.0
_SLASHES = re.compile('/{2,}')
_CORS_DEFAULTS = {
    'allow_methods': ['GET', 'PUT', 'POST', 'DELETE', 'PATCH'],
    'allow_headers': [
        'X-Auth-Token',
        'X-Openstack-Request-Id',
        'X-Identity-Status',
        'X-Roles',
        'X-Service-Catalog',
        'X-User-Id',
        'X-Tenant-Id',
        'If-None-Match',
        'X-OpenStack-Nova-API-Version',
        'OpenStack-API-Version',
    ],
    'expose_headers': [
        'X-Auth-Token',
        'X-Openstack-Request-Id',
        'X-Subject-Token',
        'X-Service-Token',
        'ETag',
        'X-OpenStack-Nova-API-Version',
        'OpenStack-API-Version',
    ],
}


class Healthcheck(oslo_middleware.Healthcheck):
    """Reports to load balancers whether this process accepts requests.

    It is the outermost layer, so that it needs no authentication and writes no request log.
    """

    PATH = '/healthcheck'

    def __init__(self, application: Application, conf: cfg.ConfigOpts) -> None:
        """Read the options.

        :raises nova_precache.exception.ConfigError: they are invalid
        """
        try:
            super().__init__(application, conf)
        except (middleware_errors.ConfigInvalid, ValueError) as exc:
            raise exception.ConfigError(f'[healthcheck] cannot be used: {exc}') from exc
        self._inner = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ['PATH_INFO'] == self.PATH:
            return super().__call__(environ, start_response)
        return self._inner(environ, start_response)


class ReadyCheck(Healthcheck):
    """Reports whether requests can be served to their end, which needs more than this process."""

    PATH = f'{Healthcheck.PATH}/ready'

    def __init__(
        self, application: Application, conf: cfg.ConfigOpts, services: request.Services
    ) -> None:
        super().__init__(application, conf)
        ready = types.SimpleNamespace(obj=readiness.Readiness(services))
        self._backends = [*self._backends, ready]  # type: ignore[assignment]


class RequestId(request_id.RequestId):
    """Assigns an id to every request, and returns it under Nova's older header, too."""

    def __init__(self, application: Application, conf: cfg.ConfigOpts) -> None:
        super().__init__(application, conf)
        self.compat_headers = ['x-compute-request-id']


class Deadline:
    """Limits the time to answer a request, even if a service or database is silent.

    The time spent waiting for a thread counts, if the server records when the request arrived.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        now = time.monotonic()
        waited_seconds = now - environ.get(gateway.ARRIVED_AT, now)
        with deadline.within(ANSWER_SECONDS - waited_seconds):
            if not deadline.left():
                raise exception.OutOfTime
            return self._application(environ, start_response)


def build(conf: cfg.ConfigOpts, services: request.Services) -> Application:
    """Build the application; the first layer in the list is the outermost."""
    layers: list[Callable[[Application], Application]] = [
        lambda inner: Healthcheck(inner, conf),
        lambda inner: ReadyCheck(inner, conf, services),
        lambda inner: _cors(inner, conf),
        lambda inner: RequestId(inner, conf),
        lambda inner: http_proxy_to_wsgi.HTTPProxyToWSGI(inner, conf),
        requestlog.RequestLog,
        lambda inner: oslo_middleware.RequestBodySizeLimiter(inner, conf),
        faults.Middleware,
        Deadline,
    ]
    application: Application = _route(conf, services)
    for layer in reversed(layers):
        application = layer(application)
    return application


def _cors(application: Application, conf: cfg.ConfigOpts) -> Application:
    """Allow browsers from ``[cors] allowed_origin``, with the headers that Nova knows.

    It answers every OPTIONS request, whatever its origin.
    """
    conf.register_opts(cors.OPTS, 'cors')
    for name, value in _CORS_DEFAULTS.items():
        conf.set_default(name, value, 'cors')
    return cors.CORS(application, conf)


def _route(conf: cfg.ConfigOpts, services: request.Services) -> Application:
    """Route resources with authentication; version documents and choices need none."""
    settings = request.Settings.from_conf(conf)
    documents = dispatch.Router(routes.VERSION_DOCUMENTS, services, settings)
    choices = dispatch.Router(routes.CHOICES, services, settings)
    resources = dispatch.Router(routes.RESOURCES, services, settings)
    protected = auth.protect(resources, conf, services.enforcer)

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        # As in Nova's URL map.
        path = environ['PATH_INFO'] = _SLASHES.sub('/', environ['PATH_INFO']) or '/'
        if documents.knows(path):
            return documents(environ, start_response)
        is_anywhere = microversion.api_for_path(path) is microversion.ROOT
        return (choices if is_anywhere else protected)(environ, start_response)

    return choose
