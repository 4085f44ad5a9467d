# SPDX-License-Identifier: Apache-2.0
"""Shows the service at work with commands and HTTP.

It starts nova-precache-standalone, uploads an image to its real Glance, estimates the cost of
caching it, caches it on the four hosts of an aggregate, showing the progress, and creates a
root disk from the cache.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import requests
from rich import table

from nova_precache.standalone import glance, process
from tools.showing import BINARIES, CONSOLE, StepFailed, random_qcow2, run, step

STATE_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / '.quickstart'
NAME = 'quickstart'
IMAGE_MIB = 256
START_SECONDS = 600
INVENTORY_SECONDS = 300
STOP_SECONDS = 60

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Service:
    """A running standalone service, as its standalone.json describes it."""

    directory: pathlib.Path
    description: Json

    @property
    def hosts(self) -> list[Json]:
        return list(self.description['hosts'])

    def openstack(self, *arguments: str, watched: bool = False) -> str:
        """Show and run a command of the openstack client."""
        return run(['openstack', *arguments], self.environment(), watched=watched)

    def show_command(self, *arguments: str) -> None:
        """Run the openstack client and show what it prints."""
        CONSOLE.print(self.openstack(*arguments).rstrip(), markup=False)

    def manage(self, *arguments: str) -> str:
        configuration = str(self.description['conf'])
        return run(['nova-precache-manage', '--config-file', configuration, *arguments])

    def get(self, path: str) -> Json:
        """Get a resource of /v1."""
        answer = requests.get(
            f'{self.description["precache_url"]}{path}',
            headers={'X-Auth-Token': self.description['token']},
            timeout=30,
            allow_redirects=False,
        )
        answer.raise_for_status()
        return dict(answer.json())

    def cached_file(self, host: str, image_id: str) -> pathlib.Path:
        """Return the path where Nova's libvirt driver looks for an image on a host."""
        paths = {item['name']: pathlib.Path(item['instances_path']) for item in self.hosts}
        name = hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()
        return paths[host] / '_base' / name

    def environment(self) -> dict[str, str]:
        clouds = str(self.directory / 'clouds.yaml')
        return {'OS_CLIENT_CONFIG_FILE': clouds, 'OS_CLOUD': 'precache'}


def main() -> int:
    keep = _parse_arguments().keep
    # A stop of this script also stops its processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with started(STATE_DIRECTORY, keep=keep) as service:
            show(service)
    except (StepFailed, requests.RequestException) as exc:
        _show_failure(exc)
        return 1
    except KeyboardInterrupt:
        print('Interrupted; all processes are stopped.', file=sys.stderr)
        return 130
    if keep:
        _show_what_to_try(service)
    return 0


@contextlib.contextmanager
def started(directory: pathlib.Path, *, keep: bool) -> Iterator[Service]:
    """Run the service; keep it running only on success, and if asked to."""
    _refuse_a_second(directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    child = _spawn(directory, keep=keep)
    stop = True
    try:
        yield Service(directory, _wait_until_ready(directory, child))
        stop = not keep
    finally:
        if stop:
            _stop(directory, child)


def show(service: Service) -> None:
    """Run the tour."""
    step(f'The service is running, with {len(service.hosts)} compute hosts in two cells')
    image_id = ensure_image(service)
    ensure_aggregate(service)
    step('Estimate the cost of caching the image on all hosts of the aggregate')
    service.show_command('precache', 'estimate', '--aggregate', NAME, NAME)
    step('Cache the image on these hosts')
    show_outcomes(service, cache(service))
    step('List the hosts that report the image')
    wait_for_inventory(service, image_id)
    service.show_command('precache', 'image', 'host', 'list', NAME)
    boot(service, image_id)


def ensure_image(service: Service) -> str:
    """Upload an image of random data, unless an earlier run did; return its id."""
    filters = ['--name', NAME, '--status', 'active']
    found = json.loads(service.openstack('image', 'list', *filters, '-f', 'json'))
    if found:
        return str(found[0]['ID'])
    step(f'Upload a qcow2 image with {IMAGE_MIB} MiB of data to the image service')
    with random_qcow2(service.directory, IMAGE_MIB) as file:
        image = ['--disk-format', 'qcow2', '--file', str(file), '--public', NAME]
        created = service.openstack('image', 'create', *image, '-f', 'json')
    return str(json.loads(created)['id'])


def ensure_aggregate(service: Service) -> None:
    """Create an aggregate of all hosts, unless an earlier run did."""
    step('Create an aggregate of all hosts')
    aggregates = json.loads(service.openstack('aggregate', 'list', '-f', 'json'))
    if NAME not in [aggregate['Name'] for aggregate in aggregates]:
        service.openstack('aggregate', 'create', NAME)
    aggregate = json.loads(service.openstack('aggregate', 'show', NAME, '-f', 'json'))
    for host in service.hosts:
        if host['name'] not in aggregate['hosts']:
            service.openstack('aggregate', 'add', 'host', NAME, host['name'])


def cache(service: Service) -> list[Json]:
    """Request the image, show the progress until the end, and return the tasks."""
    said = service.openstack(
        *('precache', 'create', '--aggregate', NAME, '--wait', NAME),
        *('-f', 'value', '-c', 'id'),
        watched=True,
    )
    return list(service.get(f'/requests/{said.strip()}/tasks')['tasks'])


def show_outcomes(service: Service, tasks: Sequence[Json]) -> None:
    outcomes = table.Table('Host', 'Image', 'Status', 'Size', 'Time')
    for task in tasks:
        file = service.cached_file(task['host'], task['image_id'])
        size = f'{file.stat().st_size / 2**20:.0f} MiB' if file.exists() else '-'
        status = task['status'] if not task['reason'] else f'{task["status"]}: {task["reason"]}'
        outcomes.add_row(task['host'], task['image_id'], status, size, _duration(task))
    CONSOLE.print(outcomes)


def wait_for_inventory(service: Service, image_id: str) -> None:
    """Wait until all hosts have reported the image."""
    deadline = time.monotonic() + INVENTORY_SECONDS
    while len(service.get(f'/images/{image_id}/hosts')['hosts']) < len(service.hosts):
        if time.monotonic() > deadline:
            raise StepFailed(f'not all hosts reported the image within {INVENTORY_SECONDS} s')
        time.sleep(0.5)


def boot(service: Service, image_id: str) -> None:
    """Create a root disk as a boot does, and show that Glance was not read."""
    step('Create a root disk on a host with the image: nothing is downloaded')
    server = glance.GlanceServer(service.directory / 'glance')
    before = server.served(image_id)
    host = service.hosts[0]
    instance = f'{NAME}-{secrets.token_hex(4)}'
    directory = pathlib.Path(host['instances_path']) / instance
    arguments = ['--host', host['name'], '--image', image_id, '--instance', instance]
    try:
        service.manage('root-disk', 'create', *arguments, '--size-gib', '1')
        for line in run(['qemu-img', 'info', str(directory / 'disk')]).splitlines():
            if line.startswith(('virtual size', 'disk size', 'backing file:')):
                CONSOLE.print(f'  {line}', markup=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    after = server.served(image_id)
    CONSOLE.print(
        f'Glance served the image {before} times before the root disk, {after - before} for it.'
    )
    if after != before:
        raise StepFailed('the root disk was not created from the cache')


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='tools/quickstart.sh', description=__doc__)
    parser.add_argument(
        '--keep', action='store_true', help='keep the service running, and print how to stop it'
    )
    return parser.parse_args()


def _refuse_a_second(directory: pathlib.Path) -> None:
    pid_file = directory / 'standalone.pid'
    if pid_file.exists() and _is_alive(int(pid_file.read_text())):
        sys.exit(f'The service of an earlier run is still up. Stop it: kill $(cat {pid_file})')


def _is_alive(pid: int) -> bool:
    """Return whether the process exists and is a standalone service."""
    try:
        command = pathlib.Path('/proc', str(pid), 'cmdline').read_bytes()
    except FileNotFoundError:
        return False
    return b'nova-precache-standalone' in command


def _spawn(directory: pathlib.Path, *, keep: bool) -> subprocess.Popen[bytes]:
    (directory / 'standalone.json').unlink(missing_ok=True)
    with socket.create_server((process.HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        str(BINARIES / 'nova-precache-standalone'),
        *('--state-dir', str(directory), '--port', str(port)),
    ]
    with (directory / 'standalone.log').open('wb') as log:
        child = subprocess.Popen(
            command if keep else process.dies_with_parent(command, 'TERM'),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (directory / 'standalone.pid').write_text(str(child.pid))
    return child


def _wait_until_ready(directory: pathlib.Path, child: subprocess.Popen[bytes]) -> Json:
    """Wait for the file that the service writes last."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return dict(json.loads((directory / 'standalone.json').read_text()))
        if child.poll() is not None:
            raise StepFailed(f'the service exited with status {child.returncode}')
        if time.monotonic() > deadline:
            raise StepFailed(f'the service was not ready after {START_SECONDS} s')
        time.sleep(0.1)


def _stop(directory: pathlib.Path, child: subprocess.Popen[bytes]) -> None:
    process.stop(child, seconds=STOP_SECONDS)
    (directory / 'standalone.pid').unlink(missing_ok=True)


def _duration(task: Json) -> str:
    if not task['started_at'] or not task['finished_at']:
        return '-'
    started_at = datetime.datetime.fromisoformat(task['started_at'])
    finished_at = datetime.datetime.fromisoformat(task['finished_at'])
    return f'{(finished_at - started_at).total_seconds():.1f} s'


def _show_failure(error: Exception) -> None:
    for log in ('standalone.log', 'glance/glance.log'):
        path = STATE_DIRECTORY / log
        print(f'--- last lines of {path}:\n{process.tail(path)}\n', file=sys.stderr)
    print(f'The quick start failed: {error}', file=sys.stderr)


def _show_what_to_try(service: Service) -> None:
    clouds = service.directory / 'clouds.yaml'
    step('The service is still running. Try:')
    for line in (
        f'export OS_CLIENT_CONFIG_FILE={clouds} OS_CLOUD=precache PATH={BINARIES}:$PATH',
        'openstack image create --disk-format qcow2 --file FILE --public NAME',
        f'openstack precache create --aggregate {NAME} --wait NAME   # or, as in Nova:',
        f'openstack aggregate cache image {NAME} NAME',
        'openstack precache list',
        f'curl {service.description["precache_url"]}/requests',
        f'less {service.directory}/standalone.log',
        f'kill $(cat {service.directory}/standalone.pid)   # stops it',
    ):
        CONSOLE.print(f'  {line}', markup=False)


if __name__ == '__main__':
    sys.exit(main())
