# SPDX-License-Identifier: Apache-2.0
"""A failed cell is left alone, then probed by one call."""

import pytest

from nova_precache.cells import breaker
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def breakers(clock: Clock) -> breaker.CellBreakers:
    return breaker.CellBreakers(10, clock)


def test_late_answer_closes_no_breaker(clock: Clock) -> None:
    rests = breaker.CircuitBreaker(lambda failures: 10.0 * failures, clock)
    rests.failed()

    rests.succeeded(closes=False)
    assert rests.is_open

    clock.now += 11
    rests.failed()
    clock.now += 11
    assert not rests.is_open


def test_healthy_cell_is_never_avoided(
    breakers: breaker.CellBreakers,
) -> None:
    breakers.enter('a')
    breakers.enter('a')

    assert breakers.avoid() == set()


def test_failed_cell_avoided_for_a_while(breakers: breaker.CellBreakers, clock: Clock) -> None:
    breakers.failed('a')

    assert breakers.avoid() == {'a'}
    clock.now += 9.9
    assert breakers.avoid() == {'a'}
    clock.now += 0.2
    assert breakers.avoid() == set()


def test_open_breaker_probes_one_claim(breakers: breaker.CellBreakers, clock: Clock) -> None:
    breakers.failed('a')
    clock.now += 11

    breakers.enter('a')
    assert breakers.avoid() == {'a'}

    breakers.leave('a')
    assert breakers.avoid() == set()


def test_failed_probe_reopens_breaker(breakers: breaker.CellBreakers, clock: Clock) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.failed('a')
    breakers.leave('a')

    assert breakers.avoid() == {'a'}


def test_successful_probe_closes_breaker(breakers: breaker.CellBreakers, clock: Clock) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.succeeded('a')
    breakers.leave('a')
    breakers.enter('a')

    assert breakers.avoid() == set()


def test_short_calls_allowed_only_while_probing(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    assert not breakers.is_resting('a')
    breakers.failed('a')
    assert breakers.is_resting('a')

    clock.now += 11
    breakers.enter('a')

    assert not breakers.is_resting('a')


def test_successful_short_call_closes_breaker(breakers: breaker.CellBreakers, clock: Clock) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.succeeded('a')

    assert breakers.avoid() == set()


def test_repeated_failure_rests_longer(clock: Clock) -> None:
    one = breaker.CircuitBreaker(lambda failures: 10.0 * failures, clock)

    assert one.failed()
    clock.now += 11
    assert not one.is_open
    assert one.failed()
    clock.now += 11
    assert one.is_open

    one.succeeded()
    assert not one.is_open
    one.failed()
    clock.now += 11
    assert not one.is_open


def test_a_failure_reports_an_open_breaker(clock: Clock) -> None:
    one = breaker.CircuitBreaker(lambda failures: 10.0, clock)

    assert [one.failed(), one.failed()] == [True, False]
    clock.now += 11
    assert one.failed()
