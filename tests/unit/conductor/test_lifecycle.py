# SPDX-License-Identifier: Apache-2.0
"""Work that no call triggers: windows, deadlines, and the remains of a dead conductor."""

import datetime
import threading
from collections.abc import Callable, Iterator

import pytest

from nova_precache import model
from nova_precache.conductor import lifecycle
from nova_precache.db.engine import models
from tests.unit.conductor.conftest import Parts
from tests.unit.conftest import CACHED, LONG_AGO

BAD = model.ImageOutcome('error', 'unsafe image: it has a backing file')
SOON = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)


@pytest.fixture
def freed() -> threading.Event:
    return threading.Event()


@pytest.fixture
def helm(parts: Parts, freed: threading.Event) -> lifecycle.LifecycleLoop:
    return parts.helm(freed.set)


@pytest.fixture
def start(helm: lifecycle.LifecycleLoop) -> Iterator[Callable[[], lifecycle.LifecycleLoop]]:
    """Return a function that starts the lifecycle loop, until the test ends."""

    def begin() -> lifecycle.LifecycleLoop:
        helm.start()
        return helm

    yield begin
    helm.stop()


def _planned(parts: Parts, *hosts: str, **options: object) -> model.CacheRequest:
    for host in hosts:
        parts.world.living(host)
    return parts.world.planned(
        hosts,
        ['i1'],
        options=model.RequestOptions(**options),  # type: ignore[arg-type]
    )


def _change(parts: Parts, request: model.CacheRequest, **values: object) -> None:
    this = models.CacheRequest.id == request.id
    parts.world.change(models.CacheRequest, this, **values)


def _ends(parts: Parts, outcome: model.ImageOutcome) -> str:
    """Record an attempt by a conductor that dies right after that; return its host."""
    assigned = parts.world.begun('dead')
    parts.world.jobs.finish(assigned.job_id, assigned.epoch, outcome)
    parts.world.jobs.release_all('dead')
    return assigned.host


# Windows


def test_opening_window_makes_job_callable(
    parts: Parts, helm: lifecycle.LifecycleLoop, freed: threading.Event
) -> None:
    request = _planned(parts, 'h1', not_before=SOON)
    helm.run_once()
    assert parts.world.claim('c1', limit=5) is None
    assert not freed.is_set()

    _change(parts, request, not_before=LONG_AGO)
    helm.run_once()

    assert freed.is_set()
    assert parts.world.claim('c1', limit=5) is not None


def test_deadline_expires_waiting_tasks_and_request(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', 'h2', deadline=SOON)
    _change(parts, request, deadline=LONG_AGO)

    helm.run_once()

    assert set(parts.world.statuses(request).values()) == {'expired'}
    assert parts.world.status(request) == 'expired'
    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']


def test_deadline_stops_running_transfer_at_once(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', deadline=SOON)
    parts.world.begun()
    _change(parts, request, deadline=LONG_AGO)

    helm.run_once()
    parts.compute.wait_told(1)

    assert [told.why for told in parts.compute.told] == ['deadline']
    assert parts.world.statuses(request) == {('h1', 'i1'): 'downloading'}


# Remains of a dead conductor, or of one of an earlier release


def test_request_planned_by_older_release_adopted(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1')
    _change(parts, request, is_planned=False)
    _ends(parts, CACHED)

    helm.run_once()

    assert parts.world.requests.ids_to_complete() == [request.id]


def test_unnoticed_canary_success_starts_others(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', 'h2', canary=1)
    assert _ends(parts, CACHED) == 'h1'
    assert parts.world.claim('c1', limit=5) is None

    helm.run_once()

    claim = parts.world.claim('c1', limit=5)
    assert claim is not None
    assert claim.host == 'h2'
    assert parts.world.status(request) == 'running'


def test_uncounted_failures_cancel_waiting_tasks(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', 'h2', 'h3', max_failures=0)
    _ends(parts, BAD)

    helm.run_once()

    assert parts.world.requests.get(request.id).counts == {'error': 1, 'cancelled': 2}
    assert parts.world.status(request) == 'failed'


# Hosts that come back


def test_awaited_host_called_when_it_reports(
    parts: Parts, helm: lifecycle.LifecycleLoop, freed: threading.Event
) -> None:
    request = _planned(parts, 'h1', wait_for_down_hosts=True, deadline=SOON)
    parts.world.dead('h1')
    parts.serve()
    helm.run_once()
    assert not freed.is_set()
    assert parts.world.statuses(request) == {('h1', 'i1'): 'retry_wait'}

    parts.world.living('h1')
    helm.run_once()

    assert freed.is_set()
    parts.serve()
    assert parts.world.status(request) == 'completed'


# The loop


def test_failing_step_does_not_block_others(
    parts: Parts, helm: lifecycle.LifecycleLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _planned(parts, 'h1', deadline=SOON)
    _change(parts, request, deadline=LONG_AGO)

    def fail() -> None:
        raise RuntimeError('the database is away')

    monkeypatch.setattr(parts.steering, 'stop_orders', fail)

    helm.run_once()

    assert parts.world.status(request) == 'expired'


def test_loop_stops_cancelled_transfers(
    parts: Parts, start: Callable[[], lifecycle.LifecycleLoop]
) -> None:
    request = _planned(parts, 'h1')
    parts.world.begun()
    helm = start()

    parts.steering.cancel(request.id)
    helm.wake()
    parts.compute.wait_told(1)

    assert [(told.host, told.why) for told in parts.compute.told] == [('h1', 'cancelled')]


def test_stopped_loop_ends(parts: Parts, start: Callable[[], lifecycle.LifecycleLoop]) -> None:
    helm = start()
    helm.stop()
    assert not helm._loop.is_alive()
