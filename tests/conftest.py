# SPDX-License-Identifier: Apache-2.0
"""The real servers that tests share, each started once a session and only when asked for.

A test that needs a server takes its fixture. Where the server cannot be had, the
test is skipped and says what to install; where ``NOVA_PRECACHE_REQUIRE_SERVERS``
is set to 1, as in CI, it fails.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import pytest
import requests
from oslo_config import cfg

from nova_precache import backend
from nova_precache.standalone import environment, glance as glance_server, process
from tests import shared_work
from tests.leaks import SECRETS
from tools.servers import databases, keystone as keystone_server, own_port
from tools.servers.rabbitmq import Login, RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

Server = TypeVar('Server', bound=process.ServerProcess)

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
    shared_work.share()


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
    """Fail at the end of the session if a secret leaked."""
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


def require_environment(needed: environment.PythonEnvironment) -> None:
    """Build the environment of a server; skip the test, or fail it in CI, if that fails."""
    require_server('setpriv', shutil.which('setpriv') is not None, 'apt-get install util-linux')
    try:
        needed.ensure()
    except environment.EnvironmentFailed as exc:
        require_server(needed.name, False, str(exc))


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server; skip the test, or fail it in CI, if the server is not installed."""
    require_server('setpriv', shutil.which('setpriv') is not None, 'apt-get install util-linux')
    with contextlib.ExitStack() as stack:
        if not server.port:  # kept also while a test has killed the server
            server.port = stack.enter_context(own_port.reserve()).getsockname()[1]
        try:
            stack.enter_context(server)
        except (environment.EnvironmentFailed, own_port.ProgramMissing) as exc:
            require_server(server.name, False, str(exc))
        yield server


@contextlib.contextmanager
def running_databases(kind: str, tls: databases.Tls | None = None) -> Iterator[databases.Databases]:
    """Run a server of a kind of database in a directory of its own."""
    with tempfile.TemporaryDirectory() as name:
        if kind == databases.SQLITE:
            yield databases.Files(pathlib.Path(name))
            return
        with running(databases.SERVERS[kind](pathlib.Path(name), tls=tls)) as server:
            yield server


@pytest.fixture(scope='session')
def qemu_img() -> str:
    """The path of qemu-img."""
    path = shutil.which('qemu-img')
    require_server('qemu-img', path is not None, 'apt-get install qemu-utils')
    return str(path)


@pytest.fixture(scope='session')
def free_port() -> Iterator[Callable[[], int]]:
    """Return a function that finds an unused TCP port of the loopback, and reserves it."""
    with contextlib.ExitStack() as stack:
        yield lambda: int(stack.enter_context(own_port.reserve()).getsockname()[1])


@pytest.fixture(scope='session')
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[glance_server.GlanceServer]:
    """A real Glance without authentication, for all tests of the session.

    No test stops it or empties it: a test looks only at images that it uploaded. It
    takes data of any format under any name, since such images exist.
    """
    directory = tmp_path_factory.mktemp('glance')
    with running(glance_server.GlanceServer(directory, check_formats=False)) as server:
        SECRETS.expect(server.log)
        yield server


@pytest.fixture(scope='session')
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[keystone_server.KeystoneServer]:
    """A real Keystone for all tests of the session; a service is registered by who needs it."""
    directory = tmp_path_factory.mktemp('keystone')
    with running(keystone_server.KeystoneServer(directory, SECRETS.note)) as server:
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
        requests.post(images, json=description, timeout=TIMEOUT_SECONDS).raise_for_status()
        content = data if isinstance(data, bytes) else data.read_bytes()
        requests.put(
            f'{images}/{image_id}/file',
            data=content,
            headers={'Content-Type': 'application/octet-stream'},
            timeout=120,
        ).raise_for_status()
        return image_id

    return upload


@pytest.fixture(scope='session')
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ for all tests of the session; each test makes virtual hosts of its own."""
    login = Login('precache', ('first',), SECRETS.make('password of the broker'))
    with running(RabbitMQ(tmp_path_factory.mktemp('rabbitmq'), [login])) as server:
        yield server
