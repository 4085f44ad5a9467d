# SPDX-License-Identifier: Apache-2.0
"""Cancellation and priority control of a transfer on a compute.

The requester can stop the transfer at once, with an error as the reason, and hasten it while
a boot or another process waits for the result. In the transfer, a stop interrupts blocking
operations, and urgency lifts its limits. While another host reads the partial file, only the
priority is raised: the limits remain.
"""

import collections
import contextlib
import enum
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from nova_precache import exception

LOG = logging.getLogger(__name__)

T = TypeVar('T')


class Need(enum.StrEnum):
    """What others wait for.

    :cvar RESULT: a boot or another process waits for the whole image
    :cvar BYTES: another host reads the partial file as it grows
    """

    RESULT = 'result'
    BYTES = 'bytes'


class Wait:
    """One wait for a transfer, from its creation until it is left; thread-safe."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._is_left = False
        count(+1)

    def leave(self) -> None:
        """End the wait; leaving it again changes nothing."""
        with self._lock:
            if self._is_left:
                return
            self._is_left = True
        self._count(-1)

    def __enter__(self) -> 'Wait':
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Control:
    """Stops and hastens one transfer; thread-safe.

    :param is_boot: an instance waits for the image, so nothing may delay it
    :param max_rate_bytes: limit in bytes per second; None: only the host's limit applies
    :param is_last_attempt: no retry follows, so partial files need not be kept
    :ivar confirm: called before the result is published; its errors end the transfer
    :ivar aside: the context of a wait that is not the fault of a slow source
    :ivar gained_bytes: received so far, in addition to those kept before; complete files only
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
        self.aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self.gained_bytes = 0
        self._changed = threading.Condition()
        self._error: exception.CacheError | None = None
        self._waits = collections.Counter[Need]()
        self._at_stop: list[_Call] = []
        self._at_wait: list[_Call] = []

    @property
    def is_urgent(self) -> bool:
        """Whether a boot or another process waits for the result."""
        return self.is_boot or self._waits[Need.RESULT] > 0

    @property
    def is_relayed(self) -> bool:
        """Whether another host reads the partial file as it grows."""
        return self._waits[Need.BYTES] > 0

    def stop(self, error: exception.CacheError) -> None:
        """Stop the transfer at once with an error; the first error counts."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            self._changed.notify_all()
            calls = list(self._at_stop)
        for call in calls:
            call()

    def check(self) -> None:
        """Raise the error with which the transfer was stopped, if any."""
        if self._error is not None:
            # Many threads raise the same error: without this it would collect their frames.
            raise self._error.with_traceback(None)

    def keeps_partial(self, error: BaseException) -> bool:
        """Return whether another attempt may resume the partial files after this error."""
        if not isinstance(error, exception.CacheError) or not error.keeps_partial:
            return False
        return not (self.is_last_attempt and error.is_attempt)

    def wait(self, seconds: float) -> None:
        """Sleep until the time is over, or the transfer becomes urgent or is stopped (raises)."""
        with self._changed:
            was_urgent = self.is_urgent
            self._changed.wait_for(
                lambda: self._error is not None or self.is_urgent > was_urgent, seconds
            )
        self.check()

    def waited_for(self, need: Need = Need.RESULT) -> Wait:
        """Count a wait for the transfer, from now until it is left."""
        return Wait(functools.partial(self._count_waits, need))

    def _count_waits(self, need: Need, step: int) -> None:
        with self._changed:
            self._waits[need] += step
            self._changed.notify_all()
            calls = list(self._at_wait)
        for call in calls:
            call()

    def on_stop(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        """Register a callback, called from any thread when the transfer is stopped within.

        It is called at most once, and never after the context is left: leaving waits for a
        running call. Errors of the callback are logged.
        """
        return self._registered(
            self._at_stop, _Call(callback), is_due=lambda: self._error is not None
        )

    def at_urgency(self, callback: Callable[[bool], None]) -> AbstractContextManager[None]:
        """Call a callback with ``is_urgent``: see ``at_change``."""
        return self.at_change(lambda: self.is_urgent, callback)

    def at_change(
        self, state: Callable[[], bool], callback: Callable[[bool], None]
    ) -> AbstractContextManager[None]:
        """Call a callback with a state of the transfer: now, and at each change.

        The last call has the current state. Calls do not overlap, and none follows after the
        context is left: leaving waits for a running call. Errors of the callback are logged.

        :param state: computed from ``is_urgent`` and ``is_relayed``
        """
        reported: list[bool] = []

        def report() -> None:
            # Read the state at the call: two changes may overtake each other.
            if reported != [now := state()]:
                reported[:] = [now]
                callback(now)

        return self._registered(self._at_wait, _Call(report), is_due=lambda: True)

    @contextlib.contextmanager
    def _registered(
        self, calls: 'list[_Call]', call: '_Call', is_due: Callable[[], bool]
    ) -> Iterator[None]:
        with self._changed:
            calls.append(call)
            is_due_now = is_due()
        if is_due_now:
            call()
        try:
            yield
        finally:
            with self._changed:
                calls.remove(call)
            call.forbid()

    def run_interruptibly(self, work: Callable[[], T], discard: Callable[[T], object]) -> T:
        """Run work that may block uninterruptibly in a thread; a stop abandons it and raises.

        :param discard: called once with a result that arrives too late
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
    """A callback that one thread calls at a time, until it is forbidden."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        # The callback may itself change the state of the control.
        self._lock = threading.RLock()
        self._is_forbidden = False

    def __call__(self) -> None:
        with self._lock:
            if self._is_forbidden:
                return
            try:
                self._callback()
            except Exception:  # the other callbacks must still be called
                LOG.exception('%r failed', self._callback)

    def forbid(self) -> None:
        with self._lock:
            self._is_forbidden = True


class _Errand(Generic[T]):
    """Work in its own thread, which the waiting thread may abandon."""

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
        except BaseException as exc:  # noqa: BLE001 - raised again in the waiting thread
            finish = functools.partial(self.result.set_exception, exc)
        else:
            finish = functools.partial(self.result.set_result, value)
        with self._changed:
            finish()
            self._changed.notify_all()
            is_late = self._is_left
        if is_late:
            self._discard_result()

    def leave(self) -> None:
        """Abandon the work; discard its result, present or future."""
        with self._changed:
            self._is_left = True
            is_done = self.result.done()
        if is_done:
            self._discard_result()

    def _discard_result(self) -> None:
        error = self.result.exception()
        if error is not None:
            LOG.debug('Abandoned %r failed: %s', self._work, error)
            return
        try:
            self._discard(self.result.result())
        except Exception:  # no thread waits for it
            LOG.exception('Discarding the result of %r failed', self._work)
