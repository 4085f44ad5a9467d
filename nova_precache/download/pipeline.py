# SPDX-License-Identifier: Apache-2.0
"""Process the bytes of an image in several threads at once.

Each stage is a native thread that does one thing with every piece, in order: hashing,
writing. The few buffers are reused, so the thread that fills them waits for the slowest
stage, and memory use does not depend on the size of the image.
"""

import contextlib
import dataclasses
import logging
import mmap
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from nova_precache import exception, transfer_control as controls

LOG = logging.getLogger(__name__)

BUFFER_BYTES = 2 * 1024**2
BUFFERS = 12


@dataclasses.dataclass(eq=False)
class Piece:
    """Consecutive bytes of an image in one of the buffers.

    Buffers are aligned to memory pages, as direct I/O requires.
    """

    buffer: mmap.mmap
    offset_bytes: int = 0
    length: int = 0
    stages_left: int = 0

    def view(self) -> memoryview:
        return memoryview(self.buffer)[: self.length]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The work of one thread on each piece.

    :ivar around: makes the context in which the thread works
    """

    name: str
    work: Callable[[Piece], None]
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    queue: 'queue.SimpleQueue[Piece | None]' = dataclasses.field(default_factory=queue.SimpleQueue)


class Pipeline:
    """Passes pieces on to stages; one thread fills them.

    A stage that fails stops the control, and with it the whole download.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        control: controls.Control,
        *,
        buffers: int = BUFFERS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.has_failed = False
        self._control = control
        self._changed = threading.Condition()
        self._pieces = [Piece(mmap.mmap(-1, buffer_bytes)) for _ in range(buffers)]
        self._free = list(self._pieces)
        self._is_stopped = False
        self._is_dropping = False
        self._stages = stages
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; the caller must call :meth:`close`, also after an error."""
        for stage in self._stages:
            thread = threading.Thread(
                target=self._run, args=(stage,), name=f'image-{stage.name}', daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def close(self, *, drop: bool) -> None:
        """Wait until every stage has ended; with ``drop``, discard the queued pieces."""
        self._is_dropping = self._is_dropping or drop
        for stage in self._stages:
            stage.queue.put(None)
        for thread in self._threads:
            thread.join()
        for piece in self._pieces:
            # A traceback may still hold a view of it; then it is freed with the traceback.
            with contextlib.suppress(BufferError):
                piece.buffer.close()

    def empty(self) -> Piece:
        """Wait for a free buffer, and return it as a piece without bytes.

        :raises nova_precache.exception.CacheError: the control was stopped with it
        """
        self._wait_for_free(1)
        with self._changed:
            piece = self._free.pop()
        piece.length = 0
        return piece

    def put(self, piece: Piece, stages: Sequence[Stage]) -> None:
        """Pass a piece on to some of the stages; the last one to finish frees its buffer."""
        piece.stages_left = len(stages)
        for stage in stages:
            stage.queue.put(piece)

    def give_back(self, piece: Piece) -> None:
        """Return the buffer of a piece to the free ones."""
        with self._changed:
            self._free.append(piece)
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until the stages have processed all pieces.

        :raises nova_precache.exception.CacheError: the control was stopped with it
        """
        self._wait_for_free(len(self._pieces))

    def _wait_for_free(self, count: int) -> None:
        with self._control.on_stop(self._stop_waiting), self._changed:
            self._changed.wait_for(lambda: len(self._free) >= count or self._is_stopped)
        self._control.check()

    def _stop_waiting(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _run(self, stage: Stage) -> None:
        try:
            with stage.around():
                for piece in iter(stage.queue.get, None):
                    if not self._is_dropping:
                        stage.work(piece)
                    self._leave(piece)
        except exception.CacheError as exc:
            self._fail(exc)
        except Exception as exc:  # Raised in the thread that waits for the pipeline.
            LOG.debug('Stage %s failed', stage.name, exc_info=True)
            failure = exception.CacheError(f'{stage.name} failed: {exc!r}')
            failure.__cause__ = exc
            self._fail(failure)

    def _fail(self, error: exception.CacheError) -> None:
        self.has_failed = True
        self._control.stop(error)

    def _leave(self, piece: Piece) -> None:
        with self._changed:
            piece.stages_left -= 1
            is_last = not piece.stages_left
        if is_last:
            self.give_back(piece)
