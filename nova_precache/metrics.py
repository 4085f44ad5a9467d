# SPDX-License-Identifier: Apache-2.0
"""Serve the metrics of a process to Prometheus, and its health, if a port is configured."""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import prometheus_client

from nova_precache import health

if TYPE_CHECKING:
    from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)

# Duration of an image's download to a host, from the loopback's to an hour.
DOWNLOAD_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)

# One for Prometheus, one for health checks, one for an operator.
_THREADS = 3


class Exposition:
    """The metrics of a process in their own registry, and its health; port 0 serves neither.

    :param version: of this installation
    :ivar health: the parts of the process add their checks to it
    """

    def __init__(self, bind_host: str, port: int, version: str = '') -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.Gauge(
            'nova_precache_build_info',
            'Always 1; the label names the version of the process.',
            ['version'],
            registry=self.registry,
        ).labels(version).set(1)
        self.health = health.Health()
        self._serve_metrics = prometheus_client.make_wsgi_app(self.registry)
        self._bind_host = bind_host
        self._port = port
        self._server: server.HttpServer | None = None

    def start(self) -> None:
        """Start to serve the metrics.

        :raises nova_precache.exception.ConfigError: the server cannot listen on the address
        """
        if not self._port:
            return
        from nova_precache.wsgi import server  # only now: most computes serve no metrics

        serving = server.HttpServer(
            self._serve,
            self._bind_host,
            self._port,
            _THREADS,
            reserved_path=health.LIVE_PATH,
            error=f'[metrics] port {self._port} of {self._bind_host}',
        )
        serving.start()
        self._server = serving
        LOG.info('Serving metrics on %s, port %d', self._bind_host, self._port)

    def _serve(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        is_health = environ['PATH_INFO'] in {health.PATH, health.LIVE_PATH}
        serve = self.health.serve if is_health else self._serve_metrics
        return serve(environ, start_response)

    def stop(self) -> None:
        """Close the port."""
        if self._server is None:
            return
        self._server.stop()
        self._server = None
