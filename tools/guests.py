# SPDX-License-Identifier: Apache-2.0
"""A stock Nova that boots guests, with the service beside it, as on hosts of a real cloud.

Each host has a libvirtd of its own. QEMU runs as one user and the agents as another one,
who is not root either; libvirt gives QEMU the files of its guests.
"""

import dataclasses
import functools
import json
import os
import pathlib
import pwd
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import requests

from nova_precache import model
from nova_precache.standalone import process
from tools import boot_sector
from tools.beside_deployment import BesideNova, agent_of
from tools.foundation import Host
from tools.servers import libvirtd
from tools.servers.nova import cloud
from tools.showing import StepFailed
from tools.waiting import wait_until

# QEMU's user must be able to reach its files, and sockets must have short paths.
BASE_DIRECTORY = pathlib.Path(tempfile.gettempdir()) / 'nova-precache-guests'
AGENT_USER = 'daemon'
# The first is that of the shipped unit. The second permits reading this source tree and the
# configuration, which may belong to root.
CAPABILITIES = ('fowner', 'dac_read_search')
# The first in which a request can name the host.
MICROVERSION = '2.74'
POLL_SECONDS = 0.1
_TAIL_BYTES = 64 * 1024
_UPLOAD_SECONDS = 600

_ALL = """
[neutron]
auth_type = admin_token
token = none
endpoint = {url}/neutron
endpoint_override = {url}/neutron

[nova_sys_admin]
helper_command = {helper} --config-file={own}/nova.conf

[scheduler]
workers = 1
"""
# nova-compute takes the last of two values.
_HOST = """
[DEFAULT]
compute_driver = libvirt.LibvirtDriver
my_ip = 127.0.0.1
# Placement answers 500 to one of two that write to its SQLite at once.
update_resources_interval = 5

[libvirt]
connection_uri = {uri}
cpu_mode = none
images_type = {images_type}
virt_type = qemu

[vnc]
enabled = false
"""


@dataclasses.dataclass(frozen=True)
class Guest:
    """A running server of Nova."""

    id: str
    host: Host

    @property
    def disk(self) -> pathlib.Path:
        return self.host.instances_path / self.id / 'disk'

    def has_written(self, line: str = boot_sector.LINE) -> bool:
        """Return whether a line is at the end of its serial console."""
        log = self.host.instances_path / self.id / 'console.log'
        if not log.exists():
            return False
        with log.open('rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return line in file.read(_TAIL_BYTES).decode(errors='replace')

    def wait_for_line(self) -> None:
        """Wait until it has written its line.

        :raises tools.waiting.TimedOut: it did not
        """
        wait_until(self.has_written, f'{self.id} has written its line')

    def files(self) -> list[pathlib.Path]:
        """Return the files of its disk, each of which is based on the next."""
        command = ['qemu-img', 'info', '--force-share', '--backing-chain', '--output=json']
        info = subprocess.run([*command, str(self.disk)], capture_output=True, check=True)
        return [pathlib.Path(each['filename']) for each in json.loads(info.stdout)]


class NovaWithGuests(cloud.StockNova):
    """A stock Nova with a nova-scheduler and libvirt.

    :param uris: of the libvirtds, by host
    :param options: more sections of nova.conf, by host
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hosts: Sequence[str],
        *,
        uris: Mapping[str, str],
        images_type: str,
        options: Mapping[str, str],
        **given: Any,
    ) -> None:
        super().__init__(directory, hosts, **given)
        self._uris = uris
        self._images_type = images_type
        self._options = options

    def wait(self, headers: Mapping[str, str]) -> None:
        """Wait until guests can be scheduled to all hosts."""
        super().wait(headers)
        wait_until(self._can_schedule, 'Placement knows every host')

    def _can_schedule(self) -> bool:
        headers = {'X-Auth-Token': 'admin', 'OpenStack-API-Version': 'placement 1.17'}
        url = f'{self.url}/placement/allocation_candidates?resources=VCPU:1'
        answer = _checked(requests.get(url, headers=headers, timeout=60))
        return len(answer.json()['provider_summaries']) == len(self.hosts)

    def _provide_modules(self, directory: pathlib.Path) -> None:
        super()._provide_modules(directory)
        for module in libvirtd.BINDING.path.glob('lib/python*/site-packages/libvirt*'):
            (directory / module.name).symlink_to(module)

    def _write(self, name: str, more: str) -> None:
        helper = self._home / 'bin' / 'privsep-helper'
        more += _ALL.format(url=self.url, helper=helper, own=self.directory / name)
        if name in self._uris:
            more += _HOST.format(uri=self._uris[name], images_type=self._images_type)
            more += self._options.get(name, '')
        super()._write(name, more)

    def _configure(self) -> None:
        super()._configure()
        for host in self.hosts:
            (self.directory / host).chmod(0o711)
            for name in ('', '_base', 'locks'):
                made_for_agent(self.directory / host / 'instances' / name)

    def _start_conductor(self) -> None:
        super()._start_conductor()
        self._start_service('nova-scheduler')


class BesideNovaWithGuests(BesideNova):
    """A cloud with a Nova that boots guests, and the service added to it.

    :param directory: an empty one, which QEMU's user can reach
    :param images_type: ``[libvirt] images_type`` of the hosts
    :param nova_options: more sections of nova.conf, by host
    :ivar capabilities: of the agents
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        images_type: str = 'default',
        nova_options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.libvirtds = {
            host.name: libvirtd.Libvirtd(host.directory / 'libvirt', host.name)
            for host in self.hosts
        }
        self.capabilities: Sequence[str] = CAPABILITIES
        self._images_type = images_type
        self._new_nova = functools.partial(
            NovaWithGuests,
            uris={name: each.uri for name, each in self.libvirtds.items()},
            images_type=images_type,
            options=nova_options or {},
        )

    def start(self) -> None:
        self._open_directory()
        libvirtd.BINDING.ensure()
        for each in self.libvirtds.values():
            self._servers.callback(each.stop)
            each.start()
        super().start()

    def parts(self) -> list[tuple[str, str]]:
        return [
            *super().parts(),
            ('nova-scheduler', ''),
            *((f'libvirtd {name}', each.uri) for name, each in self.libvirtds.items()),
        ]

    def compute(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Call the compute API as the operator."""
        headers = {
            'X-Auth-Token': self._operator_token,
            'OpenStack-API-Version': f'compute {MICROVERSION}',
        }
        url = f'{self.proxy.url}/v2.1{path}'
        answer = requests.request(method, url, json=body or None, headers=headers, timeout=60)
        return dict(_checked(answer).json()) if answer.content else {}

    def upload(self, data: bytes | BinaryIO) -> str:
        """Upload a raw image, private to the operator's project, and return its id."""
        image_id, images = str(uuid.uuid4()), f'{self.glance.url}/v2/images'
        headers = {'X-Auth-Token': self._operator_token}
        description = {
            'id': image_id,
            'name': image_id,
            'container_format': 'bare',
            'disk_format': 'raw',
        }
        _checked(requests.post(images, json=description, headers=headers, timeout=60))
        headers['Content-Type'] = 'application/octet-stream'
        url = f'{images}/{image_id}/file'
        _checked(requests.put(url, data=data, headers=headers, timeout=_UPLOAD_SECONDS))
        return image_id

    def precache(self, image_id: str, host: Host) -> str:
        """Request an image on a host and return the path of the request."""
        request = {'hosts': [host.name], 'images': [image_id]}
        return f'/requests/{self.post("/requests", request=request)["request"]["id"]}'

    def outcome(self, path: str) -> tuple[str, str | None]:
        """Wait until a request of one task has ended, and return the task's status and reason.

        :raises tools.waiting.TimedOut: it did not
        """
        wait_until(
            lambda: (
                self.get(self._operator_token, path)['request']['status']
                not in model.REQUEST_ACTIVE
            ),
            f'{path} has ended',
        )
        [task] = self.get(self._operator_token, f'{path}/tasks')['tasks']
        return task['status'], task['reason']

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Create a resource of /v1."""
        headers = {'X-Auth-Token': self._operator_token}
        url = f'{self.api_url}/v1{path}'
        return dict(_checked(requests.post(url, json=body, headers=headers, timeout=60)).json())

    def make_flavor(self, name: str, *, disk_gib: int) -> None:
        flavor = {'name': name, 'id': name, 'vcpus': 1, 'ram': 128, 'disk': disk_gib}
        self.compute('POST', '/flavors', flavor=flavor)

    def create_server(self, image_id: str, flavor: str, host: Host) -> str:
        """Create a server on a host and return its id."""
        server = {
            'name': f'guest-of-{image_id}',
            'imageRef': image_id,
            'flavorRef': flavor,
            'networks': 'none',
            'host': host.name,
        }
        return str(self.compute('POST', '/servers', server=server)['server']['id'])

    def server(self, server_id: str) -> dict[str, Any]:
        return dict(self.compute('GET', f'/servers/{server_id}')['server'])

    def wait_for_guest(self, server_id: str) -> Guest:
        """Wait until a server is ACTIVE and return its guest.

        :raises tools.showing.StepFailed: Nova reports an error
        :raises tools.waiting.TimedOut: it did not
        """
        wait_until(
            lambda: self._is_active(server_id), f'{server_id} is ACTIVE', poll_seconds=POLL_SECONDS
        )
        name = self.server(server_id)['OS-EXT-SRV-ATTR:host']
        return Guest(server_id, next(host for host in self.hosts if host.name == name))

    def boot(self, image_id: str, flavor: str, host: Host) -> Guest:
        """Boot a guest and wait until it has written its line.

        :raises tools.showing.StepFailed: Nova reports an error
        :raises tools.waiting.TimedOut: it did not
        """
        guest = self.wait_for_guest(self.create_server(image_id, flavor, host))
        guest.wait_for_line()
        return guest

    def delete_server(self, server_id: str) -> None:
        """Delete a server and wait until Nova has done so."""
        self.compute('DELETE', f'/servers/{server_id}')
        path = f'/servers?uuid={server_id}'
        wait_until(lambda: not self.compute('GET', path)['servers'], f'{server_id} is gone')

    @functools.cached_property
    def _operator_token(self) -> str:
        return self.token()

    def _is_active(self, server_id: str) -> bool:
        server = self.server(server_id)
        if server['status'] == 'ERROR':
            raise StepFailed(f'{server_id} did not boot: {server["fault"]["message"]}')
        return bool(server['status'] == 'ACTIVE')

    def _open_directory(self) -> None:
        """Open the directory, but not the files in it, to QEMU's user.

        :raises nova_precache.standalone.process.ServerFailed: one above is closed to others
        """
        for each in (self.directory.parent, self.directory):
            each.chmod(0o711)
        for each in self.directory.resolve().parents:
            if not each.stat().st_mode & stat.S_IXOTH:
                raise process.ServerFailed(
                    f'{each} is closed to other users, but QEMU runs as {libvirtd.QEMU_USER}'
                )

    def _start_nova(self) -> None:
        for each in self.libvirtds.values():
            each.wait()
        super()._start_nova()

    def _write(self, name: str, login: str, vhost: str, rest: str) -> None:
        if name in map(agent_of, self.hosts):
            made_for_agent(self.directory / name)
            rest += f'\n[libvirt]\nimages_type = {self._images_type}\n'
        super()._write(name, login, vhost, rest)

    def _command(self, kind: str, name: str) -> list[str]:
        command = super()._command(kind, name)
        if kind != 'compute':
            return command
        user = pwd.getpwnam(AGENT_USER)
        capabilities = ','.join(['-all', *(f'+{each}' for each in self.capabilities)])
        return [
            'setpriv',
            f'--reuid={user.pw_uid}',
            f'--regid={user.pw_gid}',
            '--clear-groups',
            f'--inh-caps={capabilities}',
            f'--ambient-caps={capabilities}',
            f'--bounding-set={capabilities}',
            '--no-new-privs',
            '--',
            # Last: a change of user cancels the signal of the parent's death.
            *command,
        ]


def _checked(answer: requests.Response) -> requests.Response:
    """Return an answer that is no error.

    :raises tools.showing.StepFailed: it is an error; the message has its body
    """
    if not answer.ok:
        asked = f'{answer.request.method} {answer.url}'
        raise StepFailed(f'{asked}: {answer.status_code} {answer.text}')
    return answer


def made_for_agent(directory: pathlib.Path) -> pathlib.Path:
    """Make a directory that belongs to the agent and that others may read."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    shutil.chown(directory, AGENT_USER)
    return directory
