# SPDX-License-Identifier: Apache-2.0
"""The least that a download takes: receive, hash and write, a thread each, and nothing else.

Nothing is looked up, verified, inspected, noted, limited, reported, published, or to be
stopped: what is left is what a machine makes of these three at once.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

from nova_precache.download import pipeline

_STUCK_SECONDS = 60


@dataclasses.dataclass(eq=False)
class _Piece:
    buffer: mmap.mmap
    length: int = 0
    uses_left: int = 0

    def view(self) -> memoryview:
        return memoryview(self.buffer)[: self.length]


class _Use:
    """What a thread does with each piece."""

    def __init__(self, work: Callable[[memoryview], object]) -> None:
        self.work = work
        self.pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()


def download(answer: http.client.HTTPResponse, target: str) -> str:
    """Bring an answer's body, of whole pages, to a file that is new; gives its sha512."""
    found = hashlib.sha512()
    with _new_file(target) as descriptor:
        _pass(answer, [_Use(found.update), _Use(lambda data: os.write(descriptor, data))])
        os.fsync(descriptor)
    return found.hexdigest()


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pass(answer: http.client.HTTPResponse, uses: list[_Use]) -> None:
    """Fill pieces and have each used; as many, and as large, as ours are."""
    free: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
    for _ in range(pipeline.BUFFERS):
        free.put(_Piece(mmap.mmap(-1, pipeline.BUFFER_BYTES)))
    leaving = threading.Lock()

    def run(use: _Use) -> None:
        for piece in iter(use.pieces.get, None):
            use.work(piece.view())
            with leaving:
                piece.uses_left -= 1
                is_free = not piece.uses_left
            if is_free:
                free.put(piece)

    with futures.ThreadPoolExecutor(len(uses)) as pool:
        running = [pool.submit(run, use) for use in uses]
        while (piece := _filled(answer, free.get(timeout=_STUCK_SECONDS))).length:
            piece.uses_left = len(uses)
            for use in uses:
                use.pieces.put(piece)
        for use in uses:
            use.pieces.put(None)
        for each in running:
            each.result()


def _filled(answer: http.client.HTTPResponse, piece: _Piece) -> _Piece:
    piece.length = 0
    with memoryview(piece.buffer) as buffer:
        while piece.length < len(buffer) and (count := answer.readinto(buffer[piece.length :])):
            piece.length += count
    return piece
