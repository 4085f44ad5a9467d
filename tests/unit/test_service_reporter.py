# SPDX-License-Identifier: Apache-2.0
"""A process reports that it runs, survives a database that is away, and says that it stops."""

import logging
import os
import pathlib
import queue
import threading
from collections.abc import Iterator

import pytest

from nova_precache import exception, model, outages, service_reporter
from tools.waiting import TIMEOUT_SECONDS


class Store:
    """Records reports; errors are used up from the front."""

    def __init__(self) -> None:
        self.reports: queue.Queue[tuple[model.ServiceProcess, bool]] = queue.Queue()
        self.stopped: list[str] = []
        self.errors: list[Exception] = []
        self.is_hanging = threading.Event()
        self.replaces_at = 0
        self._count = 0

    def report(self, process: model.ServiceProcess, *, replaces: bool) -> bool:
        self.reports.put((process, replaces))
        if self.errors:
            raise self.errors.pop(0)
        self._count += 1
        return self._count == self.replaces_at

    def stop(self, process_id: str) -> None:
        if self.is_hanging.is_set():
            threading.Event().wait(TIMEOUT_SECONDS)
        if self.errors:
            raise self.errors.pop(0)
        self.stopped.append(process_id)

    def wait(self, count: int) -> list[tuple[model.ServiceProcess, bool]]:
        return [self.reports.get(timeout=TIMEOUT_SECONDS) for _ in range(count)]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def reporter(store: Store) -> Iterator[service_reporter.ServiceReporter]:
    made = service_reporter.ServiceReporter(store, model.Binary.API, 'ctl1', '1.0', 0.01)
    yield made
    made.stop()


def test_process_reports_until_it_stops(
    store: Store, reporter: service_reporter.ServiceReporter
) -> None:
    reporter.start()
    first, second = store.wait(2)

    reporter.stop()

    assert first == second
    assert (first[0].binary, first[0].host, first[0].version) == (
        'nova-precache-api',
        'ctl1',
        '1.0',
    )
    assert store.stopped == [first[0].id]
    reporter.stop()  # a second stop does no harm
    assert store.stopped == [first[0].id]


def test_stop_comes_after_last_report() -> None:
    reports, may_go_on, order = threading.Event(), threading.Event(), list[str]()

    class SlowStore(Store):
        def report(self, process: model.ServiceProcess, *, replaces: bool) -> bool:
            reports.set()
            may_go_on.wait(TIMEOUT_SECONDS)
            order.append('report')
            return True

        def stop(self, process_id: str) -> None:
            order.append('stop')

    made = service_reporter.ServiceReporter(SlowStore(), model.Binary.API, 'ctl1', '1.0', 60)
    made.start()
    assert reports.wait(TIMEOUT_SECONDS)
    stopping = threading.Thread(target=made.stop)
    stopping.start()
    stopping.join(0.1)
    may_go_on.set()
    stopping.join()

    assert order == ['report', 'stop']


def test_each_start_has_new_id(store: Store, reporter: service_reporter.ServiceReporter) -> None:
    reporter.start()
    [(first, _)] = store.wait(1)
    reporter.stop()
    store.reports.queue.clear()

    reporter.start()

    while store.wait(1)[0][0].id == first.id:  # one that had just begun
        pass


def test_process_replaces_one_at_most(
    store: Store, reporter: service_reporter.ServiceReporter
) -> None:
    store.replaces_at = 2

    reporter.start()

    assert [replaces for _, replaces in store.wait(4)] == [True, True, False, False]


def test_database_outage_is_survived(
    store: Store, reporter: service_reporter.ServiceReporter, caplog: pytest.LogCaptureFixture
) -> None:
    away = exception.DatabaseUnavailable('away')
    outages.Outage('Database').began(away)  # so it is in the log already
    caplog.clear()
    store.errors = [away] * 5

    reporter.start()
    store.wait(7)

    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_lasting_failure_is_logged_once(
    store: Store, reporter: service_reporter.ServiceReporter, caplog: pytest.LogCaptureFixture
) -> None:
    store.errors = [ValueError('the host is too long')] * 5

    reporter.start()
    store.wait(7)

    loud = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert loud == ['Failed to report that nova-precache-api runs: the host is too long']


def test_stop_does_not_wait_for_database(
    store: Store,
    reporter: service_reporter.ServiceReporter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(service_reporter, 'STOP_SECONDS', 0.05)
    reporter.start()
    store.wait(1)
    store.is_hanging.set()

    reporter.stop()

    assert store.stopped == []
    assert 'did not take in time that nova-precache-api stops' in caplog.text


def test_forked_worker_reports_for_itself(tmp_path: pathlib.Path) -> None:
    """As under gunicorn --preload: only the process that serves is listed."""
    path = tmp_path / 'reports'

    class FileStore(Store):
        def report(self, process: model.ServiceProcess, *, replaces: bool) -> bool:
            with path.open('a') as lines:
                lines.write(f'{os.getpid()} {process.id}\n')
            return super().report(process, replaces=replaces)

    store = FileStore()
    forking = service_reporter.ServiceReporter(
        store, model.Binary.API, 'ctl1', '1.0', 0.01, first_seconds=TIMEOUT_SECONDS
    )
    forking.start_in_workers()
    assert forking._running is not None
    reports = forking._running.thread
    forking._first_seconds = 0  # of the child

    child = os.fork()
    if not child:
        store.wait(3)
        forking.stop()
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    reports.join(TIMEOUT_SECONDS / 2)
    assert not reports.is_alive(), 'the process that has forked reports no longer'
    assert {line.split()[0] for line in path.read_text().splitlines()} == {str(child)}
    forking.stop()
    child = os.fork()
    if not child:
        os._exit(threading.active_count() - 1)
    assert os.waitpid(child, 0)[1] == 0, 'a stopped reporter starts no thread'
