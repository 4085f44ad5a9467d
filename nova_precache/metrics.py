# SPDX-License-Identifier: Apache-2.0
"""Serve the metrics of a process to Prometheus, if a port is configured."""

import logging

import prometheus_client

from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)

# Duration of an image's download to a host, from the loopback's to an hour.
DOWNLOAD_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)

# One for Prometheus, one for an operator.
_THREADS = 2


class Exposition:
    """The metrics of a process in their own registry; port 0 does not serve them.

    :param version: of this installation
    """

    def __init__(self, bind_host: str, port: int, version: str = '') -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.Gauge(
            'nova_precache_build_info',
            'Always 1; the label names the version of the process.',
            ['version'],
            registry=self.registry,
        ).labels(version).set(1)
        self._bind_host = bind_host
        self._port = port
        self._server: server.HttpServer | None = None

    def start(self) -> None:
        """Start to serve the metrics.

        :raises nova_precache.exception.ConfigError: the server cannot listen on the address
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
        LOG.info('Serving metrics on %s, port %d', self._bind_host, self._port)

    def stop(self) -> None:
        """Close the port."""
        if self._server is None:
            return
        self._server.stop()
        self._server = None
