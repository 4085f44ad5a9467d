# SPDX-License-Identifier: Apache-2.0
"""Metrics are served where the options say, while the process runs, and are documented."""

import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import prometheus_client
import pytest
import requests
from prometheus_client import registry

from nova_precache import conf as options, exception, metrics
from nova_precache.compute import metrics as compute_metrics
from nova_precache.conductor import metrics as conductor_metrics, report_buffer
from nova_precache.db import statistics
from nova_precache.virt import driver
from tests import bad_clients
from tools.waiting import TIMEOUT_SECONDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDE = (ROOT / 'doc' / 'source' / 'metrics.rst').read_text()
ADDRESS = '127.0.0.1'


@pytest.fixture
def served(free_port: Callable[[], int]) -> Iterator[tuple[metrics.Exposition, str]]:
    port = free_port()
    exposed = metrics.Exposition(ADDRESS, port)
    exposed.start()
    yield exposed, f'http://{ADDRESS}:{port}/metrics'
    exposed.stop()


def test_registry_content_is_served(served: tuple[metrics.Exposition, str]) -> None:
    exposed, url = served
    prometheus_client.Counter('nova_precache_tests', 'Tests.', registry=exposed.registry).inc(3)

    answer = requests.get(url, timeout=TIMEOUT_SECONDS)

    assert answer.status_code == 200
    assert 'nova_precache_tests_total 3.0' in answer.text
    assert 'python_info' not in answer.text  # of the registry that libraries share


def test_stop_closes_port(served: tuple[metrics.Exposition, str]) -> None:
    exposed, url = served

    exposed.stop()

    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=TIMEOUT_SECONDS)
    exposed.stop()  # a second stop does no harm


def test_bad_clients_do_not_block_prometheus(
    served: tuple[metrics.Exposition, str],
) -> None:
    _, url = served
    threads = threading.active_count()

    with bad_clients.opened(int(url.split(':')[2].split('/')[0]), 200) as bad:
        for _ in range(3):
            assert requests.get(url, timeout=TIMEOUT_SECONDS).status_code == 200
            bad.dribble()
        assert threading.active_count() <= threads + 3


def test_metrics_request_body_limited(served: tuple[metrics.Exposition, str]) -> None:
    assert requests.get(served[1], data=b'x' * 200_000, timeout=TIMEOUT_SECONDS).status_code == 413


def test_taken_port_error_names_option() -> None:
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(exception.ConfigError, match=rf'\[metrics\] port {port} of 127.0.0.1'):
            metrics.Exposition(ADDRESS, port).start()


def test_metrics_counted_without_port() -> None:
    conf = options.new(config_files=[])
    exposed = metrics.Exposition(conf.metrics.bind_host, conf.metrics.port)
    counters = conductor_metrics.Counters(exposed.registry)

    exposed.start()
    counters.taken_over()
    exposed.stop()

    assert exposed.registry.get_sample_value('nova_precache_conductor_takeovers_total') == 1


def test_loopback_served_by_default() -> None:
    assert options.new(config_files=[]).metrics.bind_host == ADDRESS


def _everything() -> registry.CollectorRegistry:
    """A registry with every metric of this service, each with a value."""
    made = metrics.Exposition(ADDRESS, 0, '1.0').registry
    conductor_metrics.Counters(made)
    hosts = {'cell-1': statistics.HostCount(1, 0)}
    counted = statistics.Count({}, {}, 0, 0, 0, 0, 0, hosts, silent_seconds={'cell-1': 1})
    made.register(conductor_metrics.StateCollector(lambda: counted, lambda: 0.0))
    buffer = report_buffer.ReportBuffer(mock.Mock(), mock.Mock(), mock.Mock())
    made.register(conductor_metrics.ReportCollector(buffer))
    report = driver.CacheReport(cache_bytes=1, free_bytes=1, reserved_bytes=1)
    compute_metrics.ComputeMetrics(made).host('host-1', lambda: report)
    return made


FAMILIES = {family.name: family for family in _everything().collect()}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_metric_documented_with_labels(name: str) -> None:
    family = FAMILIES[name]
    shown = f'{name}_total' if family.type == 'counter' else name
    described = re.search(rf'^``{shown}``(?: \((.*)\))?\n    \S', GUIDE, re.MULTILINE)
    assert described is not None, shown

    labels = {label for sample in family.samples for label in sample.labels} - {'le'}
    assert set(re.findall(r'\w+', described[1] or '')) >= labels


def test_no_missing_metric_documented() -> None:
    shown = {f'{name}_total' if FAMILIES[name].type == 'counter' else name for name in FAMILIES}

    assert set(re.findall(r'^``(nova_precache_\w+)``', GUIDE, re.MULTILINE)) == shown


@pytest.mark.parametrize('name', FAMILIES)
def test_metrics_have_prefix_and_help(name: str) -> None:
    assert re.match(r'nova_precache_(conductor|compute|build)_[a-z_]+\Z', name)
    assert FAMILIES[name].documentation.endswith('.')
