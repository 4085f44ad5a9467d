# SPDX-License-Identifier: Apache-2.0
"""A whole stock Nova whose nova-computes note what they cache and refuse some images.

A request names its caller in the headers that keystonemiddleware would set.
"""

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Self

import requests

from tools.servers.nova import cloud
from tools.waiting import TIMEOUT_SECONDS, wait_until_frozen

CALLER = {
    'X-User-Id': 'e3a1c7b2f0d94a58b6c0d1e2f3a4b5c6',
    'X-Project-Id': 'a9b8c7d6e5f4430291827364554637fe',
    'X-Roles': 'admin',
    'X-Auth-Token': 'the-token-of-the-caller',
    'OpenStack-API-Version': 'compute 2.81',
}
HOSTS = ('nova-host1', 'nova-host2')
REFUSED = 'refused-by-the-driver'
CACHED = 'the driver has'

# The fake driver caches any image; this one refuses some by their name.
_DRIVER = f"""\
from nova.image import glance
from nova.virt import fake


class Driver(fake.FakeDriverWithCaching):
    def cache_image(self, context, image_id):
        if glance.API().get(context, image_id)['name'] == '{REFUSED}':
            raise RuntimeError('refused by its name')
        is_new = super().cache_image(context, image_id)
        print('{CACHED}', image_id, flush=True)
        return is_new
"""
_NOTIFICATIONS = """
[notifications]
notification_format = both

[oslo_messaging_notifications]
driver = messagingv2
"""


class NovaCloud(cloud.StockNova):
    """One cell of stock Nova.

    :param directory: an empty one
    :param transport_url: of an empty virtual host of RabbitMQ, for all parts
    :ivar databases: directory of the databases ``api.sqlite`` and ``cell1.sqlite``
    """

    def __init__(self, directory: pathlib.Path, transport_url: str, glance_url: str) -> None:
        self.databases = directory / 'databases'
        super().__init__(
            directory,
            HOSTS,
            transport_url=transport_url,
            glance_url=glance_url,
            databases=(
                f'sqlite:///{self.databases}/api.sqlite',
                f'sqlite:///{self.databases}/cell1.sqlite',
            ),
            driver=_DRIVER,
            sections=_NOTIFICATIONS,
        )

    def __enter__(self) -> Self:
        self.databases.mkdir()
        try:
            self.start()
            self.wait(CALLER)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Freeze a process, as on a machine that hangs."""
        os.killpg(self._processes[name].pid, signal.SIGSTOP)
        try:
            wait_until_frozen(self._processes[name].pid)
            yield
        finally:
            os.killpg(self._processes[name].pid, signal.SIGCONT)

    @contextlib.contextmanager
    def compute_set(self, host: str, off: Any, on: Any) -> Iterator[None]:
        """Change the nova-compute of a host as an operator would, and change it back."""
        [service] = self.get(f'/os-services?binary=nova-compute&host={host}')['services']
        path = f'{self.url}/v2.1/os-services/{service["id"]}'
        requests.put(path, json=off, headers=CALLER, timeout=TIMEOUT_SECONDS).raise_for_status()
        try:
            yield
        finally:
            requests.put(path, json=on, headers=CALLER, timeout=TIMEOUT_SECONDS).raise_for_status()

    def get(self, path: str) -> Any:
        answer = requests.get(f'{self.url}/v2.1{path}', headers=CALLER, timeout=TIMEOUT_SECONDS)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> requests.Response:
        """Call the compute API as an admin."""
        answer = requests.post(
            f'{self.url}/v2.1{path}', json=body, headers=CALLER, timeout=TIMEOUT_SECONDS
        )
        answer.raise_for_status()
        return answer

    def aggregate(self, name: str, hosts: Sequence[str] | None = None) -> int:
        """Create an aggregate of some hosts, by default all."""
        made = self.post('/os-aggregates', {'aggregate': {'name': name}}).json()
        aggregate_id = int(made['aggregate']['id'])
        for host in self.hosts if hosts is None else hosts:
            self.post(f'/os-aggregates/{aggregate_id}/action', {'add_host': {'host': host}})
        return aggregate_id

    def cache(self, aggregate_id: int, *image_ids: str) -> None:
        body = {'cache': [{'id': image_id} for image_id in image_ids]}
        self.post(f'/os-aggregates/{aggregate_id}/images', body)

    def has_cached(self, host: str, image_id: str) -> bool:
        """Return whether the driver of a host has ever cached an image."""
        return f'{CACHED} {image_id}' in (self.directory / f'{host}.log').read_text()
