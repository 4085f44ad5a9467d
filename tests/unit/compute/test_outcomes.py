# SPDX-License-Identifier: Apache-2.0
"""The results and errors of a driver, as the outcomes that the conductor records."""

import pytest

from nova_precache import exception, model
from nova_precache.compute import outcomes


def test_moved_bytes_distinguish_cached_from_existing() -> None:
    moved = model.CacheResult(existing=False, bytes_done=5, bytes_total=5)
    there = model.CacheResult(existing=True)

    assert outcomes.of_result(moved) == model.ImageOutcome('cached', bytes_done=5, bytes_total=5)
    assert outcomes.of_result(there) == model.ImageOutcome('existing', bytes_total=0)


def test_only_paused_outcome_retries_at_once() -> None:
    assert outcomes.of_stop(exception.Paused('paused')).at_once
    assert not outcomes.of_stop(exception.ShuttingDown('stops')).at_once


@pytest.mark.parametrize(('gained_bytes', 'is_attempt'), [(0, True), (1, False)])
def test_slow_outcome_has_gained_bytes(gained_bytes: int, is_attempt: bool) -> None:
    outcome = outcomes.of_error(exception.SlowDownload('slower', gained_bytes), 'Xen')

    assert (outcome.gained_bytes, outcome.is_slow) == (gained_bytes, True)
    assert outcome.is_attempt == is_attempt


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (NotImplementedError(), ('unsupported', 'driver Xen cannot cache images', 'never')),
        (
            exception.BackendUnsupported('rbd has no cache'),
            ('unsupported', 'rbd has no cache', 'never'),
        ),
        (exception.UnsafeImage('backing file'), ('error', 'unsafe image: backing file', 'never')),
        (exception.ImageGone('deleted'), ('error', 'deleted', 'never')),
        (exception.NotEnoughSpace('needs 5, 4 free'), ('error', 'needs 5, 4 free', 'never')),
        (exception.ImageMismatch('wrong hash'), ('error', 'wrong hash', 'once')),
        (exception.DownloadInterrupted('cut'), ('error', 'cut', 'backoff')),
        (exception.SlowDownload('slower', 5), ('error', 'slower', 'backoff')),
        (exception.ShuttingDown('stops'), ('error', 'stops', 'later')),
        (exception.Paused('paused'), ('error', 'paused', 'later')),
        (exception.Cancelled('unwanted'), ('cancelled', 'unwanted', 'never')),
        (exception.DeadlinePassed('too late'), ('expired', 'too late', 'never')),
        (exception.ImageServiceUnavailable('away'), ('error', 'away', 'backoff')),
        (exception.CellUnreachable('no conductor'), ('error', 'no conductor', 'backoff')),
        (exception.ImageNotUsable('i1', 'is gone'), ('error', 'Image i1 is gone', 'never')),
        (ValueError('a bug'), ('error', 'unexpected ValueError: a bug', 'never')),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_keeps_reason_and_retry(error: Exception, expected: tuple[str, str, str]) -> None:
    outcome = outcomes.of_error(error, 'Xen')

    assert (outcome.status, outcome.reason, outcome.retry) == expected
