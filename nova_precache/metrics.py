# SPDX-License-Identifier: Apache-2.0
"""Serves the metrics of a process to Prometheus, while it runs and if it is told to."""

import logging
import threading
import wsgiref.simple_server

import prometheus_client

from nova_precache import exception

LOG = logging.getLogger(__name__)

STOP_SECONDS = 5.0

# Of an image on its way to a host, from what the loopback takes to an hour.
DOWNLOAD_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Exposition:
    """The metrics of a process in a registry of its own; port 0 serves them to nobody."""

    def __init__(self, bind_host: str, port: int) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._bind_host = bind_host
        self._port = port
        self._serving: tuple[wsgiref.simple_server.WSGIServer, threading.Thread] | None = None

    def start(self) -> None:
        """Serve them.

        :raises nova_precache.exception.ConfigError: the address cannot be listened on
        """
        if not self._port:
            return
        try:
            self._serving = prometheus_client.start_http_server(
                self._port, addr=self._bind_host, registry=self.registry
            )
        except OSError as exc:
            raise exception.ConfigError(
                f'[metrics] port {self._port} of {self._bind_host}: {exc.strerror or exc}'
            ) from exc
        LOG.info('Metrics are served on %s, port %d', self._bind_host, self._port)

    def stop(self) -> None:
        """Close the port."""
        if self._serving is None:
            return
        server, thread = self._serving
        self._serving = None
        server.shutdown()
        server.server_close()
        thread.join(STOP_SECONDS)
