# SPDX-License-Identifier: Apache-2.0
"""A cell loses its broker: its tasks end in errors that say so, the other cell is not held up."""

import os

from tests.conftest import UploadImage
from tests.integration.conftest import Deployment

MIB = 1024**2


def test_a_cell_without_its_broker_ends_in_errors_and_does_not_hold_up_the_other(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    aggregate_id = service.aggregate('both-cells')
    # The dead cell's hosts were added first, and count as up until their reports are missed.
    deployment.rabbitmq.remove_vhost(deployment.cell_urls['cell1'])

    request_id = service.cache(aggregate_id, image_id)
    request = service.wait(request_id, timeout_seconds=120)

    assert request['counts'] == {'cached': 2, 'error': 2}
    by_host = {task['host']: task for task in service.tasks(request_id)}
    for host in service.hosts:
        task = by_host[host.name]
        assert task['status'] == ('error' if host.cell == 'cell1' else 'cached')
        if host.cell == 'cell1':
            assert 'unreachable' in task['reason'] or 'down' in task['reason']
            assert task['attempts'] == 3
    assert any('unreachable' in (task['reason'] or '') for task in by_host.values())
    first_error = min(t['finished_at'] for t in by_host.values() if t['status'] == 'error')
    assert all(t['finished_at'] < first_error for t in by_host.values() if t['status'] == 'cached')
