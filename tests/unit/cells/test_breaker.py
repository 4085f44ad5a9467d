# SPDX-License-Identifier: Apache-2.0
"""A failed cell is left alone, then probed by one call."""

import pytest

from nova_precache.cells import breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> breaker.CellBreakers:
    return breaker.CellBreakers(10, clock)


def test_a_cell_that_never_failed_is_not_avoided_however_many_work_in_it(
    breakers: breaker.CellBreakers,
) -> None:
    breakers.enter('a')
    breakers.enter('a')

    assert breakers.avoid() == set()


def test_a_cell_that_failed_is_avoided_for_a_while_and_others_are_not(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    breakers.failed('a')

    assert breakers.avoid() == {'a'}
    clock.now += 9.9
    assert breakers.avoid() == {'a'}
    clock.now += 0.2
    assert breakers.avoid() == set()


def test_after_its_rest_a_cell_is_probed_by_one_claim_at_a_time(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    breakers.failed('a')
    clock.now += 11

    breakers.enter('a')
    assert breakers.avoid() == {'a'}

    breakers.leave('a')
    assert breakers.avoid() == set()


def test_a_probe_that_fails_has_the_cell_rest_again(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.failed('a')
    breakers.leave('a')

    assert breakers.avoid() == {'a'}


def test_a_probe_that_succeeds_takes_the_cell_back(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.succeeded('a')
    breakers.leave('a')
    breakers.enter('a')

    assert breakers.avoid() == set()


def test_a_cell_that_is_probed_may_have_short_calls_and_one_that_rests_may_not(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    assert not breakers.is_resting('a')
    breakers.failed('a')
    assert breakers.is_resting('a')

    clock.now += 11
    breakers.enter('a')

    assert not breakers.is_resting('a')


def test_a_short_call_that_succeeds_takes_back_a_cell_whose_probe_goes_on(
    breakers: breaker.CellBreakers, clock: Clock
) -> None:
    breakers.failed('a')
    clock.now += 11
    breakers.enter('a')

    breakers.succeeded('a')

    assert breakers.avoid() == set()


def test_each_failure_in_a_row_rests_longer(clock: Clock) -> None:
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
