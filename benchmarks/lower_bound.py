# SPDX-License-Identifier: Apache-2.0
"""A lower bound of the time of a download: receive, hash and write, each in a thread.

It does not verify, inspect, journal, limit, report or publish, and cannot be stopped.
"""

import contextlib
import hashlib
import io
import mmap
import os
import queue
import threading
from collections.abc import Iterator
from concurrent import futures

from nova_precache.download import pipeline

_STUCK_SECONDS = 60


def download(answer: io.BufferedIOBase, target: str) -> None:
    """Write the body of a response, of whole pages, to a new file, and hash it.

    :raises OSError: the file system or the connection failed
    """
    found = hashlib.sha512()
    with _new_file(target) as descriptor:
        hashing = pipeline.Stage('hash', lambda piece: found.update(piece.view()))
        writing = pipeline.Stage('write', lambda piece: _write(descriptor, piece.view()))
        _pass(answer, [hashing, writing])
        os.fsync(descriptor)
    found.digest()


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: memoryview) -> None:
    os.write(descriptor, data)


def _pass(answer: io.BufferedIOBase, stages: list[pipeline.Stage]) -> None:
    """Fill pieces and pass each to all stages; their number and size are those of our pipeline."""
    free: queue.SimpleQueue[pipeline.Piece] = queue.SimpleQueue()
    for _ in range(pipeline.BUFFERS):
        free.put(pipeline.Piece(mmap.mmap(-1, pipeline.BUFFER_BYTES)))
    leaving = threading.Lock()

    def run(stage: pipeline.Stage) -> None:
        for piece in iter(stage.queue.get, None):
            stage.work(piece)
            with leaving:
                piece.stages_left -= 1
                is_free = not piece.stages_left
            if is_free:
                free.put(piece)

    with futures.ThreadPoolExecutor(len(stages)) as pool:
        running = [pool.submit(run, stage) for stage in stages]
        try:
            # After a stage has failed, no piece becomes free.
            while (piece := _filled(answer, free.get(timeout=_STUCK_SECONDS))).length:
                piece.stages_left = len(stages)
                for stage in stages:
                    stage.queue.put(piece)
        finally:
            for stage in stages:
                stage.queue.put(None)
            for each in running:
                each.result()


def _filled(answer: io.BufferedIOBase, piece: pipeline.Piece) -> pipeline.Piece:
    piece.length = 0
    with memoryview(piece.buffer) as buffer:
        while piece.length < len(buffer) and (count := answer.readinto(buffer[piece.length :])):
            piece.length += count
    return piece
