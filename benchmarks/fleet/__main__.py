# SPDX-License-Identifier: Apache-2.0
"""Measures what a conductor takes for fleets of simulated computes, and prints tables."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import logging
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from benchmarks import machine, report
from benchmarks.fleet import cases, findings, nova
from nova_precache.standalone import environment, process
from tools.servers import databases, rabbitmq

LOG = logging.getLogger(__name__)

BROKER_HOSTS = 100
MARIADB_SETTINGS = {'innodb-flush-log-at-trx-commit': '1'}  # the default of its packages


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to clean up then, too
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
            print(exc, file=sys.stderr)
            return 1
        where = machine.in_words(directory)
    found = findings.targets(outcomes)
    _write(given, where, outcomes, stock, found)
    return 1 if given.check and not all(each.is_met for each in found) else 0


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
    """Run a case in a process of its own, whose memory is that of nothing else."""
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
        '%s: %.2f ms of CPU and %.1f statements a task',
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


def _write(
    given: argparse.Namespace,
    where: str,
    outcomes: list[cases.Outcome],
    stock: list[nova.Nova],
    found: list[report.Finding],
) -> None:
    tables = [findings.measured(outcomes)]
    if stock:
        tables.append(findings.stock(stock))
    tables.append(report.compared(found))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(f'\n{today}, {given.parallel} hosts at a time. {where}')
    for table in tables:
        print('\n' + report.text(table))
    if given.rst:
        said = f'``{_command(given)}``, {today}. {where}'
        given.rst.write_text('\n\n'.join([said, *map(report.restructured, tables)]) + '\n')
    if given.json:
        document = {
            'date': today,
            'machine': where,
            'outcomes': list(map(dataclasses.asdict, outcomes)),
            'nova': list(map(dataclasses.asdict, stock)),
            'findings': [{**dataclasses.asdict(each), 'is_met': each.is_met} for each in found],
        }
        given.json.write_text(json.dumps(document, indent=2) + '\n')


def _command(given: argparse.Namespace) -> str:
    """Give the command that measures the same again."""
    parser = _parser()
    words = [
        f'--{name}={",".join(map(str, value)) if isinstance(value, list) else value}'
        for name in ('database', 'hosts', 'cells', 'images', 'delay-ms', 'parallel')
        if (value := getattr(given, name.replace('-', '_')))
        != parser.get_default(name.replace('-', '_'))
    ]
    words += ['--every'] if given.every else []
    words += [f'--no-{name}' for name in ('broker', 'nova') if not getattr(given, name)]
    return ' '.join(['tox -e fleet', *(['--', *words] if words else [])])


def _databases(text: str) -> list[str]:
    names = text.split(',')
    unknown = sorted(set(names) - {cases.SQLITE, cases.MARIADB})
    if unknown:
        raise argparse.ArgumentTypeError(f'no such database: {", ".join(unknown)}')
    return names


def _at_least(least: int) -> Callable[[str], list[int]]:
    def numbers(text: str) -> list[int]:
        found = [int(word) for word in text.split(',')]
        if min(found) < least:
            raise argparse.ArgumentTypeError(f'{min(found)} is less than {least}')
        return found

    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.fleet', description=__doc__)
    lists = (
        ('--database', _databases, [cases.SQLITE, cases.MARIADB], 'sqlite and mariadb'),
        ('--hosts', _at_least(1), [100, 1000, 10000], 'sizes of the fleets'),
        ('--cells', _at_least(1), [2, 20], 'cells that they are in'),
        ('--images', _at_least(1), [1, 10], 'images of a request'),
        ('--delay-ms', _at_least(0), [0, 50], 'how long a simulated compute takes'),
    )
    for name, kind, default, what in lists:
        said = ','.join(map(str, default))
        parser.add_argument(
            name, type=kind, default=default, help=f'{what}, with commas between ({said})'
        )
    parser.add_argument(
        '--every',
        action='store_true',
        help='combine all numbers of cells with all delays, not only the first of both, the '
        'second of both and so on',
    )
    parser.add_argument(
        '--parallel', type=int, default=16, help='[image_cache] precache_concurrency (16)'
    )
    parser.add_argument(
        '--no-broker', dest='broker', action='store_false', help='not over RabbitMQ, too'
    )
    parser.add_argument(
        '--no-nova', dest='nova', action='store_false', help='not stock Nova, beside it'
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        help='where the databases keep their files (the usual one)',
    )
    parser.add_argument('--json', type=pathlib.Path, help='write all that was measured here')
    parser.add_argument('--rst', type=pathlib.Path, help='write the tables here, for the docs')
    parser.add_argument('--check', action='store_true', help='fail when a target is missed')
    return parser


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # All has been cleaned up.
        sys.exit(130)
