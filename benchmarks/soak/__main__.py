# SPDX-License-Identifier: Apache-2.0
"""Caches images for some minutes with random failures, then checks the cache.

Two computes share one cache and a slow link to a real Glance. They are killed, disconnected and
stopped, and their disk is filled; the seed determines the steps.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import random
import sys
import tempfile
import time

from benchmarks import cli, images, machine
from benchmarks.images import MIB
from benchmarks.soak import link, plan, scenario, site
from nova_precache.standalone import environment

LOG = logging.getLogger(__name__)

_INSIDE = 'NOVA_PRECACHE_SOAK_NAMESPACE'
_COMPUTES = 2
_RATE_BYTES = 48 * MIB


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    missing = machine.missing_commands()
    if missing:
        return cli.fail(f'please install {", ".join(missing)} (bindep lists the required packages)')
    _enter_mount_namespace()
    cli.log_progress(logging.INFO if given.verbose else logging.WARNING)
    print(f'Seed {given.seed}, {given.minutes:g} minutes', flush=True)
    given.directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix='soak-', dir=given.directory))
        soak = _soak(pathlib.Path(name), given, stack)
        print(soak.report())
    return 1 if soak.wrong else 0


def _soak(
    directory: pathlib.Path, given: argparse.Namespace, stack: contextlib.ExitStack
) -> scenario.Scenario:
    is_own = os.environ.get(_INSIDE) == '1'
    if not is_own:
        print('Not filling the disk: this user cannot mount file systems')
    glance = stack.enter_context(images.Glance(directory / 'glance'))
    soak_images = site.upload_images(glance, directory / 'images')
    disk = stack.enter_context(site.new_disk(directory / 'store', is_own=is_own))
    glance_link = stack.enter_context(link.Link(glance.port, _RATE_BYTES))
    logs = given.logs or directory
    computes = [
        stack.enter_context(
            site.new_compute(disk.path, glance_link.url, logs / f'compute-{number}.log')
        )
        for number in range(_COMPUTES)
    ]
    soak = scenario.Scenario(
        disk=disk,
        glance=glance,
        glance_link=glance_link,
        computes=computes,
        soak_images=soak_images,
    )
    soak.begin()
    end = time.monotonic() + given.minutes * 60
    for step in plan.steps(given.seed, _COMPUTES):
        if time.monotonic() > end:
            break
        soak.take(step)
        time.sleep(step.pause_seconds)
    soak.end()
    return soak


def _enter_mount_namespace() -> None:
    """Restart this program in a mount namespace, whose mounts end with the last process."""
    if _INSIDE in os.environ:
        return
    command = site.namespace_command()
    os.environ[_INSIDE] = '0' if command is None else '1'
    if command is not None:
        again = [*command, sys.executable, '-m', 'benchmarks.soak', *sys.argv[1:]]
        os.execvp(again[0], again)  # noqa: S606 - an argument list


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=5, help='duration')
    parser.add_argument(
        '--seed',
        type=int,
        default=random.randrange(10**6),  # noqa: S311 - not a secret
        help='seed of the random steps; the same seed repeats them',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=environment.cache_directory(),
        help='directory of all files except those on the disk that is filled',
    )
    parser.add_argument('--logs', type=pathlib.Path, help='directory for the logs of the computes')
    parser.add_argument('--verbose', action='store_true', help='log each step')
    return parser


if __name__ == '__main__':
    cli.run(main)
