# SPDX-License-Identifier: Apache-2.0
"""Agents behind a real broker: those of the service, many in a process, with simulated drivers.

Each is built by the wiring of the service and sends what its code sends. Only three parts are
replaced: all agents of a process share its connections, as a connection a host would take
thousands; their periodic work runs in shared threads; and the agents that no conductor calls
have no RPC server.
"""

import collections
import dataclasses
import functools
import heapq
import itertools
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from types import ModuleType
from typing import Any, ClassVar, Self
from unittest import mock

from benchmarks.fleet.computes import IMAGE_BYTES
from benchmarks.fleet.conductor import DEFAULT, Intervals
from nova_precache import concurrency, conf as precache_conf, context, model, rpc
from nova_precache.compute import agent, manager, metrics as compute_metrics, novarpc
from nova_precache.image import service
from nova_precache.standalone import process
from nova_precache.transfer_control import Control
from nova_precache.virt import driver
from nova_precache.wiring import compute as wiring_compute, process as parts_of_process

LOG = logging.getLogger(__name__)

STARTED_AT_ONCE = 16
STOP_SECONDS = 30.0
START_SECONDS = 600.0
CALL_SECONDS = 120.0
SELDOM_SECONDS = 300.0  # work with a longer interval is not due while it is measured
CONNECTIONS = 64
_LOOK_SECONDS = 0.02
_ADDED_THREADS = 8
_ADVANCE_SECONDS = 1.0
_STACK_BYTES = 512 * 1024
_RATE_BYTES = 10 * 1024**2
_LARGE_BYTES = 2**40  # does not end while it is measured
_COMMAND = 'from benchmarks.fleet import agents; agents.main()'
_CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}
state_path = {directory}
report_interval = {report_seconds:g}
service_down_time = {down_seconds:g}
[glance]
endpoint_override = http://127.0.0.1:9
[oslo_messaging_rabbit]
rpc_conn_pool_size = {connections}
"""


@dataclasses.dataclass(frozen=True)
class Sent:
    """What some agents have done since their reports began.

    :ivar messages: the number of messages by their RPC method
    :ivar due: how often their periodic work was due
    :ivar done: how often it was done; less than ``due`` if the machine is too slow for them
    """

    messages: Mapping[str, int]
    due: float
    done: int

    @property
    def count(self) -> int:
        return sum(self.messages.values())

    @property
    def share(self) -> float:
        """The share of the due work that was done."""
        return min(1.0, self.done / self.due) if self.due else 1.0


def total(parts: Iterable[Sent]) -> Sent:
    messages: collections.Counter[str] = collections.Counter()
    due, done = 0.0, 0
    for each in parts:
        messages.update(each.messages)
        due, done = due + each.due, done + each.done
    return Sent(dict(messages), due, done)


class Agents:
    """The running processes of the agents of some hosts.

    :param serves: whether conductors can call them; else a call is handed to them by ``transfer``
    """

    def __init__(
        self,
        transport_url: str,
        hosts: Sequence[str],
        processes: int,
        intervals: Intervals = DEFAULT,
        *,
        serves: bool = False,
    ) -> None:
        self.hosts = hosts
        shares = [hosts[number::processes] for number in range(processes)]
        self._of_host = {host: number for number, share in enumerate(shares) for host in share}
        self._processes = [
            subprocess.Popen(
                process.dies_with_parent([sys.executable, '-W', 'ignore', '-c', _COMMAND], 'KILL'),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in shares
        ]
        common_to_all = {
            'transport_url': transport_url,
            'report_seconds': intervals.report_seconds,
            'down_seconds': intervals.down_seconds,
            'serves': serves,
        }
        self._order([{**common_to_all, 'hosts': each} for each in shares])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._processes:
            assert each.stdin is not None
            each.stdin.close()  # ends the process
        for each in self._processes:
            with each:  # closes its output
                try:
                    each.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    each.kill()

    def start(self) -> None:
        """Start all agents, and wait until each is registered."""
        self._order_all({'do': 'start'})

    def report(self, hosts: Iterable[str]) -> None:
        """Run the periodic work of these hosts alone, spread over its intervals."""
        shares: list[list[str]] = [[] for _ in self._processes]
        for host in hosts:
            shares[self._of_host[host]].append(host)
        self._order([{'do': 'report', 'hosts': each} for each in shares])

    def silence(self, hosts: Sequence[str]) -> None:
        """End the reports of some hosts, as if their machines were lost."""
        self._order_all({'do': 'silence', 'hosts': list(hosts)})

    def rest(self) -> Sent:
        """End all reports, wait for those that are being sent, and return what was sent."""
        return total(Sent(**each) for each in self._order_all({'do': 'rest'}))

    def transfer(self, calls: Sequence[tuple[str, str, int, str]]) -> None:
        """Hand calls to hosts, and wait until their transfers run, which do not end.

        :param calls: the host, the id of the job, the epoch, and the id of the image
        """
        shares: list[list[Any]] = [[] for _ in self._processes]
        for call in calls:
            shares[self._of_host[call[0]]].append(call)
        self._order([{'do': 'transfer', 'calls': each} for each in shares])

    def hold(self, *, holds: bool) -> None:
        """Choose whether transfers wait, or end at once; those that wait end now."""
        self._order_all({'do': 'hold', 'holds': holds})

    def held(self) -> int:
        """Return the number of transfers that wait."""
        return sum(each['held'] for each in self._order_all({'do': 'held'}))

    def _order_all(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._order([order] * len(self._processes))

    def _order(self, orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        for each, order in zip(self._processes, orders, strict=True):
            assert each.stdin is not None
            each.stdin.write(json.dumps(order) + '\n')
            each.stdin.flush()
        return [self._answer(each) for each in self._processes]

    def _answer(self, of: 'subprocess.Popen[str]') -> dict[str, Any]:
        assert of.stdout is not None
        line = of.stdout.readline()
        if not line:
            raise RuntimeError('A process of simulated agents has ended')
        return dict(json.loads(line))


class SimulatedDriver(driver.ComputeDriver):
    """Caches any image at once, or holds it and reports progress while the process says so."""

    capabilities = {'supports_cache_image': True}  # noqa: RUF012

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        HELD.wait(progress)
        return model.CacheResult(existing=False, bytes_done=IMAGE_BYTES, bytes_total=IMAGE_BYTES)


class _Held:
    """The transfers of a process that wait, and their progress.

    :ivar slots: one more for each transfer that begins to wait
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: threading.Event | None = None
        self._running: dict[int, model.ProgressCallback] = {}
        self._numbers = itertools.count()
        self.slots = threading.Semaphore(STARTED_AT_ONCE)

    def hold(self, *, holds: bool) -> None:
        with self._lock:
            if holds:
                self._free = self._free or threading.Event()
            elif self._free is not None:
                self._free.set()
                self._free = None

    def wait(self, progress: model.ProgressCallback) -> None:
        with self._lock:
            free, number = self._free, next(self._numbers)
            if free is None:
                return
            self._running[number] = progress
        self.slots.release()
        free.wait()
        with self._lock:
            del self._running[number]

    def __len__(self) -> int:
        with self._lock:
            return len(self._running)

    def advance(self) -> None:
        """Advance all of them for ever."""
        for step in itertools.count(1):
            time.sleep(_ADVANCE_SECONDS)
            done = int(step * _ADVANCE_SECONDS * _RATE_BYTES)
            now = model.Progress(model.TaskStatus.DOWNLOADING, done, _LARGE_BYTES)
            with self._lock:
                running = list(self._running.values())
            for progress in running:
                progress(now)


HELD = _Held()


class _NovaCompute(rpc.Endpoint, version='6.5'):
    """A stock nova-compute, which caches any image at once."""

    def cache_images(self, ctxt: object, image_ids: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(image_ids, 'cached')


class _Client(rpc.Client):
    """Counts the messages of this process by method."""

    _lock = threading.Lock()
    sent: ClassVar[collections.Counter[str]] = collections.Counter()

    def call(
        self, ctxt: context.RequestContext, method: str, version: str, *more: Any, **rest: Any
    ) -> Any:
        self._note(method)
        return super().call(ctxt, method, version, *more, **rest)

    def cast(
        self, ctxt: context.RequestContext, method: str, version: str, *more: Any, **rest: Any
    ) -> None:
        self._note(method)
        super().cast(ctxt, method, version, *more, **rest)

    @classmethod
    def _note(cls, method: str) -> None:
        with cls._lock:
            cls.sent[method] += 1

    @classmethod
    def take(cls) -> dict[str, int]:
        """Return the numbers since the last time."""
        with cls._lock:
            found, cls.sent = dict(cls.sent), collections.Counter()
        return found


class _Server(rpc.Server):
    """Serves nothing: calls are handed to the endpoint instead."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Periodic(concurrency.Periodic):
    """Keeps the periodic work of an agent for the shared threads."""

    def __init__(self, name: str, work: Iterable[tuple[float, concurrency.Work]]) -> None:
        self.work = [each for each in work if each[0] <= SELDOM_SECONDS]

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Aside:
    """Runs work in a thread of its own, one run at a time.

    It waits for other work of its host, which may have ended by then.
    """

    def __init__(self, work: concurrency.Work) -> None:
        self._work = work
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = concurrency.in_background(self._work, 'aside')


@dataclasses.dataclass(order=True)
class _Turn:
    at: float
    number: int
    seconds: float = dataclasses.field(compare=False)
    work: concurrency.Work = dataclasses.field(compare=False)
    host: str = dataclasses.field(compare=False)
    round: int = dataclasses.field(compare=False)


class Turns:
    """Runs the periodic work of many hosts in shared threads.

    One thread at a time waits for the next turn, and then works itself. More threads are added
    if all wait for answers. A process without CPU gets none: more threads would not help it, and
    it cannot keep its own time.

    :ivar punctual_seconds: how late a thread may wake up that has the CPU which it needs
    """

    punctual_seconds = 0.01

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leading = threading.Lock()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._turns: list[_Turn] = []
        self._silent: set[str] = set()
        self._numbers = itertools.count()
        self._round = self._threads = self._free = self._done = 0
        self._due_each_second: dict[str, float] = {}
        self._due = 0.0
        self._since = clock()

    def begin(self, work: Mapping[str, Sequence[tuple[float, concurrency.Work]]]) -> None:
        """Begin the work of these hosts, which ends that of the others."""
        with self._lock:
            self._round += 1
            self._done, self._due, self._since = 0, 0.0, self._clock()
            self._silent = set()
            self._due_each_second = {
                host: sum(1 / seconds for seconds, _ in own) for host, own in work.items()
            }
            self._turns = [
                self._turn(self._since + seconds * number / len(work), seconds, each, host)
                for number, (host, own) in enumerate(work.items())
                for seconds, each in own
            ]
            heapq.heapify(self._turns)
            if not self._threads:
                self._add_threads()
                concurrency.in_background(self._grow, 'turns-grow')

    def silence(self, hosts: Iterable[str]) -> None:
        with self._lock:
            self._note_due()
            self._silent.update(hosts)
            for host in self._silent:
                self._due_each_second.pop(host, None)

    def rest(self) -> tuple[float, int]:
        """End all work, wait for what is running, and return how often it was due and done."""
        with self._lock:
            self._note_due()
            self._round += 1
            self._turns = []
            self._due_each_second = {}
            self._idle.wait_for(lambda: self._free == self._threads, START_SECONDS)
            return self._due, self._done

    def _note_due(self) -> None:
        now = self._clock()
        self._due += (now - self._since) * sum(self._due_each_second.values())
        self._since = now

    def _turn(self, at: float, seconds: float, work: concurrency.Work, host: str) -> _Turn:
        return _Turn(at, next(self._numbers), seconds, work, host, self._round)

    def _add_threads(self) -> None:
        for _ in range(_ADDED_THREADS):
            concurrency.in_background(self._serve, 'turns')
        self._threads += _ADDED_THREADS
        self._free += _ADDED_THREADS

    def _grow(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(_LOOK_SECONDS)
            late = time.monotonic() - began - _LOOK_SECONDS
            with self._lock:
                if not self._free and late <= self.punctual_seconds:
                    self._add_threads()

    def _serve(self) -> None:
        while True:
            with self._leading:
                turn = self._next()
            try:
                turn.work()
            except Exception:
                LOG.exception('Periodic work of host %s failed', turn.host)
            with self._lock:
                self._free += 1
                self._done += 1
                if turn.round == self._round and turn.host not in self._silent:
                    at = max(turn.at + turn.seconds, self._clock())
                    again = self._turn(at, turn.seconds, turn.work, turn.host)
                    heapq.heappush(self._turns, again)
                self._idle.notify_all()

    def _next(self) -> _Turn:
        """Wait for the next turn, and take it."""
        while True:
            with self._lock:
                now = self._clock()
                pause = self._turns[0].at - now if self._turns else _LOOK_SECONDS
                if pause <= 0:
                    turn = heapq.heappop(self._turns)
                    if turn.host in self._silent:
                        continue
                    self._free -= 1
                    return turn
            time.sleep(min(pause, _LOOK_SECONDS))


class _Process:
    """The agents of one process, and the orders that it takes."""

    def __init__(
        self,
        directory: pathlib.Path,
        transport_url: str,
        hosts: Sequence[str],
        report_seconds: float,
        down_seconds: float,
        *,
        serves: bool,
    ) -> None:
        self._directory = directory
        self._hosts = hosts
        self._serves = serves
        configuration = directory / 'nova-precache.conf'
        configuration.write_text(
            _CONFIGURATION.format(
                transport_url=transport_url,
                directory=directory,
                report_seconds=report_seconds,
                down_seconds=down_seconds,
                connections=CONNECTIONS,
            )
        )
        self._conf = precache_conf.new([], [str(configuration)])
        self._transport = rpc.connect(self._conf)
        self._metrics = compute_metrics.ComputeMetrics(
            parts_of_process.exposition(self._conf).registry
        )
        self._work: dict[str, Sequence[tuple[float, concurrency.Work]]] = {}
        self._endpoints: dict[str, manager.ComputeManager] = {}
        self._turns = Turns()
        self._replace_parts()

    def _replace_parts(self) -> None:
        for module, name, part in (
            (rpc, 'Client', _Client),
            (rpc, 'Server', rpc.Server if self._serves else _Server),
            (rpc, 'connect_own', lambda conf, **options: self._transport),
            (driver, 'load_driver', lambda name, conf, chooser: SimulatedDriver(conf)),
            (concurrency, 'Periodic', _Periodic),
        ):
            mock.patch.object(module, name, part).start()

    def do(self, order: dict[str, Any]) -> dict[str, Any]:
        match order['do']:
            case 'start':
                self._start()
            case 'report':
                _Client.take()
                self._turns.begin({host: self._work[host] for host in order['hosts']})
            case 'silence':
                self._turns.silence(order['hosts'])
            case 'rest':
                due, done = self._turns.rest()
                return {'messages': _Client.take(), 'due': due, 'done': done}
            case 'transfer':
                self._transfer(order['calls'])
            case 'hold':
                HELD.hold(holds=order['holds'])
            case 'held':
                return {'held': len(HELD)}
        return {}

    def _start(self) -> None:
        if not self._serves:
            with futures.ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
                list(pool.map(_wait_registered, map(self._new_agent, self._hosts)))
            return
        for host in self._hosts:  # a server reads its name from the shared configuration
            _wait_registered(self._new_agent(host))
            rpc.Server(self._transport, novarpc.TOPIC, host, [_NovaCompute()]).start()

    def _new_agent(self, host: str) -> agent.ComputeAgent:
        """Build the agent of a host, and keep what it would do in threads of its own."""
        self._conf.set_override('host', host)
        self._conf.set_override('state_path', str(self._directory / host))
        periodic, endpoints = _Made(concurrency, 'Periodic'), _Made(manager, 'ComputeManager')
        with periodic, endpoints:
            new = wiring_compute.new_agent(self._conf, self._metrics)
        self._work[host] = [
            (seconds, Aside(work) if work == new.report_images else work)
            for each in periodic.made
            for seconds, work in each.work
        ]
        (self._endpoints[host],) = endpoints.made
        return new

    def _transfer(self, calls: Iterable[tuple[str, str, int, str]]) -> None:
        """Hand over the calls, a few at a time until their transfers wait."""
        HELD.hold(holds=True)
        for host, job_id, epoch, image_id in calls:
            _take_slot()
            work = functools.partial(
                self._endpoints[host].cache_image,
                context.admin_context(),
                job_id=job_id,
                epoch=epoch,
                image_id=image_id,
            )
            concurrency.in_background(work, f'call-{host}')
        for _ in range(STARTED_AT_ONCE):
            _take_slot()
        HELD.slots.release(STARTED_AT_ONCE)


class _Made:
    """Collects the objects that a class of a module makes meanwhile."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.made: list[Any] = []
        self._class = getattr(module, name)
        self._patch = mock.patch.object(module, name, self._make)

    def _make(self, *given: Any, **named: Any) -> object:
        self.made.append(self._class(*given, **named))
        return self.made[-1]

    def __enter__(self) -> None:
        self._patch.start()

    def __exit__(self, *error: object) -> None:
        self._patch.stop()


def _take_slot() -> None:
    if not HELD.slots.acquire(timeout=CALL_SECONDS):
        raise RuntimeError(f'A transfer has not begun within {CALL_SECONDS:g} s')


def _wait_registered(new: agent.ComputeAgent) -> None:
    new.start()
    if not new.wait_registered(START_SECONDS):
        raise RuntimeError(f'The agent of host {new.host} was not registered')


def main() -> None:
    """Take orders, one a line, until the input ends."""
    logging.basicConfig(level=logging.ERROR)
    threading.stack_size(_STACK_BYTES)
    concurrency.in_background(HELD.advance, 'advance')
    first = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix='fleet-agents-') as directory:
        running = _Process(pathlib.Path(directory), **first)
        print('{}', flush=True)
        for line in sys.stdin:
            print(json.dumps(running.do(json.loads(line))), flush=True)
    os._exit(0)  # without waiting for the connections and threads
