# SPDX-License-Identifier: Apache-2.0
"""Downloads over real sockets that are cut, stopped or refused, at any point.

In every case they leave no thread and no descriptor.
"""

import contextlib
from collections.abc import Iterator

import pytest

from nova_precache import exception, transfer_control as controls
from nova_precache.download import engine, pipeline, rate_limit
from nova_precache.image import glance, service
from tests.service import wait_until
from tests.unit.download.conftest import DATA, Attempt, Link, MakeTarget, Running, image_of
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
CANCELLED = exception.Cancelled('it is not wanted')
PAUSED = exception.Paused('later')

pytestmark = pytest.mark.usefixtures('link', 'nothing_left')


def test_whole_image_is_downloaded(link: Link, attempt: Attempt) -> None:
    assert attempt.run(link.images(), link.image) == len(DATA)
    assert attempt.target.content == attempt.watcher.seen == DATA


def test_cut_download_resumes_at_exact_byte(link: Link, attempt: Attempt) -> None:
    link.cuts = [1, 70_000, 2 * MIB, 3]
    attempt.run(link.images(), link.image, opens=5)
    assert attempt.target.content == attempt.watcher.seen == DATA
    at = [1, 70_001, 70_001 + 2 * MIB, 70_004 + 2 * MIB]
    assert link.ranges == [None, *(f'bytes={offset}-' for offset in at)]


@pytest.mark.parametrize('refusal', [400, 416, 501])
def test_refused_range_downloads_all_without_duplicates(
    link: Link, attempt: Attempt, refusal: int
) -> None:
    link.no_parts = refusal
    link.cuts = [70_000, 2 * MIB]

    assert attempt.run(link.images(), link.image, opens=3) == len(DATA)

    assert attempt.target.content == DATA
    assert link.ranges == [None, 'bytes=70000-', None, f'bytes={2 * MIB}-', None]


@pytest.mark.parametrize('refusal', [400, 416, 501])
def test_shorter_object_requests_bounded(link: Link, attempt: Attempt, refusal: int) -> None:
    link.no_parts = refusal
    link.shown = image_of(DATA)
    link.data = DATA[:70_000]

    with pytest.raises(exception.DownloadInterrupted, match='ended after 70000'):
        attempt.run(link.images(), link.image, opens=3)

    assert link.ranges == [None, 'bytes=70000-', None, 'bytes=70000-', None]


def test_expired_token_replaced_on_resume(link: Link, attempt: Attempt) -> None:
    link.accepted = {'first'}
    link.cuts = [70_000]

    def fresh_token() -> str:
        link.accepted = {'second'}
        return 'second'

    attempt.control.on_pause = link.accepted.clear
    images = link.images(token='first', fresh_token=fresh_token)
    attempt.run(images, link.image)
    assert attempt.target.content == DATA
    assert link.ranges == [None, 'bytes=70000-']
    assert link.tokens[0] == 'first'
    assert link.tokens[-1] == 'second'


def test_refused_token_ends_and_keeps_partial(link: Link, attempt: Attempt) -> None:
    link.accepted = {'first'}
    link.cuts = [70_000]
    attempt.control.on_pause = link.accepted.clear
    with pytest.raises(exception.ImageUnauthorized):
        attempt.run(link.images(token='first'), link.image)
    assert attempt.target.log == [('keep', 70_000)]


def test_changed_image_not_resumed(link: Link, attempt: Attempt) -> None:
    image = link.image
    link.cuts = [70_000]
    attempt.control.on_pause = lambda: setattr(link, 'shown', image_of(DATA[:-1]))
    with pytest.raises(exception.ImageMismatch, match='changed its size or hash'):
        attempt.run(link.images(), image)
    assert link.ranges == [None]
    assert attempt.target.log == []


def test_longer_image_not_resumed(link: Link, make_target: MakeTarget) -> None:
    """Its metadata are unchanged, but the answer is about other data."""
    image = link.image
    link.shown = image
    link.data = DATA + b'more'
    attempt = Attempt(make_target(DATA[:70_000]))
    with pytest.raises(exception.ImageMismatch, match='more than'):
        attempt.run(link.images(), image)
    assert link.ranges == ['bytes=70000-', None]


@pytest.mark.parametrize('silent_at', [0, 1000, 2 * MIB + 5])
def test_cancel_ends_silent_download(link: Link, attempt: Attempt, silent_at: int) -> None:
    link.silent_at = silent_at
    running = Running(lambda: attempt.run(link.images(), link.image, opens=1))
    assert link.has_fallen_silent.wait(TIMEOUT_SECONDS)
    attempt.control.stop(CANCELLED)
    assert running.failure() is CANCELLED
    link.wait_closed()
    assert attempt.target.log == []


@pytest.mark.parametrize('silent_at', [1000, MIB, 2 * MIB + 5])
def test_pause_of_silent_download_keeps_partial(
    link: Link, attempt: Attempt, silent_at: int
) -> None:
    link.silent_at = silent_at
    running = Running(lambda: attempt.run(link.images(), link.image))
    wait_until(
        lambda: attempt.progress and attempt.progress[-1].bytes_done == silent_at,
        'all that was sent is reported, also what does not fill a buffer',
    )
    attempt.control.stop(PAUSED)
    assert running.failure() is PAUSED
    link.wait_closed()
    assert attempt.target.log == [('keep', silent_at)]
    assert attempt.target.content == attempt.watcher.seen == DATA[:silent_at]


def test_cancel_ends_wait_for_answer(link: Link, attempt: Attempt) -> None:
    link.silent_at = -1
    running = Running(lambda: attempt.run(link.images(), link.image))
    assert link.has_fallen_silent.wait(TIMEOUT_SECONDS)
    attempt.control.stop(CANCELLED)
    assert running.failure() is CANCELLED
    assert attempt.target.log == []
    link.late.set()  # the answer is closed when it comes, since it is no longer wanted


def test_cancel_ends_connecting(dead_end: str, attempt: Attempt, link: Link) -> None:
    settings = glance.GlanceSettings(connect_timeout_seconds=2)
    images = Overheard(glance.GlanceImageService.with_token(settings, endpoint=dead_end, token='t'))
    running = Running(lambda: attempt.run(images, link.image))
    wait_until(lambda: images.is_opening, 'the connection is being opened')
    attempt.control.stop(CANCELLED)
    assert running.failure() is CANCELLED


def test_cancel_in_buffer_wait_follows_write(
    link: Link, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, 'FILL_SECONDS', TIMEOUT_SECONDS)
    link.data = DATA * 8  # more than the sockets hold
    attempt.target.stop_at = 0
    running = Running(lambda: attempt.run(link.images(), link.image, buffer_bytes=64 * 1024))
    attempt.target.wait_until_stopped()
    wait_until(lambda: len(attempt.progress) == pipeline.BUFFERS, 'every buffer is full')
    attempt.control.stop(CANCELLED)
    wait_until(lambda: not link.going_on, 'the connection is cut before the write has ended')
    attempt.target.go_on()
    assert running.failure() is CANCELLED
    assert attempt.target.content == DATA[: 64 * 1024]


def test_cancel_ends_rate_limit_wait(link: Link, attempt: Attempt) -> None:
    attempt.control = controls.Control()
    host = rate_limit.HostRateLimit(max_rate_bytes=1)
    running = Running(lambda: attempt.run(link.images(), link.image, pace=host))
    wait_until(lambda: link.ranges, 'the image is asked for')
    attempt.control.stop(CANCELLED)
    assert running.failure() is CANCELLED


def test_full_disk_closes_open_connection(link: Link, attempt: Attempt) -> None:
    link.silent_at = 2 * MIB
    attempt.target.refuse_at = MIB + MIB // 2
    with pytest.raises(exception.NotEnoughSpace):
        attempt.run(link.images(), link.image, buffer_bytes=64 * 1024)
    link.wait_closed()
    assert attempt.target.log == []


def test_unsafe_image_closes_open_connection(link: Link, attempt: Attempt) -> None:
    link.silent_at = 2 * MIB
    attempt.watcher.refuse_at = MIB
    with pytest.raises(exception.UnsafeImage):
        attempt.run(link.images(), link.image, buffer_bytes=64 * 1024)
    link.wait_closed()


def test_excess_bytes_close_open_connection(link: Link, attempt: Attempt) -> None:
    link.silent_at = 2 * MIB
    with pytest.raises(exception.ImageMismatch, match='more than 1048576 bytes'):
        attempt.run(link.images(), image_of(DATA[:MIB]))
    link.wait_closed()
    assert len(attempt.target.content) <= MIB


def test_full_disk_while_keeping_keeps_nothing(link: Link, attempt: Attempt) -> None:
    link.silent_at = 2 * MIB
    attempt.target.refuse_at = MIB + 1
    attempt.target.stop_at = MIB + 1
    running = Running(lambda: attempt.run(link.images(), link.image))
    attempt.target.wait_until_stopped()
    attempt.control.stop(PAUSED)
    attempt.target.go_on()
    assert running.failure() is PAUSED
    assert attempt.target.log == []


def test_server_silence_is_an_interruption(link: Link, attempt: Attempt) -> None:
    link.silent_at = 0
    settings = glance.GlanceSettings(read_timeout_seconds=0.5)
    impatient = glance.GlanceImageService.with_token(settings, endpoint=link.url, token=None)
    images = Overheard(impatient)
    images.show = link.images().show  # which is answered
    with pytest.raises(exception.DownloadInterrupted, match='timed out'):
        attempt.run(images, link.image, opens=2)
    assert attempt.target.log == [('keep', 0)]
    link.wait_closed(2)


class Overheard:
    """An image service of which a test sees when it is asked for data."""

    def __init__(self, images: service.ImageService) -> None:
        self.is_opening = False
        self.show = images.show
        self.is_member = images.is_member
        self._images = images

    @contextlib.contextmanager
    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> Iterator[service.Connection]:
        self.is_opening = True
        with self._images.open(image_id, offset_bytes, size_bytes) as connection:
            yield connection
