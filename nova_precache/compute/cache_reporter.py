# SPDX-License-Identifier: Apache-2.0
"""Reports the cache inventory of a host to the conductors.

The full inventory is reported at the start and every few minutes, since a message can be lost;
in between, changes are reported soon after a transfer ends. The disks based on each image are
counted for a full report, and at most once a minute after a change: there may be thousands.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from nova_precache import model
from nova_precache.compute import reporter
from nova_precache.virt import driver as virt_driver

IMAGES_A_MESSAGE = 500  # of some 150 bytes each
RECOUNT_SECONDS = 60.0

_Images = Mapping[str, model.CachedImage]


class Receiver(Protocol):
    """Takes the reports to the conductors."""

    def report_images(self, host: str, agent_id: str, news: reporter.CacheNews) -> None:
        """Report the cache inventory; raise PrecacheError if that has to be repeated."""


class CacheReporter:
    """Reports one host's cache, and remembers the last report.

    Only :meth:`require_check` may be called by other threads than the one that reports.

    :param changes_seconds: interval between two checks for changes
    :param full_seconds: interval between two full reports
    """

    def __init__(
        self,
        host: str,
        agent_id: str,
        driver: virt_driver.ComputeDriver,
        conductor: Receiver,
        changes_seconds: float,
        full_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._agent_id = agent_id
        self._driver = driver
        self._conductor = conductor
        self._changes_seconds = changes_seconds
        self._full_seconds = full_seconds
        self._clock = clock
        self._reported: _Images | None = None
        self._changes_due = self._full_due = self._recount_due = clock()
        self._is_count_old = False
        self._ended = 0

    def report(self, ended: int) -> None:
        """Send the reports that are due; to be called about once a second.

        :param ended: number of transfers that have ended; each one makes a check for changes due
        :raises nova_precache.exception.PrecacheError: a report was not sent, and is sent later
        """
        now = self._clock()
        if ended == self._ended and now < self._changes_due:
            return
        self._ended = ended
        self._changes_due = now + self._changes_seconds
        if self._reported is None or now >= self._full_due:
            self._report_all(now)
        else:
            self._report_changes(now, self._reported)

    def require_full_report(self) -> None:
        """Make a full report due: the conductors may have recorded another machine's cache."""
        self._reported = None
        self._changes_due = self._clock()

    def require_check(self) -> None:
        """Make a check for changes due; any thread may call it after it has changed the cache."""
        self._changes_due = self._clock()

    def _report_all(self, now: float) -> None:
        images = self._count(now)
        for news in _all(images):
            self._send(news)
        self._reported = images
        self._full_due = now + self._full_seconds

    def _report_changes(self, now: float, reported: _Images) -> None:
        images = self._look(recount=False)
        self._is_count_old |= images != reported
        if self._is_count_old and now >= self._recount_due:
            images = self._count(now)
        for news in _changes(reported, images):
            self._send(news)
        self._reported = images

    def _count(self, now: float) -> _Images:
        images = self._look(recount=True)
        self._is_count_old = False
        self._recount_due = now + RECOUNT_SECONDS
        return images

    def _look(self, *, recount: bool) -> _Images:
        return {image.name: image for image in self._driver.cached_images(recount=recount)}

    def _send(self, news: reporter.CacheNews) -> None:
        self._conductor.report_images(self._host, self._agent_id, news)


def _all(images: _Images) -> Iterator[reporter.CacheNews]:
    """Yield a full report in parts, each of which replaces the names up to its last one."""
    parts = list(_parts(sorted(images))) or [()]
    after = None
    for part in parts[:-1]:
        yield reporter.CacheNews(_of(images, part), full=True, after=after, until=part[-1])
        after = part[-1]
    yield reporter.CacheNews(_of(images, parts[-1]), full=True, after=after)


def _changes(reported: _Images, images: _Images) -> Iterator[reporter.CacheNews]:
    changed = [name for name, image in sorted(images.items()) if reported.get(name) != image]
    removed = sorted(reported.keys() - images.keys())
    for some, gone in itertools.zip_longest(_parts(changed), _parts(removed), fillvalue=()):
        yield reporter.CacheNews(_of(images, some), gone)


def _of(images: _Images, names: Sequence[str]) -> Sequence[model.CachedImage]:
    return [images[name] for name in names]


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    starts = range(0, len(names), IMAGES_A_MESSAGE)
    return (names[start : start + IMAGES_A_MESSAGE] for start in starts)
