# SPDX-License-Identifier: Apache-2.0
"""The steps of an operator who tries a deployment."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from rich import table

from nova_precache import model
from tools.foundation import Foundation, Host
from tools.showing import CONSOLE, StepFailed, run, step
from tools.waiting import wait_until

AGGREGATE = 'racks'
IMAGE_MIB = 16


def show_parts(whole: Foundation) -> None:
    parts = table.Table('Process', 'Where')
    for name, where in whole.parts():
        parts.add_row(name, where)
    CONSOLE.print(parts)


def upload(whole: Foundation, file: pathlib.Path, name: str) -> str:
    """Upload a private image to Glance and return its id."""
    step(f'The operator uploads an image of {IMAGE_MIB} MiB, private to a project')
    qcow2 = ('--disk-format', 'qcow2', '--file', str(file))
    said = openstack(whole, 'image', 'create', *qcow2, '--private', name, '-f', 'value', '-c', 'id')
    return said.strip()


def make_aggregate(whole: Foundation) -> None:
    step('Create an aggregate of the hosts')
    openstack(whole, 'aggregate', 'create', AGGREGATE)
    for host in whole.hosts:
        openstack(whole, 'aggregate', 'add', 'host', AGGREGATE, host.name)


def cache(whole: Foundation, image: str) -> None:
    """Request an image with Nova's command and with the service's."""
    step("Nova's own command caches the image")
    openstack(whole, 'aggregate', 'cache', 'image', AGGREGATE, image)
    step("The service's command requests the same and waits")
    openstack(whole, 'precache', 'create', '--aggregate', AGGREGATE, '--wait', image)
    wait_until(lambda: have_all_ended(whole), 'every request has ended', poll_seconds=0.5)


def have_all_ended(whole: Foundation) -> bool:
    found = whole.get(whole.token(), '/requests')['requests']
    return all(request['status'] not in model.REQUEST_ACTIVE for request in found)


def check_outcomes(whole: Foundation, image_id: str) -> str:
    """Check that each request for an image cached it on all hosts; return the oldest one's id.

    :raises StepFailed: it did not, or a host has downloaded the image twice
    :raises tools.waiting.TimedOut: a host has not downloaded it
    """
    token = whole.token()
    found = whole.get(token, '/requests')['requests']
    for_image = [request for request in found if request['images'] == [image_id]]
    if not for_image:
        raise StepFailed('nova-precache received no request for the image')
    for request in for_image:
        _expect_success(whole.get(token, f'/requests/{request["id"]}/tasks')['tasks'], whole.hosts)
    wait_until(
        lambda: whole.glance.served(image_id) >= len(whole.hosts), 'Glance has logged the downloads'
    )
    served = whole.glance.served(image_id)
    CONSOLE.print(f'Glance served the image {served} times, to {len(whole.hosts)} hosts.')
    if served != len(whole.hosts):
        raise StepFailed('a host downloaded the image twice')
    return str(min(for_image, key=lambda request: str(request['created_at']))['id'])


def _expect_success(tasks: list[dict[str, Any]], hosts: Sequence[Host]) -> None:
    outcomes = {task['host']: task['status'] for task in tasks}
    good = {model.TaskStatus.CACHED, model.TaskStatus.EXISTING}
    if set(outcomes) != {host.name for host in hosts} or not good.issuperset(outcomes.values()):
        raise StepFailed(f'not every host has the image: {outcomes}')


def compare(whole: Foundation, file: pathlib.Path, image_id: str) -> None:
    """Show that the cached files have the content of the uploaded image."""
    step('Compare the cached files with the uploaded image')
    for host in whole.hosts:
        cached = str(base_file(host, image_id))
        run(['qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', str(file), cached])


def base_file(host: Host, image_id: str) -> pathlib.Path:
    """Return the path where Nova looks for an image on a host."""
    name = hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()
    return host.instances_path / '_base' / name


def openstack(whole: Foundation, *arguments: str) -> str:
    """Show and run a command of the unmodified openstack client as the operator."""
    return run(['openstack', *arguments], whole.environment, watched='--wait' in arguments)


def show_command(whole: Foundation, *arguments: str) -> None:
    """Run the openstack client and show what it prints."""
    CONSOLE.print(openstack(whole, *arguments).rstrip(), markup=False)
