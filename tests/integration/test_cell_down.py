# SPDX-License-Identifier: Apache-2.0
"""A cell loses its broker: its tasks end in errors that say so, the other cell is not delayed."""

import os
import time
from typing import Any

import requests

from tests.conftest import UploadImage
from tests.integration.conftest import API, CONDUCTORS, Changes, Deployment
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
ATTEMPTS = 3
ANSWER_SECONDS = 15.0  # promised by the API
CONTROL_PLANE = (API, *CONDUCTORS)


def _impatient(deployment: Deployment) -> Changes:
    """The API shares its broker with the other cell, which is allowed."""
    return {
        'DEFAULT': {'transport_url': deployment.urls['cell2']},
        'image_cache': {
            'precache_max_attempts': ATTEMPTS,
            # The last attempt is after the other cell has the image, on a busy machine, too.
            'retry_delay_seconds': 10,
            'retry_max_delay_seconds': 10,
        },
    }


def test_long_cell_outage_ends_in_errors(deployment: Deployment, upload_image: UploadImage) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    aggregate_id = service.aggregate('away')
    with deployment.configured(CONTROL_PLANE, _impatient(deployment)):
        deployment.links['cell1'].cut()
        request_id = service.cache(aggregate_id, image_id)
        _assert_that_only_cell1_failed(deployment, request_id)
        assert len(deployment.gateway.served(image_id)) == 2
        deployment.links['cell1'].restore()
        deployment.wait_until_hosts_are_up()
        again = service.wait(service.cache(aggregate_id, image_id))

    assert again['counts'] == {'cached': 2, 'existing': 2}
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def test_removal_in_dead_cell_answered_in_time(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    host = next(each for each in service.hosts if each.cell == 'cell1')
    service.wait(service.cache(service.aggregate('kept', (host,)), image_id))
    url = f'{service.precache_url}/hosts/{host.name}/images/{image_id}'
    with deployment.configured(CONTROL_PLANE, _impatient(deployment)):
        deployment.links['cell1'].cut()
        begun = time.monotonic()
        away = requests.delete(url, timeout=TIMEOUT_SECONDS)
        seconds = time.monotonic() - begun
        deployment.links['cell1'].restore()
        deployment.wait_until_hosts_are_up()
        removal = wait_until(lambda: _removed(url), 'it is removed afterwards')

    assert away.status_code == 503, away.text
    message = away.json()['serviceUnavailable']['message']
    assert f'The message broker of the cell of host {host.name} does not answer' in message
    assert seconds < ANSWER_SECONDS
    assert removal['status'] in {'removed', 'absent'}
    assert not host.base_path(image_id).exists()


def _removed(url: str) -> dict[str, Any] | None:
    answer = requests.delete(url, timeout=TIMEOUT_SECONDS)
    return dict(answer.json()['removal']) if answer.status_code == 200 else None


def test_missing_vhost_fails_only_its_cell(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    aggregate_id = service.aggregate('both-cells')
    with (
        deployment.configured(CONTROL_PLANE, _impatient(deployment)),
        deployment.rabbitmq.without_vhost(deployment.urls['cell1']),
    ):
        # The dead cell's hosts were added first, and count as up until their reports are missed.
        _assert_that_only_cell1_failed(deployment, service.cache(aggregate_id, image_id))
        deployment.assert_tidy()


def _assert_that_only_cell1_failed(deployment: Deployment, request_id: str) -> None:
    service = deployment.service
    request = service.wait(request_id, timeout_seconds=120)
    assert (request['status'], request['counts']) == ('partial', {'cached': 2, 'error': 2})
    by_host = {task['host']: task for task in service.tasks(request_id)}
    for host in service.hosts:
        task = by_host[host.name]
        assert task['status'] == ('error' if host.cell == 'cell1' else 'cached')
        if host.cell == 'cell1':
            assert 'unreachable' in task['reason'] or 'down' in task['reason']
            assert task['attempts'] == ATTEMPTS
    assert any('unreachable' in (task['reason'] or '') for task in by_host.values())
    first_error = min(t['finished_at'] for t in by_host.values() if t['status'] == 'error')
    assert all(t['finished_at'] < first_error for t in by_host.values() if t['status'] == 'cached')
