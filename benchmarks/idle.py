# SPDX-License-Identifier: Apache-2.0
"""Measures what an idle agent and an idle conductor take on their machines and of a RabbitMQ.

Both run as commands. More agents, with a driver that caches in memory, run in one more process,
to measure what each of them takes of the broker.
"""

import dataclasses
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import psutil

from benchmarks import observed
from nova_precache import conf as precache_conf
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from nova_precache.standalone import process
from tools import waiting
from tools.servers import rabbitmq

CONDUCTOR, AGENT = 'nova-precache-conductor', 'nova-precache-compute'
BIN = pathlib.Path(sys.executable).parent
REPORT_SECONDS = 1
_WHAT_IS_MEASURED = ('agents', 'settle-seconds')


@dataclasses.dataclass(frozen=True)
class Idle:
    """What an idle process takes.

    :ivar unique_bytes: memory that no other process shares
    :ivar queues: from which it receives messages
    """

    resident_bytes: int
    unique_bytes: int
    threads: int
    connections: int
    channels: int
    queues: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Broker:
    """What a RabbitMQ has in use."""

    memory_bytes: int
    sockets: int
    files: int
    connections: int
    channels: int
    queues: int


class Site:
    """A conductor and an agent of the one cell, on a RabbitMQ and an SQLite."""

    def __init__(self, directory: pathlib.Path, broker: rabbitmq.RabbitMQ) -> None:
        self._directory = directory
        self._broker = broker
        self._urls = {name: broker.make_vhost() for name in (CONDUCTOR, AGENT)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> 'Site':
        for name in (CONDUCTOR, AGENT):
            self._file(name).write_text(self._configuration(name))
        database = session.connect(precache_conf.new(['--config-file', str(self._file(CONDUCTOR))]))
        schema.sync(database)
        inventory.Inventory(database).create_cell('cell1', self._urls[AGENT])
        database.dispose()
        try:
            self._start(CONDUCTOR, 'Conductor .* runs')
            self._start(AGENT, 'is registered and serves')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._running.values():
            each.kill()
            each.wait()

    def measure(self, name: str) -> Idle:
        pid = self._running[name].pid
        shared = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
        private = re.findall(r'^Private_\w+:\s+(\d+) kB$', shared, re.MULTILINE)
        ports = {each.laddr.port for each in psutil.Process(pid).net_connections()}
        connections = self._broker.listed('connections', 'pid', 'peer_port')
        own = {each['pid'] for each in connections if each['peer_port'] in ports}
        listed = self._broker.listed('channels', 'pid', 'connection')
        channels = {each['pid'] for each in listed if each['connection'] in own}
        return Idle(
            observed.memory(pid).resident_bytes,
            sum(map(int, private)) * 1024,
            observed.threads(pid),
            len(own),
            len(channels),
            tuple(self._queues(channels)),
        )

    def _queues(self, channels: set[str]) -> Iterator[str]:
        for url in self._urls.values():
            vhost = url.rpartition('/')[2]
            columns = ('queue_name', 'channel_pid')
            for each in self._broker.listed('consumers', '-p', vhost, *columns):
                if each['channel_pid'] in channels:
                    yield re.sub('[0-9a-f]{32}', '…', each['queue_name'])

    def in_use(self) -> Broker:
        """Return what the broker has in use, after it has collected its garbage."""
        self._broker.control('force_gc')
        status = self._broker.status()
        totals = status['totals']
        queues = sum(
            len(self._broker.listed('queues', '-p', url.rpartition('/')[2], 'name'))
            for url in self._urls.values()
        )
        return Broker(
            status['memory']['total']['rss'],
            status['file_descriptors']['sockets_used'],
            status['file_descriptors']['total_used'],
            totals['connections'] if 'connections' in totals else totals['connection_count'],
            len(self._broker.listed('channels', 'pid')),
            queues,
        )

    def _start(self, name: str, until: str) -> None:
        log = self._directory / f'{name}.log'
        command = [str(BIN / name), '--config-file', str(self._file(name))]
        with log.open('wb') as output:
            self._running[name] = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'), stdout=output, stderr=output
            )
        waiting.wait_for_child(
            name,
            self._running[name],
            lambda: re.search(until, log.read_text()) is not None,
            log,
        )

    def _file(self, name: str) -> pathlib.Path:
        return self._directory / f'{name}.conf'

    def _configuration(self, name: str) -> str:
        state_path = self._directory / name
        return f"""\
[DEFAULT]
host = {name}
transport_url = {self._urls[name]}
state_path = {state_path}
report_interval = {REPORT_SECONDS}
[database]
connection = sqlite:///{self._directory}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:9
"""
