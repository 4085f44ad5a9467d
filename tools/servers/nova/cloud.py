# SPDX-License-Identifier: Apache-2.0
"""A whole stock Nova on a real broker: API, conductor, Placement and nova-computes.

Its nova-computes need no hypervisor: by default they cache images as Nova's libvirt driver
does, and only instances are fakes.
"""

import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import kombu
import requests

from nova_precache.standalone import process
from tools.servers import nova
from tools.servers.nova import api
from tools.waiting import TIMEOUT_SECONDS, wait_until

CONDUCTOR = 'nova-conductor'
_CENTRAL = 'nova'  # the directory of what is not on a compute host
_DRIVER_MODULE = 'precache_driver'
# Nova loads drivers from its own package alone.
_COMPUTE = """\
import sys
from nova.cmd import compute
import nova.virt
nova.virt.__path__.append(sys.argv.pop(1))
compute.main()
"""
CACHING_DRIVER = """\
import sys
import types

sys.modules['libvirt'] = types.ModuleType('libvirt')

import nova.privsep
from nova.virt import fake
from nova.virt.libvirt import driver

nova.privsep.sys_admin_pctxt.set_client_mode(False)  # without a daemon of root's


class Driver(fake.FakeDriverWithCaching):
    def __init__(self, virtapi, read_only=False):
        super().__init__(virtapi, read_only)
        self._images = driver.LibvirtDriver(virtapi)

    def cache_image(self, context, image_id):
        return self._images.cache_image(context, image_id)
"""
_GENERAL = """\
[DEFAULT]
host = {name}
state_path = {own}
instances_path = {own}/instances
transport_url = {transport_url}
compute_driver = {driver}.Driver
report_interval = 1

[conductor]
workers = 1

[glance]
endpoint_override = {glance_url}

[oslo_concurrency]
lock_path = {own}

[placement]
auth_type = admin_token
token = admin
endpoint = {url}/placement
endpoint_override = {url}/placement
"""
# Computes have none.
_DATABASES = """
[database]
connection = {cell}

[api_database]
connection = {api}
"""


class StockNova:
    """nova-api with a Placement, nova-conductor, and a nova-compute on each host.

    :param directory: each host has its configuration and state in a directory of its name below
    :param hosts: the compute hosts, which no other Nova on the broker has
    :param transport_url: of an empty virtual host of RabbitMQ
    :param databases: URLs of the API database and of the one of cell1
    :param authtoken: the section by which nova-api validates tokens; without it, a request names
        its caller in the headers that keystonemiddleware would set
    :param driver: source of a module whose ``Driver`` the nova-computes use
    :param sections: more sections of each nova.conf
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[str],
        *,
        transport_url: str,
        glance_url: str,
        databases: tuple[str, str],
        authtoken: str = '',
        driver: str = CACHING_DRIVER,
        sections: str = '',
    ) -> None:
        self.directory = directory
        self.hosts = hosts
        self.transport_url = transport_url
        self._glance_url = glance_url
        self._databases = databases
        self._authtoken = authtoken
        self._driver = driver
        self._sections = sections
        self._home = nova.ENVIRONMENT.ensure()
        self._central = directory / _CENTRAL
        self._api = api.NovaApi(
            self._central,
            hosts,
            self._configure,
            self._start_conductor,
            validates_tokens=bool(authtoken),
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The address of nova-api."""
        return self._api.url

    def start(self) -> None:
        """Start all parts; then call ``wait``."""
        self._central.mkdir()
        self._provide_modules(self._central)
        self._api.start()
        for host in self.hosts:
            self._spawn(host, host, 'python', '-c', _COMPUTE, str(self._central))

    def wait(self, headers: Mapping[str, str]) -> None:
        """Wait until Nova reports all its computes up, and each can be called.

        :param headers: name an admin
        :raises tools.waiting.TimedOut: it did not
        """
        wait_until(
            lambda: all(
                self.is_up(host, headers) and _is_served(self.transport_url, host)
                for host in self.hosts
            ),
            f'every nova-compute is up; logs in {self.directory}',
        )

    def stop(self) -> None:
        """Stop all parts; those without data are killed, which is quick."""
        for name in list(self._processes):
            self.kill(name)
        self._api.stop()

    def kill(self, name: str) -> None:
        """Kill the nova-compute of a host, or ``CONDUCTOR``, as on a lost machine."""
        killed = self._processes.pop(name)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()

    def is_up(self, host: str, headers: Mapping[str, str]) -> bool:
        """Return whether Nova takes the compute of a host to be alive."""
        answer = requests.get(
            f'{self.url}/v2.1/os-services?binary=nova-compute&host={host}',
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            allow_redirects=False,
        )
        answer.raise_for_status()
        services: list[dict[str, Any]] = answer.json()['services']
        return any(service['state'] == 'up' for service in services)

    def _provide_modules(self, directory: pathlib.Path) -> None:
        """Write the modules that Nova's environment lacks."""
        (directory / f'{_DRIVER_MODULE}.py').write_text(self._driver)
        if self._databases[0].startswith('mysql'):
            nova.link_pymysql(directory)

    def _configure(self) -> None:
        api_database, cell_database = self._databases
        databases = _DATABASES.format(api=api_database, cell=cell_database)
        self._write(_CENTRAL, databases + self._authtoken)
        for host in self.hosts:
            (self.directory / host / 'instances').mkdir(parents=True)
            self._write(host, '')

    def _write(self, name: str, more: str) -> None:
        own = self.directory / name
        general = _GENERAL.format(
            name=name,
            own=own,
            transport_url=self.transport_url,
            glance_url=self._glance_url,
            driver=_DRIVER_MODULE,
            url=self.url,
        )
        (own / 'nova.conf').write_text(general + self._sections + more)

    def _start_conductor(self) -> None:
        self._start_service(CONDUCTOR)

    def _start_service(self, program: str) -> None:
        self._spawn(program, _CENTRAL, program)

    def _spawn(self, name: str, owner: str, program: str, *arguments: str) -> None:
        configuration = self.directory / owner / 'nova.conf'
        command = [str(self._home / 'bin' / program), *arguments, f'--config-file={configuration}']
        # A nova-compute with libvirt takes minutes to stop.
        signal_name = 'KILL' if name in self.hosts else 'TERM'
        with (self.directory / f'{name}.log').open('ab') as log:
            self._processes[name] = subprocess.Popen(
                process.dies_with_parent(command, signal_name),
                env={**os.environ, **nova.variables(self._central)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o022,  # QEMU reads what nova-compute writes
            )


def _is_served(transport_url: str, host: str) -> bool:
    """Return whether a nova-compute can be called; Nova reports it up before."""
    url = transport_url.replace('rabbit://', 'amqp://')
    with kombu.Connection(url) as connection:  # type: ignore[attr-defined,no-untyped-call]
        try:
            queue = connection.channel().queue_declare(f'compute.{host}', passive=True)
        except connection.channel_errors:
            return False
    return bool(queue.consumer_count)
