# SPDX-License-Identifier: Apache-2.0
"""Which outcomes are retried, and after how long."""

import pytest

from nova_precache import model
from nova_precache.conductor import retry

POLICY = retry.RetryPolicy(max_attempts=5, delay_seconds=10, max_delay_seconds=35)


def _error(how: str) -> model.ImageOutcome:
    return model.ImageOutcome(model.TaskStatus.ERROR, 'why', how)


def test_delay_doubles_up_to_maximum() -> None:
    delays = [POLICY.delay(_error('backoff'), attempts, 0) for attempts in range(1, 7)]

    assert delays == [10, 20, 35, 35, None, None]


def test_postponed_attempt_waits_unless_paused() -> None:
    paused = model.ImageOutcome('error', 'paused', model.Retry.LATER, at_once=True)

    assert POLICY.delay(_error('later'), attempts=5, mismatches=0) == 10
    assert POLICY.delay(paused, attempts=5, mismatches=0) == 0


def test_mismatch_retried_once_at_once() -> None:
    assert POLICY.delay(_error('once'), attempts=1, mismatches=0) == 0
    assert POLICY.delay(_error('once'), attempts=2, mismatches=1) is None


def test_late_mismatch_retried_once() -> None:
    assert POLICY.delay(_error('once'), attempts=3, mismatches=0) == 0


def test_mismatch_of_last_attempt_is_final() -> None:
    assert POLICY.delay(_error('once'), attempts=5, mismatches=0) is None


@pytest.mark.parametrize('how', ['never', 'a word of a newer release'])
def test_permanent_error_is_final(how: str) -> None:
    assert POLICY.delay(_error(how), attempts=1, mismatches=0) is None


@pytest.mark.parametrize(
    'status', ['cached', 'existing', 'unsupported', 'skipped', 'cancelled', 'expired']
)
def test_non_error_outcome_is_final(status: str) -> None:
    outcome = model.ImageOutcome(status, retry=model.Retry.BACKOFF)

    assert POLICY.delay(outcome, attempts=1, mismatches=0) is None


def test_zero_delay_retries_at_once() -> None:
    policy = retry.RetryPolicy(max_attempts=2, delay_seconds=0, max_delay_seconds=0)

    assert policy.delay(_error('backoff'), attempts=1, mismatches=0) == 0


@pytest.mark.parametrize('attempts', range(1, 8))
def test_last_attempt_means_no_retry(
    attempts: int,
) -> None:
    delays = [POLICY.delay(_error(how), attempts, 0) for how in ('backoff', 'once', 'never')]

    assert POLICY.is_last(attempts) == (delays == [None, None, None])


def _slow(gained_bytes: int) -> model.ImageOutcome:
    return model.ImageOutcome('error', 'why', model.Retry.BACKOFF, gained_bytes=gained_bytes)


@pytest.mark.parametrize('attempts', [1, 5, 50])
def test_moving_slow_host_waits_for_others(attempts: int) -> None:
    assert POLICY.delay(_slow(1), attempts, 0, others_wait=True) == 35
    assert POLICY.delay(_slow(1), attempts, 0, others_wait=False) == 0


def test_silent_slow_host_has_attempts() -> None:
    alone = [POLICY.delay(_slow(0), attempts, 0) for attempts in (1, 2, 5)]
    beside = [POLICY.delay(_slow(0), attempts, 0, others_wait=True) for attempts in (1, 2, 5)]

    assert (alone, beside) == ([10, 20, None], [35, 35, None])


def test_other_outcomes_ignore_waiting_hosts() -> None:
    assert POLICY.delay(_error('backoff'), 1, 0, others_wait=True) == 10
    assert POLICY.delay(_error('never'), 1, 0, others_wait=True) is None
