# SPDX-License-Identifier: Apache-2.0
"""Measures what caching an image costs, ours and stock Nova's in turn, and prints tables."""

import argparse
import dataclasses
import datetime
import json
import logging
import pathlib
import shutil
import signal
import sys
import tempfile

from benchmarks import cases, images, machine, report
from benchmarks.images import GIB, KIB, MIB
from nova_precache import exception
from nova_precache.standalone import environment
from tools.servers import nova

_WHAT_IS_MEASURED = (
    *('rounds', 'case', 'image-mib', 'large-mib', 'holes-mib', 'holes-data-mib'),
    *('glance-chunk-kib', 'congestion-control'),
)


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to clean up then, too
    sizes = cases.Sizes(
        image_bytes=given.image_mib * MIB,
        large_bytes=given.large_mib * MIB,
        holes_bytes=given.holes_mib * MIB,
        holes_data_bytes=given.holes_data_mib * MIB,
    )
    missing = machine.missing_commands()
    if missing:
        return _fail(f'please install {", ".join(missing)} (bindep lists all that is needed)')
    given.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='bench-', dir=given.directory) as name:
        directory = pathlib.Path(name)
        needed = _needed_bytes(given.case, sizes)
        free = shutil.disk_usage(directory).free
        if free < needed:
            return _fail(f'{directory} needs {needed / GIB:.0f} GiB, {free / GIB:.0f} free')
        try:
            nova.ENVIRONMENT.ensure()
            with images.Glance(
                directory / 'glance',
                chunk_bytes=given.glance_chunk_kib * KIB,
                congestion_control=given.congestion_control,
            ) as glance:
                bench = cases.Bench(directory, glance, sizes, drop_caches=given.drop_caches)
                results = bench.run(given.case, given.rounds)
        except (cases.WrongResult, exception.PrecacheError) as exc:
            return _fail(str(exc))
        where = machine.in_words(directory)
    found = report.findings(results, bench.data_bytes)
    _write(given, where, results, found)
    return 1 if given.check and not all(each.is_met for each in found) else 0


def _write(
    given: argparse.Namespace,
    where: str,
    results: report.Results,
    found: list[report.Finding],
) -> None:
    tables = [report.measured(results), report.compared(found)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(f'\n{today}, {given.rounds} rounds. {where}')
    for table in tables:
        print('\n' + report.text(table))
    if given.rst:
        said = f'``{_command(given)}``, {today}. {where}'
        laid_out = [said, *map(report.restructured, tables)]
        given.rst.write_text('\n\n'.join(laid_out) + '\n')
    if given.json:
        document = {
            'date': today,
            'machine': where,
            'rounds': given.rounds,
            'results': {
                case: {who: list(map(dataclasses.asdict, each)) for who, each in by.items()}
                for case, by in results.items()
            },
            'findings': [{**dataclasses.asdict(each), 'is_met': each.is_met} for each in found],
        }
        given.json.write_text(json.dumps(document, indent=2) + '\n')


def _command(given: argparse.Namespace) -> str:
    """Give the command that measures the same again."""
    parser = _parser()
    words = [
        f'--{name}={",".join(value) if isinstance(value, list) else value}'
        for name in _WHAT_IS_MEASURED
        if (value := getattr(given, name.replace('-', '_')))
        != parser.get_default(name.replace('-', '_'))
    ]
    return ' '.join(['tox -e bench', *(['--', *words] if words else [])])


def _needed_bytes(wanted: list[str], sizes: cases.Sizes) -> int:
    """Tell what is on the disk at most: source, Glance's copy, ours and its conversion."""
    at_once = {
        'raw': 3 * sizes.image_bytes,
        'qcow2': 5 * sizes.image_bytes,
        'two-at-once': 4 * sizes.image_bytes,
        'large': 2 * sizes.large_bytes,
        'holes': 4 * sizes.holes_data_bytes + sizes.holes_bytes,
    }
    return max(at_once.get(case, 0) for case in wanted) + 2 * GIB


def _fail(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


def _case_list(text: str) -> list[str]:
    names = text.split(',')
    unknown = sorted(set(names) - set(cases.CASES))
    if unknown:
        raise argparse.ArgumentTypeError(f'no such case: {", ".join(unknown)}')
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('--rounds', type=int, default=5, help='times that each is measured')
    parser.add_argument(
        '--case',
        type=_case_list,
        default=list(cases.CASES),
        help=f'which cases, with commas between; all are {",".join(cases.CASES)}',
    )
    parser.add_argument('--image-mib', type=int, default=1024, help='data of the raw and qcow2')
    parser.add_argument('--large-mib', type=int, default=4096, help='size of the large one')
    parser.add_argument('--holes-mib', type=int, default=10240, help='size of the one with holes')
    parser.add_argument('--holes-data-mib', type=int, default=200, help='data of that one')
    parser.add_argument(
        '--glance-chunk-kib',
        type=int,
        default=1024,
        help='what Glance reads and sends at a time; its own default is 64',
    )
    parser.add_argument(
        '--congestion-control',
        default='cubic',
        help='what Glance sends with, one of net.ipv4.tcp_available_congestion_control',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=environment.cache_directory(),
        help='one on the disk that is to be measured; yours for caches unless given',
    )
    parser.add_argument(
        '--keep-caches',
        dest='drop_caches',
        action='store_false',
        help="do not drop the machine's page cache before each (only root can)",
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
