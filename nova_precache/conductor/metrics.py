# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a conductor: its own counters, and the state of the whole service.

The state is counted in the database and is the same on every conductor: scrape it from one.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping

import prometheus_client
from prometheus_client import core, registry

from nova_precache import context, failures, model, outages
from nova_precache.compute import rpcapi
from nova_precache.conductor import host_worker, report_buffer
from nova_precache.db import statistics
from nova_precache.metrics import DOWNLOAD_BUCKETS_SECONDS

LOG = logging.getLogger(__name__)

COUNTED_FOR_SECONDS = 5.0
_PREFIX = 'nova_precache_conductor'

HostsCount = Callable[[], Mapping[str, statistics.HostCount]]


class Counters:
    """Counters of this conductor since its start."""

    def __init__(self, metrics: registry.CollectorRegistry) -> None:
        self._takeovers = prometheus_client.Counter(
            f'{_PREFIX}_takeovers',
            'Hosts taken over from conductors whose leases expired.',
            registry=metrics,
        )
        self._outcomes = prometheus_client.Counter(
            f'{_PREFIX}_task_outcomes',
            'Tasks that ended with a call to a compute, by their final status.',
            ['status'],
            registry=metrics,
        )
        self._failures = prometheus_client.Counter(
            f'{_PREFIX}_task_failures',
            'Tasks that failed with a call to a compute, by the kind of the reason.',
            ['kind'],
            registry=metrics,
        )
        # A rate needs the value before the first event.
        for status in model.TaskStatus:
            if status not in model.TASK_IN_FLIGHT:
                self._outcomes.labels(status)
        for kind in failures.Kind:
            self._failures.labels(kind)
        self._bytes = prometheus_client.Counter(
            f'{_PREFIX}_cached_bytes',
            'Bytes of the images that computes have cached.',
            ['cell'],
            registry=metrics,
        )
        self._seconds = prometheus_client.Histogram(
            f'{_PREFIX}_download_seconds',
            'Seconds from the call to a compute until it had cached the image.',
            ['cell'],
            registry=metrics,
            buckets=DOWNLOAD_BUCKETS_SECONDS,
        )

    def taken_over(self) -> None:
        """Count a host that was taken over."""
        self._takeovers.inc()

    def ended(self, tasks: int, outcome: model.ImageOutcome) -> None:
        """Count the tasks that an outcome ended."""
        known = outcome.status in set(model.TaskStatus)
        self._outcomes.labels(outcome.status if known else 'other').inc(tasks)
        if outcome.is_failure:
            self._failures.labels(failures.kind(outcome.reason)).inc(tasks)

    def answered(self, cell_uuid: str, outcome: model.ImageOutcome | None, seconds: float) -> None:
        """Count the bytes and seconds of a call that cached an image."""
        if outcome is not None and outcome.status == model.TaskStatus.CACHED:
            self._bytes.labels(cell_uuid).inc(outcome.bytes_done)
            self._seconds.labels(cell_uuid).observe(seconds)


class MeasuredCompute:
    """A client of a cell's computes that counts the outcomes of its calls."""

    def __init__(
        self,
        computes: host_worker.ComputeClient,
        cell_uuid: str,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._computes = computes
        self._cell_uuid = cell_uuid
        self._counters = counters
        self._clock = clock

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        began = self._clock()
        outcome = self._computes.cache_image(ctxt, host, call)
        self._counters.answered(self._cell_uuid, outcome, self._clock() - began)
        return outcome


class ReportCollector(registry.Collector):
    """Collects how many reports of computes wait to be written, and how many were dropped."""

    def __init__(self, reports: report_buffer.ReportBuffer) -> None:
        self._reports = reports

    def collect(self) -> Iterator[core.Metric]:
        yield _gauge(
            'buffered_reports',
            'Reports of computes that wait to be written; of cached images, the files.',
            'kind',
            self._reports.sizes(),
        )
        yield core.CounterMetricFamily(
            f'{_PREFIX}_dropped_reports',
            'Reports that were dropped, because too many were buffered.',
            value=self._reports.dropped,
        )
        yield core.CounterMetricFamily(
            f'{_PREFIX}_late_reports',
            'Reports of computes that were dropped unread, because they had waited too long.',
            value=self._reports.late,
        )


class StateCollector(registry.Collector):
    """Collects the state of the service when scraped; a count is reused for a few seconds.

    :param count: counts in the database; if it fails, the other metrics are still served
    :param count_hosts: counts the hosts where the database does not; may fail, too
    """

    def __init__(
        self,
        count: Callable[[], statistics.Count],
        clock: Callable[[], float],
        counted_for_seconds: float = COUNTED_FOR_SECONDS,
        count_hosts: HostsCount | None = None,
    ) -> None:
        self._count = count
        self._count_hosts = count_hosts
        self._clock = clock
        self._counted_for_seconds = counted_for_seconds
        self._lock = threading.Lock()
        self._counted: statistics.Count | None = None
        self._stale_at = 0.0

    def collect(self) -> Iterator[core.Metric]:
        counted = self._recent()
        yield core.GaugeMetricFamily(
            f'{_PREFIX}_database_up',
            'Whether the metrics that come from the database could be read.',
            value=float(counted is not None),
        )
        if counted is not None:
            yield from _families(counted)

    def _recent(self) -> statistics.Count | None:
        with self._lock:  # concurrent scrapes share one count
            if self._clock() >= self._stale_at:
                self._counted = self._try_to_count()
                self._stale_at = self._clock() + self._counted_for_seconds
            return self._counted

    def _try_to_count(self) -> statistics.Count | None:
        try:
            counted = self._count()
        except Exception as exc:  # noqa: BLE001 - any error of the database
            level = logging.DEBUG if outages.is_logged(exc) else logging.WARNING
            LOG.log(level, 'Serving metrics without those of the database: %s', exc)
            return None
        if self._count_hosts is None:
            return counted
        return dataclasses.replace(counted, hosts=_try_to_count_hosts(self._count_hosts))


def _try_to_count_hosts(count: HostsCount) -> Mapping[str, statistics.HostCount]:
    try:
        return count()
    except Exception as exc:  # noqa: BLE001 - any error of the inventory
        level = logging.DEBUG if outages.is_logged(exc) else logging.WARNING
        LOG.log(level, 'Serving metrics without those of the hosts: %s', exc)
        return {}


def _families(counted: statistics.Count) -> Iterator[core.Metric]:
    yield _gauge(
        'requests',
        'Requests that have not ended.',
        'status',
        {**dict.fromkeys(sorted(model.REQUEST_ACTIVE), 0), **counted.requests},
    )
    yield _gauge(
        'tasks',
        'Tasks of the requests that have not ended.',
        'status',
        {**dict.fromkeys(model.TaskStatus, 0), **counted.tasks},
    )
    yield _gauge(
        'jobs',
        'Jobs in flight, each the work on one image of one host.',
        'state',
        {
            'ready': counted.jobs_ready,
            'held': counted.jobs_held,
            'retry_wait': counted.jobs_retry_wait,
            'working': counted.jobs_working,
        },
    )
    yield core.GaugeMetricFamily(
        f'{_PREFIX}_claimed_hosts',
        'Hosts that conductors are calling now, at most precache_concurrency.',
        value=counted.claimed_hosts,
    )
    yield core.GaugeMetricFamily(
        f'{_PREFIX}_oldest_ready_seconds',
        'Seconds since the oldest job that may be called was planned; 0 without one.',
        value=counted.oldest_ready_seconds,
    )
    silent = core.GaugeMetricFamily(
        f'{_PREFIX}_cell_silent_seconds',
        'Seconds for which conductors have not heard a cell; 0 while they hear it.',
        labels=['cell'],
    )
    for cell_uuid, seconds in sorted(counted.silent_seconds.items()):
        silent.add_metric([cell_uuid], seconds)
    yield silent
    yield _hosts(counted)


def _gauge(name: str, help_text: str, label: str, values: Mapping[str, int]) -> core.Metric:
    family = core.GaugeMetricFamily(f'{_PREFIX}_{name}', help_text, labels=[label])
    for value, number in values.items():
        family.add_metric([str(value)], number)
    return family


def _hosts(counted: statistics.Count) -> core.Metric:
    family = core.GaugeMetricFamily(
        f'{_PREFIX}_hosts',
        'Hosts by whether they can be called: up, down, or not known.',
        labels=['cell', 'state'],
    )
    for cell_uuid, hosts in sorted(counted.hosts.items()):
        family.add_metric([cell_uuid, 'up'], hosts.up)
        family.add_metric([cell_uuid, 'down'], hosts.down)
        family.add_metric([cell_uuid, 'unknown'], hosts.unknown)
    return family
