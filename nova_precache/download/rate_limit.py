# SPDX-License-Identifier: Apache-2.0
"""Limit the rate and the number of parallel downloads of one host.

Precaching is limited to a rate and a number of downloads, and yields while an instance
boots. A download that a boot waits for is never delayed, and its bytes are not charged to
the others: they only serve to measure the host's rate.
"""

import collections
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import transfer_control as controls

MAX_READ_BYTES = 1024 * 1024
_MIN_READ_BYTES = 1024
# One read takes at most the bytes of this time: small enough for a smooth rate.
_READ_SECONDS = 0.05
# Unused allowance expires after this time, so that a new download does not burst.
_BURST_SECONDS = 0.1
# A waiting download checks again after this time, since the rate may have risen.
_MAX_WAIT_SECONDS = 0.25
# A large read from before a limit came into force causes no longer wait than this.
_MAX_CHARGE_SECONDS = 1.0
# A shorter wait is left to the next read: no clock is exact enough.
_MIN_WAIT_SECONDS = 0.0001
# The rate of precaching while an instance boots, until the host's rate is measured.
UNMEASURED_YIELD_BYTES = 1024 * 1024
# The least rate while yielding: servers and proxies cut a stalled connection.
MIN_YIELD_BYTES = 64 * 1024


class BootsElsewhere(Protocol):
    """Boots in other processes of this host; implemented by ``cache.boot_signal``."""

    def wait(self) -> AbstractContextManager[None]:
        """Signal a boot to other processes within."""

    def any_waiting(self) -> bool:
        """Return whether any boot waits; called often."""


class HostRateLimit:
    """The limits shared by a host's downloads; times in seconds, rates in bytes per second.

    :param max_rate_bytes: of all precaching together; 0 for no limit
    :param max_parallel: precaching downloads at a time
    :param yield_share: largest share of the host's rate for precaching while an instance
        boots; 1.0 for no yielding
    :param elsewhere: None: only boots of this process are known
    """

    def __init__(
        self,
        *,
        max_rate_bytes: int = 0,
        max_parallel: int = 1,
        yield_share: float = 0.25,
        elsewhere: BootsElsewhere | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rate_bytes = max_rate_bytes
        self._max_parallel = max_parallel
        self._yield_share = yield_share
        self._elsewhere = elsewhere
        self._clock = clock
        self._changed = threading.Condition()
        self._boots = 0
        self._running: list[controls.Control] = []
        self._queue: collections.deque[controls.Control] = collections.deque()
        self._host = Allowance(clock())
        self._own: weakref.WeakKeyDictionary[controls.Control, Allowance] = (
            weakref.WeakKeyDictionary()
        )
        self._meter = BestRate(clock())

    def change(self, *, max_rate_bytes: int, max_parallel: int, yield_share: float) -> None:
        """Apply other limits from now on; waiting downloads check them at once."""
        with self._changed:
            # The old rate applied until now.
            self._host.pay(self._clock(), self._host_rate())
            self._max_rate_bytes = max_rate_bytes
            self._max_parallel = max_parallel
            self._yield_share = yield_share
            self._changed.notify_all()

    @contextlib.contextmanager
    def boot(self) -> Iterator[None]:
        """Make precaching yield within: an instance waits for an image."""
        self._count_boots(+1)
        try:
            with self._elsewhere.wait() if self._elsewhere else contextlib.nullcontext():
                yield
        finally:
            self._count_boots(-1)

    def _count_boots(self, step: int) -> None:
        with self._changed:
            # The old rate applied until now.
            self._host.pay(self._clock(), self._host_rate())
            self._boots += step

    @contextlib.contextmanager
    def slot(self, control: controls.Control) -> Iterator[None]:
        """Wait for a download slot, unless the control is urgent, and hold it within.

        :raises nova_precache.exception.CacheError: the control was stopped with it during the
            wait
        """
        if control.is_boot:
            yield
            return
        self._wait_for_turn(control)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(control)
                self._changed.notify_all()

    def _wait_for_turn(self, control: controls.Control) -> None:
        with (
            control.on_stop(self._wake),
            control.at_urgency(lambda urgent: self._wake()),
            self._changed,
        ):
            self._queue.append(control)
            try:
                self._changed.wait_for(lambda: self._may_start(control))
                self._running.append(control)
            finally:
                self._queue.remove(control)
                self._changed.notify_all()

    def _may_start(self, control: controls.Control) -> bool:
        control.check()
        is_first = self._queue[0] is control and len(self._running) < self._max_parallel
        return is_first or control.is_urgent

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def allowed_rate(self, control: controls.Control) -> float | None:
        """Return the share of a download in the limits now; None: no limit applies to it."""
        if control.is_urgent:
            return None
        with self._changed:
            host_rate = self._host_rate()
            shares = max(1, len(self._running))
        rates = [host_rate / shares if host_rate else None, control.max_rate_bytes or None]
        return min((rate for rate in rates if rate is not None), default=None)

    def read_bytes(self, control: controls.Control) -> int:
        """Return how many bytes to read before the next take; fewer at a low rate."""
        rate = self.allowed_rate(control)
        if rate is None:
            return MAX_READ_BYTES
        return int(min(max(rate * _READ_SECONDS, _MIN_READ_BYTES), MAX_READ_BYTES))

    def take(self, control: controls.Control, count_bytes: int) -> None:
        """Count the bytes read, and wait until the limits allow more.

        :raises nova_precache.exception.CacheError: the control was stopped with it during the
            wait
        """
        dues = self._note(control, count_bytes)
        while not control.is_urgent and (
            (seconds := self._seconds_to_wait(dues)) > _MIN_WAIT_SECONDS
        ):
            control.wait(min(seconds, _MAX_WAIT_SECONDS))

    def _note(self, control: controls.Control, count_bytes: int) -> 'list[_Due]':
        with self._changed:
            now = self._clock()
            dues = [] if control.is_urgent else self._charge(control, count_bytes, now)
            is_held = any(due.seconds(now) > 0 for due in dues)
            self._meter.note(now, count_bytes, is_held=is_held)
            return dues

    def _charge(self, control: controls.Control, count_bytes: int, now: float) -> 'list[_Due]':
        dues = [_Due(self._host, self._host_rate, count_bytes, now)]
        if control.max_rate_bytes:
            own = self._own.setdefault(control, Allowance(now))
            dues.append(_Due(own, lambda: control.max_rate_bytes, count_bytes, now))
        return dues

    def _seconds_to_wait(self, dues: 'list[_Due]') -> float:
        with self._changed:
            now = self._clock()
            return max((due.seconds(now) for due in dues), default=0.0)

    def _host_rate(self) -> float | None:
        """Return the rate of all precaching together now; None for no limit."""
        rate = self._max_rate_bytes or None
        if self._yield_share >= 1.0 or not self._is_yielding():
            return rate
        return yield_rate(rate, self._meter.best_rate_bytes, self._yield_share)

    def _is_yielding(self) -> bool:
        if self._boots > 0 or any(control.is_urgent for control in self._running):
            return True
        return self._elsewhere is not None and self._elsewhere.any_waiting()


def yield_rate(
    max_rate_bytes: float | None, measured_rate_bytes: float | None, share: float
) -> float:
    """Return the rate of precaching while an instance boots."""
    if measured_rate_bytes is None:
        rate = float(UNMEASURED_YIELD_BYTES)
    else:
        reached = min(measured_rate_bytes, max_rate_bytes or measured_rate_bytes)
        rate = max(share * reached, MIN_YIELD_BYTES)
    return min(rate, max_rate_bytes or rate)


class Allowance:
    """A rate limit by debt: bytes taken are paid off as time passes.

    The rate may differ from call to call; None is no limit.
    """

    def __init__(self, now: float) -> None:
        self._taken_bytes = 0.0
        self._paid_bytes = 0.0
        self._paid_at = now

    def take(self, now: float, rate: float | None, count_bytes: int) -> float:
        """Take bytes; return the mark up to which must be paid before more are taken."""
        self.pay(now, rate)
        if rate is not None:
            count_bytes = min(count_bytes, int(max(rate * _MAX_CHARGE_SECONDS, _MIN_READ_BYTES)))
        self._taken_bytes += count_bytes
        return self._taken_bytes

    def seconds_until(self, mark: float, now: float, rate: float | None) -> float:
        """Return the seconds until all bytes up to a mark are paid."""
        self.pay(now, rate)
        if rate is None:
            return 0.0
        return max(0.0, (mark - self._paid_bytes) / rate)

    def pay(self, now: float, rate: float | None) -> None:
        """Pay for the time up to now at a rate."""
        if rate is None:
            self._paid_bytes = self._taken_bytes
        else:
            paid = self._paid_bytes + (now - self._paid_at) * rate
            self._paid_bytes = min(paid, self._taken_bytes + _BURST_SECONDS * rate)
        self._paid_at = now


class _Due:
    """Bytes taken from an allowance, to be paid off."""

    def __init__(
        self,
        allowance: Allowance,
        rate: Callable[[], float | None],
        count_bytes: int,
        now: float,
    ) -> None:
        self._allowance = allowance
        self._rate = rate
        self._mark = allowance.take(now, rate(), count_bytes)

    def seconds(self, now: float) -> float:
        return self._allowance.seconds_until(self._mark, now, self._rate())


class BestRate:
    """Measures the rate that a host reaches: the best of the last minute of unlimited transfer.

    All bytes count, also those of boots, in windows of about a second. A window in which a
    download was held back only proves that the host reaches at least that rate: it may raise
    the best rate, but does not displace others. A window with a pause is dropped, so it does
    not either: yesterday's rate is a better guess than none.
    """

    WINDOW_SECONDS = 1.0
    WINDOWS = 60

    def __init__(self, now: float) -> None:
        self.began_at = now
        self._bytes = 0
        self._was_held = False
        self._rates: collections.deque[float] = collections.deque(maxlen=self.WINDOWS)

    @property
    def best_rate_bytes(self) -> float | None:
        """Bytes per second; None: nothing was measured yet."""
        return max(self._rates, default=None)

    def note(self, now: float, count_bytes: int, *, is_held: bool) -> None:
        self._bytes += count_bytes
        self._was_held = self._was_held or is_held
        if now - self.began_at >= self.WINDOW_SECONDS:
            self._close(now)

    def _close(self, now: float) -> None:
        seconds = now - self.began_at
        rate = self._bytes / seconds
        if seconds < 2 * self.WINDOW_SECONDS and (
            not self._was_held or rate > (self.best_rate_bytes or 0)
        ):
            self._rates.append(rate)
        self.began_at, self._bytes, self._was_held = now, 0, False
