# SPDX-License-Identifier: Apache-2.0
"""The database server dies in mid-request and comes back: nothing is lost, nothing done twice."""

import contextlib
import os
from collections.abc import Iterator
from typing import cast

import pytest
import requests

from nova_precache.cells import inventory
from nova_precache.db import schema
from tests import databases
from tests.conftest import UploadImage
from tests.integration.conftest import API, CELLS, CONDUCTORS, Deployment
from tests.leaks import SECRETS
from tests.service import wait_until

MIB = 1024**2
# Of every conductor, whose claims run out meanwhile.
NOTICED = 'Outcomes wait for the database'
AWAY = 'The database cannot be reached. Please try again later.'


@contextlib.contextmanager
def _moved(deployment: Deployment, url: str) -> Iterator[None]:
    """Have the API and the conductors work on another database, which is empty."""
    changes = {'database': {'connection': url}}
    deployment.configure(API, changes)
    database = deployment.connect_database(API)
    schema.sync(database)
    stock = inventory.Inventory(database)
    cells = {cell: stock.create_cell(cell, deployment.urls[cell]) for cell in CELLS}
    for host in deployment.hosts:  # which registered when they were started
        stock.map_host(host.name, cells[host.cell].uuid)
    database.dispose()
    with deployment.configured((*CONDUCTORS, API), changes):
        wait_until(lambda: _all_are_up(deployment), 'all hosts are up')
        yield


def _all_are_up(deployment: Deployment) -> bool:
    hosts = deployment.service.get('/hosts')['hosts']
    return [host['status'] for host in hosts] == ['up'] * len(deployment.hosts)


def _assert_said(answer: requests.Response) -> None:
    body = {'serviceUnavailable': {'code': 503, 'message': AWAY}}
    assert (answer.status_code, answer.json()) == (503, body)
    assert int(answer.headers['Retry-After']) > 0


@pytest.mark.parametrize('kind', [databases.MARIADB, databases.POSTGRESQL])
def test_a_killed_database_that_comes_back_costs_no_request_and_no_transfer(
    deployment: Deployment, upload_image: UploadImage, kind: str
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    with contextlib.ExitStack() as running:
        server = cast(databases.Socket, running.enter_context(databases.START[kind]()))
        url = running.enter_context(server.empty())
        running.enter_context(_moved(deployment, url))
        aggregate_id = service.aggregate(f'killed {kind}')
        gateway.hold(at_byte=MIB)
        asked = [service.cache(aggregate_id, image_id) for _ in range(2)]
        gateway.wait_for(1)

        server.kill()
        try:
            _assert_said(service.ask(aggregate_id, image_id))
            _assert_said(requests.get(f'{service.precache_url}/requests', timeout=60))
            gateway.release()
            # The transfer ends while nobody can write it down.
            wait_until(lambda: _is_on_a_host(deployment, image_id), 'one host has the image')
            wait_until(lambda: _have_tried(deployment), 'the conductors have missed it')
        finally:
            server.restart()
        ended = [service.wait(request_id, timeout_seconds=120) for request_id in asked]
        outcomes = [service.outcomes(request_id) for request_id in asked]
        listed = {each['id'] for each in service.get('/requests')['requests']}
        SECRETS.look_into_database(url, kind)

    assert [(each['status'], each['counts']) for each in ended] == [
        ('completed', {'cached': 4})
    ] * 2
    assert outcomes == [{('cached', None)}] * 2
    assert listed == set(asked)
    assert len(gateway.served(image_id)) == 4
    assert gateway.most_at_once == 1
    deployment.assert_cached(image_id, data, deployment.hosts)


def _is_on_a_host(deployment: Deployment, image_id: str) -> bool:
    return any(host.base_path(image_id).exists() for host in deployment.hosts)


def _have_tried(deployment: Deployment) -> bool:
    return any(NOTICED in deployment.log(name) for name in CONDUCTORS)
