# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a compute: its cache and its transfers.

A process may run several computes, as the standalone one does: the label ``host`` names each.
"""

import threading
import time
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import core, registry

from nova_precache import model
from nova_precache.compute import transfers
from nova_precache.metrics import DOWNLOAD_BUCKETS_SECONDS
from nova_precache.transfer_control import Control
from nova_precache.virt import driver

REPORTED_FOR_SECONDS = 5.0
_PREFIX = 'nova_precache_compute'


class ComputeMetrics:
    """The metrics of all computes of a process."""

    def __init__(
        self, metrics: registry.CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._caches = _Caches(clock)
        self.hits = self._counter(metrics, 'cache_hits', 'Images that were already in the cache.')
        self.misses = self._counter(
            metrics, 'cache_misses', 'Images that were not in the cache, regardless of the outcome.'
        )
        self.bytes_received = self._counter(
            metrics, 'downloaded_bytes', 'Received bytes, including discarded ones.'
        )
        self.seconds = prometheus_client.Histogram(
            f'{_PREFIX}_download_seconds',
            'Seconds to download, verify, convert and publish an image.',
            ['host'],
            registry=metrics,
            buckets=DOWNLOAD_BUCKETS_SECONDS,
        )
        self.running = prometheus_client.Gauge(
            f'{_PREFIX}_transfers_running',
            'Running transfers.',
            ['host'],
            registry=metrics,
        )
        metrics.register(self._caches)

    def host(self, name: str, report: Callable[[], driver.CacheReport]) -> 'HostMeter':
        """Add a host, whose cache ``report`` describes, and return its meter."""
        self._caches.add(name, report)
        return HostMeter(self, name)

    def _counter(
        self, metrics: registry.CollectorRegistry, name: str, help_text: str
    ) -> prometheus_client.Counter:
        return prometheus_client.Counter(f'{_PREFIX}_{name}', help_text, ['host'], registry=metrics)


class HostMeter:
    """Measures the transfers of one host."""

    def __init__(self, computes: ComputeMetrics, host: str) -> None:
        self._clock = computes.clock
        self._hits = computes.hits.labels(host)
        self._misses = computes.misses.labels(host)
        self._bytes = computes.bytes_received.labels(host)
        self._seconds = computes.seconds.labels(host)
        self._running = computes.running.labels(host)

    def measured(self, work: transfers.Work) -> transfers.Work:
        """Wrap the work of a transfer so that it is measured."""

        def measure(progress: model.ProgressCallback, control: Control) -> model.ImageOutcome:
            began = self._clock()
            with self._running.track_inprogress():
                outcome = work(self._counting(progress), control)
            self._ended(outcome, self._clock() - began)
            return outcome

        return measure

    def _counting(self, progress: model.ProgressCallback) -> model.ProgressCallback:
        """Count downloaded bytes; those of an earlier attempt are reported as verifying first."""
        known_bytes = 0

        def count(now: model.Progress) -> None:
            nonlocal known_bytes
            if now.status == model.TaskStatus.DOWNLOADING:
                self._bytes.inc(max(0, now.bytes_done - known_bytes))
            known_bytes = now.bytes_done
            progress(now)

        return count

    def _ended(self, outcome: model.ImageOutcome, seconds: float) -> None:
        if outcome.status == model.TaskStatus.EXISTING:
            self._hits.inc()
        elif outcome.status != model.TaskStatus.UNSUPPORTED:
            self._misses.inc()
        if outcome.status == model.TaskStatus.CACHED:
            self._seconds.observe(seconds)


class _Caches(registry.Collector):
    """Collects the sizes of the caches when scraped; a result is reused for a few seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: dict[str, Callable[[], driver.CacheReport]] = {}
        self._reported: dict[str, driver.CacheReport] = {}
        self._stale_at = 0.0

    def add(self, host: str, report: Callable[[], driver.CacheReport]) -> None:
        with self._lock:
            self._hosts[host] = report
            self._stale_at = 0.0

    def collect(self) -> Iterator[core.Metric]:
        used = core.GaugeMetricFamily(
            f'{_PREFIX}_cache_bytes', 'Bytes that the cache occupies on the disk.', labels=['host']
        )
        free = core.GaugeMetricFamily(
            f'{_PREFIX}_free_bytes', 'Free bytes on the file system of the cache.', labels=['host']
        )
        reserved = core.GaugeMetricFamily(
            f'{_PREFIX}_reserved_bytes',
            'Bytes that precaching leaves free on the file system of the cache.',
            labels=['host'],
        )
        for host, report in self._recent().items():
            if report.cache_bytes is not None:
                used.add_metric([host], report.cache_bytes)
            if report.free_bytes is not None:
                free.add_metric([host], report.free_bytes)
            if report.reserved_bytes is not None:
                reserved.add_metric([host], report.reserved_bytes)
        yield used
        yield free
        yield reserved

    def _recent(self) -> dict[str, driver.CacheReport]:
        with self._lock:
            if self._clock() >= self._stale_at:
                self._reported = {host: report() for host, report in self._hosts.items()}
                self._stale_at = self._clock() + REPORTED_FOR_SECONDS
            return self._reported
