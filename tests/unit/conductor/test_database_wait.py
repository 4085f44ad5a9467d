# SPDX-License-Identifier: Apache-2.0
"""Results that an outage of the database delays are recorded once, when it is back."""

from collections.abc import Callable
from typing import Any

import pytest

from nova_precache import exception, model, reasons
from nova_precache.compute import rpcapi
from nova_precache.conductor import database_wait
from tests.unit.conductor.conftest import Parts
from tests.unit.conftest import BROKEN, CACHED

AWAY = exception.DatabaseUnavailable('(2013, lost)')


class Failing:
    """Makes a method fail several times before it works."""

    def __init__(self, work: Callable[..., Any], *errors: Exception) -> None:
        self._work = work
        self._errors = list(errors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return self._work(*args, **kwargs)


@pytest.fixture
def waited(parts: Parts) -> list[float]:
    """The seconds that the worker waited."""
    seconds: list[float] = []

    def wait(pause: float) -> bool:
        seconds.append(pause)
        return False

    parts.tracker.database_wait = database_wait.DatabaseWait(wait)
    parts.world.living('h1')
    return seconds


@pytest.mark.parametrize('outcome', [CACHED, BROKEN])
@pytest.mark.parametrize('method', ['next_job', 'retry', 'finish'])
def test_database_outage_repeats_no_call(
    parts: Parts, waited: list[float], monkeypatch: pytest.MonkeyPatch, method: str, outcome: Any
) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    stores = parts.world.jobs

    def answer(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert stores.begin(call.job_id, call.epoch)
        failing = Failing(getattr(stores, method), *[AWAY] * 4)
        monkeypatch.setattr(stores, method, failing)
        return model.ImageOutcome(outcome.status, outcome.reason, outcome.retry)

    parts.compute.script('h1', 'i1', answer)
    parts.serve()

    [task] = parts.world.requests.tasks(request.id)
    assert task.status == ('cached' if outcome is CACHED else 'retry_wait')
    assert task.attempts == 1
    assert parts.compute.called() == [('h1', 'i1')]
    assert parts.world.claimed() == 0
    assert waited == sorted(waited)


def test_preparation_retried_and_called_once(
    parts: Parts, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = parts.world.planned(['h1'], ['i1'])
    stores = parts.world.jobs
    monkeypatch.setattr(stores, 'next_job', Failing(stores.next_job, AWAY, AWAY))
    parts.serve()
    [task] = parts.world.requests.tasks(request.id)
    assert (task.status, task.attempts) == ('cached', 1)
    assert parts.compute.called() == [('h1', 'i1')]
    assert len(waited) == 2


@pytest.mark.parametrize('error', [exception.DataRefused(), ValueError('no driver takes this')])
@pytest.mark.parametrize('outcome', [CACHED, BROKEN])
@pytest.mark.usefixtures('waited')
def test_unrecordable_outcome_ends_only_its_task(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: model.ImageOutcome
) -> None:
    refused = parts.world.planned(['h1'], ['i1'])
    other = parts.world.planned(['h1'], ['i2'])
    stores = parts.world.jobs

    def answer(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert stores.begin(call.job_id, call.epoch)
        method = 'next_job' if outcome is CACHED else 'retry'
        monkeypatch.setattr(stores, method, Failing(getattr(stores, method), error))
        return outcome

    parts.compute.script('h1', 'i1', answer)
    parts.serve()
    if outcome is BROKEN:  # after which a host is left
        parts.serve()

    [task] = parts.world.requests.tasks(refused.id)
    assert (task.status, task.reason) == ('error', reasons.UNRECORDED)
    assert task.attempts == 1
    assert parts.world.statuses(other) == {('h1', 'i2'): 'cached'}
    assert parts.compute.called() == [('h1', 'i1'), ('h1', 'i2')]


def test_stopping_conductor_hands_over_outcome(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.world.living('h1')
    parts.world.planned(['h1'], ['i1'])
    parts.tracker.database_wait.give_up()
    monkeypatch.setattr(parts.world.jobs, 'next_job', Failing(parts.world.jobs.next_job, AWAY))
    with pytest.raises(exception.DatabaseUnavailable):
        parts.serve()


def test_work_retried_with_growing_pauses() -> None:
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    waiting = database_wait.DatabaseWait(wait)

    assert waiting.wait_out(Failing(lambda: 'done', *[AWAY] * 9)) == 'done'
    assert len(pauses) == 9
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] == max(database_wait.PAUSE_SECONDS)


def test_unconfirmed_call_counts_no_attempt(parts: Parts) -> None:
    parts.world.living('h1')
    request = parts.world.planned(['h1'], ['i1'])
    away = model.ImageOutcome('error', str(AWAY), model.Retry.LATER)
    parts.compute.script('h1', 'i1', lambda host, call: away)
    parts.serve()
    [task] = parts.world.requests.tasks(request.id)
    assert (task.status, task.attempts) == ('retry_wait', 0)
