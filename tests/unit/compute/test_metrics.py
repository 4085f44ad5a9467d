# SPDX-License-Identifier: Apache-2.0
"""The metrics of a compute: its transfers and its cache."""

import pytest
from prometheus_client import registry

from nova_precache import model
from nova_precache.compute import metrics
from nova_precache.transfer_control import Control
from nova_precache.virt import driver
from tests.clock import Clock

DOWNLOADING, VERIFYING = model.TaskStatus.DOWNLOADING, model.TaskStatus.VERIFYING
CACHED = model.ImageOutcome('cached', bytes_done=100)


@pytest.fixture
def made() -> registry.CollectorRegistry:
    return registry.CollectorRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(made: registry.CollectorRegistry, clock: Clock) -> metrics.HostMeter:
    return metrics.ComputeMetrics(made, clock).host('h1', driver.CacheReport)


def _value(made: registry.CollectorRegistry, name: str, **labels: str) -> float | None:
    return made.get_sample_value(f'nova_precache_compute_{name}', {'host': 'h1', **labels})


def _run(
    meter: metrics.HostMeter, outcome: model.ImageOutcome, *progress: model.Progress
) -> list[model.Progress]:
    """Run work with this progress and outcome; return the progress that its callers see."""
    told: list[model.Progress] = []

    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        for each in progress:
            note(each)
        return outcome

    assert meter.measured(work)(told.append, Control()) is outcome
    return told


def test_hits_and_misses_counted(
    meter: metrics.HostMeter, made: registry.CollectorRegistry
) -> None:
    for status in ('existing', 'existing', 'cached', 'error', 'cancelled', 'unsupported'):
        _run(meter, model.ImageOutcome(status))

    assert _value(made, 'cache_hits_total') == 2
    assert _value(made, 'cache_misses_total') == 3


def test_bytes_counted_while_progress_passes_through(
    meter: metrics.HostMeter, made: registry.CollectorRegistry
) -> None:
    progress = [model.Progress(DOWNLOADING, done, 100) for done in (0, 40, 100)]

    assert _run(meter, CACHED, *progress) == progress

    assert _value(made, 'downloaded_bytes_total') == 100


def test_kept_bytes_not_counted(meter: metrics.HostMeter, made: registry.CollectorRegistry) -> None:
    _run(
        meter,
        CACHED,
        model.Progress(VERIFYING, 60, 100),
        model.Progress(DOWNLOADING, 80, 100),
        model.Progress(DOWNLOADING, 100, 100),
    )

    assert _value(made, 'downloaded_bytes_total') == 40


def test_bytes_received_twice_count_twice(
    meter: metrics.HostMeter, made: registry.CollectorRegistry
) -> None:
    again = [model.Progress(DOWNLOADING, done, 100) for done in (0, 70, 0, 100)]

    _run(meter, model.ImageOutcome('error', 'cut'), *again)

    assert _value(made, 'downloaded_bytes_total') == 170


def test_durations_of_cached_images_observed(
    meter: metrics.HostMeter, made: registry.CollectorRegistry, clock: Clock
) -> None:
    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        clock.now += 20
        return CACHED

    meter.measured(work)(lambda progress: None, Control())
    _run(meter, model.ImageOutcome('existing'))

    assert _value(made, 'download_seconds_sum') == 20
    assert _value(made, 'download_seconds_count') == 1


def test_transfer_counts_as_running_until_end(
    meter: metrics.HostMeter, made: registry.CollectorRegistry
) -> None:
    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        assert _value(made, 'transfers_running') == 1
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError):
        meter.measured(work)(lambda progress: None, Control())

    assert _value(made, 'transfers_running') == 0


def test_cache_size_measured_on_cached_scrape(
    made: registry.CollectorRegistry, clock: Clock
) -> None:
    reports = iter([driver.CacheReport('s', 10, 90, 5), driver.CacheReport('s', 20, 80, 5)])
    metrics.ComputeMetrics(made, clock).host('h1', lambda: next(reports))

    assert _value(made, 'reserved_bytes') == 5
    first = _value(made, 'cache_bytes'), _value(made, 'free_bytes')
    clock.now += metrics.REPORTED_FOR_SECONDS
    later = _value(made, 'cache_bytes'), _value(made, 'free_bytes')

    assert (first, later) == ((10, 90), (20, 80))


def test_driver_without_file_cache_sizeless(
    meter: metrics.HostMeter, made: registry.CollectorRegistry
) -> None:
    assert _value(made, 'cache_bytes') is None
    assert _value(made, 'cache_hits_total') == 0


def test_computes_of_one_process_distinguished(made: registry.CollectorRegistry) -> None:
    computes = metrics.ComputeMetrics(made)
    for host, size in (('h1', 1), ('h2', 2)):
        report = driver.CacheReport('s', size, size)
        meter = computes.host(host, lambda report=report: report)  # type: ignore[misc]
        _run(meter, model.ImageOutcome('existing'))

    name = 'nova_precache_compute_cache_bytes'
    assert [made.get_sample_value(name, {'host': host}) for host in ('h1', 'h2')] == [1, 2]
    assert _value(made, 'cache_hits_total') == 1
