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


def test_what_is_not_to_begin_yet_may_be_called_when_its_time_has_come(
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


def test_what_waits_when_its_deadline_passes_ends_expired_and_the_request_with_it(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', 'h2', deadline=SOON)
    _change(parts, request, deadline=LONG_AGO)

    helm.run_once()

    assert set(parts.world.statuses(request).values()) == {'expired'}
    assert parts.world.status(request) == 'expired'
    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']


def test_a_transfer_that_runs_when_its_deadline_passes_is_stopped_in_the_same_look(
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


def test_what_an_earlier_release_has_planned_is_taken_on(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1')
    _change(parts, request, is_planned=False)
    _ends(parts, CACHED)

    helm.run_once()

    assert parts.world.requests.ids_to_complete() == [request.id]


def test_a_canary_that_succeeded_unnoticed_lets_the_others_begin(
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


def test_failures_that_nobody_counted_cancel_what_waits(
    parts: Parts, helm: lifecycle.LifecycleLoop
) -> None:
    request = _planned(parts, 'h1', 'h2', 'h3', max_failures=0)
    _ends(parts, BAD)

    helm.run_once()

    assert parts.world.requests.get(request.id).counts == {'error': 1, 'cancelled': 2}
    assert parts.world.status(request) == 'failed'


# Hosts that come back


def test_a_host_that_is_waited_for_is_called_as_soon_as_it_reports(
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


def test_a_step_that_fails_does_not_keep_the_others_from_being_done(
    parts: Parts, helm: lifecycle.LifecycleLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _planned(parts, 'h1', deadline=SOON)
    _change(parts, request, deadline=LONG_AGO)

    def fail() -> None:
        raise RuntimeError('the database is away')

    monkeypatch.setattr(parts.steering, 'stop_orders', fail)

    helm.run_once()

    assert parts.world.status(request) == 'expired'


def test_what_is_cancelled_is_stopped_by_the_loop(
    parts: Parts, start: Callable[[], lifecycle.LifecycleLoop]
) -> None:
    request = _planned(parts, 'h1')
    parts.world.begun()
    helm = start()

    parts.steering.cancel(request.id)
    helm.wake()
    parts.compute.wait_told(1)

    assert [(told.host, told.why) for told in parts.compute.told] == [('h1', 'cancelled')]


def test_a_loop_that_is_stopped_looks_no_more(
    parts: Parts, start: Callable[[], lifecycle.LifecycleLoop]
) -> None:
    helm = start()
    helm.stop()
    assert not helm._loop.is_alive()
