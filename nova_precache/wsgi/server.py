# SPDX-License-Identifier: Apache-2.0
"""Serve a WSGI application in this process, without uwsgi or gunicorn.

One thread serves the connections. It reads each request completely before a thread of the
application takes it, and sends the answer itself: clients that are slow, silent or gone occupy
no thread of the application.
"""

import dataclasses
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent import futures

from nova_precache import exception
from nova_precache.wsgi import connection, gateway, loop

LOG = logging.getLogger(__name__)

Application = gateway.Application

# A Keystone token has a few thousand bytes at most.
MAX_HEADER_BYTES = 64 * 1024
# The default of [oslo_middleware] max_request_body_size.
MAX_BODY_BYTES = 114_688

_BACKLOG = 1024


@dataclasses.dataclass(frozen=True)
class Certificate:
    """PEM files of the server's certificate; ``key_file`` None: ``cert_file`` has the key."""

    cert_file: str
    key_file: str | None = None


class HttpServer:
    """A threaded HTTP server; port 0 takes a free one.

    :param threads: requests that the application answers at once
    :param certificate: serve TLS only
    :param max_body_bytes: longer bodies are refused with 413
    :param reserved_path: its requests have their own thread, and are answered even while all
        others are busy
    :param error: begins the error message if the server cannot listen on the address
    :raises nova_precache.exception.ConfigError: the certificate cannot be used
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        threads: int,
        certificate: Certificate | None = None,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        reserved_path: str | None = None,
        error: str | None = None,
    ) -> None:
        self._application = application
        self._host = host
        self._error = error or f'[api] cannot listen on {host}:{port}'
        self._tls = None if certificate is None else _tls(certificate)
        self._limits = connection.ConnectionLimits(MAX_HEADER_BYTES, max(0, max_body_bytes))
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix='http')
        self._reserved_path = reserved_path
        self._reserved_pool = futures.ThreadPoolExecutor(1, thread_name_prefix='http-reserved')
        self._serving: tuple[loop.Loop, threading.Thread] | None = None
        self.port = port

    def start(self) -> None:
        """Listen, then serve in the background.

        :raises nova_precache.exception.ConfigError: the server cannot listen on the address
        """
        try:
            listener = _listen(self._host, self.port)
        except OSError as exc:
            raise exception.ConfigError(f'{self._error}: {exc.strerror or exc}') from exc
        self.port = listener.getsockname()[1]
        served = loop.Loop(listener, self._wrap, self._ask, self._limits)
        thread = threading.Thread(target=_run, args=(served,), name='http', daemon=True)
        thread.start()
        self._serving = served, thread

    def stop(self) -> None:
        """Close the port and wait for the requests being served."""
        if self._serving is None:
            return
        served, thread = self._serving
        served.stop()
        thread.join()
        for pool in (self._pool, self._reserved_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _wrap(self, accepted: socket.socket) -> socket.socket:
        """Wrap a socket in TLS if configured; the handshake runs when the client begins it."""
        if self._tls is None:
            return accepted
        return self._tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)

    def _ask(
        self, request: gateway.HttpRequest, answered: Callable[[gateway.Answer], None]
    ) -> None:
        pool = self._reserved_pool if request.path == self._reserved_path else self._pool
        pool.submit(lambda: answered(gateway.ask(self._application, request)))


def _run(served: loop.Loop) -> None:
    """Serve; on failure, terminate the process by a signal, so that it is restarted."""
    try:
        served.run()
    except Exception:
        LOG.critical('The HTTP server failed', exc_info=True)
        os.kill(os.getpid(), signal.SIGTERM)


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    is_everywhere = family == socket.AF_INET6 and address[0] == '::'
    return socket.create_server(
        address,
        family=family,
        backlog=_BACKLOG,
        dualstack_ipv6=is_everywhere and socket.has_dualstack_ipv6(),
    )


def _tls(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Never prompt for the password of a key: a service has no terminal.
        context.load_cert_chain(certificate.cert_file, certificate.key_file, password=str)
    except (OSError, ValueError) as exc:
        raise exception.ConfigError(
            f'[api] cert_file = {certificate.cert_file} cannot be used with '
            f'key_file = {certificate.key_file}: {exc}'
        ) from exc
    return context
