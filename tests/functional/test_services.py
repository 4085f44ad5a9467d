# SPDX-License-Identifier: Apache-2.0
"""The services of a standalone, its health, and a compute that says goodbye."""

from collections.abc import Callable
from typing import Any

import requests

from tests.conftest import UploadImage
from tests.functional.conftest import QUICK, Start, Started
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS


def _get(url: str) -> tuple[int, Any]:
    answer = requests.get(url, timeout=TIMEOUT_SECONDS)
    return answer.status_code, answer


def _all_report(started: Started) -> bool:
    found = started.service.get('/services')['services']
    cells = started.service.get('/cells')['cells']
    return {each['status'] for each in (*found, *cells)} == {'up'} and len(found) == 6


def test_standalone_shows_services_and_health(start: Start, free_port: Callable[[], int]) -> None:
    port = free_port()
    started = start(**{**QUICK, 'metrics': {'port': port}})
    base = started.service.precache_url.removesuffix('/v1')
    wait_until(lambda: _all_report(started), 'every service reports')

    found = started.service.get('/services')['services']

    assert [each['binary'].rpartition('-')[2] for each in found] == [
        'api',
        *4 * ['compute'],
        'conductor',
    ]
    cells = {cell['name']: cell for cell in started.service.get('/cells')['cells']}
    assert {cell['hosts_up'] for cell in cells.values()} == {2}
    hosts = started.service.get('/hosts')['hosts']
    assert {(host['cell'], host['cell_name']) for host in hosts} == {
        (cell['id'], name) for name, cell in cells.items()
    }
    status, health = _get(f'http://127.0.0.1:{port}/health')
    assert (status, {part['part'] for part in health.json()['parts']}) == (
        200,
        {'conductor', *(f'compute {host["host"]}' for host in hosts)},
    )
    assert _get(f'http://127.0.0.1:{port}/health/live')[0] == 200
    assert _get(f'{base}/healthcheck/ready')[1].text == 'OK'


def test_stopped_compute_is_down_at_once(start: Start, upload_image: UploadImage) -> None:
    started = start(**QUICK)
    stopped = started.standalone.agents[0]
    image_id = upload_image(b'an image')

    stopped.stop()

    host = started.service.get(f'/hosts/{stopped.host}')['host']
    assert (host['status'], host['reason'][:22]) == ('down', 'host down: stopped at ')
    request_id = started.service.cache(started.service.aggregate('goodbye'), image_id)
    started.service.wait(request_id)
    reasons = {task['host']: task['reason'] for task in started.service.tasks(request_id)}
    assert reasons.pop(stopped.host) == host['reason']
    assert set(reasons.values()) == {None}
    [service] = started.service.get(f'/services?host={stopped.host}')['services']
    assert (service['status'], service['reason']) == ('down', host['reason'])
