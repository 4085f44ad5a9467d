# SPDX-License-Identifier: Apache-2.0
"""Under eventlet, API and conductors work over RabbitMQ as they do with native threads.

The computes have native threads, as always.
"""

import os
from collections.abc import Iterator

import pytest

from nova_precache import backend
from tests.conftest import UploadImage, needs_eventlet
from tests.integration.conftest import API, CONDUCTORS, Deployment

pytestmark = needs_eventlet

MIB = 1024**2
CONTROL_PLANE = (API, *CONDUCTORS)
GREEN = {'DEFAULT': {'concurrency_backend': backend.Backend.EVENTLET}}


@pytest.fixture(scope='module', autouse=True)
def _under_eventlet(whole_deployment: Deployment) -> Iterator[None]:
    whole_deployment.mend()
    with whole_deployment.configured(CONTROL_PLANE, GREEN):
        yield


def test_images_reach_hosts_of_two_cells(deployment: Deployment, upload_image: UploadImage) -> None:
    images = [os.urandom(MIB), os.urandom(MIB)]
    image_ids = [upload_image(data) for data in images]
    service = deployment.service

    request = service.wait(service.cache(service.aggregate('green'), *image_ids))

    assert (request['status'], request['counts']) == ('completed', {'cached': 8})
    for image_id, data in zip(image_ids, images, strict=True):
        deployment.assert_cached(image_id, data, service.hosts)
    deployment.assert_tidy()
    chosen = {name: _last_run(deployment, name).splitlines()[0] for name in deployment.names}
    assert chosen == {
        **dict.fromkeys(CONTROL_PLANE, 'eventlet'),
        **{host.name: 'threading' for host in service.hosts},
    }
    assert [name for name in CONTROL_PLANE if 'Traceback' in _last_run(deployment, name)] == []


def test_conductor_joins_transfer_of_killed_one(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = deployment.service
    deployment.gateway.hold(at_byte=MIB)
    request_id = service.cache(
        service.aggregate('killed under eventlet', service.hosts[:1]), image_id
    )
    deployment.gateway.wait_for(1)
    [(claimer,)] = deployment.query('SELECT conductor_id FROM claims WHERE conductor_id NOT NULL')
    killed = deployment.conductor_of(claimer)

    deployment.kill(killed)
    deployment.wait_for_log(deployment.other_conductor(killed), 'is taken over')
    deployment.gateway.release()

    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert len(deployment.gateway.served(image_id)) == 1


def _last_run(deployment: Deployment, name: str) -> str:
    """Return the log of a process since its last start, which names its threads first."""
    return deployment.whole_log(name).rpartition('Concurrency backend: ')[2]
