# SPDX-License-Identifier: Apache-2.0
"""Detects a download whose source sends too slowly.

Only the time counts in which the download waits for its source: not the waits for its own
limits, for a buffer, for a fresh token, or between two connections. A rate is judged over a full
window of that time, so that neither the start of a connection nor the end of an image counts as
slow.
"""

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator

LOG = logging.getLogger(__name__)

# A blocked read is judged that often.
GUARD_SECONDS = 0.5
# The window moves on in steps of this share.
_STEPS = 60


@dataclasses.dataclass(frozen=True)
class StallRule:
    """The lowest accepted rate of a download.

    :ivar min_rate_bytes: per second; 0: any rate is accepted
    :ivar seconds: the window over which it is measured
    """

    min_rate_bytes: int = 0
    seconds: float = 60.0


OFF = StallRule()


@dataclasses.dataclass
class _Step:
    """A part of the window."""

    seconds: float = 0.0
    bytes: int = 0


class StallWatch:
    """Measures one download; the thread that reads counts, any thread may judge.

    :param rule: returns the rule, which may change at any time
    :param clock: seconds, with any origin
    """

    def __init__(self, rule: Callable[[], StallRule], clock: Callable[[], float]) -> None:
        self._rule = rule
        self._clock = clock
        self._lock = threading.Lock()
        self._is_receiving = self._is_limited = False
        self._asides = 0
        self._counted_at = 0.0
        self._steps: collections.deque[_Step] = collections.deque()
        self._window = _Step()
        self._silent_seconds = 0.0

    @contextlib.contextmanager
    def receiving(self, allowed_rate: float | None) -> Iterator[None]:
        """Count the time within: the download waits for its source.

        :param allowed_rate: by the limits of the host and the request; below the lowest
            accepted rate, only silence counts
        """
        with self._lock:
            self._counted_at = self._clock()
            self._is_receiving = True
            self._is_limited = (
                allowed_rate is not None and allowed_rate < self._rule().min_rate_bytes
            )
        try:
            yield
        finally:
            with self._lock:
                self._count(0)
                self._is_receiving = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Do not count the time within: the source waits for this service."""
        with self._lock:
            self._count(0)
            self._asides += 1
        try:
            yield
        finally:
            with self._lock:
                self._count(0)
                self._asides -= 1

    def received(self, count_bytes: int) -> None:
        """Count bytes of the source."""
        with self._lock:
            self._count(count_bytes)

    def forget(self) -> None:
        """Begin a new window."""
        with self._lock:
            self._count(0)
            self._steps.clear()
            self._window = _Step()
            self._silent_seconds = 0.0

    def slow_rate(self) -> float | None:
        """Return the bytes per second over the window if they are too few, else None."""
        with self._lock:
            self._count(0)
            rule, window = self._rule(), self._window
            if not rule.min_rate_bytes:
                return None
            if self._silent_seconds >= rule.seconds:
                return 0.0
            if window.seconds < rule.seconds:
                return None
            rate = window.bytes / window.seconds
            return rate if rate < rule.min_rate_bytes else None

    def _count(self, count_bytes: int) -> None:
        """Count the time since the last call, and the bytes that arrived in it."""
        now = self._clock()
        seconds, self._counted_at = now - self._counted_at, now
        if not self._is_receiving or self._asides:
            seconds = 0.0
        self._silent_seconds = 0.0 if count_bytes else self._silent_seconds + seconds
        if self._is_limited or not (seconds or count_bytes):
            return
        self._add(_Step(seconds, count_bytes), self._rule().seconds)

    def _add(self, more: _Step, window_seconds: float) -> None:
        last = self._steps[-1] if self._steps else None
        if last is None or last.seconds + more.seconds > window_seconds / _STEPS:
            self._steps.append(last := _Step())
        for step in (last, self._window):
            step.seconds += more.seconds
            step.bytes += more.bytes
        while self._window.seconds - self._steps[0].seconds >= window_seconds:
            first = self._steps.popleft()
            self._window.seconds -= first.seconds
            self._window.bytes -= first.bytes


@contextlib.contextmanager
def guarded(judge: Callable[[], None]) -> Iterator[None]:
    """Call ``judge`` regularly from a thread of its own within, also during a blocked read."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(GUARD_SECONDS):
            try:
                judge()
            except Exception:  # the thread is the edge; the download itself continues
                LOG.exception('Judging the rate of a download failed')

    guard = threading.Thread(target=run, name='image-stall', daemon=True)
    guard.start()
    try:
        yield
    finally:
        ended.set()
        guard.join()
