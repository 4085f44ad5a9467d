# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of caching an image, with our code and stock Nova's in turn."""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile

from benchmarks import cases, cli, images, machine, report
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
    cli.log_progress()
    sizes = cases.Sizes(
        image_bytes=given.image_mib * MIB,
        large_bytes=given.large_mib * MIB,
        holes_bytes=given.holes_mib * MIB,
        holes_data_bytes=given.holes_data_mib * MIB,
    )
    missing = machine.missing_commands()
    if missing:
        return cli.fail(f'please install {", ".join(missing)} (bindep lists the required packages)')
    given.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='bench-', dir=given.directory) as name:
        directory = pathlib.Path(name)
        needed = _needed_bytes(given.case, sizes)
        free = shutil.disk_usage(directory).free
        if free < needed:
            return cli.fail(f'{directory} needs {needed / GIB:.0f} GiB, {free / GIB:.0f} GiB free')
        try:
            nova.ENVIRONMENT.ensure()
            with images.Glance(
                directory / 'glance',
                chunk_bytes=given.glance_chunk_kib * KIB,
                congestion_control=given.congestion_control,
            ) as glance:
                bench = cases.Bench(directory, glance, sizes, drop_caches=given.drop_caches)
                samples = bench.run(given.case, given.rounds)
        except (cases.WrongResult, exception.PrecacheError) as exc:
            return cli.fail(exc)
        where = machine.describe(directory)
    results = cli.Results(
        cli.command('bench', _parser(), given, _WHAT_IS_MEASURED),
        f'{given.rounds} rounds',
        where,
        [report.measured(samples)],
        report.findings(samples, bench.data_bytes),
        {
            'rounds': given.rounds,
            'results': {
                case: {who: list(map(dataclasses.asdict, each)) for who, each in by.items()}
                for case, by in samples.items()
            },
        },
    )
    results.publish(rst=given.rst, json_file=given.json)
    return results.status(given)


def _needed_bytes(wanted: list[str], sizes: cases.Sizes) -> int:
    """Return the largest disk use: source, Glance's copy, ours and its conversion."""
    at_once = {
        'raw': 3 * sizes.image_bytes,
        'qcow2': 5 * sizes.image_bytes,
        'two-at-once': 4 * sizes.image_bytes,
        'large': 2 * sizes.large_bytes,
        'holes': 4 * sizes.holes_data_bytes + sizes.holes_bytes,
    }
    return max(at_once.get(case, 0) for case in wanted) + 2 * GIB


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('--rounds', type=int, default=5, help='number of measurements per case')
    parser.add_argument(
        '--case',
        type=cli.names(cases.CASES, 'case'),
        default=list(cases.CASES),
        help=f'comma-separated cases: {",".join(cases.CASES)} (all)',
    )
    parser.add_argument(
        '--image-mib', type=int, default=1024, help='size of the raw and qcow2 images'
    )
    parser.add_argument('--large-mib', type=int, default=4096, help='size of the large image')
    parser.add_argument('--holes-mib', type=int, default=10240, help='size of the image with holes')
    parser.add_argument(
        '--holes-data-mib', type=int, default=200, help='amount of data in the image with holes'
    )
    parser.add_argument(
        '--glance-chunk-kib',
        type=int,
        default=1024,
        help='size of the chunks that Glance reads and sends (its default: 64)',
    )
    parser.add_argument(
        '--congestion-control',
        default='cubic',
        help='congestion control of Glance, from net.ipv4.tcp_available_congestion_control',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=environment.cache_directory(),
        help='a directory on the disk to measure (that of your caches)',
    )
    parser.add_argument(
        '--keep-caches',
        dest='drop_caches',
        action='store_false',
        help='do not drop the page cache of the machine before each measurement (needs root)',
    )
    cli.add_output_options(parser)
    return parser


if __name__ == '__main__':
    cli.run(main)
