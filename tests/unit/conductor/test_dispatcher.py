# SPDX-License-Identifier: Apache-2.0
"""Conductors at work: real threads and a real database, and computes behind gates."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from oslo_db import exception as db_exception

from nova_precache import exception, model
from nova_precache.compute import rpcapi
from nova_precache.conductor import dispatcher
from nova_precache.db import jobs, requests
from tests.service import wait_until
from tests.unit.conductor.conftest import REST_SECONDS, Parts
from tests.unit.conftest import CACHED
from tools.waiting import TIMEOUT_SECONDS


class Running:
    """Starts dispatchers, and stops them with the test, with all that they left running."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._others = set(threading.enumerate())
        self._started: list[dispatcher.Dispatcher] = []

    def start(
        self, conductor: str = 'c1', limit: int = 1, stop_seconds: float = TIMEOUT_SECONDS
    ) -> dispatcher.Dispatcher:
        made = self._parts.dispatcher(conductor, limit, stop_seconds)
        made.start()
        self._started.append(made)
        return made

    def stop(self) -> None:
        for each in self._started:
            each.stop()
        for thread in set(threading.enumerate()) - self._others:
            thread.join(TIMEOUT_SECONDS)


@pytest.fixture
def running(parts: Parts) -> Iterator[Running]:
    made = Running(parts)
    yield made
    made.stop()


class Crowd:
    """Steps of a compute that record how many work at once.

    :param full: the first calls wait until this many are at work together
    """

    def __init__(self, parts: Parts, full: int) -> None:
        self._answer = parts.compute.answers(CACHED)
        self._full = full
        self._condition = threading.Condition()
        self._working: list[str] = []
        self.most = 0
        self.most_on_a_host = 0

    def step(self, host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome | None:
        with self._condition:
            self._working.append(host)
            self.most = max(self.most, len(self._working))
            self.most_on_a_host = max(self.most_on_a_host, self._working.count(host))
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self.most >= self._full, TIMEOUT_SECONDS)
        outcome = self._answer(host, call)
        with self._condition:
            self._working.remove(host)
        return outcome


class Gate:
    """A step of a compute that begins, then waits for the test."""

    def __init__(self, parts: Parts) -> None:
        self._answer = parts.compute.answers(CACHED)
        self.begun = threading.Event()
        self.opened = threading.Event()

    def step(self, host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome | None:
        outcome = self._answer(host, call)
        self.begun.set()
        assert self.opened.wait(TIMEOUT_SECONDS)
        return outcome


def _ask(
    parts: Parts, hosts: Sequence[str], images: Sequence[str], priority: int = 0
) -> model.CacheRequest:
    aggregate = parts.world.aggregate(hosts)
    return parts.world.requests.accept(
        requests.NewRequest(
            images=tuple(images), aggregate=aggregate, is_admin=True, priority=priority
        )
    )


@pytest.fixture
def images(parts: Parts) -> list[str]:
    return [parts.images.add(b'data').id for _ in range(2)]


def _planned(parts: Parts, hosts: Sequence[str], image_id: str = 'i1') -> model.CacheRequest:
    for host in hosts:
        parts.world.living(host)
    return parts.world.planned(hosts, [image_id])


@pytest.mark.parametrize('limit', [1, 2, 3])
def test_limit_bounds_working_hosts(
    parts: Parts, running: Running, images: list[str], limit: int
) -> None:
    crowd = Crowd(parts, full=limit)
    asked = [_ask(parts, hosts, images) for hosts in (['h1', 'h2'], ['h3', 'h4'], ['h5', 'h1'])]
    hosts = [f'h{number}' for number in range(1, 6)]
    for host in hosts:
        for image in images:
            parts.compute.script(host, image, crowd.step)

    running.start(limit=limit)
    parts.announced.wait('end', 3)

    assert crowd.most == limit
    assert crowd.most_on_a_host == 1
    # A request that is planned when a host is done already is checked once more.
    assert set(parts.compute.called()) == {(h, i) for h in hosts for i in images}
    assert {parts.world.status(request) for request in asked} == {'completed'}


def test_two_conductors_share_one_limit(parts: Parts, running: Running, images: list[str]) -> None:
    crowd = Crowd(parts, full=2)
    hosts = [f'h{number}' for number in range(6)]
    request = _ask(parts, hosts, images[:1])
    for host in hosts:
        parts.compute.script(host, images[0], crowd.step)

    for conductor in ('c1', 'c2'):
        running.start(conductor, limit=2)
    parts.announced.wait('end')

    assert crowd.most == 2
    assert crowd.most_on_a_host == 1
    assert sorted(host for host, _ in parts.compute.called()) == hosts
    assert parts.world.status(request) == 'completed'
    assert parts.announced.events().count('start') == 1
    assert parts.announced.events().count('end') == 1


@pytest.mark.parametrize('conductors', [['c1'], ['c1', 'c2']])
def test_urgent_host_called_between_images(
    parts: Parts, running: Running, images: list[str], conductors: list[str]
) -> None:
    busy = ['h1', 'h2']
    for host in busy:
        parts.world.living(host)
    low = parts.world.planned(busy, ['i1', 'i2', 'i3'])
    gates = {host: Gate(parts) for host in busy}
    for host, gate in gates.items():
        parts.compute.script(host, 'i1', gate.step)
    for conductor in conductors:
        running.start(conductor, limit=2)
    assert all(gate.begun.wait(TIMEOUT_SECONDS) for gate in gates.values())
    urgent = _ask(parts, ['u1'], images[:1], priority=5)
    parts.world.wait(lambda: parts.world.status(urgent) == 'planned')

    gates['h1'].opened.set()
    parts.compute.wait_called(3)
    third = parts.compute.called()[2]
    gates['h2'].opened.set()
    parts.announced.wait('end', 2)

    assert third == ('u1', images[0])
    assert {parts.world.status(each) for each in (low, urgent)} == {'completed'}
    assert {task.attempts for task in parts.world.requests.tasks(low.id)} == {1}
    assert len(parts.compute.called()) == 7


def test_next_host_called_beside_one_without_stream(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1', 'h2'])
    gate = Gate(parts)
    parts.compute.script('h1', 'i1', gate.step)
    running.start('c1', limit=1)
    assert gate.begun.wait(TIMEOUT_SECONDS)

    (claim,) = parts.world.jobs.claims('c1')
    assert parts.world.jobs.release_stream(claim.host, claim.epoch)

    parts.compute.wait_called(2)
    gate.opened.set()
    parts.announced.wait('end')
    assert parts.world.status(request) == 'completed'


def test_stalled_cell_leaves_half_the_slots(parts: Parts, running: Running) -> None:
    _planned(parts, stalled := [f'a{number}' for number in range(4)])
    cell = parts.world.inventory.create_cell('cell2', 'fake:///cell2')
    fast = [f'b{number}' for number in range(6)]
    for host in fast:
        parts.world.living(host, cell)
    request = parts.world.planned(fast, ['i1'], cell_uuid=cell.uuid)
    gates = [Gate(parts) for _ in stalled]
    for host, gate in zip(stalled, gates, strict=True):
        parts.compute.script(host, 'i1', gate.step)

    running.start(limit=4)
    parts.announced.wait('end')

    assert parts.world.status(request) == 'completed'
    # A third slot is free for the stalled cell once the last of the others waits for its call.
    others = parts.compute.called()[: 2 + len(fast) - 1]
    assert sum(host in stalled for host, _ in others) <= 2
    for gate in gates:
        gate.opened.set()
    parts.announced.wait('end', 2)


def test_request_with_lost_message_found(parts: Parts, running: Running, images: list[str]) -> None:
    running.start()

    _ask(parts, ['h1'], images)

    parts.announced.wait('end')


def test_hosts_of_dead_conductor_taken_over(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1', 'h2'])
    parts.world.begun('dead')
    parts.world.expire('h1')

    started = running.start(limit=1)
    parts.announced.wait('end')
    started.stop()

    assert parts.compute.called() == [('h1', 'i1'), ('h2', 'i1')]
    assert [task.attempts for task in parts.world.requests.tasks(request.id)] == [1, 1]
    assert parts.world.claimed() == 0


def test_stopping_conductor_releases_busy_host(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1'])
    gate = Gate(parts)
    parts.compute.script('h1', 'i1', gate.step)
    stopping = running.start('c1', stop_seconds=0)
    assert gate.begun.wait(TIMEOUT_SECONDS)

    stopping.stop()

    assert parts.world.jobs.claimed_hosts() == []
    running.start('c2')
    parts.announced.wait('end')
    gate.opened.set()
    assert parts.world.status(request) == 'completed'
    assert [task.attempts for task in parts.world.requests.tasks(request.id)] == [1]


def test_stopping_conductor_waits_for_its_calls(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1', 'h2'])
    gate = Gate(parts)
    parts.compute.script('h1', 'i1', gate.step)
    stopping = running.start()
    assert gate.begun.wait(TIMEOUT_SECONDS)
    stopped = threading.Thread(target=stopping.stop)

    stopped.start()
    gate.opened.set()
    stopped.join(TIMEOUT_SECONDS)

    assert not stopped.is_alive()
    assert parts.world.claimed() == 0
    assert parts.world.statuses(request)['h1', 'i1'] == 'cached'


def test_unreleased_host_released_later(
    parts: Parts, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _planned(parts, ['h1', 'h2'])
    next_job, release = parts.world.jobs.next_job, parts.world.jobs.release
    lost = db_exception.DBConnectionError('the database is away')
    failures = [lost, lost]

    def next_job_or_fail(
        conductor_id: str, host: str, ended: jobs.Finish | None = None, *given: Any, **more: Any
    ) -> jobs.NextJobResult:
        if failures and ended is not None:
            raise failures.pop()
        return next_job(conductor_id, host, ended, *given, **more)

    def release_or_fail(conductor_id: str, host: str) -> bool:
        if failures:
            raise failures.pop()
        return release(conductor_id, host)

    monkeypatch.setattr(parts.world.jobs, 'next_job', next_job_or_fail)
    monkeypatch.setattr(parts.world.jobs, 'release', release_or_fail)

    running.start(limit=1)
    parts.announced.wait('end')

    assert parts.world.status(request) == 'completed'
    assert not failures


def test_failing_step_does_not_end_loop(
    parts: Parts, running: Running, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_to_plan = parts.world.requests.next_to_plan
    failures = [db_exception.DBConnectionError('the database is away')]

    def next_or_fail(conductor_id: str) -> requests.ToPlan | None:
        if failures:
            raise failures.pop()
        return next_to_plan(conductor_id)

    monkeypatch.setattr(parts.world.requests, 'next_to_plan', next_or_fail)
    _ask(parts, ['h1'], images)

    running.start()
    parts.announced.wait('end')

    assert not failures


def test_departed_host_skipped_unless_transferring(
    parts: Parts, running: Running, images: list[str]
) -> None:
    gate = Gate(parts)
    request = _ask(parts, ['h1', 'h2', 'h3'], images[:1])
    parts.compute.script('h1', images[0], gate.step)
    running.start()
    assert gate.begun.wait(TIMEOUT_SECONDS)

    for host in ('h1', 'h2'):
        parts.world.inventory.remove_host(request.aggregate_id, host)
    parts.announced.wait('progress')
    gate.opened.set()
    parts.announced.wait('end')

    tasks = {
        task.host: (task.status, task.reason) for task in parts.world.requests.tasks(request.id)
    }
    assert tasks == {
        'h1': ('cached', None),
        'h2': ('skipped', 'host left the aggregate'),
        'h3': ('cached', None),
    }
    assert parts.world.status(request) == 'partial'


def test_request_of_deleted_aggregate_continues(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1', 'h2'])  # of an aggregate that never was

    running.start()
    parts.announced.wait('end')

    assert parts.world.status(request) == 'completed'


def test_unended_request_is_ended(parts: Parts, running: Running) -> None:
    request = _planned(parts, ['h1'])
    assigned = parts.world.begun('dead')
    parts.world.jobs.finish(assigned.job_id, assigned.epoch, CACHED)

    running.start()
    parts.announced.wait('end')

    assert parts.world.status(request) == 'completed'


def test_dead_cell_gets_one_probe(parts: Parts, running: Running) -> None:
    dead = _planned(parts, ['d1', 'd2', 'd3'])
    cell = parts.world.inventory.create_cell('cell2', 'fake:///cell2')
    for host in ('a1', 'a2'):
        parts.world.living(host, cell)
    parts.world.planned(['a1', 'a2'], ['i1'], cell_uuid=cell.uuid)
    parts.breakers.failed(parts.world.cell.uuid)
    gate = Gate(parts)
    parts.compute.script('d1', 'i1', gate.step)

    running.start(limit=3)
    parts.announced.wait('end')
    assert sorted(parts.compute.called()) == [('a1', 'i1'), ('a2', 'i1')]
    assert set(parts.world.statuses(dead).values()) == {'queued'}
    parts.world.wait(lambda: parts.world.jobs.claimed_hosts() == [])

    parts.now[0] += REST_SECONDS + 1
    assert gate.begun.wait(TIMEOUT_SECONDS)
    assert parts.world.jobs.claimed_hosts() == ['d1']

    gate.opened.set()
    parts.announced.wait('end', 2)


def test_dead_cell_probed_once_despite_slots(parts: Parts, running: Running) -> None:
    """The claims of one look must not all go to the cell before the first has failed."""
    _planned(parts, ['d1', 'd2', 'd3'])
    parts.breakers.failed(parts.world.cell.uuid)
    parts.now[0] += REST_SECONDS + 1
    unreachable = parts.compute.fails(exception.CellUnreachable('no route to host'))
    for host in ('d1', 'd2', 'd3'):
        parts.compute.script(host, 'i1', unreachable)

    stopping = running.start(limit=3)
    parts.compute.wait_called(1)
    stopping.stop()

    assert len(parts.compute.calls) == 1


def test_cell_reopened_during_claim_probed_once(
    parts: Parts, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planned(parts, ['d1', 'd2', 'd3'])
    parts.breakers.failed(parts.world.cell.uuid)
    rest = [REST_SECONDS + 1]

    def ends_rest(ask: Callable[[], object]) -> Callable[[], object]:
        def asked() -> object:
            answer = ask()
            parts.now[0] += rest.pop() if rest else 0
            return answer

        return asked

    for name in ('avoid', 'has_to_probe'):
        monkeypatch.setattr(parts.breakers, name, ends_rest(getattr(parts.breakers, name)))
    unreachable = parts.compute.fails(exception.CellUnreachable('no route to host'))
    for host in ('d1', 'd2', 'd3'):
        parts.compute.script(host, 'i1', unreachable)

    stopping = running.start(limit=3)
    parts.compute.wait_called(1)
    stopping.stop()

    assert len(parts.compute.calls) == 1


def test_cell_outage_counts_one_attempt(parts: Parts, running: Running) -> None:
    hosts = [f'd{number}' for number in range(1, 9)]
    request = _planned(parts, hosts)
    together = threading.Barrier(4)

    def die(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        together.wait(TIMEOUT_SECONDS)
        raise exception.CellUnreachable('the broker is away')

    for host in hosts[:4]:
        parts.compute.script(host, 'i1', die)

    running.start(limit=4)
    parts.world.wait(lambda: set(parts.world.statuses(request).values()) == {'retry_wait'})

    assert [task.attempts for task in parts.world.requests.tasks(request.id)] == [1] * 8


def test_image_service_outage_blocks_no_claim(
    parts: Parts, running: Running, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = _planned(parts, ['h1'])
    asked, answered = threading.Event(), threading.Event()

    def show(image_id: str) -> model.Image:
        asked.set()
        answered.wait(TIMEOUT_SECONDS)
        raise exception.ImageServiceUnavailable('no answer')

    monkeypatch.setattr(parts.images, 'show', show)
    stuck = _ask(parts, ['h1'], images)

    running.start()
    assert asked.wait(TIMEOUT_SECONDS)
    parts.announced.wait('end')

    assert parts.world.status(ready) == 'completed'
    assert parts.world.status(stuck) == 'accepted'
    answered.set()
    parts.world.wait(lambda: parts.world.requests.get(stuck.id).reason == 'no answer')


def test_stop_without_database_lets_leases_expire(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(conductor_id: str) -> None:
        raise db_exception.DBConnectionError('no server\nSELECT 1')

    monkeypatch.setattr(parts.world.jobs, 'release_all', refuse)
    made = parts.dispatcher('c1', 1, 0)

    made.stop()

    assert 'their leases will expire' in caplog.text
    with pytest.raises(RuntimeError, match='shutdown'):
        made._pool.submit(print)


def test_planner_and_calls_share_stop_timeout(
    parts: Parts, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def show(image_id: str) -> model.Image:
        asked.set()
        answered.wait(TIMEOUT_SECONDS)
        raise exception.ImageServiceUnavailable('no answer')

    monkeypatch.setattr(parts.images, 'show', show)
    _ask(parts, ['h1'], images)
    waited: list[float] = []
    wait = dispatcher.futures.wait
    monkeypatch.setattr(
        dispatcher.futures, 'wait', lambda calls, most: waited.append(most) or wait(calls, most)
    )
    made = parts.dispatcher('c1', 1, 0.2)
    made.start()
    assert asked.wait(TIMEOUT_SECONDS)

    made.stop()

    assert waited == [0]  # the planner had it all
    answered.set()
    made._planner.join(TIMEOUT_SECONDS)


def test_many_hosts_log_few_lines(
    parts: Parts, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hosts = [f'h{number}' for number in range(200)]
    for host in hosts:
        parts.world.living(host)
    request = parts.world.planned(hosts, ['i1'])
    refused = model.ImageOutcome('error', 'unsafe image: x')
    for host in hosts[:50]:
        parts.compute.script(host, 'i1', parts.compute.answers(refused))
    for host in hosts[50:100]:
        parts.compute.script(host, 'i1', parts.compute.fails(exception.PrecacheError('odd')))

    running.start(limit=8)
    parts.compute.wait_called(len(hosts))
    wait_until(
        lambda: 'queued' not in parts.world.requests.get(request.id).counts, 'all were called'
    )
    parts.steering.cancel(request.id)  # those that wait for another attempt
    wait_until(lambda: parts.world.status(request) == 'cancelled', 'it has ended')

    lines = [r for r in caplog.records if r.name.startswith('nova_precache')]
    assert len(lines) <= 2 * len(hosts) + 10
    assert sum(r.levelno >= logging.WARNING for r in lines) <= 50 + 10
    assert [r for r in lines if r.exc_info] == []
