# SPDX-License-Identifier: Apache-2.0
"""The WSGI application: the order in which a request passes its parts."""

import re
import time
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
    request,
    requestlog,
    routes,
)
from nova_precache.api.request import Services as Services
from nova_precache.wsgi import gateway

Application = Callable[..., Any]

# Callers are promised an answer within 15 s; an outage is noticed at the end of a wait.
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
        'X-OpenStack-Nova-API-Version',
        'OpenStack-API-Version',
    ],
    'expose_headers': [
        'X-Auth-Token',
        'X-Openstack-Request-Id',
        'X-Subject-Token',
        'X-Service-Token',
        'X-OpenStack-Nova-API-Version',
        'OpenStack-API-Version',
    ],
}


class Healthcheck(oslo_middleware.Healthcheck):
    """Tells whoever balances the load whether this process is to get requests.

    It comes first, so that it asks nobody who he is and fills no log.
    """

    PATH = '/healthcheck'

    def __init__(self, application: Application, conf: cfg.ConfigOpts) -> None:
        """Read the options.

        :raises nova_precache.exception.ConfigError: they cannot be
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


class RequestId(request_id.RequestId):
    """Gives every request an id, and tells it under Nova's older name, too."""

    def __init__(self, application: Application, conf: cfg.ConfigOpts) -> None:
        super().__init__(application, conf)
        self.compat_headers = ['x-compute-request-id']


class Deadline:
    """Has a request answered in time, whichever service or database it waits for is silent.

    The time that it has waited for a thread counts, where the server says when it arrived.
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
    """Build the application; what comes first here sees a request first."""
    layers: list[Callable[[Application], Application]] = [
        lambda inner: Healthcheck(inner, conf),
        lambda inner: _cors(inner, conf),
        lambda inner: RequestId(inner, conf),
        lambda inner: http_proxy_to_wsgi.HTTPProxyToWSGI(inner, conf),
        requestlog.RequestLog,
        lambda inner: oslo_middleware.RequestBodySizeLimiter(inner, conf),
        faults.Middleware,
        Deadline,
    ]
    application: Application = _doors(conf, services)
    for layer in reversed(layers):
        application = layer(application)
    return application


def _cors(application: Application, conf: cfg.ConfigOpts) -> Application:
    """Let browsers of ``[cors] allowed_origin`` in, with the headers that Nova knows.

    To anybody else, too, it answers each OPTIONS.
    """
    conf.register_opts(cors.OPTS, 'cors')
    for name, value in _CORS_DEFAULTS.items():
        conf.set_default(name, value, 'cors')
    return cors.CORS(application, conf)


def _doors(conf: cfg.ConfigOpts, services: request.Services) -> Application:
    """The version documents are for everybody, the rest for those who have logged in."""
    settings = request.Settings.from_conf(conf)
    documents = dispatch.Dispatcher(routes.VERSION_DOCUMENTS, services, settings)
    choices = dispatch.Dispatcher(routes.CHOICES, services, settings)
    resources = dispatch.Dispatcher(routes.RESOURCES, services, settings)
    protected = auth.protect(resources, conf, services.enforcer)

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        # As Nova's URL map has it.
        path = environ['PATH_INFO'] = _SLASHES.sub('/', environ['PATH_INFO']) or '/'
        if documents.knows(path):
            return documents(environ, start_response)
        is_anywhere = microversion.api_for_path(path) is microversion.ROOT
        return (choices if is_anywhere else protected)(environ, start_response)

    return choose
