# SPDX-License-Identifier: Apache-2.0
"""The shipped alerts and dashboard, on a real Prometheus that scrapes a deployment at work."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from nova_precache.standalone import process
from tests.conftest import UploadImage, require_server, running
from tests.integration.conftest import CONDUCTORS, Changes, Deployment
from tests.service import wait_until
from tools import waiting
from tools.servers import prometheus
from tools.waiting import TIMEOUT_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / 'etc' / 'prometheus' / 'nova-precache.rules.yaml'
SCRAPE = ROOT / 'etc' / 'prometheus' / 'scrape.yaml'
DASHBOARD = ROOT / 'etc' / 'grafana' / 'nova-precache.json'
ALERT_TESTS = pathlib.Path(__file__).parent / 'prometheus_alerts.yaml'
MIB = 1024**2
CONDUCTOR_JOB, COMPUTE_JOB = 'nova-precache-conductor', 'nova-precache-compute'
FULL: Changes = {'image_cache': {'reserved_disk_bytes': 2**60}}


def _alerts() -> dict[str, str]:
    """The expression of each alert."""
    [group] = yaml.safe_load(RULES.read_text())['groups']
    return {rule['alert']: rule['expr'] for rule in group['rules']}


def _queries() -> dict[str, str]:
    """The expression of each target of the dashboard, by panel and letter."""
    panels = json.loads(DASHBOARD.read_text())['panels']
    return {
        f'{panel["title"]} {target["refId"]}': target['expr']
        for panel in panels
        for target in panel.get('targets', [])
    }


ALERTS, QUERIES = _alerts(), _queries()


@pytest.fixture(scope='module')
def promtool() -> str:
    path = shutil.which('promtool')
    require_server('promtool', path is not None, 'apt-get install prometheus')
    return str(path)


def test_rules_are_valid(promtool: str) -> None:
    subprocess.run([promtool, 'check', 'rules', str(RULES)], check=True, timeout=TIMEOUT_SECONDS)


def test_alerts_fire_and_stay_silent(promtool: str) -> None:
    tested = subprocess.run(
        [promtool, 'test', 'rules', str(ALERT_TESTS)],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_fires_and_stays_silent() -> None:
    tests = yaml.safe_load(ALERT_TESTS.read_text())['tests']
    cases = [case for test in tests for case in test['alert_rule_test']]
    fires = {case['alertname'] for case in cases if case.get('exp_alerts')}
    silent = {case['alertname'] for case in cases if not case.get('exp_alerts')}

    assert (fires, silent) == (set(ALERTS), set(ALERTS))


def test_scrape_example_names_both_jobs() -> None:
    jobs = yaml.safe_load(SCRAPE.read_text())['scrape_configs']

    assert [each['job_name'] for each in jobs] == [CONDUCTOR_JOB, COMPUTE_JOB]


def test_panels_of_dashboard_differ() -> None:
    panels = json.loads(DASHBOARD.read_text())['panels']
    places = [(each['gridPos']['x'], each['gridPos']['y']) for each in panels]

    assert len({each['id'] for each in panels}) == len(panels)
    assert len(set(places)) == len(panels)


@contextlib.contextmanager
def _scraped(
    deployment: Deployment, directory: pathlib.Path, free_port: Callable[[], int]
) -> Iterator[prometheus.Prometheus]:
    """Serve the metrics of each process, and scrape them; the disk of one host is full."""
    full = deployment.hosts[0].name
    targets: dict[str, list[str]] = {CONDUCTOR_JOB: [], COMPUTE_JOB: []}
    with contextlib.ExitStack() as stack:
        for name in (*CONDUCTORS, *(host.name for host in deployment.hosts)):
            port = free_port()
            job = CONDUCTOR_JOB if name in CONDUCTORS else COMPUTE_JOB
            targets[job].append(f'{process.HOST}:{port}')
            changes = {'metrics': {'port': port}, **(FULL if name == full else {})}
            stack.enter_context(deployment.configured([name], changes))
        yield stack.enter_context(running(prometheus.Prometheus(directory, targets)))


def test_every_query_returns_data(
    deployment: Deployment,
    upload_image: UploadImage,
    tmp_path: pathlib.Path,
    free_port: Callable[[], int],
) -> None:
    service = deployment.service
    images = [upload_image(os.urandom(MIB)) for _ in range(2)]
    aggregate_id = service.aggregate('scraped')
    with _scraped(deployment, tmp_path, free_port) as server:
        wait_until(lambda: len(server.query('up == 1')) == 6, 'every process was scraped')
        for image_id in images:
            request = service.wait(service.cache(aggregate_id, image_id))
            assert (request['counts'], request['reason']) == (
                {'cached': 3, 'error': 1},
                '1 of 4 copies failed: 1 × not enough disk space',  # noqa: RUF001
            )
        missing = _without_data(server, QUERIES)

        assert missing == []
        assert [name for name, found in _unknown_metrics(server).items() if found] == []
        [kind] = server.query(QUERIES['Failed tasks per hour, by kind of reason A'])
        assert kind['metric'] == {'kind': 'disk_full'}
        [reserve] = server.query(ALERTS['PrecacheReserveReached'])
        assert reserve['metric']['host'] == deployment.hosts[0].name
        assert {rule['name']: rule['health'] for rule in server.rules()} == dict.fromkeys(
            ALERTS, 'ok'
        )
        # A conductor that a busy machine delays loses its short leases.
        may_fire = {'PrecacheReserveReached', 'PrecacheTasksFail', 'PrecacheTakeovers'}
        # The last scrape may have seen jobs that waited for a moment.
        wait_until(lambda: _firing(server) <= may_fire, f'only some of {may_fire} fire')


def _firing(server: prometheus.Prometheus) -> set[str]:
    return {name for name, expression in ALERTS.items() if server.query(expression)}


def _without_data(server: prometheus.Prometheus, queries: dict[str, str]) -> list[str]:
    """Wait until each query returns data; return those that do not."""

    def missing() -> list[str]:
        return [name for name, expression in queries.items() if not server.query(expression)]

    with contextlib.suppress(waiting.TimedOut):
        wait_until(lambda: not missing(), 'each query returns data')
    return missing()


def _unknown_metrics(server: prometheus.Prometheus) -> dict[str, list[Any]]:
    """Map alerts to the metrics of their expressions that no process has."""
    return {
        alert: [
            name
            for name in sorted(set(re.findall(r'\b(?:nova_precache_\w+|up)\b', expression)))
            if not server.query(f'count({name})')
        ]
        for alert, expression in ALERTS.items()
    }
