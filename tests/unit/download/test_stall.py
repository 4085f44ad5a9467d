# SPDX-License-Identifier: Apache-2.0
"""Downloads that are too slow: which time counts, what is kept, and what is never stopped."""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from nova_precache import exception, model
from nova_precache.download import engine, rate_limit, retry, stall
from nova_precache.image import service
from tests.clock import Clock
from tests.unit.download.conftest import (
    DATA,
    Attempt,
    Link,
    MakeTarget,
    NewAttempt,
    Onlooker,
    Reins,
    image_of,
)
from tools.waiting import TIMEOUT_SECONDS

KIB = 1024
MIB = KIB * KIB
RULE = stall.StallRule(min_rate_bytes=32 * KIB, seconds=60)


class Watched:
    """A watch, and a source that sends as the test says."""

    def __init__(self, rule: stall.StallRule = RULE) -> None:
        self.rule = rule
        self.clock = Clock()
        self.watch = stall.StallWatch(lambda: self.rule, self.clock)

    def receive(self, seconds: int, rate_bytes: int, allowed_rate: float | None = None) -> None:
        for _ in range(seconds):
            with self.watch.receiving(allowed_rate):
                self.clock.passes(1)
                self.watch.received(rate_bytes)


def test_slow_only_after_full_window() -> None:
    watched = Watched()
    watched.receive(59, KIB)
    assert watched.watch.slow_rate() is None
    watched.receive(1, KIB)
    assert watched.watch.slow_rate() == KIB


@pytest.mark.parametrize(('rate_bytes', 'slow'), [(32 * KIB, None), (32 * KIB - 1, 32 * KIB - 1)])
def test_limit_itself_is_accepted(rate_bytes: int, slow: int | None) -> None:
    watched = Watched()
    watched.receive(200, rate_bytes)
    assert watched.watch.slow_rate() == slow


def test_fast_past_is_forgotten_by_window() -> None:
    watched = Watched()
    watched.receive(1000, 100 * KIB)
    watched.receive(30, KIB)
    assert watched.watch.slow_rate() is None, 'over the last minute it is fast enough'
    watched.receive(30, KIB)
    assert watched.watch.slow_rate() == pytest.approx(KIB)


def test_slow_start_is_outweighed() -> None:
    watched = Watched()
    watched.receive(30, KIB)
    watched.receive(30, 64 * KIB)
    assert watched.watch.slow_rate() is None


def test_one_silent_wait_is_slow() -> None:
    watched = Watched()
    watched.receive(100, 10_000 * KIB)
    with watched.watch.receiving(None):
        watched.clock.passes(59)
        assert watched.watch.slow_rate() is None
        watched.clock.passes(1)
        assert watched.watch.slow_rate() == 0


def test_silence_adds_up_over_connections() -> None:
    watched = Watched()
    for _ in range(6):
        assert watched.watch.slow_rate() is None
        watched.clock.passes(500)  # the pause between two connections
        watched.receive(10, 0)
    assert watched.watch.slow_rate() == 0


def test_time_between_receives_not_counted() -> None:
    watched = Watched()
    for _ in range(59):
        watched.clock.passes(100)
        watched.receive(1, KIB)
    assert watched.watch.slow_rate() is None


@pytest.mark.parametrize('allowed_rate', [1.0, 32 * KIB - 1.0])
def test_limited_time_not_counted(allowed_rate: float) -> None:
    watched = Watched()
    watched.receive(1000, KIB, allowed_rate)
    watched.receive(59, KIB)
    assert watched.watch.slow_rate() is None
    watched.receive(1, KIB)
    assert watched.watch.slow_rate() == KIB


def test_limit_above_minimum_excuses_nothing() -> None:
    watched = Watched()
    watched.receive(60, KIB, 32.0 * KIB)
    assert watched.watch.slow_rate() == KIB


def test_silence_counts_under_any_limit() -> None:
    watched = Watched()
    watched.receive(60, 0, 1.0)
    assert watched.watch.slow_rate() == 0


def test_time_aside_not_counted() -> None:
    watched = Watched()
    with watched.watch.receiving(None):
        with watched.watch.aside():
            watched.clock.passes(1000)
            assert watched.watch.slow_rate() is None
        watched.clock.passes(59)
        assert watched.watch.slow_rate() is None
        watched.clock.passes(1)
        assert watched.watch.slow_rate() == 0


def test_zero_turns_rule_off() -> None:
    watched = Watched(stall.OFF)
    watched.receive(1000, 0)
    assert watched.watch.slow_rate() is None


def test_changed_rule_applies_at_once() -> None:
    watched = Watched()
    watched.receive(100, 100 * KIB)
    watched.rule = stall.StallRule(min_rate_bytes=200 * KIB, seconds=10)
    assert watched.watch.slow_rate() == pytest.approx(100 * KIB)
    watched.rule = stall.StallRule(min_rate_bytes=0, seconds=10)
    assert watched.watch.slow_rate() is None


def test_window_has_few_steps() -> None:
    watched = Watched()
    for _ in range(50_000):
        with watched.watch.receiving(None):
            watched.clock.passes(0.01)
            watched.watch.received(KIB)
    assert len(watched.watch._steps) <= 2 * stall._STEPS


@dataclasses.dataclass(eq=False)
class Trickle:
    """A source whose bytes arrive as the steps say; stands in for ``download.source.Origin``.

    :ivar steps: of each read: the seconds that it takes, and the bytes it returns; the last
        one is repeated
    :ivar open_seconds: what each opening takes
    """

    clock: Clock
    steps: list[tuple[float, int]]
    data: bytes = DATA
    open_seconds: float = 0.0
    opened_at: list[int] = dataclasses.field(default_factory=list)
    cut_after: int | None = None
    closed: int = 0
    on_open: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def image(self) -> model.Image:
        return image_of(self.data)

    def check_unchanged(self) -> None:
        pass

    @contextlib.contextmanager
    def open(self, offset_bytes: int = 0) -> Iterator[service.Connection]:
        with self.on_open():
            self.clock.passes(self.open_seconds)
        self.opened_at.append(offset_bytes)
        try:
            yield TrickleConnection(self, offset_bytes)
        finally:
            self.closed += 1


class TrickleConnection:
    """The end of a connection; a read of no bytes waits until it is cut."""

    def __init__(self, by: Trickle, start_bytes: int) -> None:
        self.start_bytes = start_bytes
        self._by = by
        self._at = start_bytes
        self._reads = itertools.count(1)
        self._cut = threading.Event()

    def read_into(self, buffer: memoryview) -> int:
        by = self._by
        seconds, count = by.steps.pop(0) if len(by.steps) > 1 else by.steps[0]
        if by.cut_after is not None and next(self._reads) > by.cut_after:
            raise exception.DownloadInterrupted('interrupted')
        by.clock.passes(seconds)
        if not count:
            assert self._cut.wait(TIMEOUT_SECONDS)
        if self._cut.is_set():
            raise exception.DownloadInterrupted('interrupted by this process')
        data = by.data[self._at : self._at + min(count, len(buffer))]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def cut(self) -> None:
        self._cut.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(attempt: Attempt, origin: Trickle, rule: stall.StallRule = RULE, **options: object) -> int:
    downloader = engine.Downloader(
        resume=retry.ResumePolicy(max_opens=5),
        stall_rule=lambda: rule,
        clock=origin.clock,
        **options,  # type: ignore[arg-type]
    )
    return downloader.download(
        origin, attempt.target, attempt.watcher, attempt.control, attempt.progress.append
    )


def slow_end(attempt: Attempt, origin: Trickle, **options: object) -> exception.SlowDownload:
    with pytest.raises(exception.SlowDownload) as caught:
        run(attempt, origin, **options)  # type: ignore[arg-type]
    return caught.value


def test_crawling_download_keeps_its_bytes(attempt: Attempt, clock: Clock) -> None:
    origin = Trickle(clock, [(1, KIB)])
    error = slow_end(attempt, origin)
    assert str(error) == (
        'slower than 32.0 KiB/s for 60 s (1.0 KiB/s); 60.0 KiB of 4.0 MiB are kept'
    )
    assert (error.gained_bytes, error.retry, error.is_attempt) == (60 * KIB, 'backoff', False)
    assert attempt.target.log == [('keep', 60 * KIB)]
    assert attempt.target.content == attempt.watcher.seen == DATA[: 60 * KIB]
    assert (origin.opened_at, origin.closed) == ([0], 1), 'it is not resumed at once'


def test_next_attempt_resumes_and_counts_new_bytes(make_target: MakeTarget, clock: Clock) -> None:
    attempt = Attempt(make_target(DATA[: 100 * KIB]))
    origin = Trickle(clock, [(1, KIB)])
    error = slow_end(attempt, origin)
    assert origin.opened_at == [100 * KIB]
    assert error.gained_bytes == 60 * KIB
    assert '160.0 KiB of 4.0 MiB are kept' in str(error)


def test_last_attempt_keeps_gained_bytes(attempt: Attempt, clock: Clock) -> None:
    attempt.control.is_last_attempt = True
    slow_end(attempt, Trickle(clock, [(1, KIB)]))
    assert attempt.target.log == [('keep', 60 * KIB)]


def test_last_attempt_without_bytes_keeps_none(attempt: Attempt, clock: Clock) -> None:
    attempt.control.is_last_attempt = True
    error = slow_end(attempt, Trickle(clock, [(1, KIB)], open_seconds=30, cut_after=0))
    assert (error.gained_bytes, error.is_attempt) == (0, True)
    assert str(error) == 'slower than 32.0 KiB/s for 60 s (0 B/s)'
    assert attempt.target.log == []


def test_silent_source_is_cut(
    attempt: Attempt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, 'GUARD_SECONDS', 0.01)
    origin = Trickle(clock, [(0.1, 100 * KIB), (61, 0)])
    error = slow_end(attempt, origin)
    assert str(error).startswith('slower than 32.0 KiB/s for 60 s (0 B/s); 100.0 KiB of 4.0 MiB')
    assert attempt.target.log == [('keep', 100 * KIB)]


def test_real_silent_server_is_cut(
    link: Link, new_attempt: NewAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the read timeout, which is minutes here."""
    link.silent_at = 1000
    attempt = new_attempt()
    has_received, count = threading.Event(), stall.StallWatch.received

    def note(watch: stall.StallWatch, count_bytes: int) -> None:
        count(watch, count_bytes)
        has_received.set()

    monkeypatch.setattr(stall.StallWatch, 'received', note)
    rule = stall.StallRule(32 * KIB, seconds=0.2)
    with pytest.raises(exception.SlowDownload) as caught:
        attempt.run(
            link.images(),
            link.image,
            stall_rule=lambda: rule if has_received.is_set() else stall.OFF,
        )
    assert caught.value.gained_bytes == 1000
    link.wait_closed()
    assert attempt.target.log == [('keep', 1000)]


def test_real_unanswered_request_is_left(link: Link, new_attempt: NewAttempt) -> None:
    link.silent_at = -1
    attempt = new_attempt()
    with pytest.raises(exception.SlowDownload) as caught:
        attempt.run(
            link.images(), link.image, stall_rule=lambda: stall.StallRule(32 * KIB, seconds=0.2)
        )
    assert caught.value.is_attempt
    link.late.set()


def test_interrupted_reads_add_up(attempt: Attempt, clock: Clock) -> None:
    """Resumed in place after each cut, it is still slow over the whole window."""
    origin = Trickle(clock, [(10, KIB)], cut_after=2)
    error = slow_end(attempt, origin)
    assert origin.opened_at == [0, 2 * KIB, 4 * KIB]
    assert error.gained_bytes == 6 * KIB


def test_slow_openings_count(attempt: Attempt, clock: Clock) -> None:
    origin = Trickle(clock, [(1, KIB)], open_seconds=30, cut_after=0)
    error = slow_end(attempt, origin)
    assert len(origin.opened_at) == 2
    assert error.gained_bytes == 0


def test_wait_for_token_not_counted(attempt: Attempt, clock: Clock) -> None:
    origin = Trickle(clock, [(0.01, MIB)], open_seconds=1000)

    @contextlib.contextmanager
    def fetch_token() -> Iterator[None]:
        with attempt.control.aside():
            yield

    origin.on_open = fetch_token
    assert run(attempt, origin) == len(DATA)


def test_rest_of_image_not_judged(attempt: Attempt, clock: Clock) -> None:
    """The last bytes are fewer than a window has, and come in half a window."""
    origin = Trickle(clock, [*[(1.0, 100 * KIB)] * 40, (1.0, 4 * KIB)])
    assert run(attempt, origin) == len(DATA)


def test_small_image_may_be_slow(attempt: Attempt, clock: Clock) -> None:
    origin = Trickle(clock, [(1, KIB)], data=DATA[: 60 * KIB])
    assert run(attempt, origin) == 60 * KIB, 'its last byte came in time'


@pytest.mark.parametrize('is_boot', [True, False], ids=['boot', 'waited for'])
def test_boot_is_never_stopped(make_target: MakeTarget, clock: Clock, is_boot: bool) -> None:
    control = Reins(is_boot=is_boot)
    attempt = Attempt(make_target(), Onlooker(), control)
    origin = Trickle(clock, [(1, 4 * KIB)])
    with contextlib.nullcontext() if is_boot else control.waited_for():
        assert run(attempt, origin) == len(DATA)
    assert clock.now > 2000


def test_window_begins_again_after_boot(attempt: Attempt, clock: Clock) -> None:
    """The time in which a boot waited does not count later, either."""
    origin = Trickle(clock, [(1, KIB)])
    with attempt.control.waited_for() as wait:
        watcher = attempt.watcher
        feed = watcher.feed

        def leave(data: memoryview) -> None:
            feed(data)
            if len(watcher.seen) == 500 * KIB:
                wait.leave()

        watcher.feed = leave  # type: ignore[method-assign]
        error = slow_end(attempt, origin)
    assert error.gained_bytes == 560 * KIB


@pytest.mark.parametrize(
    ('host', 'request_rate'), [(1000, None), (0, 1000)], ids=['host', 'request']
)
def test_own_limit_does_not_stop(
    attempt: Attempt, clock: Clock, host: int, request_rate: int | None
) -> None:
    """Neither while it waits for its allowance nor while bytes come at just that rate."""
    attempt.control.max_rate_bytes = request_rate
    pace = Allowing(clock, attempt.control, max_rate_bytes=host)
    origin = Trickle(clock, [(1, KIB)], data=DATA[: 500 * KIB])
    assert run(attempt, origin, pace=pace) == 500 * KIB


def test_yielding_to_boot_does_not_stop(attempt: Attempt, clock: Clock) -> None:
    pace = Allowing(clock, attempt.control, max_rate_bytes=100 * KIB, yield_share=0.01)
    pace._meter._rates.append(100 * KIB)
    origin = Trickle(clock, [(1, KIB)], data=DATA[: 200 * KIB])
    rule = stall.StallRule(min_rate_bytes=90 * KIB)
    with pace.boot():
        assert run(attempt, origin, rule, pace=pace) == 200 * KIB


def test_fast_source_under_low_limit(attempt: Attempt, clock: Clock) -> None:
    """The limit is above the minimum; the download waits for nothing but its allowance."""
    pace = Allowing(clock, attempt.control, max_rate_bytes=33 * KIB)
    assert run(attempt, Trickle(clock, [(0.001, MIB)]), pace=pace) == len(DATA)
    assert clock.now > 1100


class Allowing(rate_limit.HostRateLimit):
    """Limits by the clock of the test: a wait for the allowance passes on it."""

    def __init__(self, clock: Clock, control: Reins, **options: object) -> None:
        super().__init__(clock=clock, **options)  # type: ignore[arg-type]
        control.on_pause = lambda: clock.passes(control.pauses[-1])


def test_slow_disk_does_not_stop(
    attempt: Attempt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = attempt.target.write

    def slowly(buffer: bytearray, length: int, offset_bytes: int) -> None:
        clock.passes(1000)
        write(buffer, length, offset_bytes)

    monkeypatch.setattr(attempt.target, 'write', slowly)
    monkeypatch.setattr(stall, 'GUARD_SECONDS', 0.001)
    origin = Trickle(clock, [(0, 64 * KIB)])
    # One buffer, so that the reader waits for each write.
    monkeypatch.setattr('nova_precache.download.pipeline.BUFFERS', 1)
    assert run(attempt, origin, buffer_bytes=64 * KIB) == len(DATA)


def test_bytes_of_companions_count_as_gained(
    new_attempt: NewAttempt, attempt: Attempt, clock: Clock
) -> None:
    kernel = Trickle(clock, [(0, MIB)], data=DATA[:1000])
    run(attempt, kernel)
    image = new_attempt()
    image.control = attempt.control
    error = slow_end(image, Trickle(clock, [(1, KIB)], open_seconds=60, cut_after=0))
    assert (error.gained_bytes, error.is_attempt) == (1000, False)
