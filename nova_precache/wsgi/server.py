# SPDX-License-Identifier: Apache-2.0
"""Serves a WSGI application in this process, where no uwsgi or gunicorn does."""

import logging
import threading
from collections.abc import Callable, Iterable

from cheroot import wsgi

from nova_precache import exception

LOG = logging.getLogger(__name__)

Application = Callable[..., Iterable[bytes]]


class HttpServer:
    """A threaded HTTP server; port 0 takes a free one."""

    def __init__(self, application: Application, host: str, port: int, threads: int) -> None:
        self._server = wsgi.Server((host, port), application, numthreads=threads)
        setattr(self._server, 'error_log', _log_error)  # noqa: B010 - as cheroot documents
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


def _log_error(message: str = '', level: int = logging.INFO, traceback: bool = False) -> None:
    LOG.log(level, message, exc_info=traceback)
