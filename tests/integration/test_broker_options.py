# SPDX-License-Identifier: Apache-2.0
"""Options of oslo.messaging that make its libraries read the global configuration."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.conftest import UploadImage
from tests.integration.conftest import Deployment

SHARED_MEMORY = pathlib.Path('/dev/shm')  # noqa: S108 - where oslo.messaging numbers its queues


@pytest.fixture
def prefix(tmp_path: pathlib.Path) -> Iterator[str]:
    """A name for the processes of this test, by which their files in shared memory are removed."""
    name = f'precache-{os.getpid()}'
    yield name
    for left in SHARED_MEMORY.glob(f'*_{name}-*_qmanager'):
        left.unlink()


def test_services_work_with_queue_manager(
    deployment: Deployment, upload_image: UploadImage, prefix: str
) -> None:
    """Its locks are in a directory set in the global configuration, by default of state_path."""
    data = os.urandom(1024)
    image_id = upload_image(data)
    service = deployment.service
    changes = {
        'oslo_messaging_rabbit': {'use_queue_manager': True, 'processname': f'{prefix}-$host'}
    }
    with deployment.configured(deployment.names, changes):
        request = service.wait(service.cache(service.aggregate('queue manager'), image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    deployment.assert_cached(image_id, data, deployment.hosts)
    for host in deployment.hosts:
        assert list(SHARED_MEMORY.glob(f'*_{prefix}-{host.name}_qmanager'))
    for name in deployment.names:
        assert 'Starting an RPC server failed' not in deployment.log(name)
    deployment.assert_tidy()
