# SPDX-License-Identifier: Apache-2.0
"""Serves the metrics of a process to Prometheus, while it runs and if it is told to."""

import logging

import prometheus_client

from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)

# Of an image on its way to a host, from what the loopback takes to an hour.
DOWNLOAD_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)

# Prometheus asks once in a while; the other is for an operator who looks.
_THREADS = 2


class Exposition:
    """The metrics of a process in a registry of its own; port 0 serves them to nobody."""

    def __init__(self, bind_host: str, port: int) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._bind_host = bind_host
        self._port = port
        self._server: server.HttpServer | None = None

    def start(self) -> None:
        """Serve them.

        :raises nova_precache.exception.ConfigError: the address cannot be listened on
        """
        if not self._port:
            return
        serving = server.HttpServer(
            prometheus_client.make_wsgi_app(self.registry),
            self._bind_host,
            self._port,
            _THREADS,
            error=f'[metrics] port {self._port} of {self._bind_host}',
        )
        serving.start()
        self._server = serving
        LOG.info('Metrics are served on %s, port %d', self._bind_host, self._port)

    def stop(self) -> None:
        """Close the port."""
        if self._server is None:
            return
        self._server.stop()
        self._server = None
