# SPDX-License-Identifier: Apache-2.0
"""Reports of a host: one at a time with all news, repeated until a conductor has read them."""

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest

from nova_precache import exception, model
from nova_precache.compute import name, reporter, reports, transfers
from nova_precache.transfer_control import Control
from tests.unit.compute.conftest import NOW, FakeReporter
from tools.waiting import TIMEOUT_SECONDS

LONGEST = 10.0
NEWS = reporter.CacheNews([], ('gone',))


def no_answer(times: int) -> list[Exception]:
    """Return new errors: one that was logged is marked."""
    return [exception.CellUnreachable('no conductor answered report') for _ in range(times)]


class Moving:
    """A transfer that a test moves."""

    def __init__(self, running: transfers.Transfers, pool: futures.Executor) -> None:
        self._note: model.ProgressCallback | None = None
        self._begun, self._ends = threading.Event(), threading.Event()
        pool.submit(running.run, 'j1', 3, 'i1', self._work)
        assert self._begun.wait(TIMEOUT_SECONDS)

    def _work(self, note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        self._note = note
        self._begun.set()
        assert self._ends.wait(TIMEOUT_SECONDS)
        return model.ImageOutcome('cached')

    def to(self, bytes_done: int) -> None:
        assert self._note is not None
        self._note(model.Progress(model.TaskStatus.DOWNLOADING, bytes_done, 5000))

    def end(self) -> None:
        self._ends.set()


class Host:
    """The reports of one host, on a clock of its own."""

    def __init__(self, conductor: FakeReporter, pool: futures.ThreadPoolExecutor) -> None:
        self.now = 100.0
        self.conductor = conductor
        self.name = name.Name('h1', 'agent-1')
        self.running = transfers.Transfers(lambda: self.now)
        self.pool = pool
        self.reports = reports.Reports(
            self.name, conductor, self.running, reports.Interval(1, LONGEST), lambda: self.now
        )

    def register(self) -> None:
        self.reports.registered(self.conductor.register({}))

    def after(self, seconds: float) -> list[reporter.HostReport]:
        """Advance the clock, send what is due, and return it."""
        self.now += seconds
        sent = len(self.conductor.reports)
        self.reports.send()
        return self.conductor.reports[sent:]

    def has_news(self) -> 'futures.Future[None]':
        """Report the cache in another thread, and wait until that waits for an answer."""
        told = self.pool.submit(self.reports.report_images, 'h1', 'agent-1', NEWS)
        while self.reports._news is None and not told.done():
            futures.wait([told], 0.001)
        return told


@pytest.fixture
def pool() -> Iterator[futures.ThreadPoolExecutor]:
    with futures.ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def host(conductor: FakeReporter, pool: futures.ThreadPoolExecutor) -> Iterator[Host]:
    made = Host(conductor, pool)
    made.register()
    yield made
    made.reports.close()


@pytest.fixture
def moving(host: Host, pool: futures.ThreadPoolExecutor) -> Iterator[Moving]:
    made = Moving(host.running, pool)
    yield made
    made.end()


def test_one_message_has_all_news(host: Host, moving: Moving, conductor: FakeReporter) -> None:
    host.reports.add_state({'host': 'h1'})
    told = host.has_news()

    [report] = host.after(7)

    told.result(TIMEOUT_SECONDS)
    [progress] = report.progress
    assert (report.host, report.agent_id) == ('h1', 'agent-1')
    assert (report.state, report.images) == ({'host': 'h1'}, NEWS)
    assert (progress.job_id, progress.epoch, progress.sequence) == ('j1', 3, 1)
    assert (report.now, report.seconds) == (NOW, 7)
    assert (conductor.states, conductor.images) == ([{'host': 'h1'}], [('h1', 'agent-1', NEWS)])


def test_time_of_last_answer_sent_back(host: Host, conductor: FakeReporter) -> None:
    host.reports.add_state({})
    conductor.now = NOW + datetime.timedelta(seconds=30)
    host.after(1)
    host.reports.add_state({})

    [report] = host.after(4)

    assert (report.now, report.seconds) == (conductor.now, 4)


def test_nothing_new_sends_nothing(host: Host, moving: Moving) -> None:
    assert len(host.after(1)) == 1

    assert [host.after(1) for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize(
    ('told', 'seconds'), [(0, 1), (0.001, 1), (1, 1), (4, 4), (10, 10), (11, 10), (1e9, 10)]
)
def test_interval_told_by_conductor_clamped(
    host: Host, moving: Moving, conductor: FakeReporter, told: float, seconds: float
) -> None:
    conductor.next_seconds = told
    host.after(1)
    sent = []

    for second in range(1, 41):
        moving.to(second)
        sent += [second] if host.after(1) else []

    assert sent == list(range(int(seconds), 41, int(seconds)))


def test_idle_host_reports_its_states(host: Host, conductor: FakeReporter) -> None:
    conductor.next_seconds = 8
    for _ in range(3):
        host.reports.add_state({})
        assert len(host.after(5)) == 1, 'a heartbeat does not wait for the interval of transfers'
        assert host.after(1) == []


def test_lost_report_sent_again(host: Host, moving: Moving, conductor: FakeReporter) -> None:
    moving.to(5)
    host.reports.add_state({'free_bytes': 1})
    told = host.has_news()
    conductor.report_errors = no_answer(1)
    assert host.after(1) == []
    assert not told.done()

    [report] = host.after(2)

    told.result(TIMEOUT_SECONDS)
    assert (report.state, report.images) == ({'free_bytes': 1}, NEWS)
    assert [each.progress.bytes_done for each in report.progress] == [5]


def test_newer_news_replace_lost_ones(host: Host, moving: Moving, conductor: FakeReporter) -> None:
    moving.to(5)
    host.reports.add_state({'free_bytes': 1})
    conductor.report_errors = no_answer(1)
    host.after(1)
    host.reports.add_state({'free_bytes': 2})
    moving.to(6)

    [report] = host.after(2)

    assert report.state == {'free_bytes': 2}
    assert [each.progress.bytes_done for each in report.progress] == [6]
    assert host.after(1) == []


def test_standing_still_repeated_after_loss(
    host: Host, moving: Moving, conductor: FakeReporter
) -> None:
    for bytes_done in (1, 1000, 2000):
        moving.to(bytes_done)
        host.after(1)
    conductor.report_errors = no_answer(1)
    assert host.after(model.STILL_SECONDS) == []
    assert conductor.report_errors == []

    [report] = host.after(2)

    assert [each.progress.rate_bytes for each in report.progress] == [0]


def test_unread_report_sent_again(host: Host, conductor: FakeReporter) -> None:
    host.reports.add_state({'free_bytes': 1})
    told = host.has_news()
    conductor.taken, conductor.now = False, NOW + datetime.timedelta(seconds=90)
    host.after(1)
    assert not told.done()
    conductor.taken = True

    [report] = host.after(1)

    told.result(TIMEOUT_SECONDS)
    assert (report.state, report.images) == ({'free_bytes': 1}, NEWS)
    assert (report.now, report.seconds) == (conductor.now, 1)


class Unreadable:
    """Progress whose reading fails."""

    def __init__(self, running: transfers.Transfers, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = running.to_report
        self._is_bad = True
        monkeypatch.setattr(running, 'to_report', self._to_report)

    def _to_report(self) -> list[transfers.Following]:
        found = self._read()  # it counts as reported from now on
        if self._is_bad:
            raise ValueError('the meter is damaged')
        return found

    def mend(self) -> None:
        self._is_bad = False


@pytest.mark.parametrize('serves', [True, False])
def test_unreadable_progress_loses_no_news(
    host: Host,
    moving: Moving,
    conductor: FakeReporter,
    monkeypatch: pytest.MonkeyPatch,
    serves: bool,
) -> None:
    conductor.serves = serves
    host.register()
    host.reports.add_state({'free_bytes': 1})
    told = host.has_news()
    progress = Unreadable(host.running, monkeypatch)
    with pytest.raises(ValueError, match='damaged'):
        host.after(1)
    assert told.done() is not serves

    progress.mend()
    host.after(1)

    told.result(TIMEOUT_SECONDS)
    assert conductor.states[-1] == {'free_bytes': 1}
    assert [job_id for job_id, *_ in conductor.progress] == ['j1']
    assert conductor.images == [('h1', 'agent-1', NEWS)]


@pytest.mark.parametrize('serves', [True, False])
def test_unsent_report_loses_no_news(
    host: Host, moving: Moving, conductor: FakeReporter, serves: bool
) -> None:
    conductor.serves = serves
    host.register()
    host.reports.add_state({'free_bytes': 1})
    conductor.report_errors = [ValueError('it cannot be serialised')]
    with pytest.raises(ValueError, match='serialised'):
        host.after(1)

    host.after(1)

    assert conductor.states == [{'free_bytes': 1}]
    assert [job_id for job_id, *_ in conductor.progress] == ['j1']


def test_unsent_progress_repeated_to_older_conductor(
    host: Host, moving: Moving, conductor: FakeReporter
) -> None:
    conductor.serves = False
    host.register()
    conductor.report_errors = no_answer(1)
    host.after(1)
    assert conductor.progress == []

    host.after(1)

    assert [job_id for job_id, *_ in conductor.progress] == ['j1']


def test_newer_state_replaces_unsent_one(host: Host, conductor: FakeReporter) -> None:
    conductor.serves = False
    host.register()
    host.reports.add_state({'free_bytes': 1})
    conductor.report_errors = no_answer(1)
    host.after(1)
    host.reports.add_state({'free_bytes': 2})

    host.after(1)

    assert conductor.states == [{'free_bytes': 2}]


def test_absent_conductor_gets_few_reports(host: Host, conductor: FakeReporter) -> None:
    conductor.report_errors = no_answer(100)
    conductor.look_errors = no_answer(100)
    tried = []

    for second in range(60):
        host.reports.add_state({})
        left = len(conductor.report_errors)
        host.after(1)
        tried += [second] if len(conductor.report_errors) < left else []

    assert tried == [0, 2, 6, 14, 24, 34, 44, 54]


def test_returned_conductor_gets_usual_reports(host: Host, conductor: FakeReporter) -> None:
    conductor.report_errors = no_answer(6)
    while conductor.report_errors:
        host.reports.add_state({})
        host.after(1)

    sent = 0
    for _ in range(20):
        host.reports.add_state({})
        sent += len(host.after(1))

    assert sent >= 11
    assert conductor.serves


def test_only_one_report_is_outstanding(host: Host, conductor: FakeReporter) -> None:
    host.reports.add_state({})
    conductor.report_errors = no_answer(1)
    host.after(1)
    host.reports.add_state({})

    assert host.after(1) == [], 'a new state does not end the pause'
    assert len(host.after(1)) == 1


# Conductors of an earlier release


def test_older_conductor_gets_news_one_by_one(
    host: Host, moving: Moving, conductor: FakeReporter
) -> None:
    conductor.serves = False
    host.register()
    host.reports.add_state({'host': 'h1'})
    host.reports.report_images('h1', 'agent-1', NEWS)

    assert host.after(1) == []

    assert conductor.states == [{'host': 'h1'}]
    assert conductor.images == [('h1', 'agent-1', NEWS)]
    assert [job_id for job_id, *_ in conductor.progress] == ['j1']


def test_upgraded_conductor_found_and_registered_with(host: Host, conductor: FakeReporter) -> None:
    conductor.serves = False
    host.register()
    conductor.serves = True
    host.after(reports.LOOK_SECONDS - 1)
    assert not host.name._is_doubtful

    host.reports.add_state({})
    assert host.after(1) == [], 'only the answer to a registration begins the reports'
    assert host.name.wait_doubtful()
    host.register()

    host.reports.add_state({})
    assert len(host.after(1)) == 1


def test_older_conductor_is_not_registered_with(host: Host, conductor: FakeReporter) -> None:
    conductor.serves = False
    host.register()
    conductor.look_errors = no_answer(1)

    for _ in range(5):
        host.after(reports.LOOK_SECONDS)

    assert conductor.look_errors == []
    assert not host.name._is_doubtful


def test_rolled_back_conductor_gets_news_again(
    host: Host, moving: Moving, conductor: FakeReporter
) -> None:
    conductor.serves = False
    conductor.report_errors = no_answer(reports.MOST_LOST)
    host.reports.add_state({'free_bytes': 1})
    told = host.has_news()
    for _ in range(3):
        host.after(1)

    with pytest.raises(exception.CellUnreachable, match='no conductor has read the report'):
        told.result(TIMEOUT_SECONDS)
    host.after(1)
    host.reports.report_images('h1', 'agent-1', NEWS)

    assert (conductor.reports, conductor.states) == ([], [{'free_bytes': 1}])
    assert conductor.images == [('h1', 'agent-1', NEWS)]
    assert [job_id for job_id, *_ in conductor.progress] == ['j1']


def test_refusing_conductor_gets_news_at_once(host: Host, conductor: FakeReporter) -> None:
    conductor.report_errors = [exception.VersionUnsupported('report 1.5 is not supported')]
    host.reports.add_state({'free_bytes': 1})

    host.after(1)
    host.after(1)

    assert conductor.states == [{'free_bytes': 1}]


def test_refusing_conductor_not_looked_for_at_once(host: Host, conductor: FakeReporter) -> None:
    host.after(2 * reports.LOOK_SECONDS)
    conductor.report_errors = [exception.VersionUnsupported('report 1.5 is not supported')]
    host.reports.add_state({'free_bytes': 1})

    host.after(1)
    host.after(1)
    assert not host.name._is_doubtful, 'it would register every second'

    host.after(reports.LOOK_SECONDS)
    assert host.name._is_doubtful


def test_absent_conductors_change_no_mode(host: Host, conductor: FakeReporter) -> None:
    conductor.report_errors = no_answer(5)
    conductor.look_errors = no_answer(10)
    while conductor.report_errors:
        host.reports.add_state({})
        host.after(LONGEST)

    host.reports.add_state({})
    assert len(host.after(LONGEST)) == 1


def test_silence_and_return_logged_once(
    host: Host, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level('INFO')
    conductor.report_errors = no_answer(5)
    for _ in range(10):
        host.reports.add_state({})
        host.after(LONGEST)

    assert caplog.messages == [
        'A conductor for host h1 is unavailable: no conductor answered report',
        'A conductor for host h1 is available again, after 40 s',
    ]


def test_older_conductor_away_logged_once(
    host: Host, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.serves = False
    host.register()
    conductor.report_errors = no_answer(30)
    host.reports.add_state({'host': 'h1'})
    caplog.set_level('INFO')

    for _ in range(40):
        host.after(1)

    assert caplog.messages == [
        'A conductor for host h1 is unavailable: no conductor answered report',
        'A conductor for host h1 is available again, after 30 s',
    ]
    assert conductor.states == [{'host': 'h1'}], 'the news were sent again until one took them'


def test_registration_reports_progress_again(
    host: Host, moving: Moving, conductor: FakeReporter
) -> None:
    conductor.next_seconds = 10
    host.after(1)

    host.register()

    [report] = host.after(1)
    assert [each.job_id for each in report.progress] == ['j1']


@pytest.mark.parametrize('is_late', [False, True])
def test_closed_reports_end_the_wait(host: Host, is_late: bool) -> None:
    close: Callable[[], None] = host.reports.close
    if is_late:
        close()
    told = (
        host.pool.submit(host.reports.report_images, 'h1', 'agent-1', NEWS)
        if is_late
        else (host.has_news())
    )
    close()

    with pytest.raises(exception.ShuttingDown):
        told.result(TIMEOUT_SECONDS)
