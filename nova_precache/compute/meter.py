# SPDX-License-Identifier: Apache-2.0
"""Measures the download rate of a transfer.

Only downloaded bytes count: the bytes of an earlier attempt are read again at the speed of the
disk, which would make the remaining time look too short.
"""

import math
import threading
from collections.abc import Callable

from nova_precache import model

SMOOTHING_SECONDS = 5.0
# A shorter time says little: bytes arrive in chunks of up to a MiB.
_LEAST_SECONDS = 0.5


class TransferMeter:
    """Measures one transfer; its own thread notes the progress, others read the rate.

    :param clock: seconds, with any origin
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._is_downloading = True
        self._since: float | None = None
        self._came_at = 0.0
        self._bytes = 0
        self._measured_seconds = 0.0
        self._rate: float | None = None

    def note(self, before: model.Progress, after: model.Progress) -> None:
        """Note a change of the progress."""
        with self._lock:
            self._is_downloading = after.status == model.TaskStatus.DOWNLOADING
            if not self._is_downloading:
                self._stop()
            elif after.bytes_done > before.bytes_done:
                self._count(after.bytes_done - before.bytes_done)

    def rate(self) -> int | None:
        """Return the recent bytes per second; 0 while none arrive, None if not yet known."""
        with self._lock:
            if not self._is_downloading:
                return 0
            if self._since is None:
                return None
            now = self._clock()
            if now - self._since >= _LEAST_SECONDS:
                self._smooth(now - self._since)
                self._since, self._bytes = now, 0
            if now - self._came_at >= model.STILL_SECONDS:
                return 0
            return None if self._rate is None else round(self._rate)

    def _stop(self) -> None:
        self._since = self._rate = None
        self._bytes = 0
        self._measured_seconds = 0.0

    def _count(self, count_bytes: int) -> None:
        """Count bytes, except the first ones: how long these took is unknown."""
        self._came_at = self._clock()
        if self._since is None:
            self._since = self._came_at
        else:
            self._bytes += count_bytes

    def _smooth(self, seconds: float) -> None:
        """Weight the last seconds by their share of all, at least by exponential smoothing."""
        self._measured_seconds += seconds
        share = max(-math.expm1(-seconds / SMOOTHING_SECONDS), seconds / self._measured_seconds)
        known = self._rate or 0.0
        self._rate = known + (self._bytes / seconds - known) * share
