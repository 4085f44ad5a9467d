# SPDX-License-Identifier: Apache-2.0
"""One transfer an image: joined, fenced anew, remembered, and cut when the compute stops."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest

from nova_precache import exception, model
from nova_precache.compute import transfers

WAIT_SECONDS = 20
CACHED = model.ImageOutcome('cached', bytes_done=9, bytes_total=9)
EXISTING = model.ImageOutcome('existing')


class Held:
    """Work on an image that goes on until the test opens its gate.

    It is past its download, and so reported each time that somebody asks.
    """

    def __init__(self, outcome: model.ImageOutcome = CACHED) -> None:
        self.outcome = outcome
        self.error: BaseException | None = None
        self.times = 0
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self, progress: model.ProgressCallback) -> model.ImageOutcome:
        self.times += 1
        progress(model.Progress(model.TaskStatus.VERIFYING, 4, 9))
        self.begun.set()
        assert self.opened.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self.outcome


Call = Callable[..., 'futures.Future[model.ImageOutcome]']


@pytest.fixture
def running() -> transfers.Transfers:
    return transfers.Transfers()


@pytest.fixture
def call(running: transfers.Transfers) -> Iterator[Call]:
    """A function that makes a call in a thread of its own, and returns once it follows."""
    with futures.ThreadPoolExecutor(8) as pool:

        def run(
            job_id: str, epoch: int, work: Held, image_id: str = 'i1'
        ) -> futures.Future[model.ImageOutcome]:
            made = pool.submit(running.run, job_id, epoch, image_id, work)
            _wait_followed(running, job_id, epoch)
            assert work.begun.wait(WAIT_SECONDS)
            return made

        yield run


def _wait_followed(running: transfers.Transfers, job_id: str, epoch: int) -> None:
    tick = threading.Event()
    for _ in range(WAIT_SECONDS * 100):
        if any((f.job_id, f.epoch) == (job_id, epoch) for f in running.to_report()):
            return
        tick.wait(0.01)
    raise AssertionError(f'job {job_id} does not follow a transfer under epoch {epoch}')


def _reported(running: transfers.Transfers) -> set[tuple[str, int]]:
    return {(following.job_id, following.epoch) for following in running.to_report()}


def _done(outcome: model.ImageOutcome) -> Callable[[model.ProgressCallback], model.ImageOutcome]:
    return lambda progress: outcome


def test_the_outcome_of_the_work_is_given(running: transfers.Transfers) -> None:
    assert running.run('j1', 1, 'i1', _done(CACHED)) == CACHED
    assert running.to_report() == []


def test_a_repeated_call_joins_the_transfer_under_the_newer_epoch(
    running: transfers.Transfers, call: Call
) -> None:
    work = Held()
    first = call('j1', 1, work)

    second = call('j1', 2, work)

    assert _reported(running) == {('j1', 2)}
    work.opened.set()
    assert (first.result(WAIT_SECONDS), second.result(WAIT_SECONDS)) == (CACHED, CACHED)
    assert work.times == 1


def test_an_older_call_that_comes_late_does_not_lower_the_epoch(
    running: transfers.Transfers, call: Call
) -> None:
    work = Held()
    call('j1', 7, work)

    with futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(running.run, 'j1', 3, 'i1', work)
        work.opened.set()
        assert late.result(WAIT_SECONDS) == CACHED


def test_another_job_for_the_same_image_joins_and_is_reported_too(
    running: transfers.Transfers, call: Call
) -> None:
    work = Held()
    made = [call('j1', 1, work), call('j2', 5, work)]

    assert _reported(running) == {('j1', 1), ('j2', 5)}

    work.opened.set()
    assert [each.result(WAIT_SECONDS) for each in made] == [CACHED, CACHED]
    assert work.times == 1
    assert running.kept_outcome('j2') == CACHED


def test_two_images_are_two_transfers(running: transfers.Transfers, call: Call) -> None:
    works = Held(), Held(EXISTING)
    made = [call('j1', 1, works[0], 'i1'), call('j2', 1, works[1], 'i2')]
    for work in works:
        work.opened.set()

    assert [each.result(WAIT_SECONDS) for each in made] == [CACHED, EXISTING]


def test_progress_is_reported_with_a_growing_sequence(
    running: transfers.Transfers, call: Call
) -> None:
    work = Held()
    call('j1', 3, work)

    [first], [second] = running.to_report(), running.to_report()

    assert first.progress == model.Progress(model.TaskStatus.VERIFYING, 4, 9)
    assert (first.job_id, first.epoch) == ('j1', 3)
    assert second.sequence > first.sequence
    work.opened.set()


def test_a_download_that_stands_still_is_not_reported_and_a_conversion_is(
    running: transfers.Transfers,
) -> None:
    seen = []

    def work(note: model.ProgressCallback) -> model.ImageOutcome:
        for status in (model.TaskStatus.DOWNLOADING, model.TaskStatus.CONVERTING):
            note(model.Progress(status, 5, 5))
            seen.append([len(running.to_report()), len(running.to_report())])
        return CACHED

    running.run('j1', 1, 'i1', work)

    assert seen == [[1, 0], [1, 1]]


def test_whoever_joins_a_download_that_stands_still_has_it_reported_again(
    running: transfers.Transfers,
) -> None:
    seen: list[tuple[str, int]] = []
    joined: list[threading.Thread] = []

    def work(note: model.ProgressCallback) -> model.ImageOutcome:
        assert len(running.to_report()) == 1
        joined.append(threading.Thread(target=running.run, args=('j2', 4, 'i1', work)))
        joined[0].start()
        for _ in range(WAIT_SECONDS * 100):
            seen.extend((each.job_id, each.epoch) for each in running.to_report())
            if seen:
                break
            threading.Event().wait(0.01)
        return CACHED

    running.run('j1', 1, 'i1', work)
    joined[0].join(WAIT_SECONDS)

    assert seen == [('j1', 1), ('j2', 4)]


def test_a_stopping_compute_ends_its_transfers_so_that_they_count_as_no_attempt(
    running: transfers.Transfers,
) -> None:
    def work(note: model.ProgressCallback) -> model.ImageOutcome:
        running.stop()
        with pytest.raises(exception.ShuttingDown) as stopped:
            note(model.Progress(model.TaskStatus.DOWNLOADING, 1))
        assert stopped.value.retry == model.Retry.LATER
        return CACHED

    assert running.run('j1', 1, 'i1', work) == CACHED


def test_the_outcome_of_an_ended_job_is_repeated(running: transfers.Transfers) -> None:
    """A lost reply must not turn ``cached`` into ``existing``."""
    running.run('j1', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j1') == CACHED
    assert running.run('j1', 2, 'i1', _done(EXISTING)) == CACHED


def test_a_new_job_for_an_image_that_was_done_is_done_anew(running: transfers.Transfers) -> None:
    running.run('j1', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j2') is None
    assert running.run('j2', 1, 'i1', _done(EXISTING)) == EXISTING


@pytest.mark.parametrize('how', [model.Retry.BACKOFF, model.Retry.ONCE])
def test_an_outcome_that_is_to_be_tried_again_is_not_kept(
    running: transfers.Transfers, how: model.Retry
) -> None:
    failed = model.ImageOutcome('error', 'why', how)
    assert running.run('j1', 1, 'i1', _done(failed)) == failed

    assert running.kept_outcome('j1') is None
    assert running.run('j1', 2, 'i1', _done(CACHED)) == CACHED


def test_only_so_many_outcomes_are_kept_and_the_oldest_go_first(
    running: transfers.Transfers,
) -> None:
    for number in range(transfers.KEPT_OUTCOMES + 1):
        running.run(f'j{number}', 1, 'i1', _done(CACHED))

    assert running.kept_outcome('j0') is None
    assert running.kept_outcome('j1') == CACHED


def test_an_error_reaches_all_who_wait_and_the_next_call_starts_anew(
    running: transfers.Transfers, call: Call
) -> None:
    work = Held()
    work.error = SystemExit(3)
    made = [call('j1', 1, work), call('j2', 1, work)]

    work.opened.set()

    for each in made:
        with pytest.raises(SystemExit):
            each.result(WAIT_SECONDS)
    assert running.to_report() == []
    assert running.run('j1', 2, 'i1', _done(CACHED)) == CACHED


def test_a_compute_that_stops_cuts_a_transfer_at_its_next_progress(
    running: transfers.Transfers,
) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def work(progress: model.ProgressCallback) -> model.ImageOutcome:
        progress(model.Progress(model.TaskStatus.DOWNLOADING, 1, 9))
        begun.set()
        assert stopped.wait(WAIT_SECONDS)
        progress(model.Progress(model.TaskStatus.DOWNLOADING, 2, 9))
        return CACHED

    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(running.run, 'j1', 1, 'i1', work)
        assert begun.wait(WAIT_SECONDS)
        running.stop()
        stopped.set()

        with pytest.raises(exception.ShuttingDown):
            made.result(WAIT_SECONDS)
