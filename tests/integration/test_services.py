# SPDX-License-Identifier: Apache-2.0
"""Which services run, as an operator sees it: killed ones, stopped ones, and what they lack."""

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.conftest import UploadImage
from tests.integration.conftest import API, CONDUCTORS, Deployment
from tests.service import wait_until
from tools.servers import own_port
from tools.waiting import TIMEOUT_SECONDS

CONDUCTOR = 'nova-precache-conductor'
COMPUTE = 'nova-precache-compute'


def _services(deployment: Deployment, **which: str) -> list[dict[str, Any]]:
    query = '&'.join(f'{name}={value}' for name, value in which.items())
    return list(deployment.service.get(f'/services?{query}')['services'])


def _cells(deployment: Deployment) -> list[tuple[str, int, int]]:
    cells = deployment.service.get('/cells')['cells']
    return [(cell['status'], cell['hosts'], cell['hosts_up']) for cell in cells]


def _conductors(deployment: Deployment) -> dict[str, list[str]]:
    """Map each host to the statuses of its conductors."""
    found: dict[str, list[str]] = {}
    for each in _services(deployment, binary=CONDUCTOR):
        found.setdefault(each['host'], []).append(each['status'])
    return found


def _all_up(deployment: Deployment) -> bool:
    return _conductors(deployment) == {name: ['up'] for name in CONDUCTORS}


def _host(deployment: Deployment, name: str) -> tuple[str, str | None]:
    host = deployment.service.get(f'/hosts/{name}')['host']
    return host['status'], host['reason']


def test_every_service_reports(deployment: Deployment) -> None:
    expected = [
        ('nova-precache-api', API, 'up'),
        *((COMPUTE, host.name, 'up') for host in deployment.hosts),
        *((CONDUCTOR, name, 'up') for name in CONDUCTORS),
    ]

    def reported() -> list[tuple[str, str, str]]:
        services = _services(deployment)
        return [(each['binary'], each['host'], each['status']) for each in services]

    wait_until(lambda: reported() == expected, 'all services report, each once')
    assert len({each['version'] for each in _services(deployment)}) == 1
    wait_until(lambda: _cells(deployment) == 2 * [('up', 2, 2)], 'both cells are heard')


def test_killed_conductor_goes_down(deployment: Deployment) -> None:
    wait_until(lambda: _all_up(deployment), 'both conductors report')
    killed, other = CONDUCTORS

    deployment.kill(killed)
    expected = {killed: ['down'], other: ['up']}
    wait_until(lambda: _conductors(deployment) == expected, 'the killed one is down')

    [down] = _services(deployment, binary=CONDUCTOR, status='down')
    assert down['host'] == killed
    assert down['reason'].startswith('last report at ')

    deployment.start(killed)
    wait_until(lambda: _all_up(deployment), 'the new process takes its place')


def test_stopped_conductor_is_down_at_once(deployment: Deployment) -> None:
    wait_until(lambda: _all_up(deployment), 'both conductors report')

    deployment.stop(CONDUCTORS[1])

    [down] = _services(deployment, host=CONDUCTORS[1])
    assert (down['status'], down['reason'][:11]) == ('down', 'stopped at ')

    deployment.start(CONDUCTORS[1])
    wait_until(lambda: _all_up(deployment), 'the new process takes its place')


def test_stopped_compute_is_down_at_once(deployment: Deployment, upload_image: UploadImage) -> None:
    stopped, running = deployment.hosts[:2]
    image_id = upload_image(os.urandom(1024))

    deployment.stop(stopped.name)

    status, reason = _host(deployment, stopped.name)
    assert (status, str(reason)[:22]) == ('down', 'host down: stopped at ')
    assert _host(deployment, running.name) == ('up', None)
    aggregate_id = deployment.service.aggregate('goodbye', (stopped, running))
    request_id = deployment.service.cache(aggregate_id, image_id)
    deployment.service.wait(request_id)
    tasks = {task['host']: task for task in deployment.service.tasks(request_id)}
    assert tasks[running.name]['status'] == 'cached'
    assert (tasks[stopped.name]['status'], tasks[stopped.name]['reason']) == ('skipped', reason)

    deployment.start(stopped.name)
    wait_until(lambda: _host(deployment, stopped.name) == ('up', None), 'it is back')


def test_request_waits_for_stopped_compute(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    host = deployment.hosts[0]
    image_id = upload_image(os.urandom(1024))
    deployment.stop(host.name)
    body = {
        'hosts': [host.name],
        'images': [image_id],
        'wait_for_down_hosts': True,
        'deadline': '2036-01-01T00:00:00Z',
    }
    made = requests.post(
        f'{deployment.service.precache_url}/requests',
        json={'request': body},
        timeout=TIMEOUT_SECONDS,
    )
    request_id = made.json()['request']['id']

    def waits() -> bool:
        [task] = deployment.service.tasks(request_id) or [{'status': None, 'reason': None}]
        return task['status'] in {'queued', 'retry_wait'} and 'stopped at' in str(task['reason'])

    wait_until(waits, 'the task waits for its host')

    deployment.start(host.name)
    assert deployment.service.wait(request_id)['counts'] == {'cached': 1}


@pytest.fixture
def health(deployment: Deployment, free_port: Callable[[], int]) -> Any:
    """Restart a conductor and a compute with a metrics port; return a function that asks both."""
    names = (CONDUCTORS[0], deployment.hosts[0].name)
    ports = {name: free_port() for name in names}

    def ask(name: str, path: str = '') -> tuple[int, Any]:
        answer = requests.get(
            f'http://127.0.0.1:{ports[name]}/health{path}', timeout=TIMEOUT_SECONDS
        )
        return answer.status_code, answer.json()

    def parts(name: str) -> tuple[int, dict[str, str]]:
        status, body = ask(name)
        [part] = body['parts']
        return status, {each['what']: each['reason'] for each in part['missing']}

    with (
        deployment.configured(names[:1], {'metrics': {'port': ports[names[0]]}}),
        deployment.configured(names[1:], {'metrics': {'port': ports[names[1]]}}),
    ):
        for name, port in ports.items():
            wait_until(functools.partial(own_port.accepts, port), f'{name} serves its health')
        yield names, ask, parts


def test_health_names_missing_brokers(deployment: Deployment, health: Any) -> None:
    (conductor, compute), ask, parts = health
    for name in (conductor, compute):
        wait_until(lambda name=name: parts(name) == (200, {}), f'{name} is ready')

    deployment.links['cell1'].cut()
    wait_until(lambda: 'broker of cell cell1' in parts(conductor)[1], 'its broker is missing')
    assert parts(conductor)[0] == 200  # it serves the other cell
    wait_until(lambda: 'broker' in parts(compute)[1], 'its broker is missing')
    assert parts(compute)[0] == 503
    assert ask(compute, '/live') == (200, {'live': True})

    deployment.links[API].cut()
    wait_until(lambda: parts(conductor)[0] == 503, 'it can be woken by no API')
    assert 'broker of the API' in parts(conductor)[1]

    for link in deployment.links.values():
        link.restore()
    for name in (conductor, compute):
        wait_until(lambda name=name: parts(name) == (200, {}), f'{name} is ready again', 120)
