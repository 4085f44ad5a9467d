# SPDX-License-Identifier: Apache-2.0
"""Answers of the last second, for clients that poll.

Many clients may wait for one request. A read with ``If-None-Match`` is one of many, so that an
answer that is a second old will do. A process computes it once for all callers with the same
rights.
"""

import threading
import time
from collections.abc import Callable, Hashable

import cachetools
import webob

FRESH_SECONDS = 1.0
MOST_BYTES = 16 * 1024**2


class RecentAnswers:
    """The recent answers of one process, by what was asked and who asked.

    :param clock: seconds, with any origin
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers: cachetools.TTLCache[Hashable, webob.Response] = cachetools.TTLCache(
            MOST_BYTES, FRESH_SECONDS, clock, getsizeof=lambda answer: len(answer.body)
        )
        self._lock = threading.Lock()
        self._writes = 0

    def get(self, asked: Hashable, compute: Callable[[], webob.Response]) -> webob.Response:
        """Return the recent answer, or compute one; an error is not kept."""
        with self._lock:
            known, writes = self._answers.get(asked), self._writes
        if known is not None:
            return known.copy()
        answer = compute()
        with self._lock:
            # An answer computed beside a write may lack what was written.
            if writes == self._writes and len(answer.body) <= MOST_BYTES:
                self._answers[asked] = answer.copy()
        return answer

    def forget(self) -> None:
        """Forget all answers: this process has written."""
        with self._lock:
            self._writes += 1
            self._answers.clear()
