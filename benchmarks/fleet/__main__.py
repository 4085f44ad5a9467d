# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of a conductor with fleets of simulated computes."""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from benchmarks import cli, machine, observed
from benchmarks.fleet import (
    calls as part_calls,
    cases,
    claims as part_claims,
    fairness as part_fairness,
    findings,
    message_findings,
    messages as part_messages,
    nova,
    reads as part_reads,
)
from nova_precache.standalone import environment, process
from tools.servers import databases, rabbitmq

LOG = logging.getLogger(__name__)

BROKER_HOSTS = 100
COST, READS, CLAIMS, FAIRNESS, MESSAGES = PARTS = (
    *('cost', 'reads', 'claims', 'fairness'),
    'messages',
)
CALLS = 'calls'  # the second half of the messages
_WHAT_IS_MEASURED = (
    *('part', 'database', 'hosts', 'cells', 'images', 'delay-ms', 'parallel'),
    *('every', 'broker', 'nova'),
    *('read-hosts', 'read-images', 'watchers', 'watched-seconds', 'claim-hosts', 'image-seconds'),
    *('report-hosts', 'transfers', 'report-seconds', 'report-interval', 'silence', 'call-hosts'),
)
_TABLES = (message_findings.reported, message_findings.written, message_findings.left)
MARIADB_SETTINGS = {'innodb-flush-log-at-trx-commit': '1'}  # the default of its packages


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if max(given.transfers) > given.report_hosts:
        _parser().error(f'--transfers: more than the {given.report_hosts:,} of --report-hosts')
    cli.log_progress()
    with tempfile.TemporaryDirectory(prefix='fleet-', dir=given.directory) as name:
        directory = pathlib.Path(name)
        try:
            with contextlib.ExitStack() as running:
                fleet = _Fleet(directory, given, running)
                outcomes = list(fleet.costs()) if COST in given.part else []
                reads = [fleet.reads()] if READS in given.part else []
                claims = list(fleet.claims()) if CLAIMS in given.part else []
                fairness = [fleet.fairness()] if FAIRNESS in given.part else []
                reports, calls = fleet.messages() if MESSAGES in given.part else ([], [])
            stock = list(_stock(given)) if given.nova and COST in given.part else []
        except (environment.EnvironmentFailed, process.ServerFailed, RuntimeError) as exc:
            return cli.fail(exc)
        where = machine.describe(directory)
    tables = [
        *([findings.measured(outcomes)] if outcomes else []),
        *([findings.stock(stock)] if stock else []),
        *(table(each) for each in reads for table in (findings.read, findings.watched)),
        *([findings.claimed(claims)] if claims else []),
        *map(findings.shared, fairness),
        *(table(each) for each in reports for table in _TABLES),
        *map(message_findings.called, calls),
    ]
    results = cli.Results(
        cli.command('fleet', _parser(), given, _WHAT_IS_MEASURED),
        f'{given.parallel} hosts at a time',
        where,
        tables,
        [
            *findings.targets(outcomes, reads, claims, fairness),
            *message_findings.targets(reports, calls),
        ],
        {
            'outcomes': list(map(dataclasses.asdict, outcomes)),
            'nova': list(map(dataclasses.asdict, stock)),
            'reads': list(map(dataclasses.asdict, reads)),
            'claims': list(map(dataclasses.asdict, claims)),
            'fairness': list(map(dataclasses.asdict, fairness)),
            'messages': list(map(dataclasses.asdict, reports)),
            'calls': list(map(dataclasses.asdict, calls)),
        },
    )
    results.publish(rst=given.rst, json_file=given.json)
    return results.status(given)


class _Fleet:
    """Measures each part in a process of its own, whose memory is that of the part alone."""

    def __init__(
        self, directory: pathlib.Path, given: argparse.Namespace, running: contextlib.ExitStack
    ) -> None:
        self._directory = directory
        self._given = given
        self._running = running
        self._files = databases.Files(directory)
        self._account = databases.Account(part_reads.API_USER, ())

    @functools.cached_property
    def _mariadb(self) -> databases.MariaDB:
        directory, accounts = self._directory / 'mariadb', [self._account]
        return self._running.enter_context(
            databases.MariaDB(directory, accounts=accounts, settings=MARIADB_SETTINGS)
        )

    def _store(self, database: str) -> tuple[databases.Databases, int | None]:
        """Return where databases are created, and the process of the server."""
        if database == cases.SQLITE:
            return self._files, None
        return self._mariadb, observed.pid_of_child('mariadbd')

    def costs(self) -> Iterator[cases.Outcome]:
        given = self._given
        for case in cases.choose(
            given.database,
            given.hosts,
            given.cells,
            given.images,
            given.delay_ms,
            given.parallel,
            every=given.every,
        ):
            yield self._cost(case, {})
        if given.broker:
            database = cases.MARIADB if cases.MARIADB in given.database else cases.SQLITE
            case = cases.Case(database, BROKER_HOSTS, 1, parallel=given.parallel, broker=True)
            login = rabbitmq.Login('fleet', ('fleet',))
            broker = rabbitmq.RabbitMQ(self._directory / 'rabbitmq', [login])
            with broker:
                servers = {cases.BROKER: observed.pid_of_child('beam.smp')}
                yield self._cost(case, servers, broker.transport_url(login, 'fleet'))

    def _cost(
        self, case: cases.Case, servers: dict[str, int], broker_url: str | None = None
    ) -> cases.Outcome:
        store, pid = self._store(case.database)
        if pid is not None:
            servers = {**servers, cases.DATABASE: pid}
        with store.empty() as url:
            given = {
                'case': dataclasses.asdict(case),
                'database_url': url,
                'broker_url': broker_url,
                'servers': servers,
            }
            found = cases.from_json(_measure(COST, case.name, **given))
        LOG.info(
            '%s: %.2f ms of CPU and %.1f statements per task',
            case.name,
            found.cpu_ms_per_task,
            found.statements_per_task,
        )
        return found

    def reads(self) -> part_reads.Reads:
        given = self._given
        mariadb, pid = self._mariadb, observed.pid_of_child('mariadbd')
        mariadb.execute('SET GLOBAL userstat = 1')
        with mariadb.empty() as url:
            name = str(sa.make_url(url).database)
            user = f"'{self._account.name}'@'{process.HOST}'"
            mariadb.execute(f'GRANT ALL ON {name}.* TO {user}')
            found = _measure(
                READS,
                f'Reads of {given.read_hosts:,} x {given.read_images}, {cases.MARIADB}',
                database=cases.MARIADB,
                hosts=given.read_hosts,
                images=given.read_images,
                watchers=given.watchers,
                watched_seconds=given.watched_seconds,
                database_url=url,
                api_database_url=mariadb.account_url(self._account, name),
                database_pid=pid,
            )
        return part_reads.from_json(found)

    def claims(self) -> Iterator[part_claims.Claims]:
        for database in self._given.database:
            store, pid = self._store(database)
            for hosts in self._given.claim_hosts:
                with store.empty() as url:
                    given = {'database': database, 'hosts': hosts, 'database_url': url}
                    what = f'Claims of {hosts:,} hosts, {database}'
                    yield part_claims.Claims(**_measure(CLAIMS, what, **given, database_pid=pid))

    def fairness(self) -> part_fairness.Fairness:
        seconds = self._given.image_seconds
        return part_fairness.Fairness(**_measure(FAIRNESS, 'Fairness', image_seconds=seconds))

    def messages(self) -> tuple[list[part_messages.Messages], list[part_calls.Calls]]:
        """Measure the reports and the calls, each with a virtual host and databases of its own."""
        login = rabbitmq.Login('fleet', (MESSAGES, CALLS))
        with rabbitmq.RabbitMQ(self._directory / MESSAGES, [login]) as broker:
            reports = self._messages(broker.transport_url(login, MESSAGES))
            calls = self._calls(broker.transport_url(login, CALLS))
        return [reports], [calls]

    def _messages(self, broker_url: str) -> part_messages.Messages:
        given = self._given
        with self._mariadb.empty() as url:
            found = _measure(
                MESSAGES,
                f'Reports of {given.report_hosts:,} hosts',
                database=cases.MARIADB,
                hosts=given.report_hosts,
                transfers=given.transfers,
                seconds=given.report_seconds,
                silence_seconds=given.silence,
                report_interval=given.report_interval,
                database_url=url,
                broker_url=broker_url,
                servers=_servers(),
            )
        return part_messages.from_json(found)

    def _calls(self, broker_url: str) -> part_calls.Calls:
        given, empty = self._given, self._mariadb.empty
        with empty() as url, empty() as novas_api, empty() as novas_cell:
            found = _measure(
                CALLS,
                f'Calls of {given.call_hosts:,} hosts',
                database=cases.MARIADB,
                hosts=given.call_hosts,
                images=given.images,
                parallel=given.parallel,
                database_url=url,
                broker_url=broker_url,
                servers=_servers(),
                nova_urls=[novas_api, novas_cell] if given.nova else None,
            )
        return part_calls.from_json(found)


def _servers() -> dict[str, int]:
    names = {cases.DATABASE: 'mariadbd', cases.BROKER: 'beam.smp'}
    return {server: observed.pid_of_child(name) for server, name in names.items()}


def _measure(part: str, what: str, **given: object) -> dict[str, Any]:
    LOG.info('%s ...', what)
    arguments = [part, json.dumps(given)]
    command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.fleet.worker', *arguments]
    done = subprocess.run(
        process.dies_with_parent(command, 'TERM'), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f'{what} could not be measured: exit status {done.returncode}')
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _stock(given: argparse.Namespace) -> Iterator[nova.Nova]:
    for hosts in given.hosts:
        for images in given.images:
            LOG.info('Stock Nova, %d x %d ...', hosts, images)
            yield nova.measure(hosts, images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.fleet', description=__doc__)
    lists = (
        ('--part', cli.names(PARTS, 'part'), list(PARTS), f'parts: {", ".join(PARTS)}'),
        (
            '--database',
            cli.names([cases.SQLITE, cases.MARIADB], 'database'),
            [cases.SQLITE, cases.MARIADB],
            'databases: sqlite, mariadb',
        ),
        ('--hosts', cli.numbers(1), [100, 1000, 10000], 'numbers of hosts'),
        ('--cells', cli.numbers(1), [2, 20], 'numbers of cells'),
        ('--images', cli.numbers(1), [1, 10], 'numbers of images per request'),
        ('--delay-ms', cli.numbers(0), [0, 50], 'durations of a task on a simulated compute'),
        ('--claim-hosts', cli.numbers(1), [1000, 3000, 10000], 'numbers of hosts due at once'),
        ('--transfers', cli.numbers(1), [1000, 10000], 'numbers of transfers that report'),
    )
    for name, kind, default, what in lists:
        said = ','.join(map(str, default))
        parser.add_argument(
            name, type=kind, default=default, help=f'{what}, separated by commas ({said})'
        )
    parser.add_argument(
        '--every',
        action='store_true',
        help='measure each number of cells with each delay instead of pairing them in order',
    )
    parser.add_argument(
        '--parallel', type=int, default=16, help='[image_cache] precache_concurrency (16)'
    )
    parser.add_argument(
        '--no-broker', dest='broker', action='store_false', help='do not measure over RabbitMQ'
    )
    parser.add_argument(
        '--no-nova', dest='nova', action='store_false', help='do not measure stock Nova'
    )
    sizes = (
        ('--read-hosts', 10000, 'hosts of the request that is read'),
        ('--read-images', 10, 'its images'),
        ('--watchers', 200, 'clients that wait for it'),
        ('--report-hosts', 10000, 'hosts that report over RabbitMQ'),
        ('--call-hosts', 300, 'hosts that are called over RabbitMQ'),
    )
    for name, default_number, what in sizes:
        parser.add_argument(name, type=int, default=default_number, help=f'{what} (%(default)s)')
    parser.add_argument(
        '--report-seconds',
        type=float,
        default=20,
        help='how long reports of each kind are sent (%(default)g)',
    )
    parser.add_argument(
        '--report-interval',
        type=float,
        default=10,
        help='[DEFAULT] report_interval, a sixth of service_down_time (%(default)g)',
    )
    parser.add_argument(
        '--silence',
        type=float,
        default=30,
        help='how long they are sent without a conductor, in seconds (%(default)g)',
    )
    parser.add_argument(
        '--watched-seconds', type=float, default=40, help='how long they wait (%(default)g)'
    )
    parser.add_argument(
        '--image-seconds',
        type=float,
        default=1,
        help='time of an image while it is measured who gets the slots (%(default)g)',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        help='directory of the databases (default: that of temporary files)',
    )
    cli.add_output_options(parser)
    return parser


if __name__ == '__main__':
    cli.run(main)
