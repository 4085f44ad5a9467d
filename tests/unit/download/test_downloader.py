# SPDX-License-Identifier: Apache-2.0
"""What arrives in the file, what is refused, and how often a cut download resumes."""

import contextlib
import dataclasses
import hashlib
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import psutil
import pytest
from hypothesis import strategies

from nova_precache import exception, model, priority, transfer_control as controls
from nova_precache.download import engine, pipeline, retry, verifier
from nova_precache.image import fake
from tests.clock import Clock
from tests.service import wait_until
from tests.unit.download.conftest import (
    Attempt,
    FileTarget,
    MakeTarget,
    NewAttempt,
    OddSource,
    Reins,
    Running,
)

DATA = bytes(range(256)) * 2048
CANCELLED = exception.Cancelled('it is not wanted')
PAUSED = exception.Paused('later')


def test_file_holds_image(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    assert attempt.run(images, image) == len(DATA)
    assert attempt.target.content == DATA


def test_progress_reaches_size_then_verifying(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    attempt.run(images, images.add(DATA), buffer_bytes=64 * 1024)
    *downloading, last = attempt.progress
    counts = [step.bytes_done for step in downloading]
    assert counts == sorted(set(counts))
    assert len(counts) == 8
    assert downloading[-1] == model.Progress(model.TaskStatus.DOWNLOADING, len(DATA), len(DATA))
    assert last == model.Progress(model.TaskStatus.VERIFYING, len(DATA), len(DATA))


def test_cut_download_resumes_at_cut(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.faults.cuts = [1000, 70_000]
    attempt.run(images, image)
    assert attempt.target.content == DATA
    assert [offset for _, offset in images.opens] == [0, 1000, 71_000]
    assert images.served_bytes == len(DATA)


def test_cut_after_last_byte_opens_once(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.faults.cuts = [len(DATA)]
    attempt.run(images, image)
    assert attempt.target.content == DATA
    assert len(images.opens) == 1


def test_repeatedly_cut_download_ends(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.faults.cuts = [10] * 9
    with pytest.raises(exception.DownloadInterrupted, match='interrupted'):
        attempt.run(images, image)
    assert len(images.opens) == 3
    assert attempt.control.pauses == [0.5, 1.0]


def test_deleted_image_not_retried(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.delete(image.id)
    with pytest.raises(exception.ImageGone):
        attempt.run(images, image)
    assert attempt.control.pauses == []


def test_wrong_bytes_are_mismatch(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch, match='sha512'):
        attempt.run(images, image)


def test_excess_bytes_stop_at_once(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA, size=100_000)
    with pytest.raises(exception.ImageMismatch, match='more than 100000 bytes'):
        attempt.run(images, image)
    assert len(attempt.target.content) <= 100_000
    assert images.served_bytes < len(DATA)


def test_early_end_is_interruption(attempt: Attempt, images: fake.FakeImageService) -> None:
    image = images.add(DATA, size=len(DATA) + 1)
    with pytest.raises(exception.DownloadInterrupted):
        attempt.run(images, image)


def test_image_without_size_verified_by_hash(
    new_attempt: NewAttempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA, size=None)
    assert new_attempt().run(images, image) == len(DATA)
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        new_attempt().run(images, image)


@pytest.mark.parametrize('algorithm', ['sha256', 'sha512', 'sha3_512', 'blake2b'])
def test_glance_chooses_hash_algorithm(
    new_attempt: NewAttempt, images: fake.FakeImageService, algorithm: str
) -> None:
    value = hashlib.new(algorithm, DATA).hexdigest()
    image = images.add(DATA, hash_algo=algorithm, hash_value=value, checksum='0' * 32)
    assert new_attempt().run(images, image) == len(DATA)
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch, match=algorithm):
        new_attempt().run(images, image)


def test_md5_verifies_without_multihash(
    new_attempt: NewAttempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA, hash_algo=None, hash_value=None)
    assert new_attempt().run(images, image) == len(DATA)
    with pytest.raises(exception.ImageMismatch, match='md5'):
        new_attempt().run(images, dataclasses.replace(image, checksum='0' * 32))


@pytest.mark.parametrize(
    'known',
    [
        {'hash_algo': None, 'hash_value': None, 'checksum': None},
        {'hash_algo': 'whirlpool-9', 'hash_value': 'abc'},
        {'hash_algo': 'shake_128', 'hash_value': 'abc'},
    ],
)
def test_unverifiable_image_refused_before_download(
    attempt: Attempt, images: fake.FakeImageService, known: dict[str, str | None]
) -> None:
    image = images.add(DATA, **known)
    with pytest.raises(exception.UnverifiedImage, match=image.id):
        attempt.run(images, image)
    assert images.opens == []


def test_unverifiable_image_accepted_when_allowed(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA, hash_algo=None, hash_value=None, checksum=None)
    assert attempt.run(images, image, allow_unverified=True) == len(DATA)


def test_wrong_hash_refused_when_unverified_allowed(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        attempt.run(images, image, allow_unverified=True)


def test_full_disk_is_reported(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.target.refuse_at = 100_000
    with pytest.raises(exception.NotEnoughSpace, match='No space left on device'):
        attempt.run(images, images.add(DATA), buffer_bytes=64 * 1024)
    assert attempt.target.log == []


def test_only_missing_rest_requested(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    attempt = Attempt(make_target(DATA[:300_001]))
    attempt.run(images, image, buffer_bytes=100_000)
    assert attempt.target.content == attempt.watcher.seen == DATA
    assert images.opens == [(image.id, 300_001)]
    steps = [(step.status, step.bytes_done) for step in attempt.progress]
    assert steps[:4] == [
        (model.TaskStatus.VERIFYING, 100_000),
        (model.TaskStatus.VERIFYING, 200_000),
        (model.TaskStatus.VERIFYING, 300_000),
        (model.TaskStatus.VERIFYING, 300_001),
    ]
    assert steps[4][0] == model.TaskStatus.DOWNLOADING


def test_complete_partial_requests_nothing(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    attempt = Attempt(make_target(DATA))
    assert attempt.run(images, image) == len(DATA)
    assert attempt.watcher.seen == DATA
    assert images.opens == []
    assert attempt.target.log == [('finish', len(DATA))]


def test_changed_kept_bytes_are_mismatch(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    attempt = Attempt(make_target(b'x' + DATA[1:70_000]))
    with pytest.raises(exception.ImageMismatch, match='sha512'):
        attempt.run(images, images.add(DATA))


@pytest.mark.parametrize('size', [69_999, None])
def test_partial_longer_than_image_discarded(
    make_target: MakeTarget, images: fake.FakeImageService, size: int | None
) -> None:
    data = DATA[:69_999]
    attempt = Attempt(make_target(DATA[:70_000]))
    attempt.run(images, images.add(data, size=size))
    assert attempt.target.content == attempt.watcher.seen == data
    assert attempt.target.log == ['restart', ('finish', len(data))]


def test_missing_kept_bytes_raise_error(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    attempt = Attempt(make_target(DATA[:1000]))
    attempt.target.kept_bytes = 1001
    with pytest.raises(exception.StorageError, match='has 1000 of 1001 recorded bytes'):
        attempt.run(images, images.add(DATA))


def test_unsafe_kept_bytes_open_nothing(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    attempt = Attempt(make_target(DATA[:1000]))
    attempt.watcher.refuse_at = 500
    with pytest.raises(exception.UnsafeImage):
        attempt.run(images, images.add(DATA))
    assert images.opens == []


def test_changed_image_not_resumed(make_target: MakeTarget, images: fake.FakeImageService) -> None:
    image = images.add(DATA)
    images.update(image.id, hash_value='0' * 128)
    attempt = Attempt(make_target(DATA[:1000]))
    with pytest.raises(exception.ImageMismatch, match='changed its size or hash'):
        attempt.run(images, image)
    assert images.opens == []
    assert attempt.target.log == []


def test_full_answer_to_range_starts_over(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    images.faults.whole = 1
    attempt = Attempt(make_target(b'x' * 1000))
    attempt.run(images, image)
    assert attempt.target.content == attempt.watcher.seen == DATA
    assert images.opens == [(image.id, 1000)]
    assert attempt.target.log == ['restart', ('finish', len(DATA))]


def test_wrong_range_answer_restarts_unread(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    images.faults.elsewhere = 1
    attempt = Attempt(make_target(b'x' * 1000))
    attempt.run(images, image)
    assert attempt.target.content == attempt.watcher.seen == DATA
    assert images.opens == [(image.id, 1000), (image.id, 0)]
    assert images.served_bytes == len(DATA)


def test_pending_bytes_written_before_restart(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    images.faults.cuts = [1000]
    images.faults.whole = 1
    attempt.target.stop_at = 0
    running = Running(lambda: attempt.run(images, image))
    wait_until(lambda: len(images.opens) == 2, 'the whole image is there')
    assert attempt.target.log == []
    attempt.target.go_on()
    assert running.failure() is None
    assert attempt.target.content == attempt.watcher.seen == DATA


def test_partial_kept_for_next_attempt(attempt: Attempt, images: fake.FakeImageService) -> None:
    images.faults.cuts = [1000, 70_000]
    with pytest.raises(exception.DownloadInterrupted):
        attempt.run(images, images.add(DATA), opens=2)
    assert attempt.target.log == [('keep', 71_000)]
    assert attempt.target.content == DATA[:71_000]


def test_partial_discarded_after_last_attempt(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    attempt.control = Reins(is_last_attempt=True)
    images.faults.cuts = [1000]
    with pytest.raises(exception.DownloadInterrupted):
        attempt.run(images, images.add(DATA), opens=1)
    assert attempt.target.log == []


def test_partial_of_deleted_image_discarded(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    image = images.add(DATA)
    images.faults.cuts = [1000]
    attempt.control.on_pause = lambda: images.delete(image.id)
    with pytest.raises(exception.ImageGone):
        attempt.run(images, image)
    assert attempt.target.log == []


def test_failing_target_hides_no_error(
    attempt: Attempt, images: fake.FakeImageService, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.target.keep_error = exception.StorageError('the disk is gone')
    images.faults.cuts = [1000]
    with pytest.raises(exception.DownloadInterrupted):
        attempt.run(images, images.add(DATA), opens=1)
    assert 'the disk is gone' in caplog.text


def test_unsafe_image_ends_at_once(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.watcher.refuse_at = 100_000
    with pytest.raises(exception.UnsafeImage):
        attempt.run(images, images.add(DATA), buffer_bytes=64 * 1024, clock=Clock())
    assert images.served_bytes == 128 * 1024
    assert attempt.target.log == []


def test_unexpected_thread_error_reported(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.target.raises = ZeroDivisionError('a fault')
    with pytest.raises(exception.CacheError, match=r"write failed: ZeroDivisionError\('a fault'\)"):
        attempt.run(images, images.add(DATA))
    assert attempt.target.log == []


def test_failing_listener_ends_download(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.progress = Refusing()
    with pytest.raises(ZeroDivisionError):
        attempt.run(images, images.add(DATA))


def test_pieces_fill_buffers_despite_short_reads(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    attempt.run(images, images.add(DATA), buffer_bytes=200 * 1024, clock=Clock())
    assert attempt.watcher.pieces == [200 * 1024, 200 * 1024, len(DATA) - 400 * 1024]
    assert [length for _, length in attempt.target.written] == attempt.watcher.pieces


def test_pieces_realign_to_pages_after_cut(attempt: Attempt, images: fake.FakeImageService) -> None:
    images.faults.cuts = [1000]
    attempt.run(images, images.add(DATA), buffer_bytes=200 * 1024, clock=Clock())
    assert [start for start, _ in attempt.target.written] == [0, 1000, 200 * 1024, 400 * 1024]


def test_slow_link_flushes_buffer_early(attempt: Attempt, images: fake.FakeImageService) -> None:
    def clock() -> float:
        return images.served_bytes / (64 * 1024) * engine.FILL_SECONDS / 2

    attempt.run(images, images.add(DATA), clock=clock)
    assert attempt.watcher.pieces == [128 * 1024] * 4
    assert attempt.target.content == DATA


def test_rate_limit_applies_to_each_share(attempt: Attempt, images: fake.FakeImageService) -> None:
    pace = SmallSteps(50_000)
    attempt.run(images, images.add(DATA), pace=pace, clock=Clock())
    assert sum(pace.taken) == len(DATA)
    assert set(pace.taken[:10]) == {50_000}
    assert attempt.watcher.pieces == [len(DATA)]


def test_stop_during_rate_limit_keeps_partial(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    pace = SmallSteps(50_000)
    pace.then = lambda: attempt.control.stop(PAUSED)
    with pytest.raises(exception.Paused):
        attempt.run(images, images.add(DATA), pace=pace)
    assert attempt.target.content == DATA[:50_000]
    assert attempt.target.log == [('keep', 50_000)]


def test_stop_before_reopening_keeps_partial(
    attempt: Attempt, images: fake.FakeImageService
) -> None:
    images.faults.cuts = [1000]
    attempt.control.on_pause = lambda: attempt.control.stop(PAUSED)
    with pytest.raises(exception.Paused):
        attempt.run(images, images.add(DATA))
    assert len(images.opens) == 1
    assert attempt.target.log == [('keep', 1000)]


def test_stop_during_reread_keeps_partial(
    make_target: MakeTarget, images: fake.FakeImageService
) -> None:
    attempt = Attempt(make_target(DATA[:200_000]))
    attempt.progress = Calling(lambda: attempt.control.stop(PAUSED))
    with pytest.raises(exception.Paused):
        attempt.run(images, images.add(DATA), buffer_bytes=64 * 1024)
    assert images.opens == []
    assert attempt.target.log == [('keep', 200_000)]


def test_stop_before_start_opens_nothing(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.control.stop(CANCELLED)
    with pytest.raises(exception.Cancelled):
        attempt.run(images, images.add(DATA))
    assert images.opens == []
    assert attempt.target.log == []


def test_cancelled_image_not_kept(attempt: Attempt, images: fake.FakeImageService) -> None:
    attempt.progress = Calling(lambda: attempt.control.stop(CANCELLED))
    with pytest.raises(exception.Cancelled):
        attempt.run(images, images.add(DATA), buffer_bytes=64 * 1024)
    assert attempt.target.log == []


def test_only_writer_runs_at_idle_priority(
    attempt: Attempt, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    within: list[str] = []

    @contextlib.contextmanager
    def idle_io(control: object) -> Iterator[None]:
        assert control is attempt.control
        within.append(threading.current_thread().name)
        yield

    monkeypatch.setattr(priority, 'idle_io', idle_io)
    attempt.run(images, images.add(DATA), idle_priority=True)
    assert set(within) == attempt.target.writers == {'image-write'}


def test_other_threads_do_not_delay_hash(
    attempt: Attempt, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurried = {}

    def note(function: str, within: type) -> None:
        really = getattr(within, function)

        def noting(*arguments: Any) -> Any:
            unhurried[function] = os.sched_getscheduler(0) == os.SCHED_BATCH
            return really(*arguments)

        monkeypatch.setattr(within, function, noting)

    note('hash', verifier.Verifier)
    note('count', verifier.Verifier)
    note('write', type(attempt.target))
    attempt.run(images, images.add(DATA))
    assert unhurried == {'hash': False, 'count': True, 'write': True}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_threads_not_lowered_while_other_hosts_read(
    attempt: Attempt, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    write, count = attempt.target.write, verifier.Verifier.count

    def note(name: str) -> None:
        io_class = psutil.Process(threading.get_native_id()).ionice().ioclass
        seen[name] = os.sched_getscheduler(0), io_class

    def writing(*arguments: Any) -> None:
        note('write')
        write(*arguments)

    def counting(*arguments: Any) -> None:
        note('receive')
        count(*arguments)

    monkeypatch.setattr(attempt.target, 'write', writing)
    monkeypatch.setattr(verifier.Verifier, 'count', counting)
    with attempt.control.waited_for(controls.Need.BYTES):
        attempt.run(images, images.add(DATA), idle_priority=True)
    assert seen == dict.fromkeys(['write', 'receive'], (os.SCHED_OTHER, psutil.IOPRIO_CLASS_NONE))


@pytest.mark.parametrize('cuts', [[], [1000] * 9])
def test_buffers_freed_at_end(
    attempt: Attempt,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
    cuts: list[int],
) -> None:
    made = []

    def make(*arguments: int) -> mmap.mmap:
        made.append(really_make(*arguments))
        return made[-1]

    really_make = mmap.mmap
    monkeypatch.setattr(mmap, 'mmap', make)
    images.faults.cuts = list(cuts)
    with contextlib.suppress(exception.DownloadInterrupted):
        attempt.run(images, images.add(DATA))
    still_open = [buffer for buffer in made if not buffer.closed]
    assert len(made) == pipeline.BUFFERS
    assert len(still_open) <= bool(cuts), 'an error knows what it struck in'


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    size=strategies.integers(1, 5000),
    kept=strategies.integers(0, 5000),
    cuts=strategies.lists(strategies.integers(0, 2000), max_size=5),
    reads=strategies.lists(strategies.integers(1, 700), min_size=1, max_size=5),
    buffer_bytes=strategies.integers(1, 900),
)
def test_any_cut_requests_each_byte_once(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    kept: int,
    cuts: list[int],
    reads: list[int],
    buffer_bytes: int,
) -> None:
    data = DATA[100 : 100 + size]
    kept = min(kept, size)
    path = tmp_path_factory.mktemp('cuts') / 'file'
    attempt = Attempt(FileTarget(path, data[:kept]))
    origin = OddSource(data, cuts, reads)
    downloader = engine.Downloader(
        resume=retry.ResumePolicy(max_opens=len(cuts) + 1), buffer_bytes=buffer_bytes
    )
    done = downloader.download(
        origin, attempt.target, attempt.watcher, attempt.control, attempt.progress.append
    )
    assert done == size
    assert attempt.target.content == attempt.watcher.seen == data
    expected = list(itertools.accumulate(cuts, initial=kept))
    assert origin.opens == [offset for offset in expected if offset < size]


class SmallSteps:
    """A pace that allows a few bytes at a time."""

    def __init__(self, step_bytes: int) -> None:
        self.taken: list[int] = []
        self.then: Callable[[], object] = lambda: None
        self._step_bytes = step_bytes

    def allowed_rate(self, control: controls.Control) -> float | None:
        return None

    def read_bytes(self, control: controls.Control) -> int:
        return self._step_bytes

    def take(self, control: controls.Control, count_bytes: int) -> None:
        self.taken.append(count_bytes)
        self.then()
        control.check()


class Calling(list[model.Progress]):
    """Runs a callback at each report of progress."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def append(self, progress: model.Progress) -> None:
        super().append(progress)
        self._call()


class Refusing(list[model.Progress]):
    def append(self, progress: model.Progress) -> None:
        raise ZeroDivisionError
