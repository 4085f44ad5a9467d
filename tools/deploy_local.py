# SPDX-License-Identifier: Apache-2.0
"""Brings a whole deployment up on this machine, uses it as its operator does, takes it down.

Keystone, Glance, RabbitMQ and MariaDB run beside the service, on ports of their own and
in a directory of its own; then Nova's own command and the service's have an image cached on
all hosts.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
from rich import table

from nova_precache import exception, model
from nova_precache.standalone import environment, glance
from tests import keystone
from tools import deployment, showing
from tools.deployment import Deployment, Host
from tools.showing import CONSOLE, StepFailed, run, step

BASE_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / '.deploy-local'
PREFIX = 'deployment-'  # of directories, which are removed by this name
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGGREGATE = 'racks'
IMAGE = 'golden'
IMAGE_MIB = 16
REQUEST_SECONDS = 120
POLL_SECONDS = 0.5


def main() -> int:
    arguments = _parse_arguments()
    if arguments.build:
        return _build()
    logging.basicConfig(level=logging.ERROR)
    os.umask(0o077)  # there are passwords in the files
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, signal.default_int_handler)
    with own_directory(arguments.directory) as directory:
        whole = Deployment(directory, arguments.computes)
        try:
            return _run_all(whole, keep=arguments.keep)
        finally:
            # A signal in between would leave some of it running.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            whole.stop()
            step('Everything is stopped')


def _build() -> int:
    """Build the environments of the other servers, which takes minutes the first time."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        for each in (glance.ENVIRONMENT, keystone.ENVIRONMENT):
            each.ensure()
    except environment.EnvironmentFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _run_all(whole: Deployment, *, keep: bool) -> int:
    try:
        step('Keystone, Glance, RabbitMQ, MariaDB and the service are started')
        whole.start()
        show(whole)
        if keep:
            _show_what_to_try(whole)
            _wait_for_ctrl_c()
    except (StepFailed, exception.PrecacheError, requests.RequestException) as exc:
        print(
            f'The deployment failed: {exc}\nIts logs are below {whole.directory}', file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130
    return 0


def show(whole: Deployment) -> None:
    """Go through the tour, step by step."""
    show_parts(whole)
    with showing.random_qcow2(whole.directory, IMAGE_MIB) as file:
        image_id = upload(whole, file)
        make_aggregate(whole)
        cache(whole)
        show_outcomes(whole, image_id)
        compare(whole, file)


def upload(whole: Deployment, file: pathlib.Path) -> str:
    """Put a private image into Glance, and give its id."""
    step(f'The operator uploads an image of {IMAGE_MIB} MiB, private to a project')
    qcow2 = ('--disk-format', 'qcow2', '--file', str(file))
    said = openstack(
        whole, 'image', 'create', *qcow2, '--private', IMAGE, '-f', 'value', '-c', 'id'
    )
    return said.strip()


def make_aggregate(whole: Deployment) -> None:
    step('An aggregate holds the hosts')
    openstack(whole, 'aggregate', 'create', AGGREGATE)
    for host in whole.hosts:
        openstack(whole, 'aggregate', 'add', 'host', AGGREGATE, host.name)


def show_parts(whole: Deployment) -> None:
    parts = table.Table('Process', 'Where')
    for name, where in whole.parts():
        parts.add_row(name, where)
    CONSOLE.print(parts)


def cache(whole: Deployment) -> None:
    """Ask as Nova's users do, and in our way."""
    step("Nova's own command has the image cached")
    openstack(whole, 'aggregate', 'cache', 'image', AGGREGATE, IMAGE)
    step("The service's command asks for the same, and waits")
    openstack(whole, 'precache', 'create', '--aggregate', AGGREGATE, '--wait', IMAGE)
    wait_until_all_have_ended(whole)


def show_outcomes(whole: Deployment, image_id: str) -> None:
    """Show what became of the request of Nova's command, which is the older one."""
    step('What became of it')
    token = whole.token()
    requests_made = whole.get(token, '/requests')['requests']
    first = min(requests_made, key=lambda request: str(request['created_at']))['id']
    for command in (('show', first), ('task', 'list', first), ('host', 'list')):
        tell(whole, 'precache', *command)
    for request in requests_made:
        _expect_success(whole.get(token, f'/requests/{request["id"]}/tasks')['tasks'], whole.hosts)
    served = whole.glance.served(image_id)
    CONSOLE.print(f'Glance has served the image {served} times, for {len(whole.hosts)} hosts.')
    if served != len(whole.hosts):
        raise StepFailed('a host has downloaded it in vain')


def _expect_success(tasks: list[dict[str, Any]], hosts: list[Host]) -> None:
    outcomes = {task['host']: task['status'] for task in tasks}
    good = {model.TaskStatus.CACHED, model.TaskStatus.EXISTING}
    if set(outcomes) != {host.name for host in hosts} or not good.issuperset(outcomes.values()):
        raise StepFailed(f'not every host has the image: {outcomes}')


def compare(whole: Deployment, file: pathlib.Path) -> None:
    """Show that what is on the disks is what was uploaded."""
    step('On the disks of the hosts is what was uploaded')
    for host in whole.hosts:
        (cached,) = (host.instances_path / '_base').iterdir()
        run(['qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', str(file), str(cached)])


def wait_until_all_have_ended(whole: Deployment) -> None:
    token = whole.token()
    deadline = time.monotonic() + REQUEST_SECONDS
    while any(
        request['status'] in model.REQUEST_ACTIVE
        for request in whole.get(token, '/requests')['requests']
    ):
        if time.monotonic() > deadline:
            raise StepFailed(f'not every request ended in {REQUEST_SECONDS} s')
        time.sleep(POLL_SECONDS)


def openstack(whole: Deployment, *arguments: str) -> str:
    """Run the unmodified openstack client as the operator, showing what is run."""
    return run(['openstack', *arguments], whole.environment, watched='--wait' in arguments)


def tell(whole: Deployment, *arguments: str) -> None:
    """Run the openstack client and show what it prints."""
    CONSOLE.print(openstack(whole, *arguments).rstrip(), markup=False)


@contextlib.contextmanager
def own_directory(base: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give an empty directory below another; those of runs that are over are removed.

    So the logs of the last run can be read, and nothing piles up.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _locked(base, wait=True):
            for old in base.glob(f'{PREFIX}*'):
                with contextlib.suppress(BlockingIOError), _locked(old):
                    shutil.rmtree(old, ignore_errors=True)
            directory = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            held.enter_context(_locked(directory))
        yield directory


@contextlib.contextmanager
def _locked(directory: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a directory as long as this process lives, at most.

    :raises BlockingIOError: another holds it
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


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
        f'less {whole.directory}/{deployment.CONDUCTORS[0]}.log',
    ):
        CONSOLE.print(f'  {line}', markup=False)


def _wait_for_ctrl_c() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == '__main__':
    sys.exit(main())
