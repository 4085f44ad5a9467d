# SPDX-License-Identifier: Apache-2.0
"""Calls of a conductor to its computes over a real broker, beside those of Nova's conductor.

Both conductors call the same hosts, through the same broker, and each has a MariaDB. The
agents are those of the service, with simulated drivers; the stock nova-computes answer at once.
"""

import contextlib
import dataclasses
import logging
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import observed
from benchmarks.fleet import agents as simulated, conductor as conductors, nova, site
from benchmarks.fleet.cases import Case
from nova_precache import model
from tools.waiting import wait_until

LOG = logging.getLogger(__name__)

PROCESSES = 2
IDLE_SECONDS = 5.0
SETTLE_SECONDS = 2.0
WAITING_SECONDS = 120.0
FIRST_HOSTS = 16


@dataclasses.dataclass(frozen=True)
class Called:
    """One request for all hosts, with our conductor or with Nova's.

    :ivar cpu: that of ours above that of the idle conductor
    """

    images: int
    wall_seconds: float
    cpu: conductors.Cpu


@dataclasses.dataclass(frozen=True)
class Calls:
    """Results of one fleet.

    :ivar novas: as ``ours``, with a stock Nova; empty if it was not measured
    :ivar waiting_bytes: resident memory of the conductor for each call that waits
    """

    hosts: int
    ours: Sequence[Called]
    novas: Sequence[Called]
    waiting_bytes: float


def from_json(found: Mapping[str, Any]) -> Calls:
    called = {name: list(map(_called, found[name])) for name in ('ours', 'novas')}
    return Calls(**{**found, **called})


def _called(found: Mapping[str, Any]) -> Called:
    return Called(**{**found, 'cpu': conductors.Cpu(**found['cpu'])})


def measure(
    database: str,
    hosts: int,
    images: Sequence[int],
    parallel: int,
    database_url: str,
    broker_url: str,
    servers: Mapping[str, int],
    nova_urls: tuple[str, str] | None = None,
    processes: int = PROCESSES,
) -> Calls:
    """Call all hosts for each number of images.

    :param servers: the processes of the database and the broker
    :param nova_urls: empty databases of a stock Nova, its API's and its cell's; None: without it
    """
    case = Case(database, hosts, cells=1, parallel=parallel)
    with contextlib.ExitStack() as running:
        world = running.enter_context(
            site.opened(case, database_url, broker_url, have_agents=False)
        )
        running.callback(world.parts.api_transport.retire)
        directory = pathlib.Path(running.enter_context(tempfile.TemporaryDirectory()))
        glance = running.enter_context(conductors.Images())

        def conductor(name: str, at_once: int) -> conductors.Conductor:
            own = directory / name
            return conductors.Conductor(own, database_url, broker_url, glance.url, at_once)

        with conductor('some', parallel) as one:
            fleet = running.enter_context(
                simulated.Agents(broker_url, world.hosts, processes, serves=True)
            )
            fleet.start()
            fleet.report(world.hosts)
            bench = _Bench(world, one, servers)
            ours = [bench.call(each) for each in images]
        with conductor('all', hosts) as other:
            waiting_bytes = _waiting_bytes(_Bench(world, other, servers), fleet)
        novas = []
        if nova_urls is not None:
            place = nova.Site(broker_url, *nova_urls, parallel, servers)
            novas = [_of_nova(each) for each in nova.measure_calls(hosts, images, place)]
        return Calls(hosts, ours, novas, waiting_bytes)


class _Bench:
    def __init__(
        self, world: site.World, conductor: conductors.Conductor, servers: Mapping[str, int]
    ) -> None:
        self._world = world
        self.conductor = conductor
        self._servers = servers
        self.request(1, world.hosts[:FIRST_HOSTS])  # one-time work
        time.sleep(SETTLE_SECONDS)
        before = self._cpu()
        time.sleep(IDLE_SECONDS)
        self._idle = self._cpu().since(before).times(1 / IDLE_SECONDS)

    def call(self, images: int) -> Called:
        began, before = time.monotonic(), self._cpu()
        self.request(images, self._world.hosts)
        seconds = time.monotonic() - began
        spent = self._cpu().since(before)
        LOG.info('%d images on %d hosts: %.1f s', images, len(self._world.hosts), seconds)
        return Called(images, seconds, spent.since(self._idle.times(seconds)))

    def request(self, images: int, hosts: Sequence[str]) -> None:
        """Request images for some hosts, and wait until each has them."""
        self.wait(self.ask(images, hosts), images * len(hosts))

    def ask(self, images: int, hosts: Sequence[str]) -> str:
        return self._world.ask(self._world.new_request(images, hosts=hosts)).id

    def wait(self, request_id: str, tasks: int) -> None:
        poll = site.StatusPoll(self._world.parts.database, request_id)
        poll.until_ended()
        poll.close()
        counts = dict(self._world.parts.requests.get(request_id).counts)
        if counts != {str(model.TaskStatus.CACHED): tasks}:
            raise RuntimeError(f'The request ended with {counts}')

    def _cpu(self) -> conductors.Cpu:
        return conductors.cpu(self.conductor.pid, self._servers)


def _of_nova(found: nova.Nova) -> Called:
    spent = conductors.Cpu(found.cpu_seconds, found.database_cpu_seconds, found.broker_cpu_seconds)
    return Called(found.images, found.wall_seconds, spent)


def _waiting_bytes(bench: _Bench, fleet: simulated.Agents) -> float:
    """Return the memory of a call while all hosts are called and none has answered."""
    pid = bench.conductor.pid
    before = observed.memory(pid).resident_bytes
    fleet.hold(holds=True)
    request_id = bench.ask(1, fleet.hosts)
    count = len(fleet.hosts)
    wait_until(lambda: fleet.held() == count, 'all calls wait', WAITING_SECONDS)
    time.sleep(SETTLE_SECONDS)
    taken = observed.memory(pid).resident_bytes - before
    fleet.hold(holds=False)
    bench.wait(request_id, count)
    return taken / count
