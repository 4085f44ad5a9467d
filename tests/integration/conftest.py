# SPDX-License-Identifier: Apache-2.0
"""The service as processes of their own over a real RabbitMQ, a virtual host for each cell."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import requests

from nova_precache.standalone import glance as glance_server
from nova_precache.standalone import process
from tests import gateway as site_link
from tests import service as doors
from tests.conftest import RabbitMQ

BIN = pathlib.Path(sys.executable).parent
CELLS = ('cell1', 'cell2')


@dataclasses.dataclass
class Deployment:
    """An API, a conductor and a compute for each host, all on this machine."""

    directory: pathlib.Path
    gateway: site_link.Gateway
    rabbitmq: RabbitMQ
    api_port: int
    cell_urls: dict[str, str] = dataclasses.field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def service(self) -> doors.Service:
        base = f'http://127.0.0.1:{self.api_port}'
        return doors.Service(f'{base}/v2.1', f'{base}/v1', self.hosts)

    @property
    def hosts(self) -> tuple[doors.Host, ...]:
        return tuple(
            doors.Host(f'{cell}-host{n}', cell, str(self.directory / f'{cell}-host{n}/instances'))
            for cell in CELLS
            for n in (1, 2)
        )

    def set_up(self) -> None:
        """Write the configuration, make the database and the cells, start everything."""
        self.cell_urls = {cell: self.rabbitmq.make_vhost() for cell in CELLS}
        # The API has its broker in common with the last cell, which is allowed.
        self._write('central', self.cell_urls[CELLS[-1]])
        self.manage('db', 'sync')
        for cell, url in self.cell_urls.items():
            self.manage('cell', 'create', '--name', cell, '--transport-url', url)
            for host in self.hosts:
                if host.cell == cell:
                    self._write(host.name, url, host)
        for name in ('conductor', 'api', *(host.name for host in self.hosts)):
            self.start(name)
        self.wait_until_hosts_are_up()

    def manage(self, *arguments: str) -> str:
        command = [BIN / 'nova-precache-manage', '--config-file', self.directory / 'central.conf']
        done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def start(self, name: str) -> None:
        """Start the conductor, the API or the compute of a host."""
        conf = name if name not in ('api', 'conductor') else 'central'
        kind = name if name in ('api', 'conductor') else 'compute'
        command = [str(BIN / f'nova-precache-{kind}'), '--config-file']
        command.append(str(self.directory / f'{conf}.conf'))
        with (self.directory / f'{name}.log').open('ab') as log:
            self.processes[name] = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'), stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """Kill a process at once, as a lost machine would."""
        killed = self.processes.pop(name)
        killed.kill()
        killed.wait()

    def tear_down(self) -> None:
        """Stop everything as an operator would; whatever does not stop is a failure."""
        for each in self.processes.values():
            each.send_signal(signal.SIGTERM)
        statuses = {name: each.wait(60) for name, each in self.processes.items()}
        assert set(statuses.values()) <= {0}, statuses

    def log(self, name: str) -> str:
        return (self.directory / f'{name}.log').read_text()

    def wait_until_hosts_are_up(self) -> None:
        def are_up() -> bool:
            return self.manage('host', 'list').count('| up') == len(self.hosts)

        doors.wait_until(are_up, f'all hosts are up; logs in {self.directory}')
        doors.wait_until(self._answers, 'the API answers')

    def _answers(self) -> bool:
        try:
            return requests.get(f'http://127.0.0.1:{self.api_port}/', timeout=5).ok
        except requests.ConnectionError:
            return False

    def _write(self, name: str, transport_url: str, host: doors.Host | None = None) -> None:
        state_path = self.directory / name
        (self.directory / f'{name}.conf').write_text(
            f"""\
[DEFAULT]
host = {host.name if host else 'central'}
state_path = {state_path}
transport_url = {transport_url}
report_interval = 1
rpc_response_timeout = 6
[api]
auth_strategy = noauth2
bind_port = {self.api_port}
[conductor]
claim_lease_seconds = 3
poll_interval_seconds = 0.5
heartbeat_write_interval_seconds = 0.5
rpc_connect_retries = 0
[database]
connection = sqlite:///{self.directory}/precache.sqlite
[glance]
endpoint_override = {self.gateway.url}
[image_cache]
retry_delay_seconds = 1
precache_max_attempts = 3
reserved_disk_bytes = 0
"""
        )


@pytest.fixture(scope='module')
def deployment(
    glance: glance_server.GlanceServer,
    rabbitmq: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Deployment]:
    """A deployment that the tests of one module share, each with images of its own."""
    with site_link.Gateway(glance.url) as gateway:
        directory = tmp_path_factory.mktemp('deployment')
        whole = Deployment(directory, gateway, rabbitmq, free_port())
        try:
            whole.set_up()
            yield whole
        finally:
            gateway.release()
            whole.tear_down()


@pytest.fixture(autouse=True)
def _programs_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the commands of the environment that runs the tests."""
    monkeypatch.setenv('PATH', f'{BIN}{os.pathsep}{os.environ["PATH"]}')
