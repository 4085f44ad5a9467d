# SPDX-License-Identifier: Apache-2.0
"""HTTP exchanges with other services that end at the thread's deadline.

The deadline holds even if the other side accepts no connection, is silent, or sends a byte a
second. Credentials reach only the other side itself, wherever it redirects to.
"""

import math
import socket
from typing import Any

import requests
import urllib3
from keystoneauth1 import exceptions as ksa_exceptions, session as ksa_session
from urllib3 import connection as connections

from nova_precache import deadline, exception, redirects

# Options of a request that also apply at another origin.
_KEPT_OPTIONS = (
    'timeout',
    'stream',
    'status_code_retries',
    'retriable_status_codes',
)


class Session(ksa_session.Session):
    """A session of keystoneauth that follows redirects by :mod:`nova_precache.redirects`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # With its own connections and cookies, and without a client certificate.
        self._elsewhere = ksa_session.Session(
            session=new_session(), verify=self.verify, timeout=self.timeout
        )

    def request(  # type: ignore[override]
        self, url: str, method: str, redirect: int | bool | None = None, **options: Any
    ) -> requests.Response:
        """Send a request, as any session of keystoneauth.

        :raises nova_precache.redirects.RedirectFailed: a redirect cannot be followed
        """
        answer = super().request(url, method, redirect=False, **options)
        if redirect is not None and not redirect:
            return answer
        answer = redirects.follow(
            answer, method, lambda to, elsewhere: self._send_on(to, method, elsewhere, options)
        )
        if options.get('raise_exc', True) and answer.status_code >= requests.codes.bad_request:
            raise ksa_exceptions.from_response(answer, method, redirects.origin(answer.url))
        return answer

    def _send_on(
        self, url: str, method: str, is_elsewhere: bool, options: dict[str, Any]
    ) -> requests.Response:
        """Send a redirected request; keep its URL out of the log, since it may be a secret."""
        try:
            if not is_elsewhere:
                again = {**options, 'params': None, 'log': False, 'connect_retries': 0}
                return super().request(url, method, redirect=False, **again)
            headers = redirects.harmless(options.get('headers') or {})
            kept = {name: options[name] for name in _KEPT_OPTIONS if name in options}
            return self._elsewhere.request(
                url, method, redirect=False, raise_exc=False, log=False, headers=headers, **kept
            )
        except (ksa_exceptions.ConnectionError, urllib3.exceptions.HTTPError, ValueError) as exc:
            # The error must not be logged: its text has the URL.
            raise redirects.RedirectFailed(
                f'redirected to {redirects.origin(url)}, which cannot be reached '
                f'({type(exc).__name__})'
            ) from None


def new_session() -> requests.Session:
    """Create a session for keystoneauth, for work with or without a deadline."""
    session = _Requests()
    adapter = _Adapter()
    for scheme in list(session.adapters):
        session.mount(scheme, adapter)
    return session


class _Requests(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Report no redirects.

        Otherwise requests reads the whole body of a redirect and parses its Location, which
        may fail, even if it should not follow it.
        """


class _Adapter(ksa_session.TCPKeepAliveAdapter):
    """Sends requests within the deadline."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, stream: bool = False, **kwargs: Any
    ) -> requests.Response:
        """Send a request, as any adapter, within the deadline.

        :raises nova_precache.exception.OutOfTime: the deadline has passed; no retry follows
        """
        if not deadline.is_set():
            return super().send(request, stream=stream, **kwargs)
        if not deadline.left():
            raise exception.OutOfTime
        kwargs['timeout'] = _in_time(kwargs.get('timeout'))
        try:
            if stream:
                return super().send(request, stream=True, **kwargs)
            # The pooled connection may serve other threads, which the deadline must not cut off.
            with deadline.within(math.inf):
                response = super().send(request, **kwargs)
                response.content  # noqa: B018 - read the body here, so that errors occur here
            return response
        except requests.RequestException as exc:
            if not deadline.left():
                raise exception.OutOfTime from exc
            raise


def _in_time(timeout: Any) -> tuple[float, float]:
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    seconds = deadline.left()
    # A name may have several addresses, and the connect timeout applies to each.
    return min(connect or seconds, seconds / 2), min(read or seconds, seconds)


class _Connection(connections.HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        deadline.watch(made)
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # kept from an earlier exchange
            deadline.watch(self.sock)
        super().request(*args, **kwargs)


class _TlsConnection(_Connection, connections.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {'http': _Pool, 'https': _TlsPool}
