# SPDX-License-Identifier: Apache-2.0
"""Measures the time of a boot with a cached image and without, on a stock Nova with libvirt.

In turn, a guest boots from an image that Nova has to download (cold), and another from an image
that the service has cached (warm). It needs root.
"""

import argparse
import dataclasses
import functools
import logging
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import requests

from benchmarks import cli, images, machine, report
from benchmarks.images import MIB
from nova_precache.standalone import glance
from tools import boot_sector, guests, running, tour
from tools.servers import environments, keystone, libvirtd, nova
from tools.servers.glance import GlanceUnderKeystone
from tools.showing import StepFailed

FLAVOR = 'bench'
IMAGES_TYPES = ('qcow2', 'raw')


@dataclasses.dataclass(frozen=True)
class Boot:
    """Seconds from the request until Nova reports ACTIVE, and until the guest writes."""

    active_seconds: float
    line_seconds: float


@dataclasses.dataclass
class Measured:
    """The boots, one of each kind a round."""

    cold: list[Boot] = dataclasses.field(default_factory=list)
    warm: list[Boot] = dataclasses.field(default_factory=list)


_UNTIL: dict[str, Callable[[Boot], float]] = {
    'ACTIVE': lambda boot: boot.active_seconds,
    'the guest writes': lambda boot: boot.line_seconds,
}


class _Glance(images.Tuned, GlanceUnderKeystone):
    pass


class Cloud(guests.BesideNovaWithGuests):
    """Boots guests on one host, one at a time."""

    _glance_type = _Glance

    def measure(self, image_mib: int, *, warm: bool) -> Boot:
        """Boot from a new image, then remove the guest and the image.

        :raises tools.showing.StepFailed: the boot failed, or whether Glance was read is wrong
        """
        host = self.hosts[0]
        image_id = self._new_image(image_mib)
        if warm and self.outcome(self.precache(image_id, host)) != ('cached', None):
            raise StepFailed(f'{image_id} was not cached')
        os.sync()
        images.warm(self.glance.directory / 'images' / image_id)
        before = self.glance.served(image_id)
        begun = time.monotonic()
        server_id = self.create_server(image_id, FLAVOR, host)
        guest = self.wait_for_guest(server_id)
        active = time.monotonic()
        guest.wait_for_line()
        line = time.monotonic()
        if (self.glance.served(image_id) == before) != warm:
            raise StepFailed(f'Glance was read {self.glance.served(image_id) - before} times')
        self.delete_server(server_id)
        self._forget(image_id)
        tour.base_file(host, image_id).unlink()
        return Boot(active - begun, line - begun)

    def _new_image(self, image_mib: int) -> str:
        path = images.random_data(self.directory / 'image.raw', image_mib * MIB, time.time_ns())
        with path.open('r+b') as file:
            file.write(boot_sector.content())
        try:
            with path.open('rb') as file:
                return self.upload(file)
        finally:
            path.unlink()

    def _forget(self, image_id: str) -> None:
        headers = {'X-Auth-Token': self.token()}
        url = f'{self.glance.url}/v2/images/{image_id}'
        requests.delete(url, headers=headers, timeout=60).raise_for_status()


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if why := libvirtd.why_not():
        return cli.fail(why)
    needed = (glance.ENVIRONMENT, keystone.ENVIRONMENT, nova.ENVIRONMENT, libvirtd.BINDING)
    if environments.build(needed):
        return 1
    logging.getLogger().setLevel(logging.ERROR)  # the builds are logged at INFO
    measured: dict[str, Measured] = {}
    for images_type in given.images_type:

        def measure(cloud: Cloud, images_type: str = images_type) -> None:
            measured[images_type] = _measure(cloud, given)

        new = functools.partial(Cloud, images_type=images_type)
        if status := running.run(given.directory, new, measure):
            return status
    results = cli.Results(
        cli.command('boot', _parser(), given, ('rounds', 'image-mib', 'images-type')),
        f'{given.rounds} rounds',
        machine.describe(given.directory),
        [tabulated(measured)],
    )
    results.publish(rst=given.rst)
    return 0


def _measure(cloud: Cloud, given: argparse.Namespace) -> Measured:
    cloud.start()
    cloud.work_with_agents()
    cloud.make_flavor(FLAVOR, disk_gib=given.image_mib // 1024 + 1)
    measured = Measured()
    # The first boot of a nova-compute does more than later ones and is not counted.
    cloud.measure(16, warm=False)
    for number in range(given.rounds):
        for warm in (number % 2 == 0, number % 2 == 1):
            boot = cloud.measure(given.image_mib, warm=warm)
            (measured.warm if warm else measured.cold).append(boot)
            print(f'{"warm" if warm else "cold"}: {boot}')
    return measured


def tabulated(measured: dict[str, Measured]) -> report.Table:
    """Return a table of the medians, with the median of the rounds' ratios."""
    rows = [
        (
            images_type,
            until,
            *_compared([of(boot) for boot in found.cold], [of(boot) for boot in found.warm]),
        )
        for images_type, found in measured.items()
        for until, of in _UNTIL.items()
    ]
    head = ('images_type', 'until', 'cold s', 'warm s', 'cold : warm')
    return report.Table('Medians', head, tuple(rows))


def _compared(cold: Sequence[float], warm: Sequence[float]) -> tuple[str, str, str]:
    ratio = statistics.median(one / other for one, other in zip(cold, warm, strict=True))
    return f'{statistics.median(cold):.2f}', f'{statistics.median(warm):.2f}', f'{ratio:.1f}'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.boot', description=__doc__)
    parser.add_argument(
        '--rounds', type=int, default=5, help='number of measurements per images_type'
    )
    parser.add_argument('--image-mib', type=int, default=1024, help='size of each image')
    parser.add_argument(
        '--images-type',
        type=cli.names(IMAGES_TYPES, 'images_type'),
        default=list(IMAGES_TYPES),
        help='comma-separated values of [libvirt] images_type',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=guests.BASE_DIRECTORY,
        help='a directory on the disk to measure, open to other users (%(default)s)',
    )
    parser.add_argument('--rst', type=pathlib.Path, help='write the table to this file, as RST')
    return parser


if __name__ == '__main__':
    cli.run(main)
