# SPDX-License-Identifier: Apache-2.0
"""While the file has readers, its bytes are passed on in small pieces, and sooner."""

import itertools
from typing import Any

import pytest

from nova_precache.download import engine, retry
from tests.clock import Clock
from tests.unit.download.conftest import DATA, Attempt, OddSource
from tests.unit.download.test_downloader import SmallSteps
from tests.unit.download.test_stall import Trickle

KIB = 1024
MIB = KIB * KIB


def run(attempt: Attempt, origin: Any, **options: Any) -> None:
    options.setdefault('clock', Clock())  # on which no time passes while a piece is filled
    downloader = engine.Downloader(resume=retry.ResumePolicy(max_opens=1), **options)
    done = downloader.download(
        origin, attempt.target, attempt.watcher, attempt.control, attempt.progress.append
    )
    assert done == len(DATA)
    assert attempt.target.content == attempt.watcher.seen == DATA


@pytest.mark.parametrize(
    ('has_readers', 'pieces'), [(False, [2 * MIB] * 2), (True, [256 * KIB] * 16)]
)
def test_piece_size_depends_on_readers(
    attempt: Attempt, has_readers: bool, pieces: list[int]
) -> None:
    attempt.target.has_readers = has_readers
    run(attempt, OddSource(DATA, [], [64 * KIB]))
    assert attempt.watcher.pieces == [length for _, length in attempt.target.written] == pieces


@pytest.mark.parametrize(('has_readers', 'piece'), [(False, 256 * KIB), (True, 32 * KIB)])
def test_fill_time_depends_on_readers(attempt: Attempt, has_readers: bool, piece: int) -> None:
    """A slow link brings 16 KiB in 1/64 s."""
    clock = Clock()
    attempt.target.has_readers = has_readers
    run(attempt, Trickle(clock, [(1 / 64, 16 * KIB)]), clock=clock)
    assert set(attempt.watcher.pieces) == {piece}


def test_readers_looked_for_at_each_piece(attempt: Attempt) -> None:
    feed = attempt.watcher.feed
    fed = itertools.count(1)

    def come_and_go(data: memoryview) -> None:
        feed(data)
        attempt.target.has_readers = next(fed) in {1, 2, 3}

    attempt.watcher.feed = come_and_go  # type: ignore[method-assign]
    run(attempt, OddSource(DATA, [], [64 * KIB]), buffer_bytes=MIB)
    assert attempt.watcher.pieces == [MIB, *[256 * KIB] * 3, MIB, MIB, 256 * KIB]


def test_small_pieces_keep_to_pages(attempt: Attempt) -> None:
    attempt.target.has_readers = True
    run(attempt, OddSource(DATA, [], [1000, 63 * KIB]))
    assert all(offset % 4096 == 0 for offset, _ in attempt.target.written)


@pytest.mark.parametrize('has_readers', [True, False])
def test_bytes_do_not_await_pace(attempt: Attempt, has_readers: bool) -> None:
    """With readers each share; else those of a piece together."""
    pace = SmallSteps(64 * KIB)
    held: list[int] = []
    pace.then = lambda: held.append(sum(pace.taken) - len(attempt.watcher.seen))
    attempt.target.has_readers = has_readers
    run(attempt, OddSource(DATA, [], [64 * KIB]), pace=pace)
    assert sum(pace.taken) == len(DATA)
    assert max(held) == (0 if has_readers else 2 * MIB - 64 * KIB)
