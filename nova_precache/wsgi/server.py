# SPDX-License-Identifier: Apache-2.0
"""Serves a WSGI application in this process, where no uwsgi or gunicorn does."""

import dataclasses
import logging
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

from cheroot import server as cheroot_server
from cheroot import wsgi
from cheroot.ssl import builtin

from nova_precache import exception

LOG = logging.getLogger(__name__)

Application = Callable[..., Iterable[bytes]]

# A token of Keystone's has a few thousand at most.
MAX_HEADER_BYTES = 64 * 1024
# The server itself would take the last of several. Lengths that differ are none then, and
# hosts or origins name no one.
_JOINED = (
    b'Openstack-Api-Version',
    b'X-Openstack-Nova-Api-Version',
    b'Content-Length',
    b'Host',
    b'Origin',
    b'Sec-Fetch-Site',
)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Files in PEM by which the server proves who it is; None is where the key is in the same."""

    cert_file: str
    key_file: str | None = None


class HttpServer:
    """A threaded HTTP server; port 0 takes a free one.

    :param certificate: makes it speak TLS only
    :raises nova_precache.exception.ConfigError: the certificate is of no use
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        threads: int,
        certificate: Certificate | None = None,
    ) -> None:
        self._server = wsgi.Server((host, port), application, numthreads=threads)
        setattr(self._server, 'error_log', _log_error)  # noqa: B010 - as cheroot documents
        self._server.max_request_header_size = MAX_HEADER_BYTES
        self._server.ConnectionClass = _Connection
        if certificate is not None:
            self._server.ssl_adapter = _tls(certificate)
        self._thread = threading.Thread(target=self._server.serve, name='http', daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.bind_addr[1])

    def start(self) -> None:
        """Listen, then serve in the background.

        :raises nova_precache.exception.ConfigError: the address cannot be listened on
        """
        host, port = self._server.bind_addr
        try:
            self._server.prepare()
        except OSError as exc:
            raise exception.ConfigError(f'[api] cannot listen on {host}:{port}: {exc}') from exc
        self._thread.start()

    def stop(self) -> None:
        """Close the port and let the requests being served end."""
        self._server.stop()
        self._thread.join()


class _Headers(dict[bytes, bytes]):
    """The headers of a request; what is said twice is one list, as for other servers."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if name in _JOINED and name in self:
            value = self[name] + b', ' + value
        super().__setitem__(name, value)


class _HeaderReader(cheroot_server.HeaderReader):
    """Drops names with an underscore: WSGI could not tell ``X_A`` from the ``X-A`` of a proxy."""

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> Any:
        found = {} if hdict is None else hdict
        found.update(super().__call__(rfile, _Headers()))
        return found

    def _allow_header(self, key_name: bytes) -> bool:
        return b'_' not in key_name


class _Request(cheroot_server.HTTPRequest):
    """A request after which nothing of its body is taken for another one."""

    header_reader = _HeaderReader()

    def read_request_headers(self) -> bool:
        is_good = bool(super().read_request_headers())  # type: ignore[no-untyped-call]
        if is_good and self.chunked_read:
            # What the application leaves unread of such a body, nobody skips.
            self.close_connection = True
        return is_good


class _Connection(cheroot_server.HTTPConnection):
    """A connection whose TLS, if any, begins in the thread that serves it."""

    RequestHandlerClass = _Request
    _is_open = False

    def communicate(self) -> bool:
        return self._begins() and bool(super().communicate())  # type: ignore[no-untyped-call]

    def _begins(self) -> bool:
        if not self._is_open and isinstance(self.socket, ssl.SSLSocket):
            try:
                self.socket.do_handshake()
            except OSError as exc:
                LOG.debug('A client does not come to speak TLS: %s', exc)
                return False
        self._is_open = True
        return True


class _Tls(builtin.BuiltinSSLAdapter):
    """TLS without a handshake yet, which would be made where connections are accepted.

    There, who is slow would keep all others out.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def wrap(self, sock: Any) -> tuple[ssl.SSLSocket, dict[str, str]]:
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {'wsgi.url_scheme': 'https', 'HTTPS': 'on'}


def _tls(certificate: Certificate) -> _Tls:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Nobody is asked for the password of a key: a service has no terminal.
        context.load_cert_chain(certificate.cert_file, certificate.key_file, password=str)
    except (OSError, ValueError) as exc:
        raise exception.ConfigError(
            f'[api] cert_file = {certificate.cert_file} cannot be used with '
            f'key_file = {certificate.key_file}: {exc}'
        ) from exc
    return _Tls(context)


def _log_error(message: str = '', level: int = logging.INFO, traceback: bool = False) -> None:
    LOG.log(level, message, exc_info=traceback)
