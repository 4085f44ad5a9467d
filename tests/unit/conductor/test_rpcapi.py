# SPDX-License-Identifier: Apache-2.0
"""How the API notifies conductors of work: once, and without waiting for a silent broker."""

import datetime
import queue
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from nova_precache import conf as options, context, exception, model, rpc
from nova_precache.compute import reporter, transfers
from nova_precache.conductor import rpcapi
from tools.waiting import TIMEOUT_SECONDS, wait_until

CTXT = context.admin_context()


class Broker:
    """A transport and its only client, whose broker accepts casts when the test lets it."""

    def __init__(self) -> None:
        self.casts = 0
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.done = threading.Semaphore(0)

    def client(self, transport: 'Broker', topic: str, cap: str | None, retries: int) -> 'Broker':
        assert (transport, topic, retries) == (self, rpcapi.API_TOPIC, 0)
        return self

    def probe(self, topic: str) -> 'Broker':
        assert topic == rpcapi.TOPIC
        return self

    def cast(self, ctxt: context.RequestContext, method: str, version: str) -> None:
        self.casts += 1
        try:
            assert self.answers.wait(TIMEOUT_SECONDS)
            if self.error is not None:
                raise self.error
        finally:
            self.done.release()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def api(broker: Any, monkeypatch: pytest.MonkeyPatch) -> rpcapi.ConductorAPI:
    monkeypatch.setattr(rpcapi, 'WAKE_SECONDS', TIMEOUT_SECONDS)
    monkeypatch.setattr(rpc, 'Client', broker.client)
    return rpcapi.ConductorAPI(broker)


def test_each_request_is_cast(api: rpcapi.ConductorAPI, broker: Broker) -> None:
    for _ in range(2):
        api.work_available(CTXT)

    assert broker.casts == 2


def test_full_broker_reported_to_caller(api: rpcapi.ConductorAPI, broker: Broker) -> None:
    broker.error = exception.CellUnreachable('no route to host')

    with pytest.raises(exception.CellUnreachable, match='no route to host'):
        api.work_available(CTXT)


def test_silent_broker_gets_one_unawaited_cast(
    api: rpcapi.ConductorAPI, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpcapi, 'WAKE_SECONDS', 0.01)
    broker.answers.clear()

    for _ in range(3):
        with pytest.raises(exception.CellUnreachable, match='no answer from the broker'):
            api.work_available(CTXT)
        wait_until(lambda: broker.casts, 'the cast has begun')

    assert broker.casts == 1
    broker.answers.set()
    assert broker.done.acquire(timeout=TIMEOUT_SECONDS)


# Reports of a compute


class Conductor(rpc.Endpoint, version=rpcapi.VERSION):
    """Receives computes' reports of their caches and of their progress."""

    def __init__(self) -> None:
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.refusal: Exception | None = None

    def report_images(self, ctxt: context.RequestContext, **told: Any) -> None:
        self.told.put(told)

    def report_progress(self, ctxt: context.RequestContext, **told: Any) -> None:
        self.told.put(told)

    def goodbye(self, ctxt: context.RequestContext, **told: Any) -> None:
        self.told.put(told)

    @rpc.refuses(exception.TokenRefused)
    def get_token(self, ctxt: context.RequestContext, **told: Any) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.told.put(told)
        return 'a-token'

    @rpc.refuses(exception.ImageGone)
    def confirm_job(self, ctxt: context.RequestContext, **told: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.told.put(told)

    def begin_job(self, ctxt: context.RequestContext, **told: Any) -> bool:
        self.told.put(told)
        return True


@pytest.fixture
def transport() -> rpc.Transport:
    return rpc.connect(options.new(config_files=[]), f'fake:///{uuid.uuid4().hex}')


@pytest.fixture
def conductor(transport: rpc.Transport) -> Iterator[Conductor]:
    endpoint = Conductor()
    server = rpc.Server(transport, rpcapi.TOPIC, 'conductor', [endpoint])
    server.start()
    yield endpoint
    server.stop()


def _reporter(transport: rpc.Transport, cap: str | None = None) -> rpcapi.ConductorReporter:
    return rpcapi.ConductorReporter(transport, cap, TIMEOUT_SECONDS)


TOUCHED = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)  # noqa: DTZ001 - in UTC
NEWS = reporter.CacheNews(
    [model.CachedImage('', 'b', None, 2**40, 5, TOUCHED, 2)],
    removed=('c',),
    full=True,
    after='a',
    until='d',
)


def test_cache_report_is_plain_data(transport: rpc.Transport, conductor: Conductor) -> None:
    _reporter(transport).report_images('h1', 'agent-1', NEWS)

    assert conductor.told.get(timeout=TIMEOUT_SECONDS) == {
        'host': 'h1',
        'agent_id': 'agent-1',
        'images': [
            {
                'name': 'b',
                'size_bytes': 2**40,
                'disk_bytes': 5,
                'touched_at': '2026-01-02T03:04:05.678901Z',
                'used_by': 2,
            }
        ],
        'removed': ['c'],
        'full': True,
        'after': 'a',
        'until': 'd',
    }


def test_older_conductor_gets_progress_without_cache(
    transport: rpc.Transport, conductor: Conductor
) -> None:
    old = _reporter(transport, '1.0')
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 4, 9, rate_bytes=3)

    old.report_images('h1', 'agent-1', NEWS)
    old.report_progress('j1', 1, 2, progress)

    told = conductor.told.get(timeout=TIMEOUT_SECONDS)
    assert told['progress'] == {
        'status': 'downloading', 'bytes_done': 4, 'bytes_total': 9, 'rate_bytes': 3,
    }  # fmt: skip
    assert conductor.told.empty()


@pytest.mark.parametrize('cap', ['1.0', '1.1', None])
def test_token_request_names_its_job(
    transport: rpc.Transport, conductor: Conductor, cap: str | None
) -> None:
    assert _reporter(transport, cap).get_token('j1', 3) == 'a-token'

    assert conductor.told.get(timeout=TIMEOUT_SECONDS) == {'job_id': 'j1', 'epoch': 3}


def test_token_refusal_reason_reaches_compute(
    transport: rpc.Transport, conductor: Conductor, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.refusal = exception.TokenRefused('job j1 is not in flight')

    with pytest.raises(exception.TokenRefused, match=r'^job j1 is not in flight$'):
        _reporter(transport).get_token('j1', 3)

    assert not [each for each in caplog.records if each.exc_info]


def test_goodbye_names_boot(transport: rpc.Transport, conductor: Conductor) -> None:
    _reporter(transport).goodbye('h1', 'agent-1', 'boot-1')

    told = conductor.told.get(timeout=TIMEOUT_SECONDS)
    assert told == {'host': 'h1', 'agent_id': 'agent-1', 'boot_id': 'boot-1'}


def test_older_conductor_gets_no_goodbye(transport: rpc.Transport) -> None:
    server = rpc.Server(transport, rpcapi.TOPIC, 'old', [OldConductor()])
    server.start()
    with pytest.raises(exception.VersionUnsupported, match='goodbye'):
        _reporter(transport).goodbye('h1', 'agent-1', 'boot-1')
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.2'):
        _reporter(transport, '1.2').goodbye('h1', 'agent-1', 'boot-1')
    server.stop()


class OldConductor(Conductor, version=rpcapi.OLDEST_VERSION):
    """A conductor that serves the methods of the first release, and records its calls."""

    goodbye = None  # type: ignore[assignment]

    def ping(self, ctxt: context.RequestContext) -> None:  # type: ignore[override]
        self.told.put({'ping': True})


def test_older_conductors_asked_before_full_report(
    transport: rpc.Transport,
) -> None:
    old = OldConductor()
    server = rpc.Server(transport, rpcapi.TOPIC, 'old', [old])
    server.start()
    reports = _reporter(transport)
    everything = reporter.CacheNews(NEWS.images, full=True, until='d')

    for news in (everything, NEWS, reporter.CacheNews((), removed=('b',))):
        reports.report_images('h1', 'agent-1', news)
    server.stop()

    assert old.told.get(timeout=TIMEOUT_SECONDS) == {'ping': True}
    assert old.told.empty()


def test_upgraded_conductors_get_next_full_report(
    transport: rpc.Transport, conductor: Conductor
) -> None:
    reports = _reporter(transport)
    reports._is_inventory_kept = False

    reports.report_images('h1', 'agent-1', NEWS)
    reports.report_images('h1', 'agent-1', reporter.CacheNews(NEWS.images, full=True))

    assert conductor.told.get(timeout=TIMEOUT_SECONDS)['after'] is None
    assert conductor.told.empty()


# All news in one report


class Receiver(rpc.Endpoint, version=rpcapi.VERSION):
    """Records the reports that arrive on their own topic, and answers as scripted."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answer: Any = ANSWER.to_wire()

    def report(self, ctxt: context.RequestContext, **told: Any) -> Any:
        self.told.append(told)
        return self.answer


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)  # noqa: DTZ001 - in UTC
ANSWER = model.ReportAnswer(NOW, 2.5, is_taken=False)
PROGRESS = model.Progress(model.TaskStatus.DOWNLOADING, 4, 9, rate_bytes=3)
REPORT = reporter.HostReport(
    'h1', 'agent-1', NOW, 1.5, {'free_bytes': 1}, [transfers.Following('j1', 3, 2, PROGRESS)], NEWS
)
NO_NEWS = reporter.HostReport('h1', 'agent-1', NOW, 1.5, None, [], None)


@pytest.fixture
def receiver(transport: rpc.Transport) -> Iterator[Receiver]:
    endpoint = Receiver()
    server = rpc.Server(transport, rpcapi.REPORTS_TOPIC, 'conductor', [endpoint], threads=1)
    server.start()
    yield endpoint
    server.stop()


def test_report_is_plain_data(transport: rpc.Transport, receiver: Receiver) -> None:
    assert _reporter(transport).report(REPORT) == ANSWER
    assert _reporter(transport).report(NO_NEWS) == ANSWER

    told, without = receiver.told
    assert {name: told[name] for name in ('host', 'agent_id', 'sent', 'state')} == {
        'host': 'h1',
        'agent_id': 'agent-1',
        'sent': {'now': '2026-01-02T03:04:05.678901Z', 'seconds': 1.5},
        'state': {'free_bytes': 1},
    }
    assert told['progress'] == [
        {
            'job_id': 'j1',
            'epoch': 3,
            'sequence': 2,
            'progress': {
                'status': 'downloading', 'bytes_done': 4, 'bytes_total': 9, 'rate_bytes': 3,
            },
        }
    ]  # fmt: skip
    assert (told['images']['after'], told['images']['removed']) == ('a', ['c'])
    assert (without['state'], without['progress'], without['images']) == (None, [], None)


def test_unanswered_report_fails_soon(
    transport: rpc.Transport, conductor: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpcapi, 'REPORT_SECONDS', 0.1)

    with pytest.raises(exception.CellUnreachable, match='no conductor answered report'):
        _reporter(transport).report(REPORT)

    assert conductor.told.empty()


@pytest.mark.parametrize(
    ('field', 'changed'),
    [
        ('now', {'now': '2026-01-02'}),
        ('now', {'now': None}),
        ('next_seconds', {'next_seconds': None}),
        ('next_seconds', {'next_seconds': -1}),
        ('next_seconds', {'next_seconds': float('inf')}),
        ('next_seconds', {'next_seconds': True}),
        ('is_taken', {'is_taken': 'no'}),
    ],
)
def test_odd_answer_to_report_refused(
    transport: rpc.Transport, receiver: Receiver, field: str, changed: model.Json
) -> None:
    receiver.answer = {**ANSWER.to_wire(), **changed}

    with pytest.raises(exception.InvalidInput, match=f'^{field}: '):
        _reporter(transport).report(REPORT)


@pytest.mark.parametrize(
    ('answer', 'cap', 'begins'),
    [
        ({'reports': ANSWER.to_wire(), 'mood': 'fine'}, None, True),
        ({'reports': ANSWER.to_wire()}, '1.5', True),
        ({'reports': ANSWER.to_wire()}, '1.4', False),
        ({'reports': None}, None, False),
        ({}, None, False),
        (None, None, False),
    ],
)
def test_registration_answer_begins_reports(
    transport: rpc.Transport, answer: Any, cap: str | None, begins: bool
) -> None:
    class Registering(rpc.Endpoint, version=rpcapi.VERSION):
        def register(self, ctxt: context.RequestContext, **told: Any) -> Any:
            return answer

    server = rpc.Server(transport, rpcapi.TOPIC, 'conductor', [Registering()])
    server.start()

    assert _reporter(transport, cap).register({}) == (ANSWER if begins else None)
    server.stop()


@pytest.mark.parametrize(
    ('served', 'cap', 'serves'),
    [
        (rpcapi.VERSION, None, True),
        ('1.5', '1.5', True),
        ('1.5', '1.4', False),
        ('1.4', None, False),
        ('2.5', None, False),
        ('1.x', None, False),
        (None, None, False),
    ],
)
def test_ping_finds_conductors_with_reports(
    transport: rpc.Transport, served: str | None, cap: str | None, serves: bool
) -> None:
    class Answering(rpc.Endpoint, version='1.0'):
        def ping(self, ctxt: context.RequestContext) -> Any:  # type: ignore[override]
            return served

    server = rpc.Server(transport, rpcapi.TOPIC, 'conductor', [Answering()])
    server.start()

    assert _reporter(transport, cap).serves_reports() == serves
    server.stop()


# Invalid answers


@pytest.mark.parametrize('answer', [None, 1, 'false', {}, [True]])
def test_odd_answer_begins_no_call(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    reporter = rpcapi.ConductorReporter(
        rpc.connect(options.new(config_files=[]), 'fake:///'), None, 1
    )
    monkeypatch.setattr(reporter, '_call', lambda *_, **__: answer)

    with pytest.raises(exception.InvalidInput, match='the answer'):
        reporter.begin_job('j1', 1, True)


@pytest.mark.parametrize('answer', [1, 'a\r\nX: y', {}, ['t'], 'x' * 100_000, '\ud800'])
def test_odd_token_dropped_and_hidden(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    reporter = rpcapi.ConductorReporter(
        rpc.connect(options.new(config_files=[]), 'fake:///'), None, 1
    )
    monkeypatch.setattr(reporter, '_call', lambda *_, **__: answer)

    with pytest.raises(exception.InvalidInput, match=r'^the answer: not a token$'):
        reporter.get_token('a-job', 1)


def test_begin_and_progress_name_agent(transport: rpc.Transport, conductor: Conductor) -> None:
    reports = rpcapi.ConductorReporter(transport, '1.0', TIMEOUT_SECONDS, agent_id='agent-1')

    assert reports.begin_job('j1', 3, True)
    reports.report_progress('j1', 3, 1, model.Progress(model.TaskStatus.DOWNLOADING, 4))

    begun, progress = (conductor.told.get(timeout=TIMEOUT_SECONDS) for _ in range(2))
    assert begun == {'job_id': 'j1', 'epoch': 3, 'starts': True, 'agent_id': 'agent-1'}
    assert progress['agent_id'] == 'agent-1'


def test_job_confirmed_or_refused_with_reason(
    transport: rpc.Transport, conductor: Conductor
) -> None:
    reports = _reporter(transport)
    reports.confirm_job('j1', 3)
    assert conductor.told.get(timeout=TIMEOUT_SECONDS) == {'job_id': 'j1', 'epoch': 3}

    conductor.refusal = exception.ImageGone('Image i1 is not visible to project p1')
    with pytest.raises(exception.ImageGone, match=r'^Image i1 is not visible to project p1$'):
        reports.confirm_job('j1', 3)


def test_conductor_without_confirmation_recognized(transport: rpc.Transport) -> None:
    server = rpc.Server(transport, rpcapi.TOPIC, 'old', [OldConductor()])
    server.start()
    with pytest.raises(exception.VersionUnsupported, match='confirm_job'):
        _reporter(transport).confirm_job('j1', 3)
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.1'):
        _reporter(transport, '1.1').confirm_job('j1', 3)
    server.stop()


# How a conductor knows that it can hear a cell


def test_probe_reaches_all_releases(transport: rpc.Transport) -> None:
    old = OldConductor()
    server = rpc.Server(transport, rpcapi.TOPIC, 'old', [old])
    server.start()

    transport.probe_in_background(rpcapi.TOPIC)

    assert old.told.get(timeout=TIMEOUT_SECONDS) == {'ping': True}
    server.stop()


# Removals for the API


class RemovingConductor(rpc.Endpoint, version=rpcapi.VERSION):
    """Answers the API as scripted."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refusal: Exception | None = None

    @rpc.refuses(exception.NotFound, exception.Conflict, exception.Unavailable)
    def remove_image(
        self, ctxt: context.RequestContext, host: str, image_id: str, **unknown: Any
    ) -> model.Json:
        self.asked.append((host, image_id))
        if self.refusal is not None:
            raise self.refusal
        return REMOVAL.to_wire()


REMOVAL = model.ImageRemoval('used', 'an instance uses it', 5, ('file',))


@pytest.fixture
def removing(transport: rpc.Transport) -> Iterator[RemovingConductor]:
    endpoint = RemovingConductor()
    server = rpc.Server(transport, rpcapi.API_TOPIC, 'conductor', [endpoint])
    server.start()
    yield endpoint
    server.stop()


def test_removal_answered_by_conductor(
    transport: rpc.Transport, removing: RemovingConductor
) -> None:
    assert rpcapi.ConductorAPI(transport).remove_image(CTXT, 'h1', 'i1') == REMOVAL
    assert removing.asked == [('h1', 'i1')]


@pytest.mark.parametrize(
    ('refusal', 'raised'),
    [
        (exception.ComputeHostNotFound('h1'), exception.NotFound),
        (exception.RemovalRefused('the disk'), exception.RemovalRefused),
        (exception.NoAnswer('the cell'), exception.NoAnswer),
        (exception.DatabaseUnavailable('db1: refused'), exception.Unavailable),
        (exception.NotByNova('by Nova'), exception.NotByNova),
    ],
)
def test_refused_removal_keeps_its_kind(
    transport: rpc.Transport,
    removing: RemovingConductor,
    refusal: Exception,
    raised: type[Exception],
) -> None:
    removing.refusal = refusal
    with pytest.raises(raised, match=str(refusal)):
        rpcapi.ConductorAPI(transport).remove_image(CTXT, 'h1', 'i1')


def test_removal_without_conductor_is_unavailable(
    transport: rpc.Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpcapi, 'REMOVE_SECONDS', 0.1)
    with pytest.raises(exception.NoAnswer, match=r'No conductor has answered within 0\.1 s'):
        rpcapi.ConductorAPI(transport).remove_image(CTXT, 'h1', 'i1')


def test_removal_without_broker_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    away = rpc.connect(options.new(config_files=[]), 'rabbit://127.0.0.1:1/')
    monkeypatch.setattr(rpcapi, 'REMOVE_SEND_SECONDS', 0.1)
    with pytest.raises(exception.NoAnswer, match='message broker of the conductors'):
        rpcapi.ConductorAPI(away).remove_image(CTXT, 'h1', 'i1')


def test_removal_below_pin_is_refused(
    transport: rpc.Transport, removing: RemovingConductor
) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'\[upgrade_levels\] conductor = 1\.2'):
        rpcapi.ConductorAPI(transport, '1.2').remove_image(CTXT, 'h1', 'i1')
    assert removing.asked == []


def test_removal_by_older_conductor_refused(transport: rpc.Transport) -> None:
    server = rpc.Server(transport, rpcapi.API_TOPIC, 'old', [OldConductor()])
    server.start()
    try:
        with pytest.raises(exception.VersionUnsupported, match=r'remove_image 1\.4'):
            rpcapi.ConductorAPI(transport).remove_image(CTXT, 'h1', 'i1')
    finally:
        server.stop()
