# SPDX-License-Identifier: Apache-2.0
"""The database server dies in mid-request and returns: nothing is lost, nothing done twice."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import cast

import pytest
import requests

from nova_precache.cells import inventory
from nova_precache.db import agents
from nova_precache.db.engine import schema
from tests import service as doors
from tests.conftest import UploadImage, running_databases
from tests.integration.conftest import API, CELLS, CONDUCTORS, Deployment
from tests.leaks import SECRETS
from tests.service import wait_until
from tools.servers import databases
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
OUTAGE = 'Database of [database] connection'
AWAY = 'The database cannot be reached. Please try again later.'


DOWN_SECONDS = 10
# Between two writes of reports, when an agent of the same name may be first. One may be late.
WRITE_SECONDS = 3


@contextlib.contextmanager
def _moved(deployment: Deployment, url: str, **options: Mapping[str, object]) -> Iterator[None]:
    """Switch the API and the conductors to another, empty database."""
    changes = {'database': {'connection': url}, **options}
    deployment.configure(API, changes)
    database = deployment.connect_database(API)
    schema.sync(database)
    stock = inventory.Inventory(database)
    cells = {cell: stock.create_cell(cell, deployment.urls[cell]) for cell in CELLS}
    for host in deployment.hosts:  # they registered when they were started
        stock.map_host(host.name, cells[host.cell].uuid)
    database.dispose()
    with deployment.configured((*CONDUCTORS, API), changes):
        yield


def _assert_said(answer: requests.Response) -> None:
    body = {'serviceUnavailable': {'code': 503, 'message': AWAY}}
    assert (answer.status_code, answer.json()) == (503, body)
    assert int(answer.headers['Retry-After']) > 0


@pytest.mark.parametrize('kind', [databases.MARIADB, databases.POSTGRESQL])
def test_killed_database_costs_no_request(
    deployment: Deployment, upload_image: UploadImage, kind: str
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    with contextlib.ExitStack() as running:
        server = cast(databases.DatabaseServer, running.enter_context(running_databases(kind)))
        url = running.enter_context(server.empty())
        running.enter_context(_moved(deployment, url))
        aggregate_id = service.aggregate(f'killed {kind}')
        gateway.hold(at_byte=MIB)
        asked = [service.cache(aggregate_id, image_id) for _ in range(2)]
        gateway.wait_for(1)
        # Later, a host could have the image already.
        wait_until(lambda: all(len(service.tasks(each)) == 4 for each in asked), 'both are planned')

        server.kill()
        try:
            _assert_said(service.ask(aggregate_id, image_id))
            _assert_said(requests.get(f'{service.precache_url}/requests', timeout=TIMEOUT_SECONDS))
            gateway.release()
            # The transfer ends while its outcome cannot be recorded.
            wait_until(lambda: _is_on_a_host(deployment, image_id), 'one host has the image')
            wait_until(lambda: _have_tried(deployment), 'the conductors have missed it')
        finally:
            server.restart()
        ended = [service.wait(request_id, timeout_seconds=120) for request_id in asked]
        for name in CONDUCTORS:  # one alone may have ended the requests
            deployment.wait_for_log(name, f'{OUTAGE} is available again')
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
    for name in (*CONDUCTORS, API):
        lines = [each for each in deployment.log(name).splitlines() if OUTAGE in each]
        said = [each.partition(OUTAGE)[2].partition(':')[0].partition(',')[0] for each in lines]
        assert said == [' is unavailable', ' is available again'], lines
        assert 'Traceback' not in deployment.log(name), name


def test_database_outage_is_no_host_silence(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    twins = [f'twin-{host.name}' for host in deployment.hosts]
    with contextlib.ExitStack() as running:
        server = cast(
            databases.DatabaseServer, running.enter_context(running_databases(databases.MARIADB))
        )
        url = running.enter_context(server.empty())
        slow = {'heartbeat_write_interval_seconds': WRITE_SECONDS}
        times = {'DEFAULT': {'service_down_time': DOWN_SECONDS}, 'conductor': slow}
        running.enter_context(_moved(deployment, url, **times))
        running.callback(lambda: deployment.stop(*twins))
        aggregate_id = service.aggregate('after the outage')
        before = _agent_ids(deployment)
        server.kill()
        try:
            away_since = time.monotonic()
            for host, name in zip(deployment.hosts, twins, strict=True):
                _configure_twin(deployment, host.name, name)
                deployment.start(name)
            wait_until(
                lambda: time.monotonic() > away_since + 2 * DOWN_SECONDS, 'it was away for long'
            )
        finally:
            server.restart()
        answer = wait_until(lambda: _accepted(service, aggregate_id, image_id), 'it is accepted')
        request = service.wait(answer.headers['Location'].rsplit('/', 1)[1])
        tasks = service.tasks(request['id'])
        wait_until(deployment.shows_hosts_up, 'all hosts are up')
        for name in twins:
            deployment.wait_for_log(name, 'has an agent with another id')
        after = _agent_ids(deployment)

    assert {task['status']: task['reason'] for task in tasks} == {'cached': None}
    assert request['counts'] == {'cached': 4}
    assert after == before
    for name in twins:
        assert 'is registered and serves' not in deployment.whole_log(name)


def _configure_twin(deployment: Deployment, host: str, name: str) -> None:
    """Configure another machine with the name of a host."""
    text = (deployment.directory / f'{host}.conf').read_text()
    old, new = (f'state_path = {deployment.directory / each}\n' for each in (host, name))
    assert old in text
    (deployment.directory / f'{name}.conf').write_text(text.replace(old, new))


def _agent_ids(deployment: Deployment) -> dict[str, str]:
    database = deployment.connect_database(API)
    try:
        return {each.host: each.agent_id for each in agents.Agents(database, DOWN_SECONDS).list()}
    finally:
        database.dispose()


def _accepted(service: doors.Service, aggregate_id: int, image_id: str) -> requests.Response | None:
    answer = service.ask(aggregate_id, image_id)
    return answer if answer.status_code == 202 else None


def _is_on_a_host(deployment: Deployment, image_id: str) -> bool:
    return any(host.base_path(image_id).exists() for host in deployment.hosts)


def _have_tried(deployment: Deployment) -> bool:
    """Check that every conductor noticed the outage, during which its claims expire."""
    return all(f'{OUTAGE} is unavailable' in deployment.log(name) for name in CONDUCTORS)
