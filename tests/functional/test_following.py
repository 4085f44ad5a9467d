# SPDX-License-Identifier: Apache-2.0
"""Requests are cancelled, paused, ended by their deadline and held back, on a real Glance."""

import dataclasses
import datetime
import os
from typing import Any

import pytest
import requests

from nova_precache import conf as configuration
from nova_precache.db import agents, request_actions as db_steering
from nova_precache.db.engine import session
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.service import Host, Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
SIZE = 4 * MIB
HALF = SIZE // 2
# What comes before must be over by then on a busy machine, too.
LATER_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Operator:
    """A user of /v1, with the link that shows the effect."""

    service: Service
    gateway: site_link.Gateway

    def ask(self, hosts: tuple[Host, ...], *images: str, **options: Any) -> str:
        """Ask for images on some hosts and return the request's id."""
        body = {'hosts': [host.name for host in hosts], 'images': list(images), **options}
        return str(self._post('/requests', {'request': body})['id'])

    def act(self, request_id: str, action: str, **arguments: Any) -> dict[str, Any]:
        return self._post(f'/requests/{request_id}/action', {action: arguments or None})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = requests.post(self.service.precache_url + path, json=body, timeout=TIMEOUT_SECONDS)
        assert answer.status_code == 202, answer.text
        return dict(answer.json()['request'])

    def statuses(self, request_id: str) -> dict[str, str]:
        """Return the status of the task on each host."""
        return {task['host']: task['status'] for task in self.service.tasks(request_id)}

    def wait_for_status(self, request_id: str, status: str) -> None:
        wait_until(lambda: self.service.request(request_id)['status'] == status, f'it is {status}')

    def wait_for_bytes(self, request_id: str, count: int) -> None:
        """Wait until the bytes that Glance sent are reported as received."""
        wait_until(
            lambda: self.service.request(request_id)['bytes_done'] == count, f'{count} bytes came'
        )

    def sent(self, image_id: str) -> int:
        return sum(each.bytes_sent for each in self.gateway.served(image_id))

    def ranges(self, image_id: str) -> list[str | None]:
        return [each.requested_range for each in self.gateway.served(image_id)]


@pytest.fixture
def image_id(upload_image: UploadImage) -> str:
    return upload_image(os.urandom(SIZE))


def _in_seconds(seconds: float) -> str:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return then.strftime('%Y-%m-%dT%H:%M:%S.%fZ')


# Priority


def test_urgent_host_served_between_images(
    start: Start, gateway: site_link.Gateway, upload_image: UploadImage
) -> None:
    service = start(image_cache={'precache_concurrency': 1}).service
    operator = Operator(service, gateway)
    first, second, urgent = (upload_image(os.urandom(SIZE)) for _ in range(3))
    gateway.hold(at_byte=HALF)
    low = operator.ask(service.hosts[:1], first, second)
    gateway.wait_for(1)
    top = operator.ask(service.hosts[1:2], urgent, priority=5)
    operator.wait_for_status(top, 'planned')

    gateway.release()

    assert service.wait(top)['counts'] == {'cached': 1}
    assert service.wait(low)['counts'] == {'cached': 2}
    assert [each.image_id for each in gateway.downloads] == [first, urgent, second]
    assert {task['attempts'] for task in service.tasks(low)} == {1}


# Cancel


def test_cancelled_request_stops_and_leaves_nothing(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start(image_cache={'precache_concurrency': 2}).service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    request_id = operator.ask(service.hosts, image_id)
    gateway.wait_for(2)
    operator.wait_for_bytes(request_id, 2 * HALF)

    assert operator.act(request_id, 'cancel')['status'] in {'cancelling', 'cancelled'}
    request = service.wait(request_id)

    assert len(gateway.running()) == 2, 'it was not the cancel that ended them'
    assert (request['status'], request['counts']) == ('cancelled', {'cancelled': 4})
    assert not any(host.base_files() for host in service.hosts if host.base_directory.exists())
    gateway.release()
    wait_until(lambda: not gateway.running(), 'Glance sends nothing any more')
    assert len(gateway.served(image_id)) == 2
    assert all(each.bytes_sent < SIZE for each in gateway.served(image_id))


def test_kept_partial_of_cancelled_request_resumes(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start().service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    cancelled = operator.ask(service.hosts[:1], image_id)
    gateway.wait_for(1)
    operator.wait_for_bytes(cancelled, HALF)

    operator.act(cancelled, 'cancel', keep_partial=True)
    assert service.wait(cancelled)['status'] == 'cancelled'
    gateway.release()
    request_id = operator.ask(service.hosts[:1], image_id)

    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert operator.ranges(image_id) == [None, f'bytes={HALF}-']


def test_shared_transfer_survives_one_cancel(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start().service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    first = operator.ask(service.hosts[:1], image_id)
    gateway.wait_for(1)
    second = operator.ask(service.hosts[:1], image_id)
    operator.wait_for_status(second, 'running')

    operator.act(first, 'cancel')
    assert service.wait(first)['counts'] == {'cancelled': 1}
    assert service.request(second)['counts'] == {'downloading': 1}
    gateway.release()

    assert service.wait(second)['counts'] == {'cached': 1}
    assert service.request(first)['counts'] == {'cancelled': 1}
    assert operator.ranges(image_id) == [None]


def test_request_cancelled_while_compute_down(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    down_seconds = 2
    started = start(
        DEFAULT={'report_interval': 0.2, 'service_down_time': down_seconds},
        image_cache={'retry_delay_seconds': 3600},  # or the job is called again, in vain
    )
    service = started.service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    request_id = operator.ask(service.hosts[:1], image_id)
    gateway.wait_for(1)
    [gone] = [agent for agent in started.standalone.agents if agent.host == service.hosts[0].name]
    gone.stop()

    operator.act(request_id, 'cancel')

    assert service.wait(request_id)['counts'] == {'cancelled': 1}
    database = session.connect(configuration.new(config_files=[started.conf]))
    known, steering = agents.Agents(database, down_seconds), db_steering.RequestActions(database)
    wait_until(lambda: known.down([gone.host]), 'the host counts as down')
    wait_until(lambda: not steering.discards(10), 'what came is left to age')
    database.dispose()


# Pause and resume


def test_paused_request_resumes_from_kept_bytes(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start().service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    request_id = operator.ask(service.hosts[:2], image_id)
    gateway.wait_for(1)
    operator.wait_for_bytes(request_id, HALF)

    assert operator.act(request_id, 'pause')['status'] == 'paused'
    wait_until(
        lambda: set(operator.statuses(request_id).values()) == {'queued', 'retry_wait'},
        'nothing runs',
    )
    assert service.request(request_id)['status'] == 'paused'
    assert service.request(request_id)['bytes_done'] == HALF
    assert len(gateway.served(image_id)) == 1
    gateway.release()
    operator.act(request_id, 'resume')

    assert service.wait(request_id)['counts'] == {'cached': 2}
    assert sorted(operator.ranges(image_id), key=str) == [None, None, f'bytes={HALF}-']
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1]


# Windows


def test_retry_after_deadline_fetches_missing_bytes(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start().service
    operator = Operator(service, gateway)
    gateway.hold(at_byte=HALF)
    request_id = operator.ask(service.hosts[:2], image_id, deadline=_in_seconds(LATER_SECONDS))
    gateway.wait_for(1)
    operator.wait_for_bytes(request_id, HALF)

    request = service.wait(request_id)
    assert (request['status'], request['counts']) == ('expired', {'expired': 2})
    [cut] = gateway.running()
    cut_bytes = cut.bytes_sent
    gateway.release()
    operator.act(request_id, 'retry')
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 2})
    assert sorted(operator.ranges(image_id), key=str) == [None, None, f'bytes={HALF}-']
    later = [each.bytes_sent for each in gateway.served(image_id) if each is not cut]
    assert cut_bytes + sum(later) == 2 * SIZE


def test_nothing_starts_before_not_before(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start().service
    operator = Operator(service, gateway)
    later = operator.ask(service.hosts[:1], image_id, not_before=_in_seconds(LATER_SECONDS))
    operator.wait_for_status(later, 'planned')

    at_once = operator.ask(service.hosts[1:2], image_id)
    assert service.wait(at_once)['counts'] == {'cached': 1}
    assert operator.statuses(later) == {service.hosts[0].name: 'queued'}

    request = service.wait(later)
    assert request['counts'] == {'cached': 1}
    assert request['started_at'] >= request['options']['not_before']


# Limits of a request


def test_request_limit_bounds_parallel_hosts(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start(image_cache={'precache_concurrency': 4}).service
    operator = Operator(service, gateway)

    request_id = operator.ask(service.hosts, image_id, max_parallel_hosts=2)

    assert service.wait(request_id)['counts'] == {'cached': 4}
    assert gateway.most_at_once <= 2
    assert len(gateway.served(image_id)) == 4


def test_others_start_after_canary_succeeds(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start(image_cache={'precache_concurrency': 4}).service
    operator = Operator(service, gateway)
    gateway.hold()
    request_id = operator.ask(service.hosts, image_id, canary=1)
    gateway.wait_for(1)
    canary, *others = (host.name for host in service.hosts)

    assert operator.statuses(request_id) == {
        canary: 'downloading',
        **dict.fromkeys(others, 'queued'),
    }
    # Hosts of later requests have started: the waiting ones could have, too.
    second = operator.ask(service.hosts[1:2], image_id)
    gateway.wait_for(2)
    assert operator.statuses(request_id)[others[1]] == 'queued'
    gateway.release()

    assert service.wait(request_id)['counts'] == {'cached': 4}
    assert service.wait(second)['counts'] == {'cached': 1}


def test_others_cancelled_after_canary_fails(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start(image_cache={'precache_concurrency': 4, 'precache_max_attempts': 1}).service
    operator = Operator(service, gateway)
    gateway.refuse = 401

    request_id = operator.ask(service.hosts, image_id, canary=1)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('failed', {'cancelled': 3, 'error': 1})
    canary, *others = service.tasks(request_id)
    assert canary['status'] == 'error'
    assert all(f'canary host {canary["host"]}' in task['reason'] for task in others)
    assert {download.image_id for download in gateway.downloads} == {image_id}


def test_max_failures_cancels_waiting_tasks(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    service = start(image_cache={'precache_max_attempts': 1}).service
    operator = Operator(service, gateway)
    gateway.refuse = 401

    request_id = operator.ask(service.hosts, image_id, max_failures=1)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('failed', {'cancelled': 2, 'error': 2})
    [reason] = {t['reason'] for t in service.tasks(request_id) if t['status'] == 'cancelled'}
    assert reason == '2 tasks failed, max_failures is 1'


# Hosts


def test_awaited_down_host_delays_no_others(
    start: Start, gateway: site_link.Gateway, image_id: str
) -> None:
    down_seconds = 8
    times = {
        'DEFAULT': {'report_interval': 0.2, 'service_down_time': down_seconds},
        # A conductor that a busy machine delays for a moment must not count as deaf.
        'conductor': {'heartbeat_write_interval_seconds': 2},
    }
    started = start(**times)
    database = session.connect(configuration.new(config_files=[started.conf]))
    known = agents.Agents(database, down_seconds)
    [gone, *_] = started.standalone.agents
    gone.stop()
    wait_until(lambda: known.down([gone.host]), 'the host counts as down')
    database.dispose()
    operator = Operator(started.service, gateway)

    request_id = operator.ask(
        started.service.hosts,
        image_id,
        wait_for_down_hosts=True,
        deadline=_in_seconds(600),
    )
    wait_until(
        lambda: sorted(operator.statuses(request_id).values()) == ['cached'] * 3 + ['retry_wait'],
        'the others are done',
    )
    [waiting] = [t for t in started.service.tasks(request_id) if t['status'] == 'retry_wait']
    assert (waiting['host'], waiting['attempts']) == (gone.host, 0)
    assert waiting['reason'].startswith('host down: stopped at ')
    started.stop()
    again = start(**times)

    request = again.service.wait(request_id)
    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
