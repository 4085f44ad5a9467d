# SPDX-License-Identifier: Apache-2.0
"""The real servers that tests share, each started once a session and only when asked for.

A test that needs a server takes its fixture. Where the server cannot be had, the
test is skipped and says what to install; where ``NOVA_PRECACHE_REQUIRE_SERVERS``
is set to 1, as in CI, it fails.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import requests
from oslo_config import cfg
from pifpaf.drivers import rabbitmq as pifpaf_rabbitmq

from nova_precache import backend
from nova_precache.standalone import environment, glance as glance_server
from tests.leaks import SECRETS
from tools.servers import keystone as keystone_server

_why_no_eventlet = backend.why_no_eventlet()
needs_eventlet = pytest.mark.skipif(_why_no_eventlet is not None, reason=str(_why_no_eventlet))
# What the threads of a process can be here.
THREADS = [
    backend.Backend.THREADING,
    pytest.param(backend.Backend.EVENTLET, marks=needs_eventlet),
]


def pytest_configure() -> None:
    """Stop the servers on SIGTERM, too, as on Ctrl-C: a CI that gives up sends it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Search what a test captured for secrets; see :func:`secrets_kept`."""
    for name, text in report.sections:
        SECRETS.look_into(text, f'{report.nodeid}, {name}')


@pytest.fixture(autouse=True)
def global_conf() -> Iterator[None]:
    """Leave no option of one command to the next, which a process of its own would not see."""
    yield
    cfg.CONF.reset()
    cfg.CONF.unregister_opt(cfg.SubCommandOpt('command'))


@pytest.fixture(scope='session')
def secrets_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail at the end of the session if a secret is where nobody may find it."""
    yield
    leaks = SECRETS.leaks(tmp_path_factory.getbasetemp())
    assert leaks == [], f'under {tmp_path_factory.getbasetemp()}'
    assert SECRETS.missed() == [], 'logs that were not searched'


def require_server(name: str, available: bool, how: str) -> None:
    """Skip the test, or fail it in CI, unless what it needs is there.

    :param how: what to do to have it, such as ``apt-get install qemu-utils``
    """
    if available:
        return
    message = f'{name} is not available: {how}'
    if os.environ.get('NOVA_PRECACHE_REQUIRE_SERVERS') == '1':
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope='session')
def qemu_img() -> str:
    """The path of qemu-img."""
    path = shutil.which('qemu-img')
    require_server('qemu-img', path is not None, 'apt-get install qemu-utils')
    return str(path)


@pytest.fixture(scope='session')
def free_port() -> Callable[[], int]:
    """A function that finds a TCP port of the loopback that nobody listens on."""

    def find() -> int:
        with socket.create_server(('127.0.0.1', 0)) as listener:
            return int(listener.getsockname()[1])

    return find


@pytest.fixture(scope='session')
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[glance_server.GlanceServer]:
    """A real Glance without authentication, for all tests of the session.

    Nobody stops it or empties it: a test looks only at images that it uploaded. It
    takes data of any format under any name, since such images exist.
    """
    require_server('setpriv', shutil.which('setpriv') is not None, 'apt-get install util-linux')
    try:
        glance_server.ENVIRONMENT.ensure()
    except environment.EnvironmentFailed as exc:
        require_server('Glance', False, str(exc))
    directory = tmp_path_factory.mktemp('glance')
    with glance_server.GlanceServer(directory, check_formats=False) as server:
        SECRETS.expect(server.log)
        yield server


@pytest.fixture(scope='session')
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[keystone_server.KeystoneServer]:
    """A real Keystone for all tests of the session; a service is registered by who needs it."""
    require_server('setpriv', shutil.which('setpriv') is not None, 'apt-get install util-linux')
    try:
        keystone_server.ENVIRONMENT.ensure()
    except environment.EnvironmentFailed as exc:
        require_server('Keystone', False, str(exc))
    with keystone_server.KeystoneServer(tmp_path_factory.mktemp('keystone')) as server:
        SECRETS.expect(server.log)
        yield server


class UploadImage(Protocol):
    """Creates an image with data and gives its id; see :func:`upload_image`."""

    def __call__(
        self, data: bytes | pathlib.Path, disk_format: str = 'raw', **properties: Any
    ) -> str: ...


@pytest.fixture(scope='session')
def upload_image(glance: glance_server.GlanceServer) -> UploadImage:
    """A function that puts an image into the shared Glance.

    Its data are bytes or a file. Further arguments are properties of the image:
    ``visibility`` (public unless given), ``name``, ``id``, ``owner`` and so on.
    """

    def upload(data: bytes | pathlib.Path, disk_format: str = 'raw', **properties: Any) -> str:
        image_id = str(properties.setdefault('id', str(uuid.uuid4())))
        description = {
            'name': f'test-{image_id}',
            'visibility': 'public',
            'container_format': 'bare',
            'disk_format': disk_format,
            **properties,
        }
        images = f'{glance.url}/v2/images'
        requests.post(images, json=description, timeout=30).raise_for_status()
        content = data if isinstance(data, bytes) else data.read_bytes()
        requests.put(
            f'{images}/{image_id}/file',
            data=content,
            headers={'Content-Type': 'application/octet-stream'},
            timeout=120,
        ).raise_for_status()
        return image_id

    return upload


@dataclasses.dataclass(frozen=True)
class RabbitMQ:
    """A RabbitMQ node of the tests' own."""

    driver: pifpaf_rabbitmq.RabbitMQDriver
    nodename: str

    def kill(self) -> None:
        """Kill the node at once, as a lost machine would; what is durable stays on its disk."""
        self.driver.kill_node(self.nodename, signal.SIGKILL)

    def restart(self) -> None:
        """Start the killed node again and wait until it serves."""
        self.driver.start_node(self.nodename)

    @contextlib.contextmanager
    def without_vhost(self, url: str) -> Iterator[None]:
        """Take a virtual host away, with all connections to it, and make it again afterwards."""
        name = url.rsplit('/', 1)[1]
        self.driver.rabbitmqctl(self.nodename, ['delete_vhost', name])
        try:
            yield
        finally:
            self._add_vhost(name)

    def make_vhost(self) -> str:
        """Make an empty virtual host and give its transport URL."""
        name = uuid.uuid4().hex
        self._add_vhost(name)
        login = f'{self.driver.username}:{self.driver.password}'
        return f'rabbit://{login}@127.0.0.1:{self.driver.port}/{name}'

    def _add_vhost(self, name: str) -> None:
        self.driver.rabbitmqctl(self.nodename, ['add_vhost', name])
        self.driver.rabbitmqctl(
            self.nodename,
            ['set_permissions', '-p', name, self.driver.username, '.*', '.*', '.*'],
        )


@pytest.fixture(scope='session')
def rabbitmq(free_port: Callable[[], int]) -> Iterator[RabbitMQ]:
    """A RabbitMQ on ports and in a directory of its own, with an Erlang name server too."""
    require_server(
        'RabbitMQ',
        pifpaf_rabbitmq.RabbitMQDriver.find_executable(
            'rabbitmq-server', ['/usr/lib/rabbitmq/bin', '/usr/local/sbin']
        )
        is not None,
        'apt-get install rabbitmq-server',
    )
    port = free_port()
    name = f'precache-{port}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ERL_EPMD_PORT', str(free_port()))
        patch.setenv('ERL_EPMD_ADDRESS', '127.0.0.1')
        patch.setenv('RABBITMQ_DIST_PORT', str(free_port()))
        try:
            with pifpaf_rabbitmq.RabbitMQDriver(
                port=port, nodename=name, password=SECRETS.make('password of the broker')
            ) as driver:
                yield RabbitMQ(driver, f'{name}@localhost')
        finally:
            # The name server was started as a daemon by the node, and outlives it.
            subprocess.run(['epmd', '-kill'], stdout=subprocess.DEVNULL, check=False)
