# SPDX-License-Identifier: Apache-2.0
"""Authenticates callers by Keystone or, standalone, not at all.

Either way, the WSGI environment holds a request context afterwards.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

import webob
import webob.dec
import webob.exc
from keystoneauth1 import exceptions as ksa_exceptions
from keystonemiddleware import auth_token
from oslo_config import cfg
from oslo_middleware import request_id

from nova_precache import context as request_context, exception, exchange, outages, policy
from nova_precache.wsgi import origins

ENVIRON = 'nova_precache.context'

_IDENTITY = re.compile(r'([^:]+):([^:]+)(?::(.*))?')
# Keystone's default implied roles.
_IMPLIED_ROLES: Mapping[str, tuple[str, ...]] = {
    'admin': ('manager', 'member', 'reader'),
    'manager': ('member', 'reader'),
    'member': ('reader',),
}

Application = Callable[..., Any]


def protect(
    application: Application, conf: cfg.ConfigOpts, enforcer: policy.Enforcer
) -> Application:
    """Wrap an application so that it requires authentication by ``[api] auth_strategy``.

    :raises nova_precache.exception.ConfigError: ``[keystone_authtoken]`` cannot be used
    """
    if conf.api.auth_strategy == 'noauth2':
        return NoAuth(application, enforcer)
    try:
        protected: Application = AuthToken(
            KeystoneContext(application, enforcer), {'oslo_config_config': conf}
        )
    except ksa_exceptions.ClientException as exc:
        raise exception.ConfigError(f'[keystone_authtoken] cannot be used: {exc}') from exc
    _require_credentials(conf)
    _require_cache_client(conf.keystone_authtoken)
    return protected


def refuse_exposure(auth_strategy: str, bind_host: str) -> None:
    """Refuse to serve without authentication beyond the loopback.

    :raises nova_precache.exception.ConfigError: it would listen beyond the loopback
    """
    if auth_strategy == 'noauth2' and not origins.is_loopback(bind_host):
        raise exception.ConfigError(
            '[api] auth_strategy = noauth2 makes every caller an admin and requires a '
            f'loopback address, but [api] bind_host = {bind_host}'
        )


def refuse_foreign_server(auth_strategy: str) -> None:
    """Refuse to run without authentication in another WSGI server.

    :raises nova_precache.exception.ConfigError: where that server listens is unknown
    """
    if auth_strategy == 'noauth2':
        raise exception.ConfigError(
            '[api] auth_strategy = noauth2 makes every caller an admin, and this process '
            'cannot check where its WSGI server listens; use keystone, or run '
            'nova-precache-api'
        )


def context_of(environ: Mapping[str, Any]) -> request_context.RequestContext:
    """Return the context of the caller, an anonymous one where no authentication is needed."""
    context = environ.get(ENVIRON)
    if isinstance(context, request_context.RequestContext):
        return context
    return request_context.RequestContext(overwrite=False)


class NoAuth:
    """Trusts a token of the form ``user:project[:role,…]``; any other caller is an admin."""

    def __init__(self, application: Application, enforcer: policy.Enforcer) -> None:
        self._application = application
        self._enforcer = enforcer

    @webob.dec.wsgify  # type: ignore[untyped-decorator]
    def __call__(self, request: webob.Request) -> Application:
        token = request.headers.get('X-Auth-Token')
        context = request_context.RequestContext(
            auth_token=token,
            request_id=request.environ.get(request_id.ENV_REQUEST_ID),
            global_request_id=request.environ.get(request_id.GLOBAL_REQ_ID),
            **_read_token(token or ''),
        )
        context.is_of_any_project = context.project_id is None
        _admit(request, context, self._enforcer)
        return self._application


class AuthToken(auth_token.AuthProtocol):  # type: ignore[misc]
    """Validates tokens, and queries Keystone within the deadline of the request."""

    def fetch_token(self, token: str, **kwargs: Any) -> Any:
        """Fetch the data of a token, as keystonemiddleware does.

        :raises nova_precache.exception.IdentityServiceUnavailable: Keystone gives no answer
        """
        try:
            return super().fetch_token(token, **kwargs)
        except (
            exception.OutOfTime,
            ksa_exceptions.ClientException,
            webob.exc.HTTPServiceUnavailable,
        ) as exc:
            raise exception.IdentityServiceUnavailable(
                'The Keystone service is temporarily unavailable.'
            ) from exc

    def _create_identity_server(self) -> Any:
        """Create the client as keystonemiddleware does, and log outages of Keystone."""
        server = super()._create_identity_server()
        outage = outages.Outage('Identity service of [keystone_authtoken]')
        verify_token = server.verify_token

        def verify(*args: Any, **kwargs: Any) -> Any:
            try:
                found = verify_token(*args, **kwargs)
            except auth_token.ksm_exceptions.InvalidToken:
                outage.over()
                raise
            except Exception as exc:
                outage.began(exc)
                raise
            outage.over()
            return found

        server.verify_token = verify
        return server

    def _create_session(self, **kwargs: Any) -> Any:
        made = super()._create_session(session=exchange.new_session(), **kwargs)
        return exchange.Session(
            session=made.session,
            verify=made.verify,
            cert=made.cert,
            timeout=made.timeout,
            user_agent=made.user_agent,
        )


class KeystoneContext:
    """Builds the context from the token data that keystonemiddleware found."""

    def __init__(self, application: Application, enforcer: policy.Enforcer) -> None:
        self._application = application
        self._enforcer = enforcer

    @webob.dec.wsgify  # type: ignore[untyped-decorator]
    def __call__(self, request: webob.Request) -> Application:
        context = request_context.RequestContext.from_environ(request.environ)
        if context.user_id is None:
            # With delay_auth_decision, nothing has refused the request yet. The middleware adds
            # the URL of Keystone to this response, which it cannot do to an exception.
            refused: Application = webob.exc.HTTPUnauthorized()
            return refused
        _admit(request, context, self._enforcer)
        return self._application


def _require_credentials(conf: cfg.ConfigOpts) -> None:
    """Check for credentials at the start; without them, every token causes a server error."""
    group = conf.keystone_authtoken.auth_section or 'keystone_authtoken'
    if conf[group].auth_type is None:
        raise exception.ConfigError(
            f'[{group}] auth_type is not set: the API needs its own credentials to validate tokens'
        )


def _require_cache_client(options: cfg.ConfigOpts.GroupAttr) -> None:
    """Check at the start for the module that the middleware imports with the first token."""
    secured = options.memcache_sasl_enabled or options.memcache_tls_enabled
    client = 'bmemcached' if secured else 'memcache'
    if options.memcached_servers and importlib.util.find_spec(client) is None:
        raise exception.ConfigError(
            f'[keystone_authtoken] memcached_servers needs the Python module {client}: install '
            'nova-precache[memcache]'
        )


def _admit(
    request: webob.Request, context: request_context.RequestContext, enforcer: policy.Enforcer
) -> None:
    context.is_admin = enforcer.is_admin(context)
    request.environ[ENVIRON] = context


def _read_token(token: str) -> dict[str, Any]:
    identity = _IDENTITY.fullmatch(token)
    if identity is None:
        return {'user_id': 'admin', 'roles': _with_implied(['admin'])}
    user, project, roles = identity.groups()
    named = [role.strip() for role in (roles or '').split(',') if role.strip()]
    return {'user_id': user, 'project_id': project, 'roles': _with_implied(named)}


def _with_implied(roles: list[str]) -> list[str]:
    implied = [other for role in roles for other in _IMPLIED_ROLES.get(role, ())]
    return list(dict.fromkeys([*roles, *implied]))
