# SPDX-License-Identifier: Apache-2.0
"""A download asks where to read at each open, and counts the faults of each source."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from nova_precache import exception
from nova_precache.download import engine, retry, source
from tests.unit.download.conftest import Attempt, FileTarget, OddSource, Running
from tools.waiting import TIMEOUT_SECONDS

DATA = bytes(range(256)) * 40
STOPPED = exception.Cancelled('it is not wanted')


@dataclasses.dataclass
class InTurn:
    """Chooses given sources, one after the other; stands in for ``source.SourceChooser``.

    :ivar chosen: the offsets at which it was asked
    """

    sources: list[OddSource]
    chosen: list[int] = dataclasses.field(default_factory=list)
    first: Callable[[], object] = lambda: None

    def choose(self, origin: source.Origin, offset_bytes: int) -> source.Source:
        self.first()
        self.chosen.append(offset_bytes)
        return self.sources.pop(0)


def breaking(*cuts: int, data: bytes = DATA) -> OddSource:
    return OddSource(data, list(cuts), [1000])


def download(attempt: Attempt, chooser: source.SourceChooser, **options: Any) -> int:
    resume = retry.ResumePolicy(max_opens=options.pop('max_opens', 3))
    downloader = engine.Downloader(chooser=chooser, resume=resume, **options)
    return downloader.download(
        breaking(), attempt.target, attempt.watcher, attempt.control, attempt.progress.append
    )


def test_source_chosen_at_each_open(attempt: Attempt) -> None:
    first, second = breaking(3000), breaking()
    chooser = InTurn([first, second])
    assert download(attempt, chooser) == len(DATA)
    assert attempt.target.content == DATA
    assert chooser.chosen == [0, 3000]
    assert (first.opens, second.opens) == ([0], [3000])


def test_complete_download_chooses_no_source(attempt: Attempt) -> None:
    chooser = InTurn([breaking(len(DATA))])
    assert download(attempt, chooser) == len(DATA)
    assert chooser.chosen == [0]


def test_change_of_source_is_no_resume(attempt: Attempt) -> None:
    """More sources break than one may be resumed, and none is waited for."""
    chooser = InTurn([*(breaking(100) for _ in range(9)), breaking()])
    assert download(attempt, chooser) == len(DATA)
    assert attempt.target.content == DATA
    assert len(chooser.chosen) == 10
    assert attempt.control.pauses == []


def test_return_to_source_counts_its_faults(attempt: Attempt) -> None:
    """Else two broken sources would be opened in turn for ever."""
    one, other = breaking(*[100] * 9), breaking(*[100] * 9)
    with pytest.raises(exception.DownloadInterrupted):
        download(attempt, InTurn([one, other] * 9))
    assert (len(one.opens), len(other.opens)) == (3, 2)
    assert attempt.control.pauses == [0.5, 0.5, 1.0]
    assert attempt.target.log == [('keep', 500)]


def test_equal_sources_share_their_count(attempt: Attempt) -> None:
    @dataclasses.dataclass(frozen=True)
    class Parent:
        name: str

        def open(self, offset_bytes: int = 0) -> Any:
            raise exception.DownloadInterrupted(f'{self.name} does not answer')

    chooser = InTurn([Parent('host1') for _ in range(9)])  # type: ignore[misc]
    with pytest.raises(exception.DownloadInterrupted, match='host1 does not answer'):
        download(attempt, chooser)
    assert len(chooser.chosen) == 3


def test_error_of_choice_keeps_bytes(attempt: Attempt) -> None:
    def refuse_second() -> None:
        if chooser.chosen:
            raise exception.DownloadInterrupted('no source now')

    chooser = InTurn([breaking(700)], first=refuse_second)
    with pytest.raises(exception.DownloadInterrupted, match='no source now'):
        download(attempt, chooser)
    assert attempt.target.log == [('keep', 700)]


def test_stop_ends_wait_for_choice(attempt: Attempt) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        goes_on.wait(TIMEOUT_SECONDS)

    late = breaking()
    running = Running(lambda: download(attempt, InTurn([late], first=wait)))
    assert asked.wait(TIMEOUT_SECONDS)
    attempt.control.stop(STOPPED)
    assert running.failure() is STOPPED
    goes_on.set()
    assert late.opens == []


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    kept=strategies.integers(0, len(DATA)),
    turns=strategies.lists(
        strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 2000)), max_size=8
    ),
)
def test_any_choice_reads_bytes_once(
    tmp_path_factory: pytest.TempPathFactory, kept: int, turns: Sequence[tuple[int, int]]
) -> None:
    sources = [breaking(*(cut for which, cut in turns if which == each)) for each in range(4)]
    chosen = [sources[which] for which, _ in turns]
    attempt = Attempt(FileTarget(tmp_path_factory.mktemp('turns') / 'file', DATA[:kept]))
    chooser = InTurn([*chosen, breaking()])
    assert download(attempt, chooser, max_opens=len(turns) + 1) == len(DATA)
    assert attempt.target.content == attempt.watcher.seen == DATA
    expected, at = [], kept
    for _, cut in [*turns, (0, 0)]:
        if at >= len(DATA):
            break
        expected.append(at)
        at += cut
    assert chooser.chosen == expected
