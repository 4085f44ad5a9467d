# SPDX-License-Identifier: Apache-2.0
"""Measures what an idle agent and an idle conductor take, of their machines and of a RabbitMQ.

Both run as commands. Further agents, whose driver caches in memory, share a process: they show what
each agent takes of the broker.
"""

import argparse
import dataclasses
import logging
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Self

import psutil

from benchmarks import cli, machine, observed, report
from nova_precache import conf as precache_conf
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from nova_precache.standalone import process
from nova_precache.wiring import compute as wiring_compute
from tools import waiting
from tools.servers import own_port, rabbitmq

CONDUCTOR, AGENT = COMMANDS = ('nova-precache-conductor', 'nova-precache-compute')
FLEETS = (1000, 10_000)
MOST_AGENT_MIB = 60.0
MOST_AGENT_CONNECTIONS = 2
REGISTER_SECONDS = 300.0
_OF_CONNECTIONS_AND_QUEUES = (
    *('connection_readers', 'connection_writers', 'connection_channels', 'connection_other'),
    *('queue_procs', 'metrics', 'mnesia', 'msg_index', 'other_ets', 'other_proc'),
)
_WHAT_IS_MEASURED = ('agents', 'settle-seconds')


@dataclasses.dataclass(frozen=True)
class Idle:
    """What an idle process takes.

    :ivar unique_bytes: memory that it shares with no other process
    """

    resident_bytes: int
    unique_bytes: int
    threads: int
    connections: int


@dataclasses.dataclass(frozen=True)
class Broker:
    """What the processes take of a RabbitMQ, all of them together.

    :ivar memory_bytes: of connections, channels, queues and their tables; its total also has
        buffers, which vary by more than all of them
    """

    memory_bytes: int
    sockets: int
    channels: int
    queues: int


class Site:
    """A conductor and an agent, on an SQLite and on a RabbitMQ with a virtual host for the cell.

    :param report_seconds: how often the agent reports
    """

    def __init__(
        self, directory: pathlib.Path, broker: rabbitmq.RabbitMQ, report_seconds: float = 10
    ) -> None:
        self._directory = directory
        self._broker = broker
        self._report_seconds = report_seconds
        self._urls = {name: broker.make_vhost() for name in COMMANDS}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name in COMMANDS:
            self.file(name).write_text(self._configuration(name))
        database = session.connect(precache_conf.new(['--config-file', str(self.file(CONDUCTOR))]))
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
        """Measure one of the two processes."""
        pid = self._running[name].pid
        text = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
        unique = sum(map(int, re.findall(r'^Private_\w+:\s+(\d+) kB$', text, re.MULTILINE)))
        remote = [each.raddr.port for each in psutil.Process(pid).net_connections() if each.raddr]
        return Idle(
            observed.memory(pid).resident_bytes,
            unique * 1024,
            observed.threads(pid),
            remote.count(self._broker.port),
        )

    def queues_of_cell(self) -> list[str]:
        """List the names of the cell's queues, without their random parts."""
        vhost = self._urls[AGENT].rpartition('/')[2]
        listed = self._broker.listed('queues', '-p', vhost, 'name')
        return sorted(re.sub('[0-9a-f]{8}[0-9a-f-]{24,28}', '…', each['name']) for each in listed)

    def in_use(self) -> Broker:
        """Measure the broker, after it has collected its garbage."""
        self._broker.control('force_gc')
        status = self._broker.status()
        return Broker(
            sum(status['memory'][kind] for kind in _OF_CONNECTIONS_AND_QUEUES),
            status['file_descriptors']['sockets_used'],
            len(self._broker.listed('channels', 'pid')),
            status['totals']['queue_count'],
        )

    def file(self, name: str) -> pathlib.Path:
        """Return the path of the configuration of a process."""
        return self._directory / f'{name}.conf'

    def _start(self, name: str, until: str) -> None:
        log = self._directory / f'{name}.log'
        command = [str(pathlib.Path(sys.executable).parent / name), '--config-file']
        with log.open('wb') as output:
            self._running[name] = subprocess.Popen(
                process.dies_with_parent([*command, str(self.file(name))], 'KILL'),
                stdout=output,
                stderr=output,
            )
        waiting.wait_for_child(
            name,
            self._running[name],
            lambda: re.search(until, log.read_text()) is not None,
            log,
        )

    def _configuration(self, name: str) -> str:
        return f"""\
[DEFAULT]
host = {name}
transport_url = {self._urls[name]}
state_path = {self._directory}/{name}
report_interval = {self._report_seconds}
[database]
connection = sqlite:///{self._directory}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:9
"""


class Agents:
    """A process with more agents of the cell."""

    def __init__(self, config_file: pathlib.Path, count: int) -> None:
        code = f'from benchmarks import idle; idle.serve({str(config_file)!r}, {count})'
        self._process = subprocess.Popen(
            process.dies_with_parent([sys.executable, '-W', 'ignore', '-c', code], 'KILL'),
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if (line := self._process.stdout.readline().strip()) != 'registered':
            self.__exit__()
            raise process.ServerFailed(f'The agents printed {line!r}')
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(config_file: str, count: int) -> None:
    """Run agents until the process is killed."""
    agents = []
    for number in range(count):
        conf = precache_conf.new(config_files=[config_file])
        conf.set_override('host', f'host{number}')
        conf.set_override('state_path', f'{conf.state_path}-{number}')
        conf.set_override('compute_driver', 'fake.FakeDriverWithCaching')
        agents.append(wiring_compute.new_agent(conf))
        agents[-1].start()
    if all(each.wait_registered(REGISTER_SECONDS) for each in agents):
        print('registered', flush=True)
        while True:
            time.sleep(REGISTER_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    cli.log_progress(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix='idle-') as name:
        directory = pathlib.Path(name)
        try:
            login = rabbitmq.Login('precache', ('first',))
            with (
                rabbitmq.RabbitMQ(directory / 'rabbitmq', [login]) as broker,
                Site(directory, broker) as site,
            ):
                time.sleep(given.settle_seconds)
                idle = {name: site.measure(name) for name in COMMANDS}
                before = site.in_use()
                with Agents(site.file(AGENT), given.agents):
                    time.sleep(given.settle_seconds)
                    after = site.in_use()
        except (own_port.ProgramMissing, process.ServerFailed) as exc:
            return cli.fail(exc)
        where = machine.describe(directory)
    results = cli.Results(
        cli.command('idle', _parser(), given, _WHAT_IS_MEASURED),
        f'{given.agents} agents beside the two processes',
        where,
        [processes(idle), broker_of_fleets(before, after, given.agents)],
        findings(idle[AGENT]),
        {'idle': {name: dataclasses.asdict(each) for name, each in idle.items()}},
    )
    results.publish(rst=given.rst, json_file=given.json)
    return results.status(given)


def processes(idle: dict[str, Idle]) -> report.Table:
    """Return a table of what each process takes."""
    rows = [
        (
            name,
            f'{each.resident_bytes / report.MIB:.0f}',
            f'{each.unique_bytes / report.MIB:.0f}',
            str(each.threads),
            str(each.connections),
        )
        for name, each in idle.items()
    ]
    head = ('process', 'resident MiB', 'of its own MiB', 'threads', 'connections')
    return report.Table('Idle processes', head, tuple(rows))


def broker_of_fleets(before: Broker, after: Broker, agents: int) -> report.Table:
    """Return a table of what an agent takes of the broker, and fleets in proportion."""
    each = [
        (one - other) / agents
        for one, other in zip(dataclasses.astuple(after), dataclasses.astuple(before), strict=True)
    ]
    rows = [
        (f'{count:,}', *_shown([count * value for value in each])) for count in (1, agents, *FLEETS)
    ]
    head = ('agents', 'memory MiB', 'connections', 'channels', 'queues')
    return report.Table('Of a RabbitMQ', head, tuple(rows))


def _shown(values: Sequence[float]) -> Iterator[str]:
    memory_bytes, *counts = values
    yield f'{memory_bytes / report.MIB:.2f}'
    yield from (f'{count:,.0f}' for count in counts)


def findings(agent: Idle) -> list[report.Finding]:
    """Compare an agent with the targets."""
    resident = agent.resident_bytes / report.MIB
    return [
        report.Finding('memory of an idle agent', resident, 'MiB', MOST_AGENT_MIB),
        report.Finding(
            'connections of an idle agent', agent.connections, '', MOST_AGENT_CONNECTIONS
        ),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.idle', description=__doc__)
    parser.add_argument(
        '--agents', type=int, default=100, help='agents to measure the broker with (%(default)s)'
    )
    parser.add_argument(
        '--settle-seconds',
        type=float,
        default=30,
        help='how long the processes are idle before each measurement (%(default)s)',
    )
    cli.add_output_options(parser)
    return parser


if __name__ == '__main__':
    cli.run(main)
