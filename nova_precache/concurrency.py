# SPDX-License-Identifier: Apache-2.0
"""Threads, whatever they are: work that is done periodically, and how things are stopped.

``backend`` chooses what they are.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from concurrent import futures
from typing import Any, Protocol

import futurist
from futurist import periodics

Work = Callable[[], object]

PERIODIC_THREADS = 8
STOP_SECONDS = 60.0


class Periodic:
    """Does several things, each every so many seconds; a failure is logged and tried again.

    They run in threads of their own, so that a slow one does not delay the others.
    """

    def __init__(self, name: str, work: Iterable[tuple[float, Work]]) -> None:
        self._worker = periodics.PeriodicWorker(
            [_every(seconds, each) for seconds, each in work],
            executor_factory=lambda: futurist.ThreadPoolExecutor(PERIODIC_THREADS),
        )
        self._thread = threading.Thread(target=self._worker.start, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for what is being done, but not for ever."""
        if self._thread.ident is not None:
            self._worker.stop()
            self._thread.join(STOP_SECONDS)


class Stoppable(Protocol):
    """Something that runs until it is stopped."""

    def stop(self) -> None:
        """Stop, and return when nothing of it runs any more."""


def stop_all(parts: Collection[Stoppable]) -> None:
    """Stop several things at once; each may take a moment."""
    if not parts:
        return
    with futures.ThreadPoolExecutor(len(parts)) as pool:
        for stopped in [pool.submit(part.stop) for part in parts]:
            stopped.result()


def stop_within(seconds: float, part: Stoppable) -> bool:
    """Stop something and wait for it, but only so long; False when it still runs then."""
    thread = threading.Thread(target=part.stop, name='stop', daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _every(seconds: float, work: Work) -> tuple[Any, tuple[()], dict[str, Any]]:
    @periodics.periodic(seconds)
    def run() -> None:
        work()

    return run, (), {}
