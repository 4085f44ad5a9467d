# SPDX-License-Identifier: Apache-2.0
"""Reports of a cache to conductors: a full one now and then, changes in between."""

import dataclasses
import datetime
from collections.abc import Sequence

import pytest

from nova_precache import conf, exception, model
from nova_precache.compute import cache_reporter, reporter
from nova_precache.virt import driver as virt_driver
from tests.unit.compute.conftest import FakeReporter

CHANGES_SECONDS = 10
FULL_SECONDS = 600
TOUCHED = datetime.datetime(2026, 1, 2)  # noqa: DTZ001 - in UTC, as times are kept


def image(name: str, size_bytes: int = 1, used_by: int | None = 0) -> model.CachedImage:
    return model.CachedImage('', name, None, size_bytes, size_bytes, TOUCHED, used_by)


class Driver(virt_driver.ComputeDriver):
    """Holds the test's files, and counts how often it had to read the disks."""

    def __init__(self) -> None:
        super().__init__(conf.new(config_files=[]))
        self.images: dict[str, model.CachedImage] = {}
        self.used_by: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self.counts = 0
        self.error: Exception | None = None

    def put(self, *images: model.CachedImage) -> None:
        self.images.update({each.name: each for each in images})

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        if self.error is not None:
            raise self.error
        if recount:
            self.counts += 1
            self.counted = dict(self.used_by)
        return [
            dataclasses.replace(each, used_by=self.counted.get(each.name, 0))
            for each in self.images.values()
        ]


@dataclasses.dataclass
class Host:
    """The inventory of one host, on a clock of its own."""

    driver: Driver
    conductor: FakeReporter
    now: float = 0.0
    ended: int = 0

    def __post_init__(self) -> None:
        self.inventory = cache_reporter.CacheReporter(
            'h1', 'agent-1', self.driver, self.conductor, CHANGES_SECONDS, FULL_SECONDS,
            clock=lambda: self.now,
        )  # fmt: skip

    def after(self, seconds: float) -> list[reporter.CacheNews]:
        """Advance the clock, and return the report then due."""
        self.now += seconds
        self.conductor.images.clear()
        self.inventory.report(self.ended)
        assert {told[:2] for told in self.conductor.images} <= {('h1', 'agent-1')}
        return [news for _, _, news in self.conductor.images]


@pytest.fixture
def host(conductor: FakeReporter) -> Host:
    return Host(Driver(), conductor)


def test_start_reports_everything(host: Host) -> None:
    host.driver.put(image('b'), image('a'))
    host.driver.used_by['a'] = 3

    assert host.after(0) == [reporter.CacheNews([image('a', used_by=3), image('b')], full=True)]


def test_empty_cache_is_reported(host: Host) -> None:
    assert host.after(0) == [reporter.CacheNews([], full=True)]


def test_unchanged_files_not_reported(host: Host) -> None:
    host.driver.put(image('a'))
    host.after(0)

    assert host.after(CHANGES_SECONDS) == []


def test_only_changes_are_reported(host: Host) -> None:
    host.driver.put(image('a'), image('b'), image('c'))
    host.after(0)
    host.driver.put(image('b', 2), image('d'))
    del host.driver.images['c']

    assert host.after(CHANGES_SECONDS) == [reporter.CacheNews([image('b', 2), image('d')], ['c'])]
    assert host.after(CHANGES_SECONDS) == []


def test_transfer_end_triggers_immediate_report(
    host: Host,
) -> None:
    host.after(0)
    host.driver.put(image('a'))
    assert host.after(CHANGES_SECONDS - 1) == []

    host.ended += 1

    assert host.after(0) == [reporter.CacheNews([image('a')])]


def test_interval_triggers_full_report(host: Host) -> None:
    host.driver.put(image('a'))
    host.after(0)

    assert host.after(FULL_SECONDS - 1) == []
    assert host.after(CHANGES_SECONDS) == [reporter.CacheNews([image('a')], full=True)]


def test_unchanged_cache_reads_no_disks(host: Host) -> None:
    host.driver.put(image('a'))
    for _ in range(50):
        host.after(CHANGES_SECONDS)

    assert host.driver.counts == 1


def test_changed_cache_reads_disks_each_minute(host: Host) -> None:
    host.driver.put(image('a'))
    host.after(0)
    host.driver.used_by['a'] = 1  # an instance has booted, and touched its base file
    host.driver.put(image('a', 2))

    told = [host.after(CHANGES_SECONDS) for _ in range(12)]

    assert told[0] == [reporter.CacheNews([image('a', 2, used_by=0)])]
    assert told[5] == [reporter.CacheNews([image('a', 2, used_by=1)])]
    assert sum(map(len, told)) == 2
    assert host.driver.counts == 2


@pytest.mark.parametrize('error', [exception.StorageError('no disk'), None])
def test_failed_full_report_repeated(host: Host, error: Exception | None) -> None:
    host.driver.put(image('a'))
    host.driver.error = error
    if error is None:
        host.conductor.report_errors = [exception.CellUnreachable('no broker')]
    with pytest.raises(exception.PrecacheError, match=r'no disk|no broker'):
        host.after(0)
    host.driver.error = None

    assert host.after(1) == [], 'not each second'
    assert host.after(CHANGES_SECONDS) == [reporter.CacheNews([image('a')], full=True)]


def test_failed_change_report_repeated(host: Host) -> None:
    host.after(0)
    host.driver.put(image('a'))
    host.conductor.report_errors = [exception.CellUnreachable('no broker')]
    with pytest.raises(exception.CellUnreachable):
        host.after(CHANGES_SECONDS)

    assert host.after(CHANGES_SECONDS) == [reporter.CacheNews([image('a')])]


def test_large_cache_reported_in_covering_parts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_reporter, 'IMAGES_A_MESSAGE', 2)
    host.driver.put(*map(image, 'edcba'))

    assert host.after(0) == [
        reporter.CacheNews([image('a'), image('b')], full=True, until='b'),
        reporter.CacheNews([image('c'), image('d')], full=True, after='b', until='d'),
        reporter.CacheNews([image('e')], full=True, after='d'),
    ]


def test_many_changes_reported_in_parts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_reporter, 'IMAGES_A_MESSAGE', 2)
    host.driver.put(*map(image, 'abc'))
    host.after(0)
    host.driver.images.clear()
    host.driver.put(image('d'))

    assert host.after(CHANGES_SECONDS) == [
        reporter.CacheNews([image('d')], ['a', 'b']),
        reporter.CacheNews([], ['c']),
    ]


def test_required_check_reports_removal_soon(host: Host) -> None:
    host.driver.put(image('a'))
    host.after(0)
    del host.driver.images['a']
    assert host.after(1) == []

    host.inventory.require_check()

    assert host.after(1) == [reporter.CacheNews([], ['a'])]
    assert host.after(1) == []
