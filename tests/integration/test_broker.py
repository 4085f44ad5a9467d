# SPDX-License-Identifier: Apache-2.0
"""Brokers die or become unreachable; work waits, and every task ends in a correct outcome."""

import os
from collections.abc import Callable

import pytest

from tests.conftest import UploadImage
from tests.integration.conftest import API, CONDUCTORS, LONG_LEASE, Deployment
from tests.integration.link import Link
from tests.service import Host

MIB = 1024**2

away = pytest.mark.parametrize('take_away', [Link.cut, Link.silence], ids=['refuses', 'is silent'])


def _of_cell(deployment: Deployment, cell: str) -> tuple[Host, ...]:
    return tuple(host for host in deployment.hosts if host.cell == cell)


def test_killed_broker_costs_no_transfer(deployment: Deployment, upload_image: UploadImage) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('killed broker'), image_id)
    gateway.wait_for(1)
    host = next(host for host in deployment.hosts if host.name in deployment.claimed_hosts())

    deployment.rabbitmq.kill()
    try:
        gateway.release()
        # The transfer ends while its outcome cannot be sent.
        deployment.wait_for_log(host.name, f'(image {image_id} on host {host.name}) ended')
    finally:
        deployment.rabbitmq.restart()
    request = service.wait(request_id, timeout_seconds=120)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert service.outcomes(request_id) == {('cached', None)}
    assert len(gateway.served(image_id)) == 4
    assert gateway.most_at_once == 1
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


@away
def test_unreachable_cell_delays_no_other(
    deployment: Deployment, upload_image: UploadImage, take_away: Callable[[Link], None]
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    lost, other = (_of_cell(deployment, cell) for cell in ('cell1', 'cell2'))
    gateway.hold(at_byte=MIB)
    waiting_id = service.cache(service.aggregate(f'lost {image_id}', lost), image_id)
    gateway.wait_for(1)

    take_away(deployment.links['cell1'])
    gateway.release()
    other_id = service.cache(service.aggregate(f'other {image_id}', other), image_id)
    # There is one slot: calls by which the conductors probe the silent cell come in between.
    while_away = service.wait(other_id, timeout_seconds=400)
    waiting = service.request(waiting_id)
    deployment.links['cell1'].restore()
    request = service.wait(waiting_id)

    assert while_away['counts'] == {'cached': 2}
    assert waiting['status'] == 'running'
    assert (request['status'], request['counts']) == ('completed', {'cached': 2})
    assert len(gateway.served(image_id)) == 4
    assert gateway.most_at_once == 1
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


@away
def test_request_accepted_without_api_broker(
    deployment: Deployment, upload_image: UploadImage, take_away: Callable[[Link], None]
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    aggregate_id = service.aggregate(f'unheard {image_id}')
    service.wait(service.cache(aggregate_id, image_id))  # connects the API
    for host in deployment.hosts:
        host.base_path(image_id).unlink()

    take_away(deployment.links[API])
    request = service.wait(service.cache(aggregate_id, image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def test_conductor_stops_without_cell_broker(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    host = deployment.hosts[0]
    aggregate_id = service.aggregate('stopped without its broker', (host,))
    gateway.hold(at_byte=MIB)
    with deployment.configured(CONDUCTORS, LONG_LEASE):
        request_id = service.cache(aggregate_id, image_id)
        gateway.wait_for(1)
        claim = deployment.query('SELECT conductor_id FROM claims WHERE conductor_id IS NOT NULL')
        name = deployment.conductor_of(claim[0][0])

        deployment.links['cell1'].cut()
        deployment.stop(name)
        deployment.links['cell1'].restore()
        gateway.release()
        request = service.wait(request_id)

    assert request['counts'] == {'cached': 1}
    assert 'taken over' not in deployment.log(deployment.other_conductor(name))
    assert len(gateway.served(image_id)) == 1
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()
