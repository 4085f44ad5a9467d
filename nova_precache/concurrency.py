# SPDX-License-Identifier: Apache-2.0
"""Run periodic work and stop parts, with threads of either kind.

``backend`` chooses their kind.
"""

import collections
import functools
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent import futures
from typing import Any, ParamSpec, Protocol, TypeVar

from futurist import periodics

P = ParamSpec('P')
T = TypeVar('T')

Work = Callable[[], object]

STOP_SECONDS = 60.0
# How long a thread of a pool waits for work before it ends.
IDLE_SECONDS = 30.0


class ThreadPool(futures.Executor):
    """Runs work in as many threads as are busy at once, up to a limit.

    A thread is started when none is free, and ends after some time without work. The pools of
    oslo.messaging, futurist and the standard library keep all that they ever had, and the first
    two start one for each work until they have the most.
    """

    def __init__(self, max_workers: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._max_workers = max_workers
        self._idle_seconds = idle_seconds
        self._condition = threading.Condition()
        self._queue: collections.deque[tuple[futures.Future[Any], Work]] = collections.deque()
        self._threads = self._free = 0
        self._is_shut_down = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Run work when a thread is free.

        :raises RuntimeError: the pool is shut down, or no thread can be started
        """
        result: futures.Future[T] = futures.Future()
        work = functools.partial(fn, *args, **kwargs)
        with self._condition:
            if self._is_shut_down:
                raise RuntimeError('the pool is shut down')
            if self._free > len(self._queue):
                self._condition.notify()
            elif self._threads < self._max_workers:
                in_background(self._run, 'pool')
                self._threads += 1
            self._queue.append((result, work))
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further work; the threads end when the queue is empty."""
        with self._condition:
            self._is_shut_down = True
            while cancel_futures and self._queue:
                self._queue.popleft()[0].cancel()
            self._condition.notify_all()
            if wait:
                self._condition.wait_for(lambda: not self._threads)

    def _run(self) -> None:
        while (found := self._next()) is not None:
            _resolve(*found)
            del found  # its arguments may be large, and this thread may wait for long

    def _next(self) -> tuple[futures.Future[Any], Work] | None:
        """Wait for work; None ends the thread."""
        with self._condition:
            self._free += 1
            self._condition.wait_for(lambda: self._queue or self._is_shut_down, self._idle_seconds)
            self._free -= 1
            if self._queue:
                return self._queue.popleft()
            self._threads -= 1
            self._condition.notify_all()
            return None


def _resolve(result: futures.Future[Any], work: Work) -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(work())
    except BaseException as exc:  # noqa: BLE001 - raised again where the result is read
        result.set_exception(exc)


class Periodic:
    """Runs several functions periodically; a failure is logged, and the next run follows.

    They run in a pool with a thread for each if all are slow, so that none delays the others.
    """

    def __init__(self, name: str, work: Iterable[tuple[float, Work]]) -> None:
        functions = [_every(seconds, each) for seconds, each in work]
        self._worker = periodics.PeriodicWorker(
            functions, executor_factory=lambda: ThreadPool(len(functions))
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
