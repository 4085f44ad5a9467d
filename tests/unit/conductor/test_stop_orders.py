# SPDX-License-Identifier: Apache-2.0
"""Orders to computes outside their calls, and the effect of each answer and silence."""

import dataclasses
import datetime
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.conductor import stop_orders
from nova_precache.db import jobs
from tests.service import wait_until
from tests.unit.conductor.conftest import REST_SECONDS, Parts, Told
from tests.unit.conftest import CACHED
from tools.waiting import TIMEOUT_SECONDS

FAR_AHEAD = datetime.datetime(2100, 1, 1)  # noqa: DTZ001 - as the database keeps it


@dataclasses.dataclass(frozen=True)
class Running:
    """A request on one host, whose compute is at work on it."""

    parts: Parts
    request: model.CacheRequest
    assigned: jobs.Assignment

    @property
    def order(self) -> str:
        return f'{self.assigned.job_id} {self.assigned.epoch}'

    def leave(self) -> None:
        """Release the host, as a conductor that stops does."""
        self.parts.world.jobs.release('c1', [self.assigned.host])

    def task(self) -> model.Task:
        [task] = self.parts.world.requests.tasks(self.request.id)
        return task


@pytest.fixture
def tell(parts: Parts) -> stop_orders.StopOrders:
    return parts.orders()


def _run(parts: Parts, host: str = 'h1', image: str = 'i1', **fields: object) -> Running:
    parts.world.living(host)
    request = parts.world.planned([host], [image], **fields)
    return Running(parts, request, parts.world.begun())


def _cancelled(parts: Parts, host: str = 'h1', **arguments: bool) -> Running:
    running = _run(parts, host)
    parts.steering.cancel(running.request.id, **arguments)
    return running


def _answers(parts: Parts, host: str, answer: bool | Exception) -> None:
    def give() -> bool:
        if isinstance(answer, Exception):
            raise answer
        return answer

    parts.compute.answer[host] = give


def _look(
    parts: Parts, tell: stop_orders.StopOrders, what: Callable[[], object] | None = None
) -> None:
    """Look once, and wait until all orders have been sent."""
    (what or tell.stop_transfers)()
    pools = (tell._stops, tell._changes, tell._discards)
    wait_until(lambda: not any(pool._running for pool in pools), 'all was told')


# Jobs to stop


def test_cancelled_transfer_stops_with_outcome(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)

    assert tell.stop_transfers()
    parts.compute.wait_told(1)

    assert parts.compute.told == [Told('h1', running.order, 'cancelled', keep_partial=False)]
    assert parts.world.status(running.request) == 'cancelling'
    outcome = model.ImageOutcome('cancelled', 'the request was cancelled')
    parts.tracker.attempted(running.assigned, outcome)
    assert running.task().status == 'cancelled'
    assert not tell.stop_transfers()


def test_order_says_whether_to_keep_partial(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts, keep_partial=True)

    _look(parts, tell)

    assert parts.compute.told == [Told('h1', running.order, 'cancelled', keep_partial=True)]


def test_transfer_ended_meanwhile_cached(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)
    _look(parts, tell)

    parts.tracker.attempted(running.assigned, CACHED)

    assert running.task().status == 'cached'
    assert parts.world.status(running.request) == 'completed'


def test_nothing_to_stop_sends_nothing(parts: Parts, tell: stop_orders.StopOrders) -> None:
    _run(parts)

    assert not tell.stop_transfers()
    assert parts.compute.told == []


def test_order_not_repeated_too_soon(parts: Parts, tell: stop_orders.StopOrders) -> None:
    _cancelled(parts)
    answered = threading.Event()
    parts.compute.answer['h1'] = lambda: answered.wait(TIMEOUT_SECONDS)
    tell.stop_transfers()
    parts.compute.wait_told(1)

    parts.now[0] += 100
    tell.stop_transfers()
    answered.set()
    _look(parts, tell)
    assert len(parts.compute.told) == 1

    parts.now[0] += stop_orders.OUTCOME_SECONDS + 1
    _look(parts, tell)
    assert len(parts.compute.told) == 2


def test_unresponsive_host_delays_no_other(parts: Parts, tell: stop_orders.StopOrders) -> None:
    hosts = [f'h{number}' for number in range(1, 6)]
    for host in hosts:
        _cancelled(parts, host)
    answered = threading.Event()
    for host in hosts[:-1]:
        parts.compute.answer[host] = lambda: answered.wait(TIMEOUT_SECONDS)

    tell.stop_transfers()
    parts.compute.wait_told(len(hosts))

    assert {told.host for told in parts.compute.told} == set(hosts)
    answered.set()


# Jobs that no compute works on


def test_orphaned_unwanted_job_ends_at_once(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)
    running.leave()
    _answers(parts, 'h1', False)

    _look(parts, tell)

    assert running.task().status == 'cancelled'
    assert parts.world.status(running.request) == 'cancelled'
    assert parts.world.depth() == 0


def test_waiting_conductor_has_time_for_outcome(parts: Parts, tell: stop_orders.StopOrders) -> None:
    """Another conductor may have ordered the stop; the compute may be about to report its end."""
    running = _cancelled(parts)
    _answers(parts, 'h1', False)

    for _ in range(2):
        _look(parts, tell)
    assert running.task().status == 'downloading'

    parts.now[0] += stop_orders.OUTCOME_SECONDS + 1
    _look(parts, tell)
    assert running.task().status == 'cancelled'
    assert parts.world.status(running.request) == 'cancelled'


def test_dead_conductor_replaced_after_order(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)
    _look(parts, tell)  # by the one that dies
    running.leave()
    _answers(parts, 'h1', False)

    _look(parts, parts.orders())

    assert running.task().status == 'cancelled'


def test_down_host_job_ends_without_call(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)
    parts.world.dead('h1')

    _look(parts, tell)

    assert parts.compute.told == []
    assert running.task().status == 'cancelled'
    assert parts.world.status(running.request) == 'cancelled'


def test_paused_orphaned_job_waits(parts: Parts) -> None:
    freed = threading.Event()
    tell = parts.orders(freed.set)
    running = _run(parts)
    parts.steering.pause(running.request.id)
    running.leave()
    _answers(parts, 'h1', False)

    _look(parts, tell)

    assert parts.compute.told == [Told('h1', running.order, 'paused', keep_partial=True)]
    assert (running.task().status, running.task().attempts) == ('retry_wait', 0)
    assert parts.world.status(running.request) == 'paused'
    assert freed.is_set()
    assert parts.world.claim('c1', limit=5) is None


@pytest.mark.parametrize(
    'error',
    [
        exception.VersionUnsupported('stop_image 1.1 is not known'),
        exception.CellNotFound('cell1'),
    ],
)
def test_compute_without_stop_runs_to_end(
    parts: Parts, tell: stop_orders.StopOrders, error: Exception
) -> None:
    running = _cancelled(parts)
    _answers(parts, 'h1', error)

    _look(parts, tell)

    assert running.task().status == 'cancelled'


# Computes that get no order


def test_unreachable_cell_ordered_later(parts: Parts, tell: stop_orders.StopOrders) -> None:
    other = parts.world.inventory.create_cell('cell2', 'fake:///cell2')
    dead = _cancelled(parts, 'h1')
    parts.world.living('h2', other)
    alive = parts.world.planned(['h2'], ['i1'], cell_uuid=other.uuid)
    parts.world.begun()
    parts.steering.cancel(alive.id)
    _answers(parts, 'h1', exception.CellUnreachable('the broker is away'))

    _look(parts, tell)
    assert {told.host for told in parts.compute.told} == {'h1', 'h2'}
    assert parts.breakers.avoid() == {parts.world.cell.uuid}
    assert dead.task().status == 'downloading'

    parts.compute.told.clear()
    parts.now[0] += stop_orders.OUTCOME_SECONDS + 1
    _look(parts, tell)
    assert {told.host for told in parts.compute.told} == {'h2'}

    parts.now[0] += REST_SECONDS
    _answers(parts, 'h1', True)
    parts.compute.told.clear()
    _look(parts, tell)
    assert 'h1' in {told.host for told in parts.compute.told}
    assert parts.breakers.avoid() == set()


def test_unresponsive_host_gets_order_again(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _cancelled(parts)
    _answers(parts, 'h1', TimeoutError('no answer'))
    _look(parts, tell)
    _look(parts, tell)
    assert len(parts.compute.told) == 1

    parts.now[0] += stop_orders.UNANSWERED_SECONDS + 1
    _look(parts, tell)

    assert len(parts.compute.told) == 2
    assert parts.breakers.avoid() == set()
    assert running.task().status == 'downloading'


# Partial files on a host


def _discarded(parts: Parts, host: str = 'h1') -> model.CacheRequest:
    """A request that was cancelled while it waited for another attempt."""
    running = _run(parts, host)
    paused = model.ImageOutcome('error', 'the link broke', model.Retry.BACKOFF)
    parts.tracker.attempted(running.assigned, paused)
    running.leave()
    parts.steering.cancel(running.request.id)
    assert len(parts.steering.discards(10)) == 1
    return running.request


@pytest.mark.parametrize('answer', [True, False, exception.VersionUnsupported('too low')])
def test_host_discards_unwanted_partial_once(
    parts: Parts, tell: stop_orders.StopOrders, answer: bool | Exception
) -> None:
    _discarded(parts)
    _answers(parts, 'h1', answer)

    for _ in range(2):
        _look(parts, tell, tell.discard_partials)

    assert parts.compute.told == [Told('h1', 'i1')]
    assert parts.steering.discards(10) == []


def test_partial_of_down_host_expires(parts: Parts, tell: stop_orders.StopOrders) -> None:
    _discarded(parts)
    parts.world.dead('h1')

    _look(parts, tell, tell.discard_partials)

    assert parts.compute.told == []
    assert parts.steering.discards(10) == []


@pytest.mark.parametrize(
    'error', [TimeoutError('no answer'), exception.CellUnreachable('the broker is away')]
)
def test_unreachable_host_gets_order_later(
    parts: Parts, tell: stop_orders.StopOrders, error: Exception
) -> None:
    _discarded(parts)
    _answers(parts, 'h1', error)
    _look(parts, tell, tell.discard_partials)
    assert len(parts.steering.discards(10)) == 1

    parts.now[0] += stop_orders.DISCARD_UNANSWERED_SECONDS + 1
    _answers(parts, 'h1', True)
    _look(parts, tell, tell.discard_partials)

    assert len(parts.compute.told) == 2
    assert parts.steering.discards(10) == []


# Changed options


def _changed(parts: Parts, **asked: Any) -> Running:
    running = _run(parts)
    parts.steering.change(running.request.id, asked)  # type: ignore[arg-type]
    return running


def test_changed_options_sent_once(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _changed(parts, max_rate_bytes=700, deadline=FAR_AHEAD)

    for _ in range(2):
        _look(parts, tell, tell.change_transfers)

    assert parts.compute.told == [Told('h1', running.order, '1 700 True')]
    assert not tell.change_transfers()


def test_later_change_sent_again(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _changed(parts, max_rate_bytes=700)
    _look(parts, tell, tell.change_transfers)

    parts.steering.change(running.request.id, {'max_rate_bytes': None})
    _look(parts, tell, tell.change_transfers)

    assert [told.why for told in parts.compute.told] == ['1 700 False', '2 None False']


def test_change_repeated_until_call_runs(parts: Parts, tell: stop_orders.StopOrders) -> None:
    _changed(parts, max_rate_bytes=700)
    _answers(parts, 'h1', False)
    _look(parts, tell, tell.change_transfers)
    _answers(parts, 'h1', True)
    parts.now[0] += stop_orders.UNANSWERED_SECONDS + 1

    _look(parts, tell, tell.change_transfers)

    assert len(parts.compute.told) == 2
    assert not tell.change_transfers()


def test_change_of_older_compute_given_up(
    parts: Parts, tell: stop_orders.StopOrders, caplog: pytest.LogCaptureFixture
) -> None:
    running = _changed(parts, max_rate_bytes=700)
    _answers(parts, 'h1', exception.VersionUnsupported('change_image 1.5 is not supported'))

    with caplog.at_level(logging.INFO):
        _look(parts, tell, tell.change_transfers)

    assert not tell.change_transfers()
    assert (
        f'Job {running.assigned.job_id} of host h1 keeps the rate and deadline of its call until '
        'it ends: change_image 1.5 is not supported'
    ) in caplog.messages


def test_down_host_not_sent_changes(parts: Parts, tell: stop_orders.StopOrders) -> None:
    _changed(parts, max_rate_bytes=700)
    parts.world.dead('h1')

    assert not tell.change_transfers()
    assert parts.compute.told == []


def test_next_call_has_changed_options(parts: Parts, tell: stop_orders.StopOrders) -> None:
    running = _changed(parts, max_rate_bytes=700)

    again = parts.world.jobs.assign_again('c1', running.assigned)

    assert again is not None
    assert again.terms.max_rate_bytes == 700
    assert not tell.change_transfers()
