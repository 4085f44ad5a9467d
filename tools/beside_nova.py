# SPDX-License-Identifier: Apache-2.0
"""Starts a stock Nova on this machine and adds the service to it, without agents and with them.

Keystone, Glance, RabbitMQ, MariaDB, nova-api, nova-conductor and two nova-computes run on
ports and in a directory of their own; nginx with the shipped rule is the compute endpoint.
First Nova's own computes cache an image for the service, then agents beside them cache
another; then all processes are stopped. With --boot, each nova-compute has a libvirtd, and
boots a guest from each of the images.
"""

import argparse
import pathlib
import sys

from rich import table

from nova_precache.standalone import glance
from tools import boot_sector, guests, running, showing, tour, waiting
from tools.beside_deployment import BesideNova
from tools.servers import environments, keystone, libvirtd, nova
from tools.showing import CONSOLE, StepFailed, step

BASE_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / '.beside-nova'
IMAGES = {'without-agents': 'nova-compute', 'with-agents': 'nova-precache-compute'}
FLAVOR = 'tiny'


def main() -> int:
    arguments = _parse_arguments()
    if arguments.build:
        needed = [glance.ENVIRONMENT, keystone.ENVIRONMENT, nova.ENVIRONMENT]
        return environments.build([*needed, *([libvirtd.BINDING] if arguments.boot else [])])

    def show_it(whole: BesideNova) -> None:
        step('Start Keystone, Glance, RabbitMQ, MariaDB, a stock Nova and the API')
        whole.start()
        image_ids = show(whole)
        if isinstance(whole, guests.BesideNovaWithGuests):
            show_boots(whole, image_ids)
        if arguments.keep:
            _show_what_to_try(whole)
            running.wait_for_ctrl_c()

    if arguments.boot:
        return running.run(arguments.directory, guests.BesideNovaWithGuests, show_it)
    return running.run(arguments.directory, BesideNova, show_it)


def show(whole: BesideNova) -> dict[str, str]:
    """Run both ways, show the effects on Nova, and return the ids of the images."""
    tour.show_parts(whole)
    step('Nova itself answers all other requests')
    tour.show_command(
        whole, 'compute', 'service', 'list', '-c', 'Binary', '-c', 'Host', '-c', 'State'
    )
    tour.make_aggregate(whole)
    before = whole.dump()
    step('WITHOUT AGENTS: add two conductors and no process on the hosts')
    whole.work_without_agents()
    without, with_agents = IMAGES
    found = {without: cache(whole, without)}
    step('WITH AGENTS: add nova-precache-compute beside each nova-compute')
    whole.work_with_agents()
    found[with_agents] = cache(whole, with_agents)
    show_disks(whole, found)
    show_endpoint(whole)
    show_database(whole, before == whole.dump())
    return found


def cache(whole: BesideNova, image: str) -> str:
    """Upload an image, request it with both commands, and show the outcomes."""
    with showing.random_qcow2(whole.directory, tour.IMAGE_MIB) as file:
        image_id = tour.upload(whole, file, image)
        tour.cache(whole, image)
        step('Outcomes')
        first = tour.check_outcomes(whole, image_id)
        for command in (('list',), ('task', 'list', first), ('host', 'list')):
            tour.show_command(whole, 'precache', *command)
        tour.compare(whole, file, image_id)
    return image_id


def show_disks(whole: BesideNova, image_ids: dict[str, str]) -> None:
    step("Files in Nova's _base directory on each host")
    disks = table.Table('Host', 'Image', 'File', 'MiB', 'Cached by')
    for host in whole.hosts:
        for name, image_id in image_ids.items():
            file = tour.base_file(host, image_id)
            mib = file.stat().st_size // 2**20
            disks.add_row(host.name, name, file.name, str(mib), IMAGES[name])
    CONSOLE.print(disks)


def show_endpoint(whole: BesideNova) -> None:
    """Show which service nginx sent requests to; it logs them shortly after the answer.

    :raises StepFailed: the rule sent one to the wrong service
    """
    step("Requests to the endpoint in Keystone's catalog")
    waiting.wait_until(
        lambda: len(whole.served()['nova-precache']) >= len(IMAGES), 'nginx has logged the requests'
    )
    answered = table.Table('Answered by', 'Requests', 'Example')
    for name, asked in whole.served().items():
        answered.add_row(name, str(len(asked)), asked[-1].rpartition(' ')[0])
    CONSOLE.print(answered)
    if any(_is_ours(asked) for asked in whole.served()['Nova']):
        raise StepFailed('Nova received a request for nova-precache')
    if not all(_is_ours(asked) for asked in whole.served()['nova-precache']):
        raise StepFailed('nova-precache received a request for Nova')


def _is_ours(asked: str) -> bool:
    method, path, _ = asked.split(' ')
    return method == 'POST' and '/os-aggregates/' in path and path.endswith('/images')


def show_database(whole: BesideNova, is_unchanged: bool) -> None:
    step("Nova's API database")
    if not is_unchanged:
        raise StepFailed("Nova's API database has changed")
    CONSOLE.print('No row has changed since the service was added.')


def show_boots(whole: guests.BesideNovaWithGuests, image_ids: dict[str, str]) -> None:
    """Boot a guest from each image.

    :raises StepFailed: it did not boot, or Nova read the image from Glance for it
    """
    step('Boot a guest from each image')
    size = ('--vcpus', '1', '--ram', '128', '--disk', '1')
    tour.openstack(whole, 'flavor', 'create', *size, FLAVOR, '-f', 'value', '-c', 'id')
    booted = table.Table(
        'Guest', 'Host', 'Image cached by', 'Glance was read', 'Its disk is based on'
    )
    for name, image_id in image_ids.items():
        before = whole.glance.served(image_id)
        guest = boot(whole, name)
        reads = whole.glance.served(image_id) - before
        if reads:
            raise StepFailed(f'Glance was read {reads} times for a guest of {name}')
        _, *bases = (path.name for path in guest.files())
        booted.add_row(name, guest.host.name, IMAGES[name], f'{reads} times', ', '.join(bases))
    tour.show_command(whole, 'server', 'list', '--long', '-c', 'Name', '-c', 'Status', '-c', 'Host')
    CONSOLE.print(booted)


def boot(whole: guests.BesideNovaWithGuests, image: str) -> guests.Guest:
    """Boot a guest as Nova's users do, and show its line on the serial console."""
    version = f'--os-compute-api-version={guests.MICROVERSION}'
    what = ('--image', image, '--flavor', FLAVOR, '--nic', 'none', image)
    said = tour.openstack(whole, version, 'server', 'create', *what, '-f', 'value', '-c', 'id')
    guest = whole.wait_for_guest(said.strip())
    guest.wait_for_line()
    CONSOLE.print(f'On the serial console of {image}: {boot_sector.LINE}')
    return guest


def _parse_arguments() -> argparse.Namespace:
    parser = running.parser('beside-nova.sh', __doc__, 'Keystone, Glance and Nova')
    parser.add_argument(
        '--boot', action='store_true', help='also boot a guest from each image; needs root'
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        help='parent of the directory of each run, open to other users for --boot '
        f'({BASE_DIRECTORY}, and {guests.BASE_DIRECTORY} for --boot)',
    )
    arguments = parser.parse_args()
    if arguments.directory is None:
        arguments.directory = guests.BASE_DIRECTORY if arguments.boot else BASE_DIRECTORY
    if arguments.boot and (why := libvirtd.why_not()):
        parser.error(f'--boot: {why}')
    return arguments


def _show_what_to_try(whole: BesideNova) -> None:
    step('Running until Ctrl-C. To use it in another terminal:')
    variables = ' '.join(f'{name}={value}' for name, value in whole.environment.items())
    for line in (
        f'export {variables} PATH={showing.BINARIES}:$PATH',
        f'openstack aggregate cache image {tour.AGGREGATE} {next(iter(IMAGES))}',
        'openstack precache list',
        f'ls {whole.hosts[0].instances_path}/_base',
        f'less {whole.directory}/nginx/access.log',
    ):
        CONSOLE.print(f'  {line}', markup=False)


if __name__ == '__main__':
    sys.exit(main())
