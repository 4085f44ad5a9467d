# SPDX-License-Identifier: Apache-2.0
"""Brings a whole deployment up on this machine, uses it as its operator does, takes it down.

Keystone, Glance, RabbitMQ and MariaDB run beside the service, on ports of their own and
in a directory of its own; then Nova's own command and the service's have an image cached on
all hosts.
"""

import argparse
import pathlib
import sys

from nova_precache.standalone import glance
from tools import foundation, running, showing, tour
from tools.deployment import Deployment
from tools.servers import keystone
from tools.showing import CONSOLE, step
from tools.tour import AGGREGATE

BASE_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / '.deploy-local'
IMAGE = 'golden'


def main() -> int:
    arguments = _parse_arguments()
    if arguments.build:
        return running.build((glance.ENVIRONMENT, keystone.ENVIRONMENT))

    def show_it(whole: Deployment) -> None:
        step('Keystone, Glance, RabbitMQ, MariaDB and the service are started')
        whole.start()
        show(whole)
        if arguments.keep:
            _show_what_to_try(whole)
            running.wait_for_ctrl_c()

    return running.run(
        arguments.directory,
        lambda directory: Deployment(directory, arguments.computes),
        show_it,
    )


def show(whole: Deployment) -> None:
    """Go through the tour, step by step."""
    tour.show_parts(whole)
    with showing.random_qcow2(whole.directory, tour.IMAGE_MIB) as file:
        image_id = tour.upload(whole, file, IMAGE)
        tour.make_aggregate(whole)
        tour.cache(whole, IMAGE)
        show_outcomes(whole, image_id)
        tour.compare(whole, file, image_id)


def show_outcomes(whole: Deployment, image_id: str) -> None:
    """Show what became of the request of Nova's command, which is the older one."""
    step('What became of it')
    first = tour.check_outcomes(whole, image_id)
    for command in (('show', first), ('task', 'list', first), ('host', 'list')):
        tour.tell(whole, 'precache', *command)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='tools/deploy-local.sh', description=__doc__)
    parser.add_argument(
        '--keep', action='store_true', help='leave it running until Ctrl-C, and say how to use it'
    )
    parser.add_argument(
        '--computes',
        type=int,
        choices=range(1, 21),
        default=4,
        metavar='N',
        help='compute hosts, in two cells; 1 to 20, %(default)s unless given',
    )
    parser.add_argument('--build', action='store_true', help='prepare Keystone and Glance, and end')
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=BASE_DIRECTORY,
        help='where each run has a directory of its own, %(default)s unless given',
    )
    return parser.parse_args()


def _show_what_to_try(whole: Deployment) -> None:
    step('It is left running until Ctrl-C. To use it, in another terminal:')
    variables = ' '.join(f'{name}={value}' for name, value in whole.environment.items())
    host = whole.hosts[0]
    for line in (
        f'export {variables} PATH={showing.BINARIES}:$PATH',
        'openstack image create --disk-format qcow2 --file FILE NAME',
        f'openstack precache create --aggregate {AGGREGATE} --wait NAME   # or, as in Nova:',
        f'openstack aggregate cache image {AGGREGATE} NAME',
        f'curl {whole.api_url}/v1',
        f'ls {host.instances_path}/_base',
        f'less {whole.directory}/{foundation.CONDUCTORS[0]}.log',
    ):
        CONSOLE.print(f'  {line}', markup=False)


if __name__ == '__main__':
    sys.exit(main())
