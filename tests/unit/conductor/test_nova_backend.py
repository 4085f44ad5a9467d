# SPDX-License-Identifier: Apache-2.0
"""Stock nova-computes behind a conductor: no host gets a call while another may be at work."""

import collections
import datetime
from collections.abc import Callable, Mapping, Sequence

import pytest

from nova_precache import context, exception, model
from nova_precache.cells import liveness
from nova_precache.conductor import database_wait, nova_backend
from nova_precache.db import host_recovery, nova_calls
from nova_precache.db.engine import models
from tests.unit.conductor.conftest import POLICY, Parts
from tests.unit.conftest import LONG_AGO

OVER_SECONDS = 1800.0


class FakeNova:
    """Every nova-compute: answers ``cached`` unless scripted, and records its calls."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str | None]] = []
        self.script: dict[str, list[Callable[[], str | None]]] = collections.defaultdict(list)
        self.is_broker_up = True

    def probe(self) -> None:
        if not self.is_broker_up:
            raise exception.CellUnreachable('no broker')

    def cache_images(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_ids: Sequence[str],
        token: str | None,
    ) -> Mapping[str, str]:
        self.sent += [(host, image_id, token) for image_id in image_ids]
        steps = self.script[host]
        words = [(each, steps.pop(0)() if steps else 'cached') for each in image_ids]
        return {image_id: word for image_id, word in words if word is not None}

    def loses(self, host: str, error: Exception | None = None) -> None:
        """Lose the next call of a host, or fail it with the error."""

        def lose() -> None:
            raise error or TimeoutError('no reply')

        self.script[host].append(lose)

    def says(self, host: str, word: str | None) -> None:
        self.script[host].append(lambda: word)

    def images(self) -> list[str]:
        return [image_id for _, image_id, _ in self.sent]


@pytest.fixture
def nova(parts: Parts) -> FakeNova:
    made = FakeNova()
    _serve_with(parts, made, nova_calls.StockCalls(parts.world.database))
    for host in ('h1', 'h2'):
        parts.world.living(host)
    return made


def _serve_with(parts: Parts, nova: FakeNova, calls: nova_calls.StockCalls) -> None:
    parts.tracker.database_wait = database_wait.DatabaseWait(lambda seconds: False)
    waiting = parts.tracker.database_wait
    compute = nova_backend.NovaBackend(nova, calls, OVER_SECONDS, waiting)
    parts.compute_of = lambda cell_uuid: compute


def _losing_database(
    parts: Parts, method: str, commits: bool = False, meanwhile: Callable[[], object] = bool
) -> nova_calls.StockCalls:
    """Return calls whose database is lost once in a method, after its commit or before it."""
    calls = nova_calls.StockCalls(parts.world.database)
    work = getattr(calls, method)
    errors = [exception.DatabaseUnavailable('(2013, lost)')]

    def lose_once(*args: object) -> object:
        if not errors:
            return work(*args)
        if commits:
            work(*args)
        meanwhile()
        raise errors.pop()

    setattr(calls, method, lose_once)
    return calls


def _task(
    parts: Parts, request: model.CacheRequest, host: str = 'h1', image: str = 'i1'
) -> model.Task:
    return parts.world.tasks(request)[host, image]


def _let_call_be_over(parts: Parts) -> None:
    """End lost calls by moving their times into the past, and make the waiting jobs due."""
    parts.world.change(models.StockCall, models.StockCall.over_at > LONG_AGO, over_at=LONG_AGO)
    parts.world.make_due()


def _sent_rows(parts: Parts) -> list[str]:
    with parts.world.database.reader() as session:
        return [row.host for row in session.query(models.StockCall)]


@pytest.mark.parametrize(
    ('word', 'status', 'reason', 'bytes_done'),
    [
        ('cached', 'cached', None, 100),
        ('existing', 'existing', None, 0),
        ('unsupported', 'unsupported', 'the driver of nova-compute cannot cache images', 0),
        ('error', 'retry_wait', nova_backend.ERROR, 0),
        ('stashed', 'retry_wait', nova_backend.ERROR, 0),
        (None, 'retry_wait', nova_backend.ERROR, 0),
    ],
)
def test_nova_compute_answer_is_outcome(
    parts: Parts, nova: FakeNova, word: str, status: str, reason: str | None, bytes_done: int
) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    nova.says('h1', word)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.reason, task.bytes_done) == (status, reason, bytes_done)
    assert (task.bytes_total, task.attempts) == (100, 1)
    assert nova.sent == [('h1', 'i1', 'token-1')]
    assert _sent_rows(parts) == []


def test_error_retried_up_to_limit(parts: Parts, nova: FakeNova) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for _ in range(POLICY.max_attempts):
        nova.says('h1', 'error')
        parts.serve()
        parts.world.make_due()

    task = _task(parts, request, image=image.id)
    assert (task.status, task.reason, task.attempts) == ('error', nova_backend.ERROR, 3)


def test_each_image_is_one_call(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2', 'i3'])

    parts.serve()

    assert nova.images() == ['i1', 'i2', 'i3']
    assert parts.world.requests.get(request.id).counts == {'cached': 3}


def test_requests_for_same_image_share_call(parts: Parts, nova: FakeNova) -> None:
    first = parts.world.planned(['h1'], ['i1'])
    second = parts.world.planned(['h1'], ['i1'])

    parts.serve()

    assert nova.images() == ['i1']
    assert {_task(parts, each).status for each in (first, second)} == {'cached'}


# Lost calls


@pytest.mark.parametrize(
    'error', [TimeoutError('no reply'), exception.CellUnreachable('the broker was lost')]
)
def test_lost_call_delays_all_host_images(parts: Parts, nova: FakeNova, error: Exception) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    nova.loses('h1', error)

    parts.serve()

    assert nova.images() == ['i1']
    lost, other = _task(parts, request), _task(parts, request, image='i2')
    assert (lost.status, lost.attempts) == ('retry_wait', 1)
    assert str(lost.reason).startswith('no answer from nova-compute; the host may still be')
    assert (other.status, other.attempts) == ('retry_wait', 0)
    assert str(other.reason).startswith('an earlier call got no answer; the host may still')
    assert parts.world.claimed() == 0
    with parts.world.database.reader() as session:
        over_at = session.query(models.StockCall).one().over_at
    for task in (lost, other):
        assert task.next_attempt_at is not None
        assert abs(task.next_attempt_at - over_at) < datetime.timedelta(seconds=5)
        assert f'is not called before {over_at:%Y-%m-%dT%H:%M:%SZ}' in str(task.reason)


def test_lost_call_delays_later_request(parts: Parts, nova: FakeNova) -> None:
    parts.world.planned(['h1'], ['i1'])
    nova.loses('h1')
    parts.serve()

    late = parts.world.planned(['h1', 'h2'], ['i9'])
    assert {parts.serve(), parts.serve()} == {'h1', 'h2'}

    assert nova.sent[1:] == [('h2', 'i9', 'token-1')]
    assert parts.world.statuses(late) == {('h1', 'i9'): 'retry_wait', ('h2', 'i9'): 'cached'}
    assert _task(parts, late, image='i9').attempts == 0


def test_job_due_too_early_not_called(parts: Parts, nova: FakeNova) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    nova.loses('h1')
    parts.serve()

    parts.world.make_due()  # as when a paused request is resumed
    parts.serve()

    assert len(nova.sent) == 1
    task = _task(parts, request, image=image.id)
    assert (task.status, task.attempts) == ('retry_wait', 1)


def test_host_called_after_lost_call_ends(parts: Parts, nova: FakeNova) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    nova.loses('h1')
    parts.serve()

    _let_call_be_over(parts)
    nova.says('h1', 'existing')
    parts.serve()

    task = _task(parts, request, image=image.id)
    assert (task.status, task.attempts) == ('existing', 2)
    assert _sent_rows(parts) == []


def test_lost_last_attempt_ends_in_error(parts: Parts, nova: FakeNova) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for _ in range(POLICY.max_attempts):
        nova.loses('h1')
        _let_call_be_over(parts)
        parts.serve()
    assert len(nova.sent) == POLICY.max_attempts
    task = _task(parts, request, image=image.id)
    assert (task.status, task.attempts) == ('error', 3)
    assert str(task.reason).startswith('no answer from nova-compute')

    parts.world.planned(['h1'], ['i2'])
    parts.serve()

    assert len(nova.sent) == POLICY.max_attempts


def test_successor_waits_for_killed_conductors_call(parts: Parts, nova: FakeNova) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id, 'i2'])
    parts.world.claim('c1', limit=1)
    killed = parts.world.assign('c1', 'h1')
    assert killed is not None
    calls = nova_calls.StockCalls(parts.world.database)
    assert calls.begin(killed.job_id, killed.epoch, 'h1', OVER_SECONDS) == nova_calls.Begun(100)
    assert _task(parts, request, image=image.id).status == 'downloading'
    parts.world.expire('h1')

    (claim,) = parts.world.jobs.take_over('c2')
    parts.caller('c2').serve(claim, lambda: False)

    assert nova.sent == []
    called, other = (_task(parts, request, image=each) for each in (image.id, 'i2'))
    assert (called.status, called.attempts) == ('retry_wait', 1)
    assert (other.status, other.attempts) == ('retry_wait', 0)
    assert parts.world.claimed() == 0

    _let_call_be_over(parts)
    parts.serve('c2')

    assert _task(parts, request, image=image.id).attempts == 2
    assert set(parts.world.statuses(request).values()) == {'cached'}


def test_call_ended_unseen_repeated_and_counted(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    nova.loses('h1', KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        parts.serve('c1')

    _let_call_be_over(parts)
    parts.serve('c2')

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('cached', 2)


def test_broker_outage_delays_no_host(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    nova.is_broker_up = False

    parts.serve()

    task = _task(parts, request)
    assert (task.status, nova.sent) == ('retry_wait', [])
    assert str(task.reason).endswith('is unreachable: no broker')
    assert _sent_rows(parts) == []


@pytest.mark.parametrize('commits', [False, True])
@pytest.mark.parametrize('method', ['begin', 'answered'])
def test_database_lost_around_call(
    parts: Parts, nova: FakeNova, method: str, commits: bool
) -> None:
    _serve_with(parts, nova, _losing_database(parts, method, commits))
    request = parts.world.planned(['h1'], ['i1'])

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('cached', 1)
    assert nova.images() == ['i1']
    assert _sent_rows(parts) == []


def test_database_lost_after_lost_call(parts: Parts, nova: FakeNova) -> None:
    _serve_with(parts, nova, _losing_database(parts, 'occupied'))
    request = parts.world.planned(['h1'], ['i1'])
    nova.loses('h1')

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts) == ('retry_wait', 1)
    assert 'no answer from nova-compute' in (task.reason or '')
    assert nova.images() == ['i1']
    assert _sent_rows(parts) == ['h1']


def test_cancelled_before_repeated_begin(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    calls = _losing_database(
        parts, 'begin', commits=True, meanwhile=lambda: parts.steering.cancel(request.id)
    )
    _serve_with(parts, nova, calls)

    parts.serve()

    assert nova.images() == []
    assert calls.occupied('h1') is None


def test_compute_error_is_an_answer(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    nova.loses('h1', exception.VersionUnsupported('cache_images 6.0 is not known there'))

    parts.serve()

    assert parts.world.statuses(request) == {('h1', 'i1'): 'unsupported', ('h1', 'i2'): 'cached'}
    assert _sent_rows(parts) == []


def test_unknown_host_state_avoids_cell(
    parts: Parts, nova: FakeNova, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def unknown(self: Parts, assignment: object) -> str | None:
        raise exception.CellUnreachable("cell cell1's database is unreachable (it is gone)")

    monkeypatch.setattr(Parts, 'why_down', unknown)

    parts.serve()

    task = _task(parts, request)
    assert (task.status, task.attempts, nova.sent) == ('retry_wait', 1, [])
    assert "cell1's database is unreachable (it is gone)" in str(task.reason)
    assert list(parts.breakers.avoid()) == [parts.world.cell.uuid]


# Stopping


def _orders(parts: Parts, freed: list[None]) -> nova_backend.NovaStopOrders:
    return nova_backend.NovaStopOrders(
        parts.steering, parts.world.jobs, parts.tracker, lambda: freed.append(None)
    )


def test_cancelled_running_call_keeps_outcome(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    freed: list[None] = []

    def answer() -> str:
        parts.steering.cancel(request.id)
        assert _orders(parts, freed).stop_transfers()
        assert _task(parts, request, image='i2').status == 'cancelled'
        assert parts.world.status(request) == 'cancelling'
        return 'cached'

    nova.script['h1'].append(answer)

    parts.serve()

    assert parts.world.statuses(request) == {('h1', 'i1'): 'cached', ('h1', 'i2'): 'cancelled'}
    assert (parts.world.status(request), freed) == ('cancelled', [])
    assert not _orders(parts, freed).stop_transfers()


def test_cancelled_lost_call_ends_at_once(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def lose() -> str:
        parts.steering.cancel(request.id)
        raise TimeoutError

    nova.script['h1'].append(lose)

    parts.serve()

    assert _task(parts, request).status == 'cancelled'
    assert parts.world.status(request) == 'cancelled'
    assert _sent_rows(parts) == ['h1']


def test_cancelled_orphaned_call_ends(parts: Parts, nova: FakeNova) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    nova.loses('h1', KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        parts.serve()
    parts.steering.cancel(request.id)
    assert parts.world.status(request) == 'cancelling'
    freed: list[None] = []

    assert _orders(parts, freed).stop_transfers()

    assert (_task(parts, request).status, len(freed)) == ('cancelled', 1)
    assert parts.world.status(request) == 'cancelled'
    orders = _orders(parts, freed)
    orders.discard_partials()
    assert parts.steering.discards(10) == []


# Hosts that are back


class Away:
    """Hosts that are down or of unknown state."""

    def __init__(self) -> None:
        self.down: dict[str, str] = {}
        self.unknown: dict[str, str] = {}

    def look(self, hosts: object, seconds: float | None = None) -> liveness.Look:
        return liveness.Look({}, self.down, self.unknown)


@pytest.mark.parametrize('reason', ['host down: it is forced down', 'host disabled: fans'])
def test_returning_host_makes_job_due(parts: Parts, nova: FakeNova, reason: str) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    assigned = parts.world.begun()
    parts.tracker.postpone(assigned, reason)
    parts.world.jobs.release('c1', ['h1'])
    away = Away()
    store = nova_backend.NovaHostRecovery(host_recovery.Waiting(parts.world.database), away)

    away.down = {'h1': reason}
    assert store.hasten() == 0
    away.down, away.unknown = {}, {'h1': "its cell's database is unreachable"}
    assert store.hasten() == 0
    away.unknown = {}
    assert store.hasten() == 1
    assert store.hasten() == 0
    parts.serve()

    assert _task(parts, request).status == 'cached'


def test_lost_call_wait_ignores_host_return(parts: Parts, nova: FakeNova) -> None:
    parts.world.planned(['h1'], ['i1'])
    nova.loses('h1')
    parts.serve()

    store = nova_backend.NovaHostRecovery(host_recovery.Waiting(parts.world.database), Away())

    assert store.hasten() == 0
