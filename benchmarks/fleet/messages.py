# SPDX-License-Identifier: Apache-2.0
"""Reports of a whole fleet to a conductor over a real broker, each process by itself.

The agents are those of the service, with simulated drivers. The reports are heartbeats, the
progress of transfers, and a backlog of both kinds that a lost conductor leaves.
"""

import contextlib
import dataclasses
import logging
import pathlib
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from benchmarks import observed
from benchmarks.fleet import agents as simulated, conductor as conductors, site
from benchmarks.fleet.cases import BROKER, Case
from benchmarks.fleet.computes import CACHED, SimulatedComputes
from benchmarks.fleet.site import FOR_EVER_SECONDS
from nova_precache import conf as precache_conf, exception, model, rpc
from nova_precache.cells import models as cell_models
from nova_precache.compute import rpcapi as compute_rpcapi
from nova_precache.conductor import rpcapi
from nova_precache.db import agents, jobs
from nova_precache.db.engine import models
from tools.waiting import wait_until

LOG = logging.getLogger(__name__)

PROCESSES = 4
IDLE_SECONDS = 5.0
FIRST_SECONDS = 10.0
DRAIN_SECONDS = 900.0
LOST_HOSTS = 100
HELD_SECONDS = 300.0
WATCHED_SECONDS = 600.0
ROUNDS = 3
_LATER = 10**6  # sequence numbers above those of the agents
_LOOK_SECONDS = 2.0
_ASK_SECONDS = 0.2
_RATE_BYTES = 10 * 1024**2
_LARGE_BYTES = 2**40


@dataclasses.dataclass(frozen=True)
class Flow:
    """The messages of some agents, until the conductor has handled all.

    :ivar share: of the reports that were due, how many the simulated agents could send
    :ivar cpu: of all messages, above that of the idle conductor
    """

    what: str
    seconds: float
    messages: int
    share: float
    cpu: conductors.Cpu

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def ms_per_message(self) -> conductors.Cpu:
        return self.cpu.times(1000 / max(1, self.messages))

    @property
    def cores(self) -> conductors.Cpu:
        """The cores for all reports that were due: more than one process has if too many."""
        return self.cpu.times(1 / self.seconds / self.share)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Reports of transfers, and what they cost once they have arrived.

    :ivar written_ms: CPU of a report in the conductor, without its message
    :ivar write_seconds: the longest time in which the reports of all transfers were written
    """

    transfers: int
    flow: Flow
    written_ms: float
    write_seconds: float


@dataclasses.dataclass(frozen=True)
class Backlog:
    """What a time without a conductor leaves, and what follows.

    :ivar messages: those that wait for a conductor at the end of that time
    :ivar broker_bytes: resident memory of the broker then, above that before
    :ivar question_seconds: the longest that an agent waited for an answer from then on
    :ivar lost_hosts: hosts that were lost meanwhile
    :ivar lost_up_seconds: how long, once a conductor served again, one of them counted as up
    :ivar flapped: the other hosts that counted as down at some time
    :ivar down_seconds: ``service_down_time``
    """

    silence_seconds: float
    messages: int
    broker_bytes: int
    questions: int
    question_seconds: float
    lost_hosts: int
    lost_up_seconds: float
    flapped: int
    down_seconds: float = conductors.DEFAULT.down_seconds


@dataclasses.dataclass(frozen=True)
class Messages:
    """Results of one fleet."""

    hosts: int
    registrations: Flow
    heartbeats: Flow
    progress: Sequence[Progress]
    backlog: Backlog


def from_json(found: Mapping[str, Any]) -> Messages:
    progress = [Progress(**{**each, 'flow': _flow(each['flow'])}) for each in found['progress']]
    flows = {name: _flow(found[name]) for name in ('registrations', 'heartbeats')}
    return Messages(
        **{**found, **flows, 'progress': progress, 'backlog': Backlog(**found['backlog'])}
    )


def _flow(found: Mapping[str, Any]) -> Flow:
    return Flow(**{**found, 'cpu': conductors.Cpu(**found['cpu'])})


def measure(
    database: str,
    hosts: int,
    transfers: Sequence[int],
    seconds: float,
    silence_seconds: float,
    database_url: str,
    broker_url: str,
    servers: Mapping[str, int],
    processes: int = PROCESSES,
    intervals: conductors.Intervals = conductors.DEFAULT,
) -> Messages:
    """Measure the reports of a fleet.

    :param transfers: numbers of hosts that transfer an image
    :param seconds: of the reports of each kind
    :param servers: the processes of the database and the broker
    """
    case = Case(database, hosts, cells=1, parallel=max(transfers))
    with contextlib.ExitStack() as running:
        world = running.enter_context(site.opened(case, database_url, have_agents=False))
        directory = pathlib.Path(running.enter_context(tempfile.TemporaryDirectory()))
        _set_url_of_cell(world, broker_url)
        images = running.enter_context(conductors.Images())
        conductor = running.enter_context(
            conductors.Conductor(
                directory / 'conductor',
                database_url,
                broker_url,
                images.url,
                intervals=intervals,
            )
        )
        fleet = running.enter_context(
            simulated.Agents(broker_url, world.hosts, processes, intervals)
        )
        transport = _connect(broker_url)
        running.callback(transport.retire)
        reporter = rpcapi.ConductorReporter(transport, None, DRAIN_SECONDS)
        bench = _Bench(world, conductor, fleet, reporter, servers, seconds, intervals)
        registrations = bench.register()
        bench.flow('first reports', world.hosts, FIRST_SECONDS)
        heartbeats = bench.flow(f'heartbeats of {hosts:,} hosts', world.hosts)
        backlog = bench.backlog(silence_seconds)
        computes = HeldComputes(world)
        running.enter_context(computes.running(broker_url))
        progress = [bench.progress(count, computes) for count in sorted(transfers)]
        return Messages(hosts, registrations, heartbeats, progress, backlog)


def measure_with_interval(report_interval: float, **given: Any) -> Messages:
    """Measure as :func:`measure`, with another ``report_interval`` than the default."""
    usual = conductors.DEFAULT
    down_seconds = usual.down_seconds / usual.report_seconds * report_interval
    intervals = conductors.Intervals(report_interval, down_seconds, usual.write_seconds)
    return measure(**given, intervals=intervals)


class _Bench:
    def __init__(
        self,
        world: site.World,
        conductor: conductors.Conductor,
        fleet: simulated.Agents,
        reporter: rpcapi.ConductorReporter,
        servers: Mapping[str, int],
        seconds: float,
        intervals: conductors.Intervals,
    ) -> None:
        self._world = world
        self._conductor = conductor
        self._fleet = fleet
        self._reporter = reporter
        self._servers = servers
        self._seconds = seconds
        self._intervals = intervals
        self._idle = conductors.Cpu(0, 0, 0)

    def register(self) -> Flow:
        """Register all agents, then look what an idle conductor takes."""
        began, before = time.monotonic(), self._cpu()
        self._fleet.start()
        seconds, cpu = time.monotonic() - began, self._cpu().since(before)
        before = self._cpu()
        time.sleep(IDLE_SECONDS)
        self._idle = self._cpu().since(before).times(1 / IDLE_SECONDS)
        LOG.info('%d agents are registered after %.0f s', len(self._fleet.hosts), seconds)
        return Flow('registrations', seconds, len(self._fleet.hosts), 1.0, cpu)

    def flow(self, what: str, hosts: Sequence[str], seconds: float | None = None) -> Flow:
        """Measure some agents that report, until all their reports are written."""
        began, before = time.monotonic(), self._cpu()
        self._fleet.report(hosts)
        time.sleep(seconds or self._seconds)
        sending, sent = time.monotonic() - began, self._fleet.rest()
        self._reporter.ask(DRAIN_SECONDS)  # answered after what was sent before
        time.sleep(self._intervals.write_seconds + 1)
        spent = self._cpu().since(before)
        idle = self._idle.times(time.monotonic() - began)
        if not sent.done:
            raise RuntimeError(f'No agent has sent any {what}')
        LOG.info('%s: %d messages, %.0f %% of those due', what, sent.count, sent.share * 100)
        return Flow(what, sending, sent.count, sent.share, spent.since(idle))

    def backlog(self, silence_seconds: float) -> Backlog:
        """Kill the conductor for some time, in the middle of which some hosts are lost."""
        lost = self._fleet.hosts[: min(LOST_HOSTS, len(self._fleet.hosts) // 2)]
        self._fleet.report(self._fleet.hosts)
        time.sleep(self._intervals.report_seconds)
        broker = self._servers[BROKER]
        bytes_before = observed.memory(broker).resident_bytes
        self._conductor.kill()
        time.sleep(silence_seconds / 2)
        self._fleet.silence(lost)
        time.sleep(silence_seconds / 2)
        messages = self._conductor.queues.messages()
        broker_bytes = observed.memory(broker).resident_bytes - bytes_before
        LOG.info('%d messages wait for a conductor', messages)
        self._conductor.restart()
        asking = _Asking(self._reporter)
        store = agents.Agents(self._world.parts.database, self._intervals.down_seconds)
        seen = _watch(store, self._fleet.hosts, lost)
        answered = asking.stop()
        self._fleet.rest()
        self._reporter.ask(DRAIN_SECONDS)
        return Backlog(
            silence_seconds,
            messages,
            broker_bytes,
            len(answered),
            max(answered),
            len(lost),
            *seen,
            down_seconds=self._intervals.down_seconds,
        )

    def progress(self, count: int, computes: 'HeldComputes') -> Progress:
        """Measure the reports of as many hosts that transfer an image."""
        hosts = self._fleet.hosts[:count]
        known = set(computes.calls)
        self._conductor.kill()  # it would call a host, too
        computes.begin(hosts)
        self._conductor.restart()
        calls = list(computes.calls.values())
        self._fleet.transfer([call for call in calls if call[0] not in known])
        LOG.info('%d transfers run', len(calls))
        self.flow('first reports', hosts, FIRST_SECONDS)  # agents adapt to the answers
        flow = self.flow(f'reports of {count:,} transfers', hosts)
        return Progress(count, flow, *_write(self._world, calls))

    def _cpu(self) -> conductors.Cpu:
        return conductors.cpu(self._conductor.pid, self._servers)


class HeldComputes(SimulatedComputes):
    """The computes of another conductor, whose calls the simulated agents get and do not end.

    So the measured conductor gets their reports, and waits for no call itself.

    :ivar calls: by host: the host, the id of the job, the epoch, and the id of the image
    """

    def __init__(self, world: site.World) -> None:
        super().__init__(world.parts.jobs)
        self._world = world
        self.calls: dict[str, tuple[str, str, int, str]] = {}
        self._over = threading.Event()

    @contextlib.contextmanager
    def running(self, broker_url: str) -> Iterator[None]:
        """Run their conductor, which does not hear the agents."""
        self._world.simulate(self)
        self._world.parts.conf.set_override('cell_refresh_seconds', FOR_EVER_SECONDS, 'conductor')
        _set_url_of_cell(self._world, site.IN_MEMORY)
        with self._world.conducting():
            _set_url_of_cell(self._world, broker_url)
            try:
                yield
            finally:
                self._over.set()

    def begin(self, hosts: Sequence[str]) -> None:
        """Request an image for some hosts, and wait until each has been called."""
        self._world.ask(self._world.new_request(1, hosts=hosts, image_bytes=_LARGE_BYTES))
        wait_until(lambda: self.calls.keys() >= set(hosts), 'the hosts are called', HELD_SECONDS)

    def _transfer(self, host: str, call: compute_rpcapi.CacheImageCall) -> model.ImageOutcome:
        self.calls.setdefault(host, (host, call.job_id, call.epoch, call.image_id))
        self._over.wait()
        return CACHED


class _Asking:
    """Asks a question again and again, as a compute does before its first byte."""

    def __init__(self, reporter: rpcapi.ConductorReporter) -> None:
        self._reporter = reporter
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name='asking', daemon=True)
        self._answered: list[float] = []
        self._thread.start()

    def stop(self) -> Sequence[float]:
        """Return the seconds until each answer."""
        self._over.set()
        self._thread.join()
        return self._answered

    def _ask(self) -> None:
        while not self._over.wait(_ASK_SECONDS):
            began = time.monotonic()
            with contextlib.suppress(exception.CellUnreachable):  # as long as that took
                self._reporter.begin_job(str(uuid.uuid4()), 1, starts=True)
            self._answered.append(time.monotonic() - began)


def _watch(store: agents.Agents, hosts: Sequence[str], lost: Collection[str]) -> tuple[float, int]:
    """Look until all lost hosts count as down; return how long that took.

    :returns: also the number of other hosts that counted as down meanwhile
    """
    began, gone, flapped = time.monotonic(), set(lost), set[str]()
    while True:
        down = store.down(hosts).keys()
        flapped |= down - gone
        passed = time.monotonic() - began
        if down >= gone or passed > WATCHED_SECONDS:
            return passed, len(flapped)
        time.sleep(_LOOK_SECONDS)


def _write(world: site.World, calls: Sequence[tuple[str, str, int, str]]) -> tuple[float, float]:
    """Write reports of all transfers as a conductor does that has them from its broker.

    :returns: the CPU in milliseconds of a report, and the seconds of the longest write
    """
    reports, longest = world.parts.reports, 0.0
    began = time.process_time()
    for number in range(_LATER, _LATER + ROUNDS):
        progress = model.Progress(
            model.TaskStatus.DOWNLOADING, number * _RATE_BYTES, _LARGE_BYTES, _RATE_BYTES
        )
        for _, job_id, epoch, _ in calls:
            reports.add_progress(jobs.ProgressReport(job_id, epoch, number, progress))
        at = time.monotonic()
        while reports.sizes()['progress']:
            reports.write_progress()
        longest = max(longest, time.monotonic() - at)
    spent = time.process_time() - began
    row = models.Job
    written = sa.select(sa.func.count()).where(row.progress_sequence == number)
    with world.parts.database.reader() as session:
        if (count := session.scalars(written).one()) != len(calls):
            raise RuntimeError(f'{count} of {len(calls)} reports were written')
    return spent * 1000 / ROUNDS / len(calls), longest


def _set_url_of_cell(world: site.World, transport_url: str) -> None:
    cell = cell_models.CellMapping
    at = sa.update(cell).where(cell.name == 'cell1').values(transport_url=transport_url)
    world.parts.database.write(lambda session: session.execute(at))


def _connect(transport_url: str) -> rpc.Transport:
    conf = precache_conf.new([], [])
    conf.set_override('transport_url', transport_url)
    return rpc.connect(conf)
