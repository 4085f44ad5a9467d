# SPDX-License-Identifier: Apache-2.0
"""Processes die in mid-request; every task still gets its one true outcome."""

import os

from tests.conftest import UploadImage
from tests.integration.conftest import Deployment
from tests.service import wait_until

MIB = 1024**2


def test_separate_processes_cache_an_image_in_two_cells(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service

    request = service.wait(service.cache(service.aggregate('plain'), image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert len(deployment.gateway.served(image_id)) == 4


def test_a_killed_conductor_loses_nothing_and_each_host_is_served_once(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    deployment.gateway.hold(let_pass=2)
    request_id = service.cache(service.aggregate('conductor'), image_id)
    deployment.gateway.wait_for(1)
    wait_until(
        lambda: service.request(request_id)['counts'].get('cached') == 2, 'half of it is done'
    )

    deployment.kill('conductor')
    deployment.gateway.release()
    deployment.start('conductor')
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert len(deployment.gateway.served(image_id)) == 4
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1, 1, 1]


def test_a_conductor_killed_while_bytes_move_finds_the_transfer_and_joins_it(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = deployment.service
    deployment.gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('join', service.hosts[:1]), image_id)
    deployment.gateway.wait_for(1)

    deployment.kill('conductor')
    deployment.start('conductor')
    wait_until(lambda: 'taken over' in deployment.log('conductor'), 'the claim was taken over')
    deployment.gateway.release()

    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert len(deployment.gateway.served(image_id)) == 1


def test_a_killed_compute_is_tried_again_and_leaves_no_partial_file(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = deployment.service
    host = service.hosts[0]
    deployment.gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('compute', (host,)), image_id)
    deployment.gateway.wait_for(1)

    deployment.kill(host.name)
    assert not host.base_path(image_id).exists()
    deployment.gateway.release()
    deployment.start(host.name)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1})
    assert service.tasks(request_id)[0]['attempts'] == 2
    assert host.base_path(image_id).stat().st_size == 4 * MIB
    assert all('.' not in name for name in host.base_files())
