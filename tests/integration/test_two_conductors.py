# SPDX-License-Identifier: Apache-2.0
"""Two conductors share the work under one limit, and each continues the other's work."""

import os
import signal
import sqlite3

import pytest

from tests.conftest import UploadImage
from tests.integration.conftest import CONDUCTORS, LONG_LEASE, Deployment
from tests.service import wait_until
from tools.waiting import wait_until_frozen

MIB = 1024**2
UNMAPPED_HOSTS = 400  # their plan must last until it is interrupted


def _holder(deployment: Deployment) -> str:
    """Return the conductor that holds the only claim."""
    held = 'SELECT conductor_id FROM claims WHERE conductor_id IS NOT NULL'
    [(conductor_id,)] = deployment.query(held)
    return deployment.conductor_of(conductor_id)


def test_limit_holds_across_conductors_and_requests(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = [os.urandom(2 * MIB), os.urandom(2 * MIB)]
    images = [upload_image(each) for each in data]
    service, gateway = deployment.service, deployment.gateway
    aggregate_id = service.aggregate('limit')
    with deployment.configured(CONDUCTORS, {'image_cache': {'precache_concurrency': 2}}):
        gateway.hold(at_byte=MIB)
        request_ids = [service.cache(aggregate_id, image_id) for image_id in images]
        gateway.wait_for(2)
        assert len(deployment.claimed_hosts()) == 2
        gateway.release()
        requests = [service.wait(request_id) for request_id in request_ids]

        assert [request['counts'] for request in requests] == [{'cached': 4}] * 2
        assert gateway.most_at_once == 2
        for image_id, each in zip(images, data, strict=True):
            assert len(gateway.served(image_id)) == 4
            deployment.assert_cached(image_id, each, deployment.hosts)
        deployment.assert_tidy()


def test_hosts_of_killed_conductor_joined(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('killed'), image_id)
    gateway.wait_for(1)
    killed = _holder(deployment)
    before = deployment.epochs()

    deployment.kill(killed)
    other = deployment.other_conductor(killed)
    deployment.wait_for_log(other, 'taken over')
    gateway.release()
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1, 1, 1]
    assert len(gateway.served(image_id)) == 4
    assert gateway.most_at_once == 1
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()
    assert all(epoch >= before.get(host, 0) for host, epoch in deployment.epochs().items())


def test_stopped_conductor_returns_host_at_once(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    aggregate_id = service.aggregate('stopped')
    gateway.hold(at_byte=MIB)
    with deployment.configured(CONDUCTORS, LONG_LEASE):
        request_id = service.cache(aggregate_id, image_id)
        gateway.wait_for(1)
        stopped = _holder(deployment)

        deployment.stop(stopped)
        wait_until(deployment.claimed_hosts, 'the other conductor claims the host')
        gateway.release()
        request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1, 1, 1]
    assert 'taken over' not in deployment.log(deployment.other_conductor(stopped))
    assert len(gateway.served(image_id)) == 4
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def test_resumed_frozen_conductor_changes_nothing(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service, gateway = deployment.service, deployment.gateway
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('stood still'), image_id)
    gateway.wait_for(1)
    still = _holder(deployment)
    other = deployment.other_conductor(still)

    wait_until(lambda: _stands_still(deployment, still), 'it stands still')
    deployment.wait_for_log(other, 'taken over')
    gateway.release()
    request = service.wait(request_id, timeout_seconds=120)
    tasks = service.tasks(request_id)
    deployment.processes[still].send_signal(signal.SIGCONT)
    next_id = service.cache(service.aggregate('goes on'), image_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert service.wait(next_id)['counts'] == {'existing': 4}
    assert service.tasks(request_id) == tasks
    assert len(gateway.served(image_id)) == 4
    assert gateway.most_at_once == 1
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def _stands_still(deployment: Deployment, name: str) -> bool:
    """Halt a process, but not in the middle of a write: SQLite would then halt all others."""
    deployment.processes[name].send_signal(signal.SIGSTOP)
    wait_until_frozen(deployment.processes[name].pid)
    try:
        deployment.query('BEGIN IMMEDIATE')
    except sqlite3.OperationalError:
        deployment.processes[name].send_signal(signal.SIGCONT)
        return False
    return True


@pytest.mark.parametrize('is_killed', [True, False], ids=['killed', 'stopped'])
def test_interrupted_plan_ended_by_other_conductor(
    deployment: Deployment, upload_image: UploadImage, is_killed: bool
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    aggregate_id = service.aggregate(f'large {image_id}')
    _add_unmapped_hosts(deployment, aggregate_id)
    request_id = service.cache(aggregate_id, image_id)
    wait_until(lambda: _tasks(deployment, request_id) > 1, 'the plan is begun')
    planner = 'SELECT planner FROM cache_requests WHERE id = ? AND status = ?'
    [(conductor_id,)] = deployment.query(planner, request_id, 'accepted')
    name = deployment.conductor_of(conductor_id)
    if is_killed:
        deployment.kill(name)
        _end_the_lease(deployment, request_id)
    else:
        deployment.stop(name)  # the other conductor may have the rest of the plan by then
    planned = _tasks(deployment, request_id)
    request = service.wait(request_id)

    if is_killed:
        assert planned < UNMAPPED_HOSTS
    else:
        assert 'the conductor that planned it was stopped' in deployment.whole_log(name)
    assert request['counts'] == {'cached': 4, 'skipped': UNMAPPED_HOSTS}
    assert len(deployment.gateway.served(image_id)) == 4
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def _add_unmapped_hosts(deployment: Deployment, aggregate_id: int) -> None:
    deployment.query(
        'INSERT INTO aggregate_hosts (host, aggregate_id) WITH RECURSIVE numbers (n) AS '
        '(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) '
        "SELECT 'unmapped' || n, ? FROM numbers",
        UNMAPPED_HOSTS,
        aggregate_id,
    )


def _tasks(deployment: Deployment, request_id: str) -> int:
    count_all = 'SELECT count(*) FROM cache_tasks WHERE request_id = ?'
    [(count,)] = deployment.query(count_all, request_id)
    return int(count)


def _end_the_lease(deployment: Deployment, request_id: str) -> None:
    """Expire the planner's lease, so that the other conductor takes the plan over."""
    past = 'UPDATE cache_requests SET planner_lease_until = ? WHERE id = ?'
    deployment.query(past, '2026-01-01 00:00:00.000000', request_id)
