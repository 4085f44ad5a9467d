# SPDX-License-Identifier: Apache-2.0
"""The metrics of a conductor, and the whole service's state in them."""

import dataclasses

import pytest
from prometheus_client import registry

from nova_precache import context, model
from nova_precache.compute import rpcapi
from nova_precache.conductor import metrics, tracker
from nova_precache.db import statistics
from tests.clock import Clock
from tests.unit.conductor.conftest import POLICY, Parts
from tests.unit.conftest import CACHED

NOBODY = statistics.Count({}, {}, 0, 0, 0, 0, 0, {})
CALL = rpcapi.CacheImageCall('job', 1, 'i1', image_endpoint=None, token=None)


@pytest.fixture
def made() -> registry.CollectorRegistry:
    return registry.CollectorRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _value(made: registry.CollectorRegistry, name: str, **labels: str) -> float | None:
    return made.get_sample_value(f'nova_precache_conductor_{name}', labels)


def test_outcomes_counted_by_status(made: registry.CollectorRegistry) -> None:
    counters = metrics.Counters(made)

    counters.ended(2, CACHED)
    counters.ended(1, CACHED)
    counters.ended(1, model.ImageOutcome('error', 'the line is dead'))

    assert _value(made, 'task_outcomes_total', status='cached') == 3
    assert _value(made, 'task_outcomes_total', status='error') == 1


def test_failures_counted_by_kind(made: registry.CollectorRegistry) -> None:
    counters = metrics.Counters(made)
    assert _value(made, 'task_failures_total', kind='disk_full') == 0  # before the first failure

    counters.ended(2, model.ImageOutcome('error', 'needs 10 bytes (including 0 reserved), 7 free'))
    counters.ended(1, model.ImageOutcome('error', 'a new kind'))
    counters.ended(1, model.ImageOutcome('cancelled', 'the request was cancelled'))

    assert _value(made, 'task_failures_total', kind='disk_full') == 2
    assert _value(made, 'task_failures_total', kind='other') == 1
    assert _value(made, 'task_failures_total', kind='cancelled') == 0


def test_unknown_statuses_add_no_labels(made: registry.CollectorRegistry) -> None:
    counters = metrics.Counters(made)

    for word in ('cached-twice', 'melted'):
        counters.ended(1, model.ImageOutcome(word))

    assert _value(made, 'task_outcomes_total', status='other') == 2
    assert _value(made, 'task_outcomes_total', status='melted') is None


class Slow:
    """A compute that takes its time."""

    def __init__(self, clock: Clock, seconds: float, outcome: model.ImageOutcome | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._outcome = outcome

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        self._clock.now += self._seconds
        return self._outcome


def test_downloads_counted_by_cell(made: registry.CollectorRegistry, clock: Clock) -> None:
    slow = Slow(clock, 7, CACHED)
    measured = metrics.MeasuredCompute(slow, 'cell-1', metrics.Counters(made), clock)

    outcome = measured.cache_image(context.admin_context(), 'h1', CALL)

    assert outcome is CACHED
    assert _value(made, 'cached_bytes_total', cell='cell-1') == 100
    assert _value(made, 'download_seconds_sum', cell='cell-1') == 7
    assert _value(made, 'download_seconds_bucket', cell='cell-1', le='5.0') == 0
    assert _value(made, 'download_seconds_bucket', cell='cell-1', le='10.0') == 1


@pytest.mark.parametrize(
    'outcome', [None, model.ImageOutcome('existing'), model.ImageOutcome('error')]
)
def test_call_without_caching_is_no_download(
    made: registry.CollectorRegistry, clock: Clock, outcome: model.ImageOutcome | None
) -> None:
    slow = Slow(clock, 7, outcome)
    measured = metrics.MeasuredCompute(slow, 'cell-1', metrics.Counters(made), clock)

    assert measured.cache_image(context.admin_context(), 'h1', CALL) is outcome
    assert _value(made, 'download_seconds_count', cell='cell-1') is None


def test_database_counts_cached_for_seconds(made: registry.CollectorRegistry, clock: Clock) -> None:
    counts = iter([7, 8])
    made.register(
        metrics.StateCollector(
            lambda: statistics.Count({}, {}, next(counts), 0, 0, 0, 0, {}), clock, 5.0
        )
    )

    first = _value(made, 'jobs', state='ready')
    clock.now += 4.9
    soon = _value(made, 'jobs', state='ready')
    clock.now += 0.1
    later = _value(made, 'jobs', state='ready')

    assert (first, soon, later) == (7, 7, 8)


def test_counters_served_without_database(
    made: registry.CollectorRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> statistics.Count:
        raise RuntimeError('the database is away')

    metrics.Counters(made).taken_over()
    made.register(metrics.StateCollector(fail, clock))

    assert _value(made, 'database_up') == 0
    assert _value(made, 'takeovers_total') == 1
    assert _value(made, 'jobs', state='ready') is None
    assert 'the database is away' in caplog.text


def test_unregistered_hosts_are_counted(made: registry.CollectorRegistry, clock: Clock) -> None:
    def count_hosts() -> dict[str, statistics.HostCount]:
        return {'cell-1': statistics.HostCount(up=3, down=2, unknown=1)}

    stale = dataclasses.replace(NOBODY, hosts={'cell-2': statistics.HostCount(up=0, down=9)})
    made.register(metrics.StateCollector(lambda: stale, clock, count_hosts=count_hosts))

    states = {
        state: _value(made, 'hosts', cell='cell-1', state=state) for state in model.HostStatus
    }
    assert states == {'up': 3, 'down': 2, 'unknown': 1}
    assert _value(made, 'hosts', cell='cell-2', state='down') is None


def test_metrics_served_without_host_counts(
    made: registry.CollectorRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> dict[str, statistics.HostCount]:
        raise RuntimeError('the inventory is away')

    counted = dataclasses.replace(NOBODY, claimed_hosts=4)
    made.register(metrics.StateCollector(lambda: counted, clock, count_hosts=fail))

    assert (_value(made, 'database_up'), _value(made, 'claimed_hosts')) == (1, 4)
    assert _value(made, 'hosts', cell='cell-1', state='up') is None
    assert 'the inventory is away' in caplog.text


def test_empty_states_are_served(made: registry.CollectorRegistry, clock: Clock) -> None:
    made.register(metrics.StateCollector(lambda: NOBODY, clock))

    assert [_value(made, 'tasks', status=each) for each in model.TaskStatus] == [0] * 12
    assert [_value(made, 'requests', status=each) for each in model.REQUEST_ACTIVE] == [0] * 5
    assert _value(made, 'claimed_hosts') == 0
    assert _value(made, 'database_up') == 1


def test_taken_over_host_counted(parts: Parts, made: registry.CollectorRegistry) -> None:
    counters = metrics.Counters(made)
    parts.world.planned(['h1'], ['i1'])
    assert parts.world.claim('gone', limit=1) is not None
    parts.world.expire('h1')
    dispatch = parts.dispatcher('c1', count_takeover=counters.taken_over)

    dispatch.start()
    try:
        parts.world.wait(lambda: parts.world.depth() == 0)
    finally:
        dispatch.stop()

    assert _value(made, 'takeovers_total') == 1


def test_shared_outcome_counts_for_both_requests(
    parts: Parts, made: registry.CollectorRegistry
) -> None:
    for _ in range(2):
        parts.world.planned(['h1'], ['i1'])
    counted = tracker.Tracker(
        parts.world.jobs,
        parts.world.requests,
        parts.steering,
        announce=lambda: None,
        policy=POLICY,
        count=metrics.Counters(made).ended,
    )
    begun = parts.world.begun()

    counted.attempted(begun, CACHED)
    counted.attempted(begun, CACHED)  # it comes late, and ends nothing

    assert _value(made, 'task_outcomes_total', status='cached') == 2
