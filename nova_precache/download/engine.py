# SPDX-License-Identifier: Apache-2.0
"""Download an image from a source to a target, and verify it in the stream.

::

    source ─► receive ─► inspect ─┬─► hash ──┐
              (caller's thread)   └─► write ─┴─► finish ─► compare the hash

Bytes kept from an earlier attempt are read, inspected and hashed again; the source is asked
for the rest.
"""

import collections
import contextlib
import dataclasses
import logging
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from nova_precache import exception, model, priority, shown, transfer_control as controls
from nova_precache.download import pipeline, retry, stall, verifier
from nova_precache.download.source import Origin, OriginOnly, Source, SourceChooser
from nova_precache.download.target import Target, keep
from nova_precache.image import service

LOG = logging.getLogger(__name__)

FILL_SECONDS = 0.25  # how long a slow link may fill a buffer before it is passed on
# Likewise while the target has readers. In a chain of hosts, each hop adds this delay.
RELAY_SECONDS = 0.02
RELAY_BYTES = 256 * 1024


class Watcher(Protocol):
    """Inspects the bytes of an image as they arrive."""

    def feed(self, data: memoryview) -> None:
        """Inspect the next bytes; the buffer is reused after the return.

        :raises nova_precache.exception.CacheError: the image is refused
        """

    def restart(self) -> None:
        """Start over: the image arrives again from its first byte."""


class Pace(Protocol):
    """Limits the rate of a download; implemented by ``rate_limit.HostRateLimit``."""

    def allowed_rate(self, control: controls.Control) -> float | None:
        """Return the bytes per second that the download may reach now; None: no limit."""

    def read_bytes(self, control: controls.Control) -> int:
        """Return how many bytes to read before the next :meth:`take`."""

    def take(self, control: controls.Control, count_bytes: int) -> None:
        """Count received bytes, and wait until more may be read."""


class _Unpaced:
    """No limits."""

    def allowed_rate(self, control: controls.Control) -> float | None:
        return None

    def read_bytes(self, control: controls.Control) -> int:
        return pipeline.BUFFER_BYTES

    def take(self, control: controls.Control, count_bytes: int) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downloader:
    """Downloads whole images from any kind of source.

    :ivar allow_unverified: accept images without a known hash
    :ivar chooser: chooses the source at each open
    :ivar pace: None: no rate limit
    :ivar idle_priority: write only when the disk is otherwise idle, unless urgent
    :ivar stall_rule: returns the lowest accepted rate, which may change at any time
    """

    allow_unverified: bool = False
    chooser: SourceChooser = dataclasses.field(default_factory=OriginOnly)
    resume: retry.ResumePolicy | None = None
    pace: Pace | None = None
    idle_priority: bool = False
    buffer_bytes: int = pipeline.BUFFER_BYTES
    stall_rule: Callable[[], stall.StallRule] = lambda: stall.OFF
    clock: Callable[[], float] = time.monotonic

    def download(
        self,
        origin: Origin,
        target: Target,
        watcher: Watcher,
        control: controls.Control,
        progress: model.ProgressCallback,
    ) -> int:
        """Download the image to its target, and return its size in bytes.

        A cut connection is resumed where it broke, perhaps from another source. After an error
        that permits resumption, the target keeps the received bytes, unless this is the last
        attempt.

        :raises nova_precache.exception.UnverifiedImage: no hash of the image is known
        :raises nova_precache.exception.ImageMismatch: the bytes differ from those Glance hashed
        :raises nova_precache.exception.DownloadInterrupted: cut, also after resuming
        :raises nova_precache.exception.SlowDownload: the source sends too slowly, and no boot waits
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the target cannot be written
        :raises nova_precache.exception.TransferStopped: the control was stopped
        :raises nova_precache.exception.CacheError: raised by the chooser, a source or the watcher
        """
        check = verifier.Verifier(origin.image, allow_unverified=self.allow_unverified)
        download = _Download(
            by=self,
            origin=origin,
            target=target,
            watcher=watcher,
            control=control,
            progress=progress,
            check=check,
        )
        download.run(self.resume or retry.ResumePolicy())
        target.finish(check.bytes_done)
        progress(download.progress_now(model.TaskStatus.VERIFYING))
        check.check()
        return check.bytes_done


@dataclasses.dataclass(kw_only=True, eq=False)
class _Download:
    """One download in progress."""

    by: Downloader
    origin: Origin
    target: Target
    watcher: Watcher
    control: controls.Control
    progress: model.ProgressCallback
    check: verifier.Verifier

    def __post_init__(self) -> None:
        self._image = self.origin.image
        self._pace = self.by.pace or _Unpaced()
        self._kept_before = self.target.kept_bytes
        self._share_bytes = 0
        self._status = model.TaskStatus.VERIFYING
        self._seen_bytes = self._reported_bytes = 0
        self._reporting = threading.Lock()
        self._watch = stall.StallWatch(self.by.stall_rule, self.by.clock)
        self.control.aside = self._watch.aside
        self._hash = pipeline.Stage('hash', lambda piece: self.check.hash(piece.view()))
        self._write = pipeline.Stage(
            'write',
            lambda piece: self.target.write(piece.buffer, piece.length, piece.offset_bytes),
            self._at_priority,
        )
        self._line = pipeline.Pipeline(
            (self._hash, self._write), self.control, buffer_bytes=self.by.buffer_bytes
        )

    def run(self, resume: retry.ResumePolicy) -> None:
        """Hash all bytes and write them to the target."""
        try:
            self._line.start()  # Before sched_batch, which the threads would inherit.
            with stall.guarded(self._look), priority.sched_batch(self.control):
                self._replay_kept()
                self._receive_rest(resume)
                self._line.drain()
        except BaseException as exc:
            keeps = self.control.keeps_partial(exc)
            self._line.close(drop=not keeps)
            if keeps and not self._line.has_failed:
                keep(self.target, self._image.id)
            raise
        self._line.close(drop=False)
        self.control.gained_bytes = self._gained_bytes()

    def progress_now(self, status: model.TaskStatus) -> model.Progress:
        return model.Progress(status, self.check.bytes_done, self._image.size)

    def _replay_kept(self) -> None:
        """Inspect and hash the bytes that the target kept from an earlier attempt."""
        kept_bytes = self.target.kept_bytes
        if kept_bytes > (self._image.size or 0):
            self._start_over()
            return
        while self.check.bytes_done < kept_bytes:
            piece = self._line.empty()
            piece.length = self.target.read_kept(memoryview(piece.buffer), self.check.bytes_done)
            if not piece.length:
                raise exception.StorageError(
                    f'The partial file has {self.check.bytes_done} of {kept_bytes} recorded bytes'
                )
            self.check.count(piece.length)
            self._pass_on(piece, (self._hash,))

    def _receive_rest(self, resume: retry.ResumePolicy) -> None:
        """Receive the missing bytes; choose a source again each time that one breaks."""
        faults: collections.Counter[Source] = collections.Counter()
        self._status = model.TaskStatus.DOWNLOADING
        # All bytes may have been kept, or the connection broke after the last one.
        while not self.check.is_complete:
            source = self._choose()
            if faults[source]:
                self.control.wait(resume.delay_seconds(faults[source]))
            try:
                self._receive_from(source)
            except exception.DownloadInterrupted:
                faults[source] += 1
                if faults[source] >= resume.max_opens:
                    raise
            else:
                return

    def _choose(self) -> Source:
        offset_bytes = self.check.bytes_done
        return self.control.run_interruptibly(
            lambda: self.by.chooser.choose(self.origin, offset_bytes), discard=lambda _: None
        )

    def _receive_from(self, source: Source) -> None:
        """Receive the missing bytes, until the source ends."""
        if self.check.bytes_done:
            LOG.info('Resuming image %s at byte %d', self._image.id, self.check.bytes_done)
        with self._open(source) as connection:
            self._agree_on_start(connection.start_bytes)
            while self._receive_piece(connection):
                pass
        if self._image.size is not None and not self.check.is_complete:
            raise exception.DownloadInterrupted(
                f'Image {self._image.id} ended after {self.check.bytes_done} '
                f'of {self._image.size} bytes'
            )

    @contextlib.contextmanager
    def _open(self, source: Source) -> Iterator[service.Connection]:
        """Open a source at the first missing byte; cut it when the control is stopped."""
        opening = source.open(self.check.bytes_done)

        def close(_: object) -> None:
            opening.__exit__(None, None, None)

        self.control.check()
        try:
            with self._watch.receiving(self._pace.allowed_rate(self.control)):
                connection = self.control.run_interruptibly(opening.__enter__, close)
            try:
                with self.control.on_stop(connection.cut):
                    yield connection
            finally:
                close(connection)
        except exception.DownloadInterrupted:
            self._stop_if_slow()  # A read timeout ends a silence before the guard does.
            self.control.check()  # The cut may be due to a stop.
            raise

    def _agree_on_start(self, start_bytes: int | None) -> None:
        if start_bytes == self.check.bytes_done:
            return
        LOG.info(
            'Restarting the download of image %s: its source does not serve ranges', self._image.id
        )
        self._start_over()
        if start_bytes != 0:
            raise exception.DownloadInterrupted(
                f'The source of image {self._image.id} sent another range than requested'
            )

    def _start_over(self) -> None:
        self._line.drain()
        self.check.restart()
        self.watcher.restart()
        self.target.restart()

    def _receive_piece(self, connection: service.Connection) -> bool:
        """Receive bytes and pass them on, also those before a cut; False: the source ended."""
        piece = self._line.empty()
        relays = self.target.has_readers
        room = self._room(piece, RELAY_BYTES if relays else len(piece.buffer))
        until = self.by.clock() + (RELAY_SECONDS if relays else FILL_SECONDS)
        try:
            goes_on = self._receive_share(piece, room, connection, until)
            # Readers do not wait for the pace: for them, a share is a piece.
            while goes_on and not relays and piece.length < len(room) and self.by.clock() < until:
                self._pace.take(self.control, self._share_bytes)
                goes_on = self._receive_share(piece, room, connection, until)
        finally:
            self._pass_on(piece, (self._hash, self._write))
        self._pace.take(self.control, self._share_bytes)
        return goes_on

    def _room(self, piece: pipeline.Piece, most_bytes: int) -> memoryview:
        """Return the part of the buffer to fill, so that the next piece starts at a page."""
        room = memoryview(piece.buffer)[:most_bytes]
        start = self.check.bytes_done
        end = (start + len(room)) // mmap.PAGESIZE * mmap.PAGESIZE
        return room[: end - start] if end > start else room

    def _receive_share(
        self,
        piece: pipeline.Piece,
        room: memoryview,
        connection: service.Connection,
        until: float,
    ) -> bool:
        """Receive the bytes that the pace allows at once, to be taken from it afterwards.

        False: the source ended.
        """
        start = piece.length
        end = min(start + self._pace.read_bytes(self.control), len(room))
        count = 1
        with self._watch.receiving(self._pace.allowed_rate(self.control)):
            while count and piece.length < end and self.by.clock() < until:
                count = connection.read_into(room[piece.length : end])
                self._watch.received(count)
                self.check.count(count)
                piece.length += count
        self._stop_if_slow()
        self._share_bytes = piece.length - start
        return count > 0

    def _look(self) -> None:
        """Judge the source, and report what came before it fell silent; in a thread of its own.

        The thread that receives waits then, perhaps in the middle of a buffer.
        """
        self._stop_if_slow()
        bytes_done = self.check.bytes_done
        if self._reported_bytes < bytes_done == self._seen_bytes:
            self._report()
        self._seen_bytes = bytes_done

    def _report(self) -> None:
        with self._reporting:
            now = self.progress_now(self._status)
            self._reported_bytes = now.bytes_done
            self.progress(now)

    def _stop_if_slow(self) -> None:
        """Stop the download if its source sends too slowly, unless a boot waits for it."""
        if self.control.is_urgent:
            self._watch.forget()
            return
        rate_bytes = self._watch.slow_rate()
        if rate_bytes is None or self.check.is_complete:
            return
        rule, gained_bytes = self.by.stall_rule(), self._gained_bytes()
        why = (
            f'slower than {shown.size(rule.min_rate_bytes)}/s for {rule.seconds:g} s '
            f'({shown.size(rate_bytes)}/s)'
        )
        if gained_bytes or not self.control.is_last_attempt:
            total = '' if self._image.size is None else f' of {shown.size(self._image.size)}'
            why += f'; {shown.size(self.check.bytes_done)}{total} are kept'
        self.control.stop(exception.SlowDownload(why, gained_bytes))

    def _gained_bytes(self) -> int:
        """Return the bytes that the transfer has received in addition to those kept before."""
        return self.control.gained_bytes + max(0, self.check.bytes_done - self._kept_before)

    def _pass_on(self, piece: pipeline.Piece, stages: tuple[pipeline.Stage, ...]) -> None:
        if not piece.length:
            self._line.give_back(piece)
            return
        piece.offset_bytes = self.check.bytes_done - piece.length
        self.watcher.feed(piece.view())
        self._line.put(piece, stages)
        self._report()

    @contextlib.contextmanager
    def _at_priority(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(priority.sched_batch(self.control))
            if self.by.idle_priority:
                stack.enter_context(priority.idle_io(self.control))
            yield
