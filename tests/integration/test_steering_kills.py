# SPDX-License-Identifier: Apache-2.0
"""Processes die while a request is being stopped; it is stopped nevertheless."""

import os

import pytest
import requests

from nova_precache.download import pipeline
from tests.conftest import UploadImage
from tests.integration.conftest import CONDUCTORS, Deployment
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
BUFFER_BYTES = pipeline.BUFFER_BYTES  # a compute reports no less than this


def _act(deployment: Deployment, request_id: str, action: str) -> None:
    url = f'{deployment.service.precache_url}/requests/{request_id}/action'
    requests.post(url, json={action: None}, timeout=TIMEOUT_SECONDS).raise_for_status()


@pytest.mark.parametrize('killed_first', [True, False], ids=['before', 'after'])
def test_request_cancelled_despite_killed_conductors(
    deployment: Deployment, upload_image: UploadImage, killed_first: bool
) -> None:
    image_id = upload_image(os.urandom(8 * MIB))
    service, gateway = deployment.service, deployment.gateway
    host = service.hosts[0]
    before = host.base_files()
    gateway.hold(at_byte=BUFFER_BYTES)
    aggregate_id = service.aggregate(f'cancelled-{killed_first}', (host,))
    request_id = service.cache(aggregate_id, image_id)
    gateway.wait_for(1)
    wait_until(
        lambda: service.request(request_id)['bytes_done'] == BUFFER_BYTES, 'what was sent came'
    )

    if not killed_first:
        _act(deployment, request_id, 'cancel')
    for name in CONDUCTORS:
        deployment.kill(name)
    if killed_first:
        _act(deployment, request_id, 'cancel')
        assert service.request(request_id)['status'] == 'cancelling'
    deployment.start(CONDUCTORS[0])
    request = service.wait(request_id)

    assert gateway.running(), 'it was not the cancel that ended it'
    assert (request['status'], request['counts']) == ('cancelled', {'cancelled': 1})
    wait_until(lambda: host.base_files() == before, 'no partial is left')
    gateway.release()
    wait_until(lambda: not gateway.running(), 'Glance sends nothing any more')
    assert len(gateway.served(image_id)) == 1
    deployment.assert_tidy()


def test_request_cancelled_despite_killed_compute(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(8 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    host = service.hosts[0]
    gateway.hold(at_byte=BUFFER_BYTES)
    aggregate_id = service.aggregate('cancelled-dead', (host,))
    request_id = service.cache(aggregate_id, image_id)
    gateway.wait_for(1)
    wait_until(
        lambda: service.request(request_id)['bytes_done'] == BUFFER_BYTES, 'what was sent came'
    )

    deployment.kill(host.name)
    _act(deployment, request_id, 'cancel')
    gateway.release()
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('cancelled', {'cancelled': 1})
    assert len(gateway.served(image_id)) == 1
    deployment.start(host.name)
    deployment.wait_until_hosts_are_up()
    assert service.wait(service.cache(aggregate_id, image_id))['counts'] == {'cached': 1}
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()
