# SPDX-License-Identifier: Apache-2.0
"""Reports over a real broker: none piles up without conductors, and none delays a question."""

import contextlib
import datetime
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import kombu
import pytest

from nova_precache import conf as options, context, model, rpc
from nova_precache.compute import name, reports, transfers
from nova_precache.conductor import manager, pace, report_buffer, report_endpoint, rpcapi
from nova_precache.db import caches, clock, hearing
from nova_precache.db.engine import schema
from tests.service import wait_until
from tests.unit.conftest import DOWN_SECONDS, World, open_database, open_world
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.integration

CTXT = context.admin_context()
THREADS = 4
HOSTS = [f'h{number}' for number in range(1, 6)]


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    database = open_database(tmp_path / 'precache.sqlite')
    schema.sync(database)
    yield open_world(database)
    database.dispose()


@pytest.fixture
def url(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.make_vhost()


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpcapi, 'REPORT_SECONDS', 2.0)


class OldEndpoint(manager.CellEndpoint, version='1.4'):
    """The questions' topic of a conductor that serves no other."""

    def register(self, *call: Any, **more: Any) -> None:  # type: ignore[override]
        super().register(*call, **more)


class Conductor:
    """The servers of a conductor for one cell; an old one serves only one topic."""

    def __init__(self, world: World, url: str, *, is_old: bool = False) -> None:
        self.clock = clock.DatabaseClock(world.database)
        hearings = hearing.Hearings(world.database, gap_seconds=15)
        self.reports = report_buffer.ReportBuffer(
            world.agents, world.jobs, caches.Caches(world.database), hearings.note
        )
        interval = pace.Pace()
        cell = OldEndpoint if is_old else manager.CellEndpoint
        questions = cell(
            world.cell.uuid,
            world.inventory,
            world.agents,
            world.jobs,
            self.reports,
            lambda: None,
            first_answer=lambda: report_endpoint.first_answer(self.clock, interval),
        )
        self.endpoint = report_endpoint.ReportEndpoint(
            world.cell.uuid, self.reports, self.clock, interval
        )
        transport = rpc.connect(options.new(config_files=[]), url)
        self._servers = [rpc.Server(transport, rpcapi.TOPIC, 'conductor', [questions])]
        if not is_old:
            self._servers.append(
                rpc.Server(transport, rpcapi.REPORTS_TOPIC, 'conductor', [self.endpoint], THREADS)
            )

    def write(self) -> None:
        self.reports.write_states()
        self.reports.write_progress()
        self.reports.write_images()

    def __enter__(self) -> 'Conductor':
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.stop()


class Host:
    """A host whose agent reports its state as often as it may."""

    def __init__(self, host: str, url: str) -> None:
        self.host = host
        self.state: model.Json = {'host': host, 'agent_id': f'agent-{host}'}
        self.reporter = rpcapi.ConductorReporter(
            rpc.connect(options.new(config_files=[]), url), None, TIMEOUT_SECONDS, f'agent-{host}'
        )
        self.name = name.Name(host, f'agent-{host}')
        self.transfers = transfers.Transfers()
        self.reports = reports.Reports(
            self.name, self.reporter, self.transfers, reports.Interval(0.01, 0.1)
        )
        self._stopping = threading.Event()

    def register(self) -> None:
        self.reports.registered(self.reporter.register(self.state))

    def send(self) -> None:
        """Report the state once, whether or not it is answered."""
        self.reports.add_state(self.state)
        self.reports.send()

    def run(self) -> None:
        while not self._stopping.wait(0.01):
            self.send()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        self._stopping.clear()
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(TIMEOUT_SECONDS)


@contextlib.contextmanager
def _all_reporting(hosts: list[Host]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(host.reporting())
        yield


def _length(url: str) -> int:
    with kombu.Connection(url.replace('rabbit://', 'amqp://')) as connection:
        queue = kombu.Queue(rpcapi.REPORTS_TOPIC, channel=connection.channel())
        return int(queue.queue_declare(passive=True).message_count)


def test_absent_conductor_leaves_no_backlog(world: World, url: str) -> None:
    hosts = [Host(each, url) for each in HOSTS]
    with Conductor(world, url) as conductor:
        for host in hosts:
            host.register()
            host.send()
        conductor.write()
    dead, *living = hosts

    lengths = set[int]()
    with _all_reporting(hosts):
        wait_until(lambda: _length(url) == len(HOSTS), 'each has one report in the queue')
    with _all_reporting(living):
        for host in living:
            while host.reports._lost < 4:
                lengths.add(_length(url))
        # A new one may arrive before the broker has dropped the one before.
        assert max(lengths) <= 2 * len(HOSTS)
    wait_until(lambda: _length(url) == 0, 'the broker has dropped them')

    world.pass_time(150)
    with Conductor(world, url) as conductor, _all_reporting(living):

        def are_seen() -> bool:
            living[0].reporter.ask(TIMEOUT_SECONDS)  # heard on both topics
            conductor.write()
            return not world.agents.down([each.host for each in living])

        wait_until(are_seen, 'the living are up')
        wait_until(lambda: not any(host.reports._lost for host in living), 'all are answered')
        conductor.write()
        page = {each.agent.host: each.status for each in world.agents.list_page()}
        assert page.pop(dead.host) == 'unknown', 'its cell has been heard only for a moment'
        assert set(page.values()) == {'up'}


def test_report_from_backlog_raises_no_dead_host(world: World, url: str) -> None:
    with Conductor(world, url) as conductor:
        dead = Host('h1', url)
        dead.register()
        sent_at = conductor.clock.now() - datetime.timedelta(seconds=DOWN_SECONDS + 150)
    world.pass_time(DOWN_SECONDS + 150)
    client = rpc.Client(rpc.connect(options.new(config_files=[]), url), rpcapi.REPORTS_TOPIC)
    sent = {'now': f'{sent_at.isoformat()}Z', 'seconds': 1.0}
    for _ in range(100):  # casts, which the broker keeps
        client.cast(
            CTXT, 'report', '1.5', host='h1', agent_id='agent-h1', sent=sent, state=dead.state
        )

    with Conductor(world, url) as conductor:
        wait_until(lambda: _length(url) == 0, 'all are consumed')
    conductor.write()

    assert list(world.agents.down(['h1'])) == ['h1']


def test_question_answered_before_queued_reports(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(rpcapi, 'REPORT_SECONDS', TIMEOUT_SECONDS)

    def hang(*parts: object) -> None:
        begun.release()
        assert goes_on.wait(TIMEOUT_SECONDS)

    with Conductor(world, url) as conductor:
        host = Host('h1', url)
        host.register()
        world.planned(['h1'], ['i1'])
        world.claim('c1', 1)
        job = world.assign('c1', 'h1')
        assert job is not None
        monkeypatch.setattr(conductor.endpoint, '_read', hang)
        client = rpc.Client(rpc.connect(options.new(config_files=[]), url), rpcapi.REPORTS_TOPIC)
        sent = {'now': f'{conductor.clock.now().isoformat()}Z', 'seconds': 3600.0}
        for _ in range(50):
            client.cast(CTXT, 'report', '1.5', host='h2', agent_id='a', sent=sent)
        try:
            for _ in range(THREADS):
                assert begun.acquire(timeout=TIMEOUT_SECONDS)
            assert host.reporter.begin_job(job.job_id, job.epoch, True)
            assert host.reporter.serves_reports()
            assert not begun.acquire(blocking=False), 'reports still wait'
        finally:
            goes_on.set()


def test_agent_follows_conductors_of_any_release(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, 'LOOK_SECONDS', 0.1)
    host = Host('h1', url)
    registering = threading.Thread(target=_register_when_asked, args=(host,))
    registering.start()

    def is_heard(conductor: Conductor) -> bool:
        world.dead('h1')
        conductor.write()
        return not world.agents.down(['h1'])

    with Conductor(world, url, is_old=True) as conductor:
        host.register()
        with host.reporting():
            wait_until(lambda: is_heard(conductor), 'an old conductor hears it')
            assert host.reports._known is None
    with Conductor(world, url) as conductor, host.reporting():
        wait_until(lambda: host.reports._known is not None, 'it has found the new one')
        wait_until(lambda: is_heard(conductor), 'a new conductor hears it')
    with Conductor(world, url, is_old=True) as conductor, host.reporting():
        wait_until(lambda: host.reports._known is None, 'it has found the old one')
        wait_until(lambda: is_heard(conductor), 'an old conductor hears it again')
    host.name.close()
    registering.join(TIMEOUT_SECONDS)


def _register_when_asked(host: Host) -> None:
    while host.name.wait_doubtful():
        host.register()
