# SPDX-License-Identifier: Apache-2.0
"""A stock Nova under Keystone and on MariaDB, whose computes are processes without libvirt.

What a nova-compute does with images is Nova's own code for libvirt; only instances would
be fakes.
"""

import importlib.metadata
import os
import pathlib
import signal
import subprocess
from collections.abc import Sequence

import requests

from nova_precache.standalone import process
from tools import tour
from tools.foundation import Host
from tools.servers import nova
from tools.servers.nova import cloud

_DRIVER = """\
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
compute_driver = precache_show_driver.Driver
report_interval = 2

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
# Which computes do without.
_CENTRAL = """
[database]
connection = {main}

[api_database]
connection = {api}
"""
CENTRAL = 'nova'


class StockNova:
    """nova-api with a Placement, nova-conductor, and a nova-compute on each host.

    :param directory: an empty one
    :param databases: URLs of the API database and of the one of cell1
    :param keystone_authtoken: the section of nova-api
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[Host],
        *,
        transport_url: str,
        glance_url: str,
        databases: tuple[str, str],
        keystone_authtoken: str,
    ) -> None:
        self._directory = directory
        self._hosts = hosts
        self._transport_url = transport_url
        self._glance_url = glance_url
        self._databases = databases
        self._keystone_authtoken = keystone_authtoken
        self._home = nova.ENVIRONMENT.path
        self._central = directory / CENTRAL
        names = [host.name for host in hosts]
        self._api = _Api(
            self._central,
            names,
            self._configure,
            self._start_conductor,
            cell0='',
            asks_keystone=True,
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Where nova-api itself answers."""
        return self._api.url

    def start(self) -> None:
        """Start everything; ``wait`` says when the computes can be called."""
        self._central.mkdir()
        self._provide_modules(self._central)
        self._api.start()
        for host in self._hosts:
            self._spawn(host.name, 'python', '-c', cloud.COMPUTE, str(self._central))

    def wait(self, token: str) -> None:
        """Wait until Nova takes all its computes to be up, and each can be called.

        :raises tools.showing.StepFailed: it takes too long
        """
        names = {host.name for host in self._hosts}
        tour.wait_until(
            lambda: (
                names <= self._up(token)
                and all(cloud.listens(self._transport_url, name) for name in names)
            ),
            'every nova-compute is up',
        )

    def stop(self) -> None:
        """Stop everything; what has no data of its own is killed, which takes no time."""
        for each in self._processes:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
        self._processes.clear()
        self._api.stop()

    def _provide_modules(self, directory: pathlib.Path) -> None:
        """Put there what Nova's environment lacks."""
        (directory / 'precache_show_driver.py').write_text(_DRIVER)
        (directory / 'pymysql').symlink_to(_driver_of_mariadb())

    def _up(self, token: str) -> set[str]:
        answer = requests.get(
            f'{self.url}/v2.1/os-services?binary=nova-compute',
            headers={'X-Auth-Token': token},
            timeout=60,
            allow_redirects=False,
        )
        answer.raise_for_status()
        return {each['host'] for each in answer.json()['services'] if each['state'] == 'up'}

    def _configure(self) -> None:
        api, main = self._databases
        databases = _CENTRAL.format(api=api, main=main)
        self._write(CENTRAL, databases + self._keystone_authtoken)
        for host in self._hosts:
            host.instances_path.mkdir(parents=True)
            self._write(host.name, '')

    def _write(self, name: str, more: str) -> None:
        own = self._directory / name
        general = _GENERAL.format(
            name=name,
            own=own,
            transport_url=self._transport_url,
            glance_url=self._glance_url,
            url=self.url,
        )
        (own / 'nova.conf').write_text(general + more)

    def _start_conductor(self) -> None:
        self._spawn(CENTRAL, 'nova-conductor')

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        own = self._directory / name
        command = [str(self._home / 'bin' / program), *arguments]
        command.append(f'--config-file={own / "nova.conf"}')
        # One with libvirt takes minutes to end otherwise.
        signal_name = 'KILL' if arguments else 'TERM'
        with (own / f'{"nova-compute" if arguments else program}.log').open('ab') as log:
            self._processes.append(
                subprocess.Popen(
                    process.dies_with_parent(command, signal_name),
                    env={**os.environ, **_variables(self._central)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    umask=0o022,  # QEMU reads what nova-compute writes
                )
            )


class _Api(cloud.Api):
    """With a driver of MariaDB."""

    def _variables(self) -> dict[str, str]:
        return {**super()._variables(), **_variables(self.directory)}


def _driver_of_mariadb() -> pathlib.Path:
    return pathlib.Path(str(importlib.metadata.distribution('pymysql').locate_file('pymysql')))


def _variables(modules: pathlib.Path) -> dict[str, str]:
    return {'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true', 'PYTHONPATH': str(modules)}
