# SPDX-License-Identifier: Apache-2.0
"""The reins of one piece of work on a compute.

Whoever asked for the work holds them: it can be stopped at once, with the reason why,
and hastened while somebody waits for what it makes. Whoever does the work feels them:
what it blocks on is broken off, what slows it down is lifted.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Generic, TypeVar

from nova_precache import exception

LOG = logging.getLogger(__name__)

T = TypeVar('T')


class Control:
    """Stops and hastens one piece of work; safe to use from many threads.

    :param is_boot: an instance waits for the image, so nothing may hold it up
    :param max_rate_bytes: bytes a second that this work may take; None: as many as the host's may
    :param is_last_attempt: what is unfinished in the end is of no use to anybody
    :ivar confirm: called before the result is published; its errors end the work
    """

    def __init__(
        self,
        *,
        is_boot: bool = False,
        max_rate_bytes: int | None = None,
        is_last_attempt: bool = False,
    ) -> None:
        self.is_boot = is_boot
        self.max_rate_bytes = max_rate_bytes
        self.is_last_attempt = is_last_attempt
        self.confirm: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._error: exception.CacheError | None = None
        self._waiters = 0
        self._at_stop: list[_Call] = []
        self._at_urgency: list[_Call] = []

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for what this work makes."""
        return self.is_boot or self._waiters > 0

    def stop(self, error: exception.CacheError) -> None:
        """Have the work end at once with an error; the first one counts."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            self._changed.notify_all()
            calls = list(self._at_stop)
        for call in calls:
            call()

    def check(self) -> None:
        """Raise the error that the work was stopped with, if it was."""
        if self._error is not None:
            # Many threads raise the same one: without this it would collect their frames.
            raise self._error.with_traceback(None)

    def wait(self, seconds: float) -> None:
        """Sleep, but not on when the work is stopped, which raises, or becomes urgent."""
        with self._changed:
            was_urgent = self.is_urgent
            self._changed.wait_for(
                lambda: self._error is not None or self.is_urgent > was_urgent, seconds
            )
        self.check()

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Hasten the work for as long as somebody waits for it."""
        self._count_waiters(+1)
        try:
            yield
        finally:
            self._count_waiters(-1)

    def _count_waiters(self, step: int) -> None:
        with self._changed:
            was_urgent = self.is_urgent
            self._waiters += step
            self._changed.notify_all()
            calls = list(self._at_urgency) if self.is_urgent != was_urgent else []
        for call in calls:
            call()

    @contextlib.contextmanager
    def on_stop(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have something called, from whatever thread, when the work is stopped within.

        It is called once, and not after this is left: who leaves waits for a call that is
        under way. What it raises is logged.
        """
        call = _Call(callback)
        with self._changed:
            self._at_stop.append(call)
            stopped = self._error is not None
        if stopped:
            call()
        try:
            yield
        finally:
            with self._changed:
                self._at_stop.remove(call)
            call.forbid()

    @contextlib.contextmanager
    def at_urgency(self, callback: Callable[[bool], None]) -> Iterator[None]:
        """Have something told whether the work is urgent: now, and whenever that changes.

        The last call tells how it is; one call comes after the other, and none after this
        is left: who leaves waits for a call that is under way. What it raises is logged.
        """
        # It is told what is so when it is called: two changes may overtake each other.
        call = _Call(lambda: callback(self.is_urgent))
        with self._changed:
            self._at_urgency.append(call)
        call()
        try:
            yield
        finally:
            with self._changed:
                self._at_urgency.remove(call)
            call.forbid()

    def run_interruptibly(self, work: Callable[[], T], discard: Callable[[T], object]) -> T:
        """Do what may block beyond anybody's reach; when stopped, go on without it.

        :param discard: called, once, with what it gives too late
        """
        self.check()
        errand = _Errand(work, discard, self._changed)
        threading.Thread(target=errand.run, daemon=True).start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: errand.result.done() or self._error is not None)
            self.check()
        except BaseException:
            errand.leave()
            raise
        return errand.result.result()


class _Call:
    """A callback that is called by one thread at a time, until that is forbidden."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        # What is called may itself change the work that it hears of.
        self._lock = threading.RLock()
        self._is_forbidden = False

    def __call__(self) -> None:
        with self._lock:
            if self._is_forbidden:
                return
            try:
                self._callback()
            except Exception:  # whoever stops or hastens must reach the others
                LOG.exception('%r failed', self._callback)

    def forbid(self) -> None:
        with self._lock:
            self._is_forbidden = True


class _Errand(Generic[T]):
    """Work in a thread of its own, which whoever waits for it may leave behind."""

    def __init__(
        self, work: Callable[[], T], discard: Callable[[T], object], changed: threading.Condition
    ) -> None:
        self.result: futures.Future[T] = futures.Future()
        self._work = work
        self._discard = discard
        self._changed = changed
        self._is_left = False

    def run(self) -> None:
        try:
            value = self._work()
        except BaseException as exc:  # noqa: BLE001 - raised again where it is waited for
            error = exc
        else:
            self._deliver(value)
            return
        with self._changed:
            self.result.set_exception(error)
            self._changed.notify_all()
            too_late = self._is_left
        if too_late:
            LOG.debug('%r, which nobody waits for any more, failed: %s', self._work, error)

    def _deliver(self, value: T) -> None:
        with self._changed:
            self.result.set_result(value)
            self._changed.notify_all()
            too_late = self._is_left
        if too_late:
            self._discard_result()

    def leave(self) -> None:
        """Go without the result; what comes, or has come already, is discarded."""
        with self._changed:
            self._is_left = True
            has_come = self.result.done()
        if has_come and self.result.exception() is None:
            self._discard_result()

    def _discard_result(self) -> None:
        try:
            self._discard(self.result.result())
        except Exception:  # nobody waits for it any more
            LOG.exception('Discarding what %r gave failed', self._work)
