# SPDX-License-Identifier: Apache-2.0
"""Starts a whole deployment on this machine, uses it as its operator does, and stops it.

Keystone, Glance, RabbitMQ and MariaDB run beside the service, on ports and in a directory of
their own; then Nova's own command and the service's cache an image on all hosts.
"""

import argparse
import pathlib
import sys

from nova_precache.standalone import glance
from tools import foundation, running, showing, tour
from tools.deployment import Deployment
from tools.servers import environments, keystone
from tools.showing import CONSOLE, step
from tools.tour import AGGREGATE

BASE_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / '.deploy-local'
IMAGE = 'golden'


def main() -> int:
    arguments = _parse_arguments()
    if arguments.build:
        return environments.build((glance.ENVIRONMENT, keystone.ENVIRONMENT))

    def show_it(whole: Deployment) -> None:
        step('Start Keystone, Glance, RabbitMQ, MariaDB and the service')
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
    """Run the tour."""
    tour.show_parts(whole)
    with showing.random_qcow2(whole.directory, tour.IMAGE_MIB) as file:
        image_id = tour.upload(whole, file, IMAGE)
        tour.make_aggregate(whole)
        tour.cache(whole, IMAGE)
        show_outcomes(whole, image_id)
        tour.compare(whole, file, image_id)


def show_outcomes(whole: Deployment, image_id: str) -> None:
    """Show the outcomes of the request of Nova's command, which is the older one."""
    step('Outcomes')
    first = tour.check_outcomes(whole, image_id)
    for command in (('show', first), ('task', 'list', first), ('host', 'list')):
        tour.show_command(whole, 'precache', *command)


def _parse_arguments() -> argparse.Namespace:
    parser = running.parser('deploy-local.sh', __doc__, 'Keystone and Glance')
    parser.add_argument(
        '--computes',
        type=int,
        choices=range(1, 21),
        default=4,
        metavar='N',
        help='number of compute hosts in two cells, 1 to 20 (%(default)s)',
    )
    parser.add_argument(
        '--directory',
        type=pathlib.Path,
        default=BASE_DIRECTORY,
        help='parent of the directory of each run (%(default)s)',
    )
    return parser.parse_args()


def _show_what_to_try(whole: Deployment) -> None:
    step('Running until Ctrl-C. To use it in another terminal:')
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
