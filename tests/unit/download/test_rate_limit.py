# SPDX-License-Identifier: Apache-2.0
"""Rates are kept at any value and number of downloads; boots are never held up."""

import contextlib
import heapq
import threading
from collections.abc import Callable, Iterator

import pytest

from nova_precache import exception, transfer_control
from nova_precache.download import rate_limit
from tools.waiting import TIMEOUT_SECONDS

KILO, MEGA, GIGA = 1000, 1000**2, 1000**3
SECONDS = 10


class SimulatedTime:
    """A clock that advances at once when all the threads that it knows of sleep."""

    def __init__(self) -> None:
        self._now = 0.0
        self._changed = threading.Condition()
        self._wake_at: list[float] = []
        self._awake = 0

    def __call__(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._changed:
            wake_at = self._now + seconds
            heapq.heappush(self._wake_at, wake_at)
            self._lay_down()
            self._changed.wait_for(lambda: self._now >= wake_at)

    def run(self, works: list[Callable[[], None]]) -> None:
        """Run several functions in parallel, until all are done."""
        self._awake += len(works)
        threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            with self._changed:
                self._lay_down()

    def _lay_down(self) -> None:
        self._awake -= 1
        if self._awake or not self._wake_at:
            return
        self._now = self._wake_at[0]
        while self._wake_at and self._wake_at[0] <= self._now:
            heapq.heappop(self._wake_at)
            self._awake += 1
        self._changed.notify_all()


class SimulatedControl(transfer_control.Control):
    """Sleeps in simulated time; like a real machine, it wakes up somewhat late."""

    def __init__(self, time: SimulatedTime, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._time = time
        self.late_seconds = 0.0

    def wait(self, seconds: float) -> None:
        self._time.sleep(seconds + self.late_seconds)
        self.check()


class Download:
    """A download as fast as its link and its pace allow."""

    def __init__(
        self,
        time: SimulatedTime,
        host: rate_limit.HostRateLimit,
        link_bytes_per_second: float = 100 * GIGA,
        **options: object,
    ) -> None:
        self.control = SimulatedControl(time, **options)
        self._time = time
        self._host = host
        self._link = link_bytes_per_second
        self.came: list[tuple[float, int]] = []

    def run(self, until: float = SECONDS) -> None:
        with self._host.slot(self.control):
            while self._time() < until:
                allowed = self._host.read_bytes(self.control)
                assert 0 < allowed <= 1024 * 1024
                # A connection returns what has arrived, without waiting for more.
                count = min(allowed, int(self._link / 100))
                self._time.sleep(count / self._link)
                self.came.append((self._time(), count))
                self._host.take(self.control, count)

    def bytes_between(self, begin: float, end: float) -> int:
        return sum(count for at, count in self.came if begin <= at < end)


@pytest.fixture
def time() -> SimulatedTime:
    return SimulatedTime()


def _bytes_together(downloads: list[Download], begin: float, end: float) -> int:
    return sum(download.bytes_between(begin, end) for download in downloads)


@pytest.mark.parametrize('late_seconds', [0, 0.002], ids=['on time', 'late'])
@pytest.mark.parametrize('number', [1, 3, 10])
@pytest.mark.parametrize('rate', [50 * KILO, MEGA, 100 * MEGA, GIGA])
def test_downloads_share_one_rate(
    time: SimulatedTime, rate: int, number: int, late_seconds: float
) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=rate, max_parallel=number, clock=time)
    downloads = [Download(time, host) for _ in range(number)]
    for download in downloads:
        download.control.late_seconds = late_seconds
    time.run([download.run for download in downloads])
    assert _bytes_together(downloads, 0, SECONDS) == pytest.approx(SECONDS * rate, rel=0.05)
    assert _bytes_together(downloads, 4, 5) == pytest.approx(rate, rel=0.1)


def test_sharing_downloads_get_equal_rate(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=MEGA, max_parallel=2, clock=time)
    downloads = [Download(time, host) for _ in range(2)]
    time.run([download.run for download in downloads])
    for download in downloads:
        assert download.bytes_between(0, SECONDS) == pytest.approx(SECONDS * MEGA / 2, rel=0.05)


def test_unlimited_download_never_waits(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(clock=time)
    download = Download(time, host, 10 * MEGA)
    time.run([download.run])
    assert download.bytes_between(0, SECONDS) == pytest.approx(SECONDS * 10 * MEGA, rel=0.02)


def test_unused_rate_does_not_accumulate(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=10 * MEGA, clock=time)

    def run() -> None:
        time.sleep(3600)
        download.run(3601)

    download = Download(time, host)
    time.run([run])
    assert download.bytes_between(3600, 3601) < 1.25 * 10 * MEGA


def test_own_limit_applies_within_host_limit(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=MEGA, max_parallel=2, clock=time)
    slow = Download(time, host, max_rate_bytes=100 * KILO)
    fast = Download(time, host)
    time.run([slow.run, fast.run])
    assert slow.bytes_between(0, SECONDS) == pytest.approx(SECONDS * 100 * KILO, rel=0.05)
    assert _bytes_together([slow, fast], 0, SECONDS) == pytest.approx(SECONDS * MEGA, rel=0.05)


def test_own_limit_applies_without_host_limit(time: SimulatedTime) -> None:
    download = Download(time, rate_limit.HostRateLimit(clock=time), max_rate_bytes=MEGA)
    time.run([download.run])
    assert download.bytes_between(0, SECONDS) == pytest.approx(SECONDS * MEGA, rel=0.05)


def test_boot_unlimited_and_uncounted(
    time: SimulatedTime,
) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=MEGA, yield_share=1.0, clock=time)
    boot = Download(time, host, 50 * MEGA, is_boot=True)
    precaching = Download(time, host)
    time.run([boot.run, precaching.run])
    assert boot.bytes_between(0, SECONDS) == pytest.approx(SECONDS * 50 * MEGA, rel=0.05)
    assert precaching.bytes_between(0, SECONDS) == pytest.approx(SECONDS * MEGA, rel=0.05)


def test_lifted_limit_wakes_waiters(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=MEGA, clock=time)
    download = Download(time, host, 50 * MEGA, max_rate_bytes=100 * KILO)

    def wait() -> None:
        time.sleep(2)
        with download.control.waited_for():
            time.sleep(4)

    time.run([download.run, wait])
    assert download.bytes_between(0, 2) == pytest.approx(2 * 100 * KILO, rel=0.1)
    assert download.bytes_between(3, 6) == pytest.approx(3 * 50 * MEGA, rel=0.05)
    # Bytes received meanwhile are not charged now.
    assert download.bytes_between(7, 10) == pytest.approx(3 * 100 * KILO, rel=0.1)


def _during_a_boot(
    time: SimulatedTime, host: rate_limit.HostRateLimit, precaching: Download
) -> None:
    """Boot from second 4 to 14, and download until 18."""

    def boot() -> None:
        time.sleep(4)
        with host.boot():
            time.sleep(SECONDS)

    time.run([lambda: precaching.run(18), boot])


def test_precache_yields_share_during_boot(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(yield_share=0.25, clock=time)
    precaching = Download(time, host, 100 * MEGA)
    _during_a_boot(time, host, precaching)
    assert precaching.bytes_between(0, 4) == pytest.approx(4 * 100 * MEGA, rel=0.05)
    assert precaching.bytes_between(4, 14) == pytest.approx(SECONDS * 25 * MEGA, rel=0.05)
    assert precaching.bytes_between(15, 18) == pytest.approx(3 * 100 * MEGA, rel=0.05)


class BootsElsewhere:
    """Other processes, one of which boots in an interval; records when they see our boots."""

    def __init__(self, time: SimulatedTime, begin: float, end: float) -> None:
        self._time = time
        self._between = (begin, end)
        self.seen: list[bool] = []

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        self.seen.append(True)
        yield
        self.seen.append(False)

    def any_waiting(self) -> bool:
        begin, end = self._between
        return begin <= self._time() < end


def test_precache_yields_to_boots_across_processes(
    time: SimulatedTime,
) -> None:
    elsewhere = BootsElsewhere(time, 4, 8)
    host = rate_limit.HostRateLimit(yield_share=0.25, elsewhere=elsewhere, clock=time)
    precaching = Download(time, host, 100 * MEGA)
    time.run([precaching.run])
    assert precaching.bytes_between(0, 4) == pytest.approx(4 * 100 * MEGA, rel=0.05)
    assert precaching.bytes_between(4, 8) == pytest.approx(4 * 25 * MEGA, rel=0.1)
    assert elsewhere.seen == []
    with host.boot():
        assert elsewhere.seen == [True]
    assert elsewhere.seen == [True, False]


def test_precache_yields_lower_limit_share(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(max_rate_bytes=10 * MEGA, yield_share=0.25, clock=time)
    precaching = Download(time, host, 100 * MEGA)
    _during_a_boot(time, host, precaching)
    assert precaching.bytes_between(4, 14) == pytest.approx(SECONDS * 2.5 * MEGA, rel=0.05)


def test_precache_yields_on_slow_link(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(yield_share=0.25, clock=time)
    precaching = Download(time, host, 800 * KILO)
    _during_a_boot(time, host, precaching)
    assert precaching.bytes_between(4, 14) == pytest.approx(SECONDS * 200 * KILO, rel=0.05)


def test_full_share_does_not_yield(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(yield_share=1.0, clock=time)
    precaching = Download(time, host, 100 * MEGA)
    _during_a_boot(time, host, precaching)
    assert precaching.bytes_between(4, 14) == pytest.approx(SECONDS * 100 * MEGA, rel=0.05)


def test_awaited_precache_does_not_yield(
    time: SimulatedTime,
) -> None:
    host = rate_limit.HostRateLimit(yield_share=0.25, max_parallel=2, clock=time)
    wanted, other = (Download(time, host, 100 * MEGA) for _ in range(2))

    def wait() -> None:
        time.sleep(4)
        with wanted.control.waited_for():
            time.sleep(4)

    time.run([wanted.run, other.run, wait])
    assert wanted.bytes_between(5, 8) == pytest.approx(3 * 100 * MEGA, rel=0.05)
    # The host reached 200 MB/s with both of them.
    assert other.bytes_between(5, 8) == pytest.approx(3 * 50 * MEGA, rel=0.05)
    assert other.bytes_between(9, 10) == pytest.approx(100 * MEGA, rel=0.05)


def test_boot_rate_shows_host_capacity(time: SimulatedTime) -> None:
    host = rate_limit.HostRateLimit(yield_share=0.25, clock=time)
    boot = Download(time, host, 100 * MEGA, is_boot=True)
    precaching = Download(time, host)

    def both() -> None:
        with host.boot():
            boot.run()

    time.run([both, precaching.run])
    # The first second starts low, and then the rate that both reach together counts.
    assert precaching.bytes_between(0, 1) == pytest.approx(MEGA, rel=0.2)
    assert precaching.bytes_between(5, 10) > 5 * 25 * MEGA


@pytest.mark.parametrize(
    ('max_rate', 'measured', 'expected'),
    [
        (None, None, 1024 * 1024),
        (100 * KILO, None, 100 * KILO),
        (None, 100 * MEGA, 25 * MEGA),
        (40 * MEGA, 100 * MEGA, 10 * MEGA),
        (100 * MEGA, 40 * MEGA, 10 * MEGA),
        (None, 80 * KILO, 64 * 1024),
        (50 * KILO, 80 * KILO, 50 * KILO),
    ],
)
def test_precache_share_during_boot(
    max_rate: int | None, measured: int | None, expected: int
) -> None:
    assert rate_limit.yield_rate(max_rate, measured, 0.25) == expected


def _meter(
    *rates: float, is_held: bool = False, meter: rate_limit.BestRate | None = None
) -> rate_limit.BestRate:
    """Feed a meter with the rates, each for a second."""
    meter = meter or rate_limit.BestRate(0)
    at = meter.began_at
    for rate in rates:
        for _ in range(4):
            at += 0.25
            meter.note(at, int(rate / 4), is_held=is_held)
    return meter


def test_best_rate_is_measured() -> None:
    assert rate_limit.BestRate(0).best_rate_bytes is None
    assert _meter(4 * KILO, 8 * KILO, 4 * KILO).best_rate_bytes == 8 * KILO


def test_unreached_link_rate_forgotten() -> None:
    meter = _meter(8 * KILO)
    _meter(*[4 * KILO] * 59, meter=meter)
    assert meter.best_rate_bytes == 8 * KILO
    _meter(4 * KILO, meter=meter)
    assert meter.best_rate_bytes == 4 * KILO


def test_limited_download_raises_measured_minimum() -> None:
    meter = _meter(8 * KILO)
    _meter(*[4 * KILO] * 100, is_held=True, meter=meter)
    assert meter.best_rate_bytes == 8 * KILO
    _meter(12 * KILO, is_held=True, meter=meter)
    assert meter.best_rate_bytes == 12 * KILO


def test_pause_is_not_measured() -> None:
    meter = _meter(8 * KILO)
    meter.note(meter.began_at + 3600, 1, is_held=False)
    assert meter.best_rate_bytes == 8 * KILO
    meter = rate_limit.BestRate(0)
    meter.note(3600, 1, is_held=False)
    assert meter.best_rate_bytes is None


class Holder:
    """A thread that takes a slot and stays in it until told."""

    def __init__(self, host: rate_limit.HostRateLimit, reins: transfer_control.Control) -> None:
        self.is_in, self._leave = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._host, self._control = host, reins
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._host.slot(self._control):
                self.is_in.set()
                self._leave.wait(TIMEOUT_SECONDS)
        except exception.CacheError as exc:
            self.error = exc

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive()


def _in_line(host: rate_limit.HostRateLimit, *all_reins: transfer_control.Control) -> list[Holder]:
    """Queue holders one after the other."""
    holders = []
    for reins in all_reins:
        queued = _queued(reins)
        holders.append(Holder(host, reins))
        assert queued.wait(TIMEOUT_SECONDS)
    return holders


def _queued(control: transfer_control.Control) -> threading.Event:
    """Return an event that is set once its download waits: the queue checks the control."""
    queued, check = threading.Event(), control.check

    def note() -> None:
        queued.set()
        check()

    control.check = note  # type: ignore[method-assign]
    return queued


def test_downloads_get_slots_in_order() -> None:
    host = rate_limit.HostRateLimit(max_parallel=1)
    with host.slot(transfer_control.Control()):
        first, second = _in_line(host, transfer_control.Control(), transfer_control.Control())
    assert first.is_in.wait(TIMEOUT_SECONDS)
    assert not second.is_in.is_set()
    first.leave()
    assert second.is_in.wait(TIMEOUT_SECONDS)
    second.leave()
    with host.slot(transfer_control.Control()):
        pass  # nothing is left in the queue


def test_parallel_downloads_are_bounded() -> None:
    host = rate_limit.HostRateLimit(max_parallel=2)
    with host.slot(transfer_control.Control()), host.slot(transfer_control.Control()):
        (third,) = _in_line(host, transfer_control.Control())
        assert not third.is_in.is_set()
    assert third.is_in.wait(TIMEOUT_SECONDS)
    third.leave()


def test_boot_takes_no_slot() -> None:
    host = rate_limit.HostRateLimit(max_parallel=1)
    with (
        host.slot(transfer_control.Control(is_boot=True)),
        host.slot(transfer_control.Control()),
        host.slot(transfer_control.Control(is_boot=True)),
    ):
        pass


def test_urgent_download_overtakes_waiting_ones() -> None:
    host = rate_limit.HostRateLimit(max_parallel=1)
    urgent = transfer_control.Control()
    with host.slot(transfer_control.Control()):
        first, second = _in_line(host, transfer_control.Control(), urgent)
        with urgent.waited_for():
            assert second.is_in.wait(TIMEOUT_SECONDS)
        assert not first.is_in.is_set()
    # It counts as any other.
    assert not first.is_in.is_set()
    second.leave()
    assert first.is_in.wait(TIMEOUT_SECONDS)
    first.leave()


def test_stop_ends_wait_and_leaves_queue() -> None:
    host = rate_limit.HostRateLimit(max_parallel=1)
    stopped = transfer_control.Control()
    with host.slot(transfer_control.Control()):
        first, second = _in_line(host, stopped, transfer_control.Control())
        stopped.stop(exception.Cancelled('not wanted'))
        first.leave()
        assert isinstance(first.error, exception.Cancelled)
    assert second.is_in.wait(TIMEOUT_SECONDS)
    second.leave()


def test_stopped_download_gets_no_slot() -> None:
    stopped = transfer_control.Control()
    stopped.stop(exception.Cancelled('not wanted'))
    host = rate_limit.HostRateLimit()
    with pytest.raises(exception.Cancelled), host.slot(stopped):
        pass
    with host.slot(transfer_control.Control()):
        pass


@pytest.mark.parametrize('end', ['stop', 'urgency'])
def test_sleeping_download_is_woken(end: str) -> None:
    # At this rate it would sleep for days.
    host = rate_limit.HostRateLimit(max_rate_bytes=1)
    reins = transfer_control.Control()
    errors: list[Exception] = []

    def take() -> None:
        try:
            host.take(reins, 1024 * 1024)
        except exception.Cancelled as exc:
            errors.append(exc)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    if end == 'stop':
        reins.stop(exception.Cancelled('not wanted'))
        thread.join(TIMEOUT_SECONDS)
    else:
        with reins.waited_for():
            thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()
    assert bool(errors) == (end == 'stop')


def test_new_rate_applies_to_running_wait() -> None:
    now = SimulatedTime()
    host = rate_limit.HostRateLimit(max_rate_bytes=KILO, yield_share=1.0, clock=now)
    taker = SimulatedControl(now)

    def take() -> None:
        with host.slot(taker):
            host.take(taker, 1000 * KILO)  # of which a second's worth is charged
            host.change(max_rate_bytes=MEGA, max_parallel=1, yield_share=1.0)
            for _ in range(10):
                host.take(taker, MEGA)

    now.run([take])

    assert 10 <= now() < 12


def test_raised_slot_limit_starts_download() -> None:
    host = rate_limit.HostRateLimit(max_parallel=1)
    second_runs, control = threading.Event(), transfer_control.Control()
    queued = _queued(control)

    def second() -> None:
        with host.slot(control):
            second_runs.set()

    with host.slot(transfer_control.Control()):
        waits = threading.Thread(target=second)
        waits.start()
        assert queued.wait(TIMEOUT_SECONDS)
        assert not second_runs.is_set()
        host.change(max_rate_bytes=0, max_parallel=2, yield_share=1.0)
        waits.join(TIMEOUT_SECONDS)

    assert second_runs.is_set()


def test_allowed_rate_is_lowest_share() -> None:
    limits = rate_limit.HostRateLimit(max_rate_bytes=1000, max_parallel=2)
    first, second = transfer_control.Control(max_rate_bytes=400), transfer_control.Control()
    boot = transfer_control.Control(is_boot=True)
    with limits.slot(first), limits.slot(second):
        allowed = [limits.allowed_rate(each) for each in (first, second, boot)]
    assert allowed == [400, 500, None]
    assert rate_limit.HostRateLimit().allowed_rate(second) is None
