# SPDX-License-Identifier: Apache-2.0
"""A stock Nova that boots guests, for all tests; images, guests and pins belong to each test."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import pytest

from nova_precache.standalone import glance as glance_server, process
from tests import gateway as site_link
from tests.conftest import require_environment, require_server
from tools import boot_sector, guests, running
from tools.beside_deployment import agent_of
from tools.foundation import STOP_SECONDS, Host
from tools.servers import keystone as keystone_server, libvirtd, nova

MIB = 1024**2
FLAVOR = 'tiny'
# For the host whose images expire within a test, in Nova's and the conductors' configuration.
MINIMUM_AGE_SECONDS = 40
_AGEING = f"""
[image_cache]
manager_interval = 2
remove_unused_original_minimum_age_seconds = {MINIMUM_AGE_SECONDS}
"""
_PINS = f"""
[conductor]
pin_interval_seconds = 1

[image_cache]
remove_unused_original_minimum_age_seconds = {MINIMUM_AGE_SECONDS}
"""


class Cloud(guests.BesideNovaWithGuests):
    """A cloud whose images come through a gateway, which counts and holds their downloads.

    :ivar host: keeps its images
    :ivar ageing: removes an image that is not used for ``MINIMUM_AGE_SECONDS``
    """

    gateway: site_link.Gateway

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory, nova_options={'compute2': _AGEING})
        self.host, self.ageing = self.hosts
        self._has_agents: bool | None = None

    def start(self) -> None:
        super().start()
        self.make_flavor(FLAVOR, disk_gib=1)

    def need(self, *, agents: bool) -> None:
        """Switch to agents, or to the nova-computes if no agents have been started yet."""
        if self._has_agents == agents:
            return
        if agents:
            self.work_with_agents()
        else:
            assert self._has_agents is None, 'agents stay'
            self.work_without_agents()
        self._has_agents = agents

    @contextlib.contextmanager
    def agent_with(self, host: Host, capabilities: Sequence[str]) -> Iterator[None]:
        """Restart the agent of a host with other capabilities for a while."""
        self.capabilities = capabilities
        self._restart_agent(host)
        try:
            yield
        finally:
            self.capabilities = guests.CAPABILITIES
            self._restart_agent(host)

    def new_image(self) -> str:
        """Upload a bootable image to Glance, and return its id."""
        return self.upload(boot_sector.content() + os.urandom(16 * MIB - boot_sector.SIZE_BYTES))

    def pin(self, image_id: str, host: Host) -> str:
        """Pin an image to a host, in an aggregate of its own, and return the path of the pin."""
        aggregate = {'name': f'pinned-{image_id}'}
        made = self.compute('POST', '/os-aggregates', aggregate=aggregate)['aggregate']
        path = f'/os-aggregates/{made["id"]}/action'
        self.compute('POST', path, add_host={'host': host.name})
        pin = self.post('/pins', pin={'aggregate': made['id'], 'images': [image_id]})
        return f'/pins/{pin["pin"]["id"]}'

    def why_not_kept(self, pin: str) -> str | None:
        """Return the reason why a pin is not satisfied."""
        reason = self.get(self.token(), pin)['pin']['reason']
        return None if reason is None else str(reason)

    def downloads(self, image_id: str) -> int:
        return len(self.gateway.served(image_id))

    def stop(self) -> None:
        if hasattr(self, 'gateway'):
            self.gateway.release()
        super().stop()

    def _restart_agent(self, host: Host) -> None:
        process.stop(self._children.pop(agent_of(host)), seconds=STOP_SECONDS)
        self._start_agents([host])

    def _start_servers(self) -> None:
        super()._start_servers()
        self.gateway = self._servers.enter_context(site_link.Gateway(self.glance.url))
        self.image_url = self.gateway.url

    def _control(self, more: str) -> str:
        return super()._control(more + _PINS)

    def _write(self, name: str, login: str, vhost: str, rest: str) -> None:
        # A download is held until a guest is spawning, which takes long on a busy machine.
        super()._write(name, login, vhost, f'{rest}\n[glance]\nread_timeout_seconds = 600\n')


def require_guests() -> None:
    """Skip the test, or fail it in CI, unless guests can be booted here."""
    why_not = libvirtd.why_not()
    require_server('libvirt', why_not is None, str(why_not))
    for each in (
        glance_server.ENVIRONMENT,
        keystone_server.ENVIRONMENT,
        nova.ENVIRONMENT,
        libvirtd.BINDING,
    ):
        require_environment(each)


@pytest.fixture(scope='session')
def cloud() -> Iterator[Cloud]:
    require_guests()
    before = os.umask(0o077)  # the files hold passwords, and other users may traverse the directory
    with running.own_directory(guests.BASE_DIRECTORY) as directory:
        whole = Cloud(directory)
        try:
            whole.start()
            yield whole
        finally:
            whole.stop()
            os.umask(before)
