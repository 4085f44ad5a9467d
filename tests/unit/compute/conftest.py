# SPDX-License-Identifier: Apache-2.0
"""The neighbours of a compute: a conductor in memory, and a driver that a test scripts."""

import datetime
import threading
from collections.abc import Callable, Collection, Sequence

import pytest

from nova_precache import conf, exception, model
from nova_precache.compute import reporter
from nova_precache.image import service
from nova_precache.transfer_control import Control
from nova_precache.virt import driver as virt_driver
from tools.waiting import TIMEOUT_SECONDS

NOW = datetime.datetime(2026, 1, 2)  # noqa: DTZ001 - in UTC, as times are kept


class FakeReporter:
    """Stands in for ``compute.reporter.Reporter``; errors are used up from the front.

    It answers reports unless ``serves`` is false, as conductors of earlier releases, and then
    gets the same news one by one. ``current`` maps a job to the epoch that may begin; ``started``
    has, for each call, whether it said that it starts a transfer.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.serves = True
        self.next_seconds = 0.0
        self.now = NOW
        self.taken = True
        self.current: dict[str, int] = {}
        self.reports: list[reporter.HostReport] = []
        self.look_errors: list[Exception] = []
        self.register_errors: list[Exception] = []
        self.begin_errors: list[Exception] = []
        self.report_errors: list[Exception] = []
        self.registered: list[model.Json] = []
        self.states: list[model.Json] = []
        self.started: list[bool] = []
        self.progress: list[tuple[str, int, int, model.Progress]] = []
        self.images: list[tuple[str, str, reporter.CacheNews]] = []
        self.token_calls: list[tuple[str, int]] = []
        self.token_errors: list[Exception] = []
        self.on_token: Callable[[], object] = lambda: None
        self.confirmed: list[tuple[str, int]] = []
        self.confirm_errors: list[Exception] = []
        self.goodbyes: list[tuple[str, str, str]] = []
        self.goodbye_errors: list[Exception] = []

    def register(self, state: model.Json) -> model.ReportAnswer | None:
        if self.register_errors:
            raise self.register_errors.pop(0)
        with self._condition:
            self.registered.append(state)
        return self._answer() if self.serves else None

    def _answer(self) -> model.ReportAnswer:
        return model.ReportAnswer(self.now, self.next_seconds, self.taken)

    def serves_reports(self) -> bool:
        if self.look_errors:
            raise self.look_errors.pop(0)
        return self.serves

    def report(self, report: reporter.HostReport) -> model.ReportAnswer:
        if self.report_errors:
            raise self.report_errors.pop(0)
        with self._condition:
            self.reports.append(report)
            if self.taken:
                self.states += [report.state] if report.state is not None else []
                for each in report.progress:
                    told = each.job_id, each.epoch, each.sequence, each.progress
                    self.progress.append(told)
                if report.images is not None:
                    self.images.append((report.host, report.agent_id, report.images))
            self._condition.notify_all()
        return self._answer()

    def report_state(self, state: model.Json) -> None:
        if self.report_errors:
            raise self.report_errors.pop(0)
        with self._condition:
            self.states.append(state)
            self._condition.notify_all()

    def report_progress(
        self, job_id: str, epoch: int, sequence: int, progress: model.Progress
    ) -> None:
        if self.report_errors:
            raise self.report_errors.pop(0)
        self.progress.append((job_id, epoch, sequence, progress))

    def report_images(self, host: str, agent_id: str, news: reporter.CacheNews) -> None:
        if self.report_errors:
            raise self.report_errors.pop(0)
        with self._condition:
            self.images.append((host, agent_id, news))
            self._condition.notify_all()

    def begin_job(self, job_id: str, epoch: int, starts: bool) -> bool:
        with self._condition:
            self.started.append(starts)
            self._condition.notify_all()
        if self.begin_errors:
            raise self.begin_errors.pop(0)
        return self.current.get(job_id) == epoch

    def confirm_job(self, job_id: str, epoch: int) -> None:
        self.confirmed.append((job_id, epoch))
        if self.confirm_errors:
            raise self.confirm_errors.pop(0)

    def goodbye(self, host: str, agent_id: str, boot_id: str) -> None:
        if self.goodbye_errors:
            raise self.goodbye_errors.pop(0)
        self.goodbyes.append((host, agent_id, boot_id))

    def get_token(self, job_id: str, epoch: int) -> str | None:
        self.token_calls.append((job_id, epoch))
        self.on_token()
        if self.token_errors:
            raise self.token_errors.pop(0)
        if self.current.get(job_id) != epoch:
            raise exception.TokenRefused(f'job {job_id} is not in flight under epoch {epoch}')
        return 'fresh-token'

    def wait_begun(self, count: int) -> None:
        """Wait until this many calls have asked whether they may begin."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.started) >= count, TIMEOUT_SECONDS)

    def wait_images(self, count: int) -> None:
        """Wait until this many reports of the cache have arrived."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.images) >= count, TIMEOUT_SECONDS)

    def wait_reported(self, count: int) -> None:
        """Wait until this many states were reported."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.states) >= count, TIMEOUT_SECONDS)


class ScriptedDriver(virt_driver.ComputeDriver):
    """Does what the test scripts, and records the images it was called for."""

    def __init__(self) -> None:
        super().__init__(conf.new(config_files=[]))
        self.asked: list[str] = []
        self.needed: list[Sequence[model.Companion] | None] = []
        self.controls: list[Control] = []
        self.error: Exception | None = None
        self.confirms = False
        self.forgotten: list[str] = []
        self.forgets = True
        self.removed: list[tuple[str, Sequence[str]]] = []
        self.removal = model.ImageRemoval('removed', freed_bytes=7, names=('file',))
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.opened.set()

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        assert control is not None
        self.needed.append(needed)
        self.asked.append(image_id)
        self.controls.append(control)
        self.begun.set()
        with control.on_stop(self.opened.set):
            assert self.opened.wait(TIMEOUT_SECONDS)
        control.check()
        if self.confirms:
            control.confirm()
        if self.error is not None:
            raise self.error
        return model.CacheResult(existing=len(self.asked) > 1, bytes_done=7, bytes_total=7)

    def discard_partial(self, image_id: str) -> bool:
        self.forgotten.append(image_id)
        if self.error is not None:
            raise self.error
        return self.forgets

    def remove_image(self, image_id: str, kept_ids: Collection[str] = ()) -> model.ImageRemoval:
        self.removed.append((image_id, list(kept_ids)))
        if self.error is not None:
            raise self.error
        return self.removal


@pytest.fixture
def conductor() -> FakeReporter:
    return FakeReporter()


@pytest.fixture
def driver() -> ScriptedDriver:
    return ScriptedDriver()
