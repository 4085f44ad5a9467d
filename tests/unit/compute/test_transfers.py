# SPDX-License-Identifier: Apache-2.0
"""One transfer an image: joined, fenced again, remembered, and cut when the compute stops."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.compute import outcomes, transfers
from nova_precache.transfer_control import Control
from tools.waiting import TIMEOUT_SECONDS

CACHED = model.ImageOutcome('cached', bytes_done=9, bytes_total=9)
EXISTING = model.ImageOutcome('existing')


class Held:
    """Work on an image that blocks until the test opens its gate, or a stop arrives.

    It is past its download, and reports so to each caller.
    """

    def __init__(self, outcome: model.ImageOutcome = CACHED, heeds_stops: bool = True) -> None:
        self.outcome = outcome
        self.error: BaseException | None = None
        self.times = 0
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.control = Control()
        self._heeds_stops = heeds_stops

    def __call__(self, progress: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        self.times += 1
        self.control = control
        progress(model.Progress(model.TaskStatus.VERIFYING, 4, 9))
        self.begun.set()
        try:
            self._wait(control)
        except exception.TransferStopped as stopped:
            return outcomes.of_stop(stopped)
        if self.error is not None:
            raise self.error
        return self.outcome

    def _wait(self, control: Control) -> None:
        if not self._heeds_stops:
            assert self.opened.wait(TIMEOUT_SECONDS)
            return
        with control.on_stop(self.opened.set):
            assert self.opened.wait(TIMEOUT_SECONDS)
        control.check()


Call = Callable[..., 'futures.Future[model.ImageOutcome]']


@pytest.fixture
def running() -> transfers.Transfers:
    return transfers.Transfers()


@pytest.fixture
def call(running: transfers.Transfers) -> Iterator[Call]:
    """Return a function that makes a call in a thread of its own, and returns once it follows."""
    with futures.ThreadPoolExecutor(8) as pool:

        def run(
            job_id: str, epoch: int, work: Held, image_id: str = 'i1', **options: Any
        ) -> futures.Future[model.ImageOutcome]:
            wanted = model.TransferOptions(**options)
            made = pool.submit(running.run, job_id, epoch, image_id, work, wanted)
            _wait_followed(running, job_id, epoch)
            assert work.begun.wait(TIMEOUT_SECONDS)
            return made

        yield run


def _wait_followed(running: transfers.Transfers, job_id: str, epoch: int) -> None:
    tick = threading.Event()
    for _ in range(TIMEOUT_SECONDS * 100):
        if any((f.job_id, f.epoch) == (job_id, epoch) for f in running.to_report()):
            return
        tick.wait(0.01)
    raise AssertionError(f'job {job_id} does not follow a transfer under epoch {epoch}')


def _reported(running: transfers.Transfers) -> set[tuple[str, int]]:
    return {(following.job_id, following.epoch) for following in running.to_report()}


def _done(outcome: model.ImageOutcome) -> transfers.Work:
    return lambda progress, control: outcome


def _cancelled() -> exception.Cancelled:
    return exception.Cancelled('not wanted')


def test_outcome_of_work_returned(running: transfers.Transfers) -> None:
    assert running.run('j1', 1, 'i1', _done(CACHED)) == CACHED
    assert running.to_report() == []


def test_repeated_call_joins_under_newer_epoch(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    first = call('j1', 1, work)

    second = call('j1', 2, work)

    assert _reported(running) == {('j1', 2)}
    work.opened.set()
    assert (first.result(TIMEOUT_SECONDS), second.result(TIMEOUT_SECONDS)) == (CACHED, CACHED)
    assert work.times == 1


def test_late_older_call_keeps_epoch(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 7, work)

    with futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(running.run, 'j1', 3, 'i1', work)
        work.opened.set()
        assert late.result(TIMEOUT_SECONDS) == CACHED


def test_other_job_for_image_joins(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = [call('j1', 1, work), call('j2', 5, work)]

    assert _reported(running) == {('j1', 1), ('j2', 5)}

    work.opened.set()
    assert [each.result(TIMEOUT_SECONDS) for each in made] == [CACHED, CACHED]
    assert work.times == 1
    assert running.kept_outcome('j2') == CACHED


def test_two_images_are_two_transfers(running: transfers.Transfers, call: Call) -> None:
    works = Held(), Held(EXISTING)
    made = [call('j1', 1, works[0], 'i1'), call('j2', 1, works[1], 'i2')]
    for work in works:
        work.opened.set()

    assert [each.result(TIMEOUT_SECONDS) for each in made] == [CACHED, EXISTING]


def test_progress_reported_with_growing_sequence(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 3, work)

    [first], [second] = running.to_report(), running.to_report()

    assert first.progress == model.Progress(model.TaskStatus.VERIFYING, 4, 9, rate_bytes=0)
    assert (first.job_id, first.epoch) == ('j1', 3)
    assert second.sequence > first.sequence
    work.opened.set()


def test_stalled_download_not_reported_unlike_conversion(
    running: transfers.Transfers,
) -> None:
    seen = []

    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        for status in (model.TaskStatus.DOWNLOADING, model.TaskStatus.CONVERTING):
            note(model.Progress(status, 5, 5))
            seen.append([len(running.to_report()), len(running.to_report())])
        return CACHED

    running.run('j1', 1, 'i1', work)

    assert seen == [[1, 0], [1, 1]]


def test_download_rate_and_its_end_reported() -> None:
    now = 0.0
    running = transfers.Transfers(clock=lambda: now)
    seen = []

    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        nonlocal now
        for done in (0, 100, 200, *[200] * 20):
            note(model.Progress(model.TaskStatus.DOWNLOADING, 1000 + done, 9000))
            seen.append([each.progress.rate_bytes for each in running.to_report()])
            now += 1
        return CACHED

    running.run('j1', 1, 'i1', work)

    assert [rates for rates in seen if rates] == [[None], [100], [100], [0]]
    assert seen[3] == [], 'it stands still, if not for long'


def test_ended_transfers_are_counted(running: transfers.Transfers) -> None:
    assert running.ended == 0
    for number in range(3):
        running.run(f'j{number}', 1, 'i1', _done(CACHED))

    assert running.ended == 3


def test_joining_stalled_download_reports_it_again(
    running: transfers.Transfers,
) -> None:
    seen: list[tuple[str, int]] = []
    joined: list[threading.Thread] = []

    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        assert len(running.to_report()) == 1
        joined.append(threading.Thread(target=running.run, args=('j2', 4, 'i1', work)))
        joined[0].start()
        for _ in range(TIMEOUT_SECONDS * 100):
            seen.extend((each.job_id, each.epoch) for each in running.to_report())
            if seen:
                break
            threading.Event().wait(0.01)
        return CACHED

    running.run('j1', 1, 'i1', work)
    joined[0].join(TIMEOUT_SECONDS)

    assert seen == [('j1', 1), ('j2', 4)]


def test_outcome_of_ended_job_repeated(running: transfers.Transfers) -> None:
    """A lost reply must not turn ``cached`` into ``existing``."""
    running.run('j1', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j1') == CACHED
    assert running.run('j1', 2, 'i1', _done(EXISTING)) == CACHED


def test_new_job_for_done_image_restarts(running: transfers.Transfers) -> None:
    running.run('j1', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j2') is None
    assert running.run('j2', 1, 'i1', _done(EXISTING)) == EXISTING


@pytest.mark.parametrize('how', [model.Retry.BACKOFF, model.Retry.ONCE])
def test_retryable_outcome_not_kept(running: transfers.Transfers, how: model.Retry) -> None:
    failed = model.ImageOutcome('error', 'why', how)
    assert running.run('j1', 1, 'i1', _done(failed)) == failed

    assert running.kept_outcome('j1') is None
    assert running.run('j1', 2, 'i1', _done(CACHED)) == CACHED


def test_oldest_kept_outcomes_dropped(
    running: transfers.Transfers,
) -> None:
    for number in range(transfers.KEPT_OUTCOMES + 1):
        running.run(f'j{number}', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j0') is None
    assert running.kept_outcome('j1') == CACHED


def test_error_reaches_all_waiters_then_restarts(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    work.error = SystemExit(3)
    made = [call('j1', 1, work), call('j2', 1, work)]

    work.opened.set()

    for each in made:
        with pytest.raises(SystemExit):
            each.result(TIMEOUT_SECONDS)
    assert running.to_report() == []
    assert running.run('j1', 2, 'i1', _done(CACHED)) == CACHED


def test_missing_thread_fails_transfer_then_restarts(
    running: transfers.Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as refused:
        refused.setattr(threading.Thread, 'start', refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            running.run('j1', 1, 'i1', _done(CACHED))

    assert not running.is_running('i1')
    assert running.run('j1', 2, 'i1', _done(CACHED)) == CACHED


# Stopping


def test_stopping_compute_stops_transfers_without_attempt(
    running: transfers.Transfers, call: Call
) -> None:
    made = [call('j1', 1, Held(), 'i1'), call('j2', 1, Held(), 'i2')]

    running.stop()

    stopped = model.ImageOutcome('error', 'the compute is shutting down', model.Retry.LATER)
    assert [each.result(TIMEOUT_SECONDS) for each in made] == [stopped, stopped]
    assert running.kept_outcome('j1') is None


def test_leave_during_shutdown_keeps_partials(running: transfers.Transfers, call: Call) -> None:
    work = Held(heeds_stops=False)
    work.outcome = outcomes.of_stop(exception.ShuttingDown('soon'))
    call('j1', 1, work)
    call('j2', 1, work, is_last_attempt=True)
    running.stop()

    assert not running.leave('j1', 1, _cancelled())

    assert not work.control.is_last_attempt
    work.opened.set()


def test_stopping_compute_begins_nothing(running: transfers.Transfers) -> None:
    work = Held()
    running.stop()

    assert running.run('j1', 1, 'i1', work).retry == model.Retry.LATER
    assert work.times == 0


def test_name_lost_during_shutdown_does_not_end_it(running: transfers.Transfers) -> None:
    running.stop()
    running.stop(exception.NameLost('h1 has another agent'))

    running.resume()

    assert running.run('j1', 1, 'i1', _done(CACHED)).reason == 'the compute is shutting down'


def test_last_leaving_job_stops_transfer(running: transfers.Transfers, call: Call) -> None:
    made = call('j1', 3, Held())

    assert running.leave('j1', 3, _cancelled())

    assert made.result(TIMEOUT_SECONDS) == model.ImageOutcome('cancelled', 'not wanted')
    assert running.kept_outcome('j1') is None, 'another request may want it by now'


def test_work_done_before_stop_counts(running: transfers.Transfers, call: Call) -> None:
    work = Held(heeds_stops=False)
    made = call('j1', 3, work)

    assert running.leave('j1', 3, _cancelled())
    assert not made.done()
    work.opened.set()

    assert made.result(TIMEOUT_SECONDS) == CACHED


def test_job_leaving_others_returns_at_once(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    first, second = call('j1', 1, work), call('j2', 1, work)

    assert running.leave('j1', 1, _cancelled())

    assert first.result(TIMEOUT_SECONDS) == model.ImageOutcome('cancelled', 'not wanted')
    assert _reported(running) == {('j2', 1)}
    assert not second.done()
    work.opened.set()
    assert second.result(TIMEOUT_SECONDS) == CACHED
    assert running.kept_outcome('j1') is None, 'another request may want it by now'


def test_last_of_leaving_jobs_stops_transfer(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = [call('j1', 1, work), call('j2', 1, work)]

    assert running.leave('j1', 1, _cancelled())
    assert running.leave('j2', 1, exception.Paused('later'))

    assert [each.result(TIMEOUT_SECONDS).status for each in made] == ['cancelled', 'error']
    assert made[1].result().retry == model.Retry.LATER
    assert running.kept_outcome('j2') is None, 'it could not be gone on with'


def test_stop_of_older_call_ignored(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = call('j1', 5, work)

    assert not running.leave('j1', 4, _cancelled())
    assert _reported(running) == {('j1', 5)}

    assert running.leave('j1', 6, _cancelled())
    assert made.result(TIMEOUT_SECONDS).status == 'cancelled'


def test_early_stop_blocks_only_its_call(running: transfers.Transfers, call: Call) -> None:
    assert not running.leave('j1', 3, _cancelled())

    late = running.run('j1', 3, 'i1', Held())
    assert late == model.ImageOutcome('cancelled', 'not wanted')
    assert not running.is_running('i1')

    work = Held()
    made = call('j1', 4, work)
    work.opened.set()
    assert made.result(TIMEOUT_SECONDS) == CACHED


def test_remembered_stops_are_bounded(running: transfers.Transfers, call: Call) -> None:
    for number in range(transfers.KEPT_STOPS + 1):
        running.leave(f'j{number}', 1, _cancelled())

    work = Held()
    made = call('j0', 1, work)
    work.opened.set()

    assert made.result(TIMEOUT_SECONDS) == CACHED


def test_unknown_job_cannot_leave(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = call('j1', 1, work)

    assert not running.leave('j2', 9, _cancelled())

    work.opened.set()
    assert made.result(TIMEOUT_SECONDS) == CACHED
    assert not running.leave('j1', 9, _cancelled())
    assert running.kept_outcome('j1') == CACHED


def test_call_during_stop_gets_own_transfer(running: transfers.Transfers, call: Call) -> None:
    stopped, fresh = Held(heeds_stops=False), Held()
    stopped.outcome = outcomes.of_stop(_cancelled())
    first = call('j1', 1, stopped)
    running.leave('j1', 1, _cancelled())
    assert not running.is_running('i1')

    second = call('j2', 1, fresh)
    stopped.opened.set()

    assert first.result(TIMEOUT_SECONDS).status == 'cancelled'
    assert _reported(running) == {('j2', 1)}
    fresh.opened.set()
    assert second.result(TIMEOUT_SECONDS) == CACHED


# Options


def test_transfer_stops_at_its_deadline(running: transfers.Transfers) -> None:
    at_once = model.TransferOptions(deadline_seconds=-1)

    outcome = running.run('j1', 1, 'i1', Held(), at_once)

    assert outcome == model.ImageOutcome(
        'expired', 'the deadline passed before the image was cached'
    )
    assert running.kept_outcome('j1') is None, 'another request may want it by now'


def test_transfer_lasts_until_latest_deadline(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    patient = call('j1', 1, work, deadline_seconds=1e300)

    hasty = running.run('j2', 1, 'i1', work, model.TransferOptions(deadline_seconds=0))

    assert hasty.status == 'expired'
    assert _reported(running) == {('j1', 1)}
    work.opened.set()
    assert patient.result(TIMEOUT_SECONDS) == CACHED


def test_newer_call_replaces_deadline(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    first = call('j1', 1, work, deadline_seconds=3600)

    second = running.run('j1', 2, 'i1', work, model.TransferOptions(deadline_seconds=0))

    assert second.status == 'expired'
    assert first.result(TIMEOUT_SECONDS) == second


def test_timer_ends_with_transfer(running: transfers.Transfers) -> None:
    in_time = model.TransferOptions(deadline_seconds=3600)

    assert running.run('j1', 1, 'i1', _done(CACHED), in_time) == CACHED

    timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    for timer in timers:
        timer.join(TIMEOUT_SECONDS)
    assert not any(timer.is_alive() for timer in timers)


def test_highest_wanted_rate_applies(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work, max_rate_bytes=5)
    assert work.control.max_rate_bytes == 5
    call('j2', 1, work, max_rate_bytes=7)
    assert work.control.max_rate_bytes == 7
    call('j3', 1, work)
    assert work.control.max_rate_bytes is None

    running.leave('j3', 1, _cancelled())
    running.leave('j2', 1, _cancelled())

    assert work.control.max_rate_bytes == 5
    work.opened.set()


def test_last_attempt_needs_all_jobs(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work, is_last_attempt=True)
    assert work.control.is_last_attempt
    call('j2', 1, work)
    assert not work.control.is_last_attempt

    running.leave('j2', 1, _cancelled())

    assert work.control.is_last_attempt
    running.stop()
    assert not work.control.is_last_attempt, 'what is made again could not go on from it'


# Changed options


def _change(number: int, **options: Any) -> model.OptionChange:
    return model.OptionChange(number, **options)


def test_rate_changed_while_work_continues(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = call('j1', 1, work, max_rate_bytes=100, is_last_attempt=True)

    assert running.change('j1', 1, _change(1, max_rate_bytes=700))
    assert (work.control.max_rate_bytes, work.control.is_last_attempt) == (700, True)
    assert running.change('j1', 1, _change(2))
    assert work.control.max_rate_bytes is None

    work.opened.set()
    assert made.result(TIMEOUT_SECONDS) == CACHED
    assert work.times == 1


def test_older_change_ignored(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work)

    assert running.change('j1', 1, _change(2, max_rate_bytes=200))
    assert running.change('j1', 1, _change(1, max_rate_bytes=100))

    assert work.control.max_rate_bytes == 200
    work.opened.set()


@pytest.mark.parametrize(('job_id', 'epoch'), [('j1', 1), ('j1', 3), ('j2', 2)])
def test_change_of_other_call_refused(
    running: transfers.Transfers, call: Call, job_id: str, epoch: int
) -> None:
    work = Held()
    call('j1', 2, work, max_rate_bytes=100)

    assert not running.change(job_id, epoch, _change(9, max_rate_bytes=900))

    assert work.control.max_rate_bytes == 100
    work.opened.set()


def test_repeated_call_supersedes_changes(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work)
    running.change('j1', 1, _change(5, max_rate_bytes=500))

    call('j1', 2, work, max_rate_bytes=200)
    assert work.control.max_rate_bytes == 200
    assert running.change('j1', 2, _change(1, max_rate_bytes=100))

    assert work.control.max_rate_bytes == 100
    work.opened.set()


def test_call_received_twice_keeps_changes(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work, max_rate_bytes=100)
    running.change('j1', 1, _change(1, max_rate_bytes=500))

    call('j1', 1, work, max_rate_bytes=100)

    assert work.control.max_rate_bytes == 500
    work.opened.set()


def test_shared_transfer_keeps_highest_rate(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    call('j1', 1, work, max_rate_bytes=100)
    call('j2', 1, work, max_rate_bytes=300)

    running.change('j1', 1, _change(1, max_rate_bytes=200))
    assert work.control.max_rate_bytes == 300
    running.change('j1', 1, _change(2, max_rate_bytes=400))

    assert work.control.max_rate_bytes == 400
    work.opened.set()


def test_removed_deadline_ends_nothing(running: transfers.Transfers, call: Call) -> None:
    work = Held()
    made = call('j1', 1, work, deadline_seconds=3600)
    [timer] = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]

    assert running.change('j1', 1, _change(1))

    timer.join(TIMEOUT_SECONDS)
    assert not timer.is_alive()
    work.opened.set()
    assert made.result(TIMEOUT_SECONDS) == CACHED


def test_earlier_deadline_ends_work(running: transfers.Transfers, call: Call) -> None:
    made = call('j1', 1, Held(), deadline_seconds=3600)

    assert running.change('j1', 1, _change(1, deadline_seconds=0))

    assert made.result(TIMEOUT_SECONDS).status == 'expired'
