# SPDX-License-Identifier: Apache-2.0
"""Stopped work ends at once, hastened work is notified, and each callback runs only once."""

import contextlib
import functools
import threading
from collections.abc import Callable

import pytest

from nova_precache import exception, transfer_control
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

# No thread sleeps this long: one that is not woken fails the test.
FOREVER_SECONDS = 3600
CANCELLED = exception.Cancelled('not wanted any more')


class Running:
    """A thread, and its result or error."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc

    def result(self) -> object:
        self.thread.join(TIMEOUT_SECONDS)
        assert not self.thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


class Asleep(transfer_control.Control):
    """Reports when a thread is about to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asleep = threading.Event()

    def wait(self, seconds: float) -> None:
        self.is_asleep.set()
        super().wait(seconds)


def test_unstopped_work_continues() -> None:
    reins = transfer_control.Control()
    reins.wait(0)
    reins.check()
    assert not reins.is_urgent


def test_stop_wakes_sleeper_with_reason() -> None:
    reins = Asleep()
    sleeping = Running(lambda: reins.wait(FOREVER_SECONDS))
    reins.is_asleep.wait(TIMEOUT_SECONDS)
    reins.stop(CANCELLED)
    with pytest.raises(exception.Cancelled, match='not wanted any more'):
        sleeping.result()


def test_first_stop_counts() -> None:
    reins = transfer_control.Control()
    reins.stop(CANCELLED)
    reins.stop(exception.ShuttingDown('later'))
    with pytest.raises(exception.Cancelled):
        reins.check()


def test_reraised_error_collects_no_frames() -> None:
    reins = transfer_control.Control()
    error = exception.Paused('for now')
    reins.stop(error)

    def depth() -> int:
        with contextlib.suppress(exception.Paused):
            reins.check()
        frames, trace = 0, error.__traceback__
        while trace is not None:
            frames, trace = frames + 1, trace.tb_next
        return frames

    assert depth() == depth() == depth()


def test_urgency_wakes_sleeper() -> None:
    reins = Asleep()
    sleeping = Running(lambda: reins.wait(FOREVER_SECONDS))
    reins.is_asleep.wait(TIMEOUT_SECONDS)
    with reins.waited_for():
        assert sleeping.result() is None


def test_urgency_ends_with_last_waiter() -> None:
    reins = transfer_control.Control()
    with reins.waited_for():
        with reins.waited_for():
            pass
        assert reins.is_urgent
    assert not reins.is_urgent


def test_hosts_that_read_bytes_lift_no_limits() -> None:
    reins = transfer_control.Control()
    told: list[bool] = []
    with reins.at_urgency(told.append), reins.waited_for(transfer_control.Need.BYTES):
        assert reins.is_relayed
        assert not reins.is_urgent
    assert not reins.is_relayed
    assert told == [False]


def test_wait_left_again_does_not_end_others() -> None:
    reins = transfer_control.Control()
    first, _ = reins.waited_for(), reins.waited_for()
    first.leave()
    first.leave()
    assert reins.is_urgent


def test_boot_urgency_never_changes() -> None:
    reins = transfer_control.Control(is_boot=True)
    told: list[bool] = []
    with reins.at_urgency(told.append), reins.waited_for():
        pass
    assert reins.is_urgent
    assert told == [True]


def test_stop_is_reported_once() -> None:
    reins = transfer_control.Control()
    told: list[str] = []
    with reins.on_stop(lambda: told.append('stopped')):
        reins.stop(CANCELLED)
        reins.stop(CANCELLED)
    assert told == ['stopped']


def test_late_subscriber_called_at_once() -> None:
    reins = transfer_control.Control()
    reins.stop(CANCELLED)
    told: list[str] = []
    with reins.on_stop(lambda: told.append('stopped')):
        assert told == ['stopped']
    assert told == ['stopped']


def test_removed_subscriber_not_called() -> None:
    reins = transfer_control.Control()
    told: list[object] = []
    with reins.on_stop(lambda: told.append('stopped')), reins.at_urgency(told.append):
        pass
    reins.stop(CANCELLED)
    with reins.waited_for():
        assert told == [False]


def test_stop_during_registration_reported_once() -> None:
    for _ in range(200):
        reins = transfer_control.Control()
        told: list[str] = []
        start = threading.Barrier(2)

        stopping = Running(functools.partial(_stop_at, start, reins))
        start.wait()
        with reins.on_stop(lambda told=told: told.append('stopped')):
            stopping.result()
            assert told == ['stopped']


def _stop_at(start: threading.Barrier, reins: transfer_control.Control) -> None:
    start.wait()
    reins.stop(CANCELLED)


def test_failing_callback_does_not_block_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reins = transfer_control.Control()
    told: list[object] = []

    def fail(*_: object) -> None:
        raise ValueError('a fault of its own')

    with (
        reins.on_stop(fail),
        reins.on_stop(lambda: told.append('stopped')),
        reins.at_urgency(fail),
        reins.at_urgency(told.append),
    ):
        with reins.waited_for():
            pass
        reins.stop(CANCELLED)
    assert told == [False, True, False, 'stopped']
    assert caplog.text.count('ValueError: a fault of its own') == 4


def test_leaving_waits_for_running_callback() -> None:
    reins = transfer_control.Control()
    called, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def callback() -> None:
        called.set()
        go_on.wait(TIMEOUT_SECONDS)
        order.append('called')

    def leave() -> None:
        with reins.on_stop(callback):
            called.wait(TIMEOUT_SECONDS)
            leaving.set()
        order.append('left')

    leaving = threading.Event()
    worker = Running(leave)
    wait_until(lambda: reins._at_stop, 'the callback is registered')
    stopper = Running(lambda: reins.stop(CANCELLED))
    leaving.wait(TIMEOUT_SECONDS)
    go_on.set()
    worker.result()
    stopper.result()
    assert order == ['called', 'left']


def test_callback_may_unsubscribe() -> None:
    reins = transfer_control.Control()
    stack = contextlib.ExitStack()
    told: list[bool] = []

    def callback(is_urgent: bool) -> None:
        told.append(is_urgent)
        if is_urgent:
            stack.close()

    stack.enter_context(reins.at_urgency(callback))
    with reins.waited_for():
        pass
    assert told == [False, True]


def test_last_callback_has_current_state() -> None:
    reins = transfer_control.Control()
    told: list[bool] = []

    def wait_for_it() -> None:
        for _ in range(200):
            with reins.waited_for():
                pass

    with reins.at_urgency(told.append):
        for waiter in [Running(wait_for_it) for _ in range(4)]:
            waiter.result()
        assert told[-1] is False
        with reins.waited_for():
            assert told[-1] is True


def test_result_of_unstopped_work_returned() -> None:
    discarded: list[str] = []
    assert transfer_control.Control().run_interruptibly(lambda: 'done', discarded.append) == 'done'
    assert discarded == []


def test_error_of_unstopped_work_raised() -> None:
    def fail() -> None:
        raise exception.ImageGone('deleted')

    with pytest.raises(exception.ImageGone, match='deleted'):
        transfer_control.Control().run_interruptibly(fail, lambda _: None)


def test_stopped_work_does_not_begin() -> None:
    reins = transfer_control.Control()
    reins.stop(CANCELLED)
    begun: list[str] = []
    with pytest.raises(exception.Cancelled):
        reins.run_interruptibly(lambda: begun.append('begun'), lambda _: None)
    assert begun == []


class Blocking:
    """Work that blocks until it is released."""

    def __init__(self, error: Exception | None = None) -> None:
        self.is_begun, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self._error = error

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        self.is_begun.set()
        self.go_on.wait(TIMEOUT_SECONDS)
        if self._error is not None:
            raise self._error
        return 'too late'

    def end(self) -> None:
        self.go_on.set()
        assert self.thread is not None
        self.thread.join(TIMEOUT_SECONDS)


def _left_behind(work: Blocking, discard: Callable[[str], object]) -> None:
    reins = transfer_control.Control()
    worker = Running(lambda: reins.run_interruptibly(work, discard))
    work.is_begun.wait(TIMEOUT_SECONDS)
    reins.stop(CANCELLED)
    with pytest.raises(exception.Cancelled):
        worker.result()


def test_stop_returns_early_and_discards_result() -> None:
    work = Blocking()
    discarded: list[str] = []
    _left_behind(work, discarded.append)
    assert discarded == []
    work.end()
    assert discarded == ['too late']


def test_abandoned_failure_has_nothing_to_discard() -> None:
    work = Blocking(ValueError('late'))
    discarded: list[str] = []
    _left_behind(work, discarded.append)
    work.end()
    assert discarded == []


def test_failed_discard_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: str) -> None:
        raise ValueError('not to be got rid of')

    work = Blocking()
    _left_behind(work, fail)
    work.end()
    assert 'ValueError: not to be got rid of' in caplog.text


def test_result_during_stop_returned_or_discarded() -> None:
    for _ in range(300):
        reins = transfer_control.Control()
        work = Blocking()
        discarded: list[str] = []
        worker = Running(functools.partial(_given, reins, work, discarded))
        work.is_begun.wait(TIMEOUT_SECONDS)
        stopper = Running(functools.partial(reins.stop, CANCELLED))
        work.end()
        stopper.result()
        given = worker.result()
        assert isinstance(given, list)
        assert given + discarded == ['too late']


def _given(reins: transfer_control.Control, work: Blocking, discarded: list[str]) -> list[str]:
    with contextlib.suppress(exception.Cancelled):
        return [reins.run_interruptibly(work, discarded.append)]
    return []
