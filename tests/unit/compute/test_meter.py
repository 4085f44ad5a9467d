# SPDX-License-Identifier: Apache-2.0
"""The measured rate: smoothed, of downloaded bytes only, and none when no bytes arrive."""

import pytest

from nova_precache import model
from nova_precache.compute import meter

MIB = 1024**2


class Work:
    """A transfer on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.speed = meter.TransferMeter(lambda: self.now)
        self.progress = model.Progress(model.TaskStatus.DOWNLOADING, 0)

    def note(self, bytes_done: int, status: str = model.TaskStatus.DOWNLOADING) -> None:
        before, self.progress = self.progress, model.Progress(status, bytes_done)  # type: ignore[arg-type]
        self.speed.note(before, self.progress)

    def download(self, rate_bytes: int, seconds: int) -> None:
        """Download at this rate in ten pieces a second, reading the rate once a second."""
        for _ in range(seconds):
            for _ in range(10):
                self.now += 0.1
                self.note(self.progress.bytes_done + rate_bytes // 10)
            self.speed.rate()


@pytest.fixture
def work() -> Work:
    return Work()


def test_steady_download_has_its_rate(work: Work) -> None:
    work.download(50 * MIB, seconds=10)

    assert work.speed.rate() == pytest.approx(50 * MIB, rel=0.01)


def test_rate_unknown_around_first_bytes(work: Work) -> None:
    assert work.speed.rate() is None

    work.note(MIB)
    work.now += 0.1
    work.note(9 * MIB)

    assert work.speed.rate() is None


def test_time_before_first_bytes_ignored(work: Work) -> None:
    """The transfer may wait for its turn, or for a server."""
    work.now += 3600

    work.download(10 * MIB, seconds=3)

    assert work.speed.rate() == pytest.approx(10 * MIB, rel=0.01)


def test_first_samples_have_equal_weight(work: Work) -> None:
    """A look that falls between two pieces must not distort the rate for long."""
    work.note(1)
    for piece_bytes in (0, 10, 10, 10):
        work.now += 1
        work.note(work.progress.bytes_done + piece_bytes)
        rate = work.speed.rate()

    assert rate == 8, '30 bytes in 4 seconds'


def test_rate_follows_change_within_seconds(work: Work) -> None:
    work.download(100 * MIB, seconds=10)

    work.download(10 * MIB, seconds=1)
    soon = work.speed.rate()
    work.download(10 * MIB, seconds=29)
    later = work.speed.rate()

    assert soon == pytest.approx(84 * MIB, rel=0.05)
    assert later == pytest.approx(10 * MIB, rel=0.05)


def test_sampling_interval_hardly_matters(work: Work) -> None:
    other = Work()
    for each, rates in ((work, range(50)), (other, ())):
        each.download(100 * MIB, seconds=10)
        for second in range(50):
            each.now += 0.1
            each.note(each.progress.bytes_done + MIB)
            if second in rates:
                each.speed.rate()

    assert work.speed.rate() == pytest.approx(other.speed.rate(), rel=0.02)


def test_kept_bytes_do_not_count(work: Work) -> None:
    for kept in range(100):
        work.now += 0.01
        work.note(kept * 64 * MIB, model.TaskStatus.VERIFYING)
        assert work.speed.rate() == 0

    work.download(10 * MIB, seconds=2)

    assert work.speed.rate() == pytest.approx(10 * MIB, rel=0.01)


def test_kept_bytes_between_samples_ignored(work: Work) -> None:
    """The disk may have read all of them before the rate is first read."""
    work.note(1000 * MIB, model.TaskStatus.VERIFYING)
    work.note(1001 * MIB)

    work.download(10 * MIB, seconds=2)

    assert work.speed.rate() == pytest.approx(10 * MIB, rel=0.01)


def test_restarted_download_keeps_rate(work: Work) -> None:
    work.download(10 * MIB, seconds=5)
    work.note(MIB)

    work.download(10 * MIB, seconds=5)

    assert work.speed.rate() == pytest.approx(10 * MIB, rel=0.05)


@pytest.mark.parametrize('status', [model.TaskStatus.VERIFYING, model.TaskStatus.CONVERTING])
def test_steps_after_download_have_no_rate(work: Work, status: str) -> None:
    work.download(10 * MIB, seconds=5)

    work.note(work.progress.bytes_done, status)

    assert work.speed.rate() == 0


def test_stalled_download_loses_rate(work: Work) -> None:
    work.download(10 * MIB, seconds=5)
    rates = []
    for _ in range(10):
        work.now += 1
        rates.append(work.speed.rate())

    assert rates == sorted(rates, key=lambda rate: -(rate or 0))
    assert rates[-2] != 0
    assert rates[-1] == 0

    work.download(10 * MIB, seconds=5)
    assert work.speed.rate() == pytest.approx(6 * MIB, rel=0.2)
