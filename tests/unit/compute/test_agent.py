# SPDX-License-Identifier: Apache-2.0
"""A compute retries its registration, serves, reports, and stops."""

import logging
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest

from nova_precache import conf, exception, model
from nova_precache.compute import (
    agent,
    cache_reporter,
    name,
    reporter,
    reports as host_reports,
    transfers,
)
from nova_precache.image import fake as fake_images
from nova_precache.transfer_control import Control
from nova_precache.virt import driver as virt_driver, fake as fake_driver
from nova_precache.wiring import compute as wiring_compute
from tests import odd_files
from tests.service import wait_until
from tests.unit.compute.conftest import FakeReporter
from tools.waiting import TIMEOUT_SECONDS

CACHED = model.ImageOutcome('cached')


class FakeServer:
    """Records whether it serves."""

    def __init__(self) -> None:
        self.serves = False
        self.made = 0

    def made_again(self) -> 'FakeServer':
        self.made += 1
        return self

    def start(self) -> None:
        self.serves = True

    def stop(self) -> None:
        self.serves = False


class Driver(fake_driver.FakeDriverWithCaching):
    """Counts how often its cache is managed; errors are used up from the front."""

    def __init__(self) -> None:
        super().__init__(conf.new(config_files=[]))
        self.managed = 0
        self.swept = 0
        self.cache_errors: list[Exception] = []
        self._condition = threading.Condition()

    def manage_image_cache(self) -> None:
        with self._condition:
            self.managed += 1
            self._condition.notify_all()
        if self.cache_errors:
            raise self.cache_errors.pop(0)

    def remove_leftovers(self) -> None:
        with self._condition:
            self.swept += 1
            self._condition.notify_all()
        if self.cache_errors:
            raise self.cache_errors.pop(0)

    def wait_managed(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.managed >= count, TIMEOUT_SECONDS)

    def wait_swept(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.swept >= count, TIMEOUT_SECONDS)

    def cache_report(self) -> virt_driver.CacheReport:
        return virt_driver.CacheReport('store-1', cache_bytes=5, free_bytes=10)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def held() -> name.Name:
    return name.Name('h1', 'agent-1')


@pytest.fixture
def running() -> transfers.Transfers:
    return transfers.Transfers()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, '_REGISTER_WAIT_SECONDS', 0.001)
    monkeypatch.setattr(agent, 'REPORT_SECONDS', 0.02)


@pytest.fixture
def driver() -> Driver:
    return Driver()


MakeCompute = Callable[..., agent.ComputeAgent]


@pytest.fixture
def make_compute(
    conductor: FakeReporter,
    server: FakeServer,
    running: transfers.Transfers,
    driver: Driver,
    held: name.Name,
) -> Iterator[MakeCompute]:
    made: list[agent.ComputeAgent] = []

    def make(cache_seconds: float | None) -> agent.ComputeAgent:
        reports = host_reports.Reports(held, conductor, running, host_reports.Interval(0.001, 0.05))
        made.append(
            agent.ComputeAgent(
                identity={
                    'host': 'h1',
                    'agent_id': 'agent-1',
                    'boot_id': 'boot-1',
                    'version': '1.2',
                },
                name=held,
                driver=driver,
                conductor=conductor,
                new_server=server.made_again,  # type: ignore[arg-type]
                running=running,
                images=cache_reporter.CacheReporter('h1', 'agent-1', driver, reports, 3600, 3600),
                reports=reports,
                report_seconds=0.05,
                cache_seconds=cache_seconds,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def compute(make_compute: MakeCompute) -> agent.ComputeAgent:
    return make_compute(cache_seconds=0.05)


def _errors(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_compute_registers_then_serves(
    compute: agent.ComputeAgent, conductor: FakeReporter, server: FakeServer
) -> None:
    compute.start()

    assert compute.wait_registered(TIMEOUT_SECONDS)
    assert server.serves
    assert conductor.registered == [
        {
            'host': 'h1',
            'agent_id': 'agent-1',
            'boot_id': 'boot-1',
            'version': '1.2',
            'driver': 'Driver',
            'capabilities': {'supports_cache_image': True},
            'store_id': 'store-1',
            'cache_bytes': 5,
            'free_bytes': 10,
        }
    ]


@pytest.mark.parametrize(
    'error',
    [exception.CellUnreachable('no conductor answered'), RuntimeError('its database is away')],
)
def test_registration_retries_until_successful(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    conductor.register_errors = [error, error]

    compute.start()

    assert compute.wait_registered(TIMEOUT_SECONDS)
    assert server.serves
    assert _errors(caplog, logging.WARNING) == [f'Host h1 is not registered yet: {error}']


def test_taken_name_logged_as_error(
    compute: agent.ComputeAgent, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.register_errors = [exception.AgentConflict('another agent has this name')]

    compute.start()

    assert compute.wait_registered(TIMEOUT_SECONDS)
    assert _errors(caplog, logging.ERROR) == [
        'Host h1 is not registered yet: another agent has this name'
    ]


def test_unmapped_host_warns_once(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent, '_UNMAPPED_WAIT_SECONDS', 0)
    conductor.register_errors = [exception.HostNotMapped('h1 is not mapped')] * 3

    compute.start()

    assert compute.wait_registered(TIMEOUT_SECONDS)
    assert conductor.register_errors == []
    assert _errors(caplog, logging.WARNING) == ['Host h1 is not registered yet: h1 is not mapped']


def test_reports_continue_through_failures(
    compute: agent.ComputeAgent, conductor: FakeReporter
) -> None:
    conductor.report_errors = [exception.CellUnreachable('the broker is away')]

    compute.start()

    conductor.wait_reported(2)
    assert conductor.states[0]['host'] == 'h1'
    assert conductor.report_errors == []


def test_progress_of_every_transfer_reported(
    compute: agent.ComputeAgent, conductor: FakeReporter, running: transfers.Transfers
) -> None:
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 4, 9)

    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        note(progress)
        compute.send_reports()
        return model.ImageOutcome('cached')

    running.run('j1', 3, 'i1', work)

    assert conductor.progress == [('j1', 3, 1, progress)]


def test_failed_progress_report_is_harmless(
    compute: agent.ComputeAgent, conductor: FakeReporter, running: transfers.Transfers
) -> None:
    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        conductor.report_errors = [exception.CellUnreachable('the broker is away')]
        note(model.Progress(model.TaskStatus.DOWNLOADING, 1))
        compute.send_reports()
        note(model.Progress(model.TaskStatus.DOWNLOADING, 2))
        compute.send_reports()
        return model.ImageOutcome('cached')

    assert running.run('j1', 1, 'i1', work).status == 'cached'
    assert [sequence for _, _, sequence, _ in conductor.progress] == [2]


def test_cache_reported_after_registration_and_transfers(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    running: transfers.Transfers,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = fake_images.FakeImageService()
    image = service.add(b'data')

    def cache(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        driver.cache_image(service, image.id, note, control)
        return model.ImageOutcome('cached')

    compute.start()
    conductor.wait_images(1)
    running.run('j1', 1, image.id, cache)
    conductor.wait_images(2)

    assert conductor.registered
    [whole, news] = [news for _, _, news in conductor.images]
    assert (whole.full, len(whole.images)) == (True, 0)
    assert (news.full, [each.size_bytes for each in news.images]) == (False, [4])


def test_failed_cache_report_is_harmless(
    compute: agent.ComputeAgent, conductor: FakeReporter
) -> None:
    conductor.report_errors = [exception.CellUnreachable('the broker is away')]

    compute.report_images()

    assert conductor.report_errors == []


def test_image_cache_managed_through_failures(
    compute: agent.ComputeAgent, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.cache_errors = [
        exception.StorageError('The header of /i/disk cannot be read'),
        RuntimeError('a fault'),
    ]

    compute.start()

    driver.wait_managed(3)
    assert _errors(caplog, logging.WARNING) == [
        'Failed to remove unused images of host h1: The header of /i/disk cannot be read'
    ]


@pytest.mark.parametrize(('interval', 'seconds'), [(-1, None), (0, 60), (1, 1), (2400, 2400)])
def test_interval_has_meaning_of_nova(interval: int, seconds: float | None) -> None:
    assert agent.cache_seconds(interval) == seconds


def test_unmanaged_cache_only_sweeps_partials(
    make_compute: MakeCompute,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(agent, 'LEFTOVERS_SECONDS', 0.05)
    driver.cache_errors = [exception.StorageError('the directory is gone')]

    make_compute(cache_seconds=None).start()

    driver.wait_swept(3)
    assert driver.managed == 0
    assert _errors(caplog, logging.WARNING) == [
        'Failed to remove old partial downloads of host h1: the directory is gone'
    ]


def test_stopping_compute_starts_no_transfer(
    compute: agent.ComputeAgent, server: FakeServer, running: transfers.Transfers
) -> None:
    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)

    compute.stop()

    assert not server.serves
    outcome = running.run('j1', 1, 'i1', lambda note, control: model.ImageOutcome('cached'))
    assert (outcome.status, outcome.retry) == ('error', model.Retry.LATER)


def test_stopping_compute_ends_stalled_transfer(
    compute: agent.ComputeAgent, running: transfers.Transfers
) -> None:
    begun = threading.Event()

    def stand_still(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        begun.set()
        with pytest.raises(exception.ShuttingDown):
            control.wait(TIMEOUT_SECONDS)
        return model.ImageOutcome('error', 'stopped', model.Retry.LATER)

    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(running.run, 'j1', 1, 'i1', stand_still)
        assert begun.wait(TIMEOUT_SECONDS)

        compute.stop()

        assert made.result(TIMEOUT_SECONDS).reason == 'stopped'


def test_compute_stops_without_conductor(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()

    def refuse(state: model.Json) -> None:
        asked.set()
        raise exception.CellUnreachable('no conductor answered')

    monkeypatch.setattr(conductor, 'register', refuse)
    compute.start()
    assert asked.wait(TIMEOUT_SECONDS)

    compute.stop()

    assert not compute.wait_registered(0)
    assert not server.serves


def test_compute_stops_with_silent_broker(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports, answers, stopped = threading.Event(), threading.Event(), threading.Event()

    def wait(report: reporter.HostReport) -> None:
        reports.set()
        answers.wait(2 * TIMEOUT_SECONDS)

    def stop() -> None:
        compute.stop()
        stopped.set()

    monkeypatch.setattr(agent, 'STOP_SECONDS', 0.01)
    monkeypatch.setattr(conductor, 'report', wait)
    compute.start()
    assert reports.wait(TIMEOUT_SECONDS)

    threading.Thread(target=stop, daemon=True).start()
    has_stopped = stopped.wait(TIMEOUT_SECONDS)
    answers.set()

    assert has_stopped
    wait_until(lambda: not server.serves, 'the server has stopped, too')


def test_unstarted_compute_can_stop(compute: agent.ComputeAgent, server: FakeServer) -> None:
    compute.stop()

    assert not server.serves


def test_superseded_agent_pauses_until_reregistered(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    running: transfers.Transfers,
    held: name.Name,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = [exception.AgentConflict(f'h1 has another agent since {n}') for n in range(50)]
    seen: list[tuple[bool, str | None, int]] = []

    def register(state: model.Json) -> None:
        if refusals:
            running_now = running.run(f'j{len(seen)}', 1, 'i2', lambda note, control: CACHED)
            seen.append((server.serves, running_now.reason, len(conductor.states)))
            raise refusals.pop(0)

    def stand_still(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        with pytest.raises(exception.NameLost):
            control.wait(TIMEOUT_SECONDS)
        return model.ImageOutcome('error', 'stopped', model.Retry.LATER)

    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)
    conductor.wait_images(1)
    monkeypatch.setattr(conductor, 'register', register)
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(running.run, 'job', 1, 'i1', stand_still)
        wait_until(lambda: running.is_running('i1'), 'it runs')
        held.doubt()
        assert made.result(TIMEOUT_SECONDS).reason == 'stopped'
    wait_until(lambda: not refusals and compute.wait_registered(0), 'it has its name again')
    conductor.wait_images(2)

    (serves, _, _), *later = seen
    assert serves, 'it serves until it knows that another has its name'
    assert {(serves, reason) for serves, reason, _ in later} == {
        (False, 'h1 has another agent since 0')
    }
    assert len({reported for _, _, reported in later}) == 1
    assert (server.serves, server.made) == (True, 2)
    assert running.run('after', 1, 'i3', lambda note, control: CACHED) == CACHED
    assert conductor.images[-1][2].full
    assert _errors(caplog, logging.ERROR) == [
        'Another agent serves host h1, waiting until it is silent: h1 has another agent since 0'
    ]


def test_unknown_agent_registers_without_interruption(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    running: transfers.Transfers,
    held: name.Name,
) -> None:
    def work(note: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        held.doubt()
        wait_until(lambda: len(conductor.registered) == 2, 'it has registered again')
        control.check()
        return CACHED

    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)
    conductor.register_errors = [exception.CellUnreachable('no conductor answered')]

    assert running.run('j1', 1, 'i1', work) == CACHED
    assert (server.serves, server.made) == (True, 1)
    assert conductor.registered[0] == conductor.registered[1]


def test_compute_stops_while_name_taken(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    running: transfers.Transfers,
    held: name.Name,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(state: model.Json) -> None:
        raise exception.AgentConflict('h1 has another agent')

    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)
    monkeypatch.setattr(conductor, 'register', refuse)
    held.doubt()
    wait_until(lambda: not compute.wait_registered(0), 'it has left')

    compute.stop()

    assert not server.serves
    running.resume()
    assert running.run('j1', 1, 'i1', lambda note, control: CACHED).status == 'error'


def test_unusable_host_does_not_register(
    compute: agent.ComputeAgent, conductor: FakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise exception.ConfigError('instances_path cannot be written')

    monkeypatch.setattr(Driver, 'init_host', refuse, raising=False)

    with pytest.raises(exception.ConfigError, match='instances_path'):
        compute.start()

    assert conductor.registered == []


def test_agent_id_outlives_process(tmp_path: pathlib.Path) -> None:
    state = tmp_path / 'not' / 'there' / 'yet'

    first = agent.agent_id(state)

    assert str(uuid.UUID(first)) == first
    assert agent.agent_id(state) == first


def test_truncated_agent_id_replaced(tmp_path: pathlib.Path) -> None:
    """An empty one would be shared by every host that lost its own in this way."""
    (tmp_path / 'agent_id').touch()

    made = agent.agent_id(tmp_path)

    assert str(uuid.UUID(made)) == made
    assert agent.agent_id(tmp_path) == made


@pytest.mark.timeout(60)
@pytest.mark.parametrize('damage', odd_files.DAMAGED)
def test_invalid_agent_id_replaced(tmp_path: pathlib.Path, damage: str) -> None:
    odd_files.DAMAGED[damage](tmp_path / 'agent_id')

    made = agent.agent_id(tmp_path)

    assert str(uuid.UUID(made)) == made
    assert agent.agent_id(tmp_path) == made


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_object_at_agent_id_named(tmp_path: pathlib.Path, kind: str) -> None:
    odd_files.IRREGULAR[kind](tmp_path / 'agent_id')

    with pytest.raises(exception.ConfigError) as refusal:
        agent.agent_id(tmp_path)

    named = f'state_path {tmp_path} cannot be used: {tmp_path}/agent_id: it is a'
    assert str(refusal.value).startswith(named)
    assert '\n' not in str(refusal.value)


def test_unusable_state_directory_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'file').touch()

    with pytest.raises(exception.ConfigError, match=f'state_path {tmp_path}/file'):
        agent.agent_id(tmp_path / 'file')


@pytest.mark.parametrize('host', ['fe80::1', '::1'])
def test_invalid_host_name_error_names_option(host: str, tmp_path: pathlib.Path) -> None:
    options = conf.new(config_files=[])
    options.set_override('host', host)
    options.set_override('state_path', str(tmp_path / 'state'))

    with pytest.raises(exception.ConfigError, match=r'^\[DEFAULT\] host: '):
        wiring_compute.new_agent(options)

    assert not (tmp_path / 'state').exists()


# The goodbye


def test_stopping_compute_says_goodbye(
    compute: agent.ComputeAgent, conductor: FakeReporter
) -> None:
    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)

    compute.stop()

    wait_until(lambda: conductor.goodbyes, 'the goodbye')  # on a busy machine, stop() is shorter
    assert conductor.goodbyes == [('h1', 'agent-1', 'boot-1')]


def test_goodbye_said_before_serving(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starting, started = threading.Event(), threading.Event()

    def start() -> None:
        starting.set()
        assert started.wait(TIMEOUT_SECONDS)

    monkeypatch.setattr(server, 'start', start)
    compute.start()
    assert starting.wait(TIMEOUT_SECONDS)
    stopping = threading.Thread(target=compute.stop)

    stopping.start()
    wait_until(lambda: conductor.goodbyes, 'the goodbye')
    started.set()
    stopping.join(TIMEOUT_SECONDS)

    assert conductor.goodbyes == [('h1', 'agent-1', 'boot-1')]


def test_goodbye_follows_late_registration(
    compute: agent.ComputeAgent, conductor: FakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = conductor.register
    asked, answered = threading.Event(), threading.Event()

    def register_late(state: model.Json) -> object:
        asked.set()
        assert answered.wait(TIMEOUT_SECONDS)
        return register(state)

    monkeypatch.setattr(conductor, 'register', register_late)
    compute.start()
    assert asked.wait(TIMEOUT_SECONDS)
    stopping = threading.Thread(target=compute.stop)

    stopping.start()
    wait_until(compute._stopping.is_set, 'the stop')
    answered.set()
    stopping.join(TIMEOUT_SECONDS)

    wait_until(lambda: conductor.goodbyes, 'the goodbye')
    assert conductor.goodbyes == [('h1', 'agent-1', 'boot-1')]
    assert not compute.is_registered


def test_late_registration_has_one_goodbye(
    compute: agent.ComputeAgent, conductor: FakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, close = conductor.register, compute._name.close
    asked = threading.Event()

    def register_late(state: model.Json) -> object:
        asked.set()
        wait_until(compute._stopping.is_set, 'the stop')
        return register(state)

    def close_late() -> None:
        wait_until(lambda: conductor.goodbyes, 'the goodbye of the registration')
        close()

    monkeypatch.setattr(conductor, 'register', register_late)
    monkeypatch.setattr(compute._name, 'close', close_late)
    compute.start()
    assert asked.wait(TIMEOUT_SECONDS)

    compute.stop()

    assert conductor.goodbyes == [('h1', 'agent-1', 'boot-1')]


def test_unregistered_compute_says_no_goodbye(
    compute: agent.ComputeAgent, conductor: FakeReporter
) -> None:
    conductor.register_errors = [exception.CellUnreachable('away')] * 10_000
    compute.start()

    compute.stop()

    assert conductor.goodbyes == []


@pytest.mark.parametrize(
    ('error', 'warnings'),
    [
        (exception.VersionUnsupported('goodbye 1.3 is not supported'), []),
        (
            exception.CellUnreachable('no conductor answered'),
            ['Host h1 stops without a goodbye: no conductor answered'],
        ),
        (
            exception.AgentConflict('it is not registered'),
            ['Host h1 stops without a goodbye: it is not registered'],
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_compute_stops_without_goodbye(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    warnings: list[str],
) -> None:
    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)
    conductor.goodbye_errors = [error]

    compute.stop()

    assert not server.serves
    assert _errors(caplog, logging.WARNING) == warnings


def test_silent_conductor_delays_stop_briefly(
    compute: agent.ComputeAgent,
    conductor: FakeReporter,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(agent, 'GOODBYE_SECONDS', 0.05)
    monkeypatch.setattr(conductor, 'goodbye', lambda *_: answered.wait(TIMEOUT_SECONDS))
    compute.start()
    assert compute.wait_registered(TIMEOUT_SECONDS)

    compute.stop()

    assert not answered.is_set()
    assert not server.serves
    answered.set()
