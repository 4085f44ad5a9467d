# SPDX-License-Identifier: Apache-2.0
"""Run periodic work and stop parts, with threads of either kind.

``backend`` chooses their kind.
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
    """Runs several functions periodically; a failure is logged, and the next run follows.

    They run in a pool of threads, so that a slow one does not delay the others.
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
        """Stop, and wait at most ``STOP_SECONDS`` for running functions."""
        if self._thread.ident is not None:
            self._worker.stop()
            self._thread.join(STOP_SECONDS)


class Stoppable(Protocol):
    """A part that runs until it is stopped."""

    def stop(self) -> None:
        """Stop, and return when it has ended."""


def stop_all(parts: Collection[Stoppable]) -> None:
    """Stop several parts in parallel, since each may take a moment."""
    if not parts:
        return
    with futures.ThreadPoolExecutor(len(parts)) as pool:
        for stopped in [pool.submit(part.stop) for part in parts]:
            stopped.result()


def stop_within(seconds: float, part: Stoppable) -> bool:
    """Stop a part and wait at most this long; return False if it still runs."""
    thread = in_background(part.stop, 'stop')
    thread.join(seconds)
    return not thread.is_alive()


def in_background(work: Work, name: str) -> threading.Thread:
    """Run work in a thread that does not keep the process alive."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _every(seconds: float, work: Work) -> tuple[Any, tuple[()], dict[str, Any]]:
    @periodics.periodic(seconds)
    def run() -> None:
        work()

    return run, (), {}
