# SPDX-License-Identifier: Apache-2.0
"""HTTP exchanges with other services that end at the deadline of the work that needs them.

However the other side is slow: it takes no connection, is silent, or sends a byte a second.
Wherever it redirects to, credentials reach only itself.
"""

import math
import socket
from typing import Any

import requests
import urllib3
from keystoneauth1 import exceptions as ksa_exceptions, session as ksa_session
from urllib3 import connection as connections

from nova_precache import deadline, exception, redirects

# What else of a request holds at another origin, too.
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
        # With other connections and cookies, and without a client certificate.
        self._elsewhere = ksa_session.Session(
            session=new_session(), verify=self.verify, timeout=self.timeout
        )

    def request(  # type: ignore[override]
        self, url: str, method: str, redirect: int | bool | None = None, **options: Any
    ) -> requests.Response:
        """As of any session of keystoneauth.

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
        """Send a request to where it is redirected; its URL may be a secret that opens it."""
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
            # The text of the error has the URL. keystoneauth logs it at each retry, too.
            raise redirects.RedirectFailed(
                f'{redirects.origin(url)}, to which it is redirected, cannot be reached '
                f'({type(exc).__name__})'
            ) from None


def new_session() -> requests.Session:
    """Make a session for keystoneauth, which serves the work with a deadline, and all other."""
    session = _Requests()
    adapter = _Adapter()
    for scheme in list(session.adapters):
        session.mount(scheme, adapter)
    return session


class _Requests(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave redirects alone.

        Even where it is not to follow one, requests reads all of its body, and stumbles over
        its Location.
        """


class _Adapter(ksa_session.TCPKeepAliveAdapter):
    """Sends what there is time for."""

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
        """As of any adapter, within the deadline.

        :raises nova_precache.exception.OutOfTime: it has passed; no retry follows
        """
        if not deadline.is_set():
            return super().send(request, stream=stream, **kwargs)
        if not deadline.left():
            raise exception.OutOfTime
        kwargs['timeout'] = _in_time(kwargs.get('timeout'))
        try:
            if stream:
                return super().send(request, stream=True, **kwargs)
            # The connection is kept for other threads, which the deadline must not cut off.
            with deadline.within(math.inf):
                response = super().send(request, **kwargs)
                response.content  # noqa: B018 - read here, so that it fails here
            return response
        except requests.RequestException as exc:
            if not deadline.left():
                raise exception.OutOfTime from exc
            raise


def _in_time(timeout: Any) -> tuple[float, float]:
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    seconds = deadline.left()
    # A name may have several addresses, each of which is tried for so long.
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


class _TlsConnection(connections.HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        deadline.watch(made)
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            deadline.watch(self.sock)
        super().request(*args, **kwargs)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {'http': _Pool, 'https': _TlsPool}
