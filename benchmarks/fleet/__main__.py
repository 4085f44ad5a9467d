# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of a conductor with fleets of simulated computes."""

import argparse
import contextlib
import dataclasses
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from benchmarks import cli, machine
from benchmarks.fleet import cases, findings, nova
from nova_precache.standalone import environment, process
from tools.servers import databases, rabbitmq

LOG = logging.getLogger(__name__)

BROKER_HOSTS = 100
_WHAT_IS_MEASURED = (
    *('database', 'hosts', 'cells', 'images', 'delay-ms', 'parallel'),
    *('every', 'broker', 'nova'),
)
MARIADB_SETTINGS = {'innodb-flush-log-at-trx-commit': '1'}  # the default of its packages


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    cli.log_progress()
    chosen = cases.choose(
        given.database,
        given.hosts,
        given.cells,
        given.images,
        given.delay_ms,
        given.parallel,
        every=given.every,
    )
    with tempfile.TemporaryDirectory(prefix='fleet-', dir=given.directory) as name:
        directory = pathlib.Path(name)
        try:
            outcomes = list(_run(chosen, directory, given))
            stock = list(_stock(given)) if given.nova else []
        except (environment.EnvironmentFailed, process.ServerFailed, RuntimeError) as exc:
            return cli.fail(exc)
        where = machine.describe(directory)
    results = cli.Results(
        cli.command('fleet', _parser(), given, _WHAT_IS_MEASURED),
        f'{given.parallel} hosts at a time',
        where,
        [findings.measured(outcomes), *([findings.stock(stock)] if stock else [])],
        findings.targets(outcomes),
        {
            'outcomes': list(map(dataclasses.asdict, outcomes)),
            'nova': list(map(dataclasses.asdict, stock)),
        },
    )
    results.publish(rst=given.rst, json_file=given.json)
    return results.status(given)


def _run(
    chosen: Sequence[cases.Case], directory: pathlib.Path, given: argparse.Namespace
) -> Iterator[cases.Outcome]:
    with contextlib.ExitStack() as running:
        stores: dict[str, databases.Databases] = {cases.SQLITE: databases.Files(directory)}
        if cases.MARIADB in given.database:
            mariadb = databases.MariaDB(directory / 'mariadb', settings=MARIADB_SETTINGS)
            stores[cases.MARIADB] = running.enter_context(mariadb)
        for case in chosen:
            with stores[case.database].empty() as url:
                yield _measure(case, url)
        if given.broker:
            case = cases.Case(cases.SQLITE, BROKER_HOSTS, 1, parallel=given.parallel, broker=True)
            login = rabbitmq.Login('fleet', ('fleet',))
            broker = running.enter_context(rabbitmq.RabbitMQ(directory / 'rabbitmq', [login]))
            with stores[case.database].empty() as url:
                yield _measure(case, url, broker.transport_url(login, 'fleet'))


def _measure(case: cases.Case, *urls: str) -> cases.Outcome:
    """Run a case in a process of its own, whose memory is the case's alone."""
    LOG.info('%s ...', case.name)
    arguments = [json.dumps(dataclasses.asdict(case)), *urls]
    command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.fleet.worker', *arguments]
    done = subprocess.run(
        process.dies_with_parent(command, 'TERM'), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f'{case.name} could not be measured')
    found = cases.from_json(json.loads(done.stdout.splitlines()[-1]))
    LOG.info(
        '%s: %.2f ms of CPU and %.1f statements per task',
        case.name,
        found.cpu_ms_per_task,
        found.statements_per_task,
    )
    return found


def _stock(given: argparse.Namespace) -> Iterator[nova.Nova]:
    for hosts in given.hosts:
        for images in given.images:
            LOG.info('Stock Nova, %d x %d ...', hosts, images)
            yield nova.measure(hosts, images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.fleet', description=__doc__)
    lists = (
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
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        help='directory of the databases (default: that of temporary files)',
    )
    cli.add_output_options(parser)
    return parser


if __name__ == '__main__':
    cli.run(main)
