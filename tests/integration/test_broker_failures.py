# SPDX-License-Identifier: Apache-2.0
"""Brokers that refuse a service, fail in part or go silent, and how that is logged."""

import contextlib
import os
import pathlib
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator

import pytest

from nova_precache import conf as options, context, exception, rpc
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from tests.integration.conftest import BIN
from tests.integration.link import Link
from tests.leaks import SECRETS
from tests.service import wait_until
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

TOPIC = 'precache_test'
CTXT = context.admin_context()
AWAY = 'is unavailable: '
BACK = 'is available again'

Spoil = Callable[[str], str]


def _with_wrong_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    wrong = SECRETS.make('wrong password of the broker')
    return url.replace(f':{parts.password}@', f':{wrong}@')


def _with_unknown_vhost(url: str) -> str:
    return f'{url}-that-is-not-there'


@pytest.fixture
def forbidden(rabbitmq: RabbitMQ) -> Spoil:
    """Return a function that returns the URL of a virtual host that the user may not use."""

    def forbid(url: str) -> str:
        vhost = urllib.parse.urlsplit(rabbitmq.make_vhost()).path[1:]
        rabbitmq.forbid(vhost)
        return f'{url.rpartition("/")[0]}/{vhost}'

    return forbid


@pytest.fixture
def file(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    """Return a function that writes a deployment's configuration for a broker at a URL."""

    def write(url: str) -> pathlib.Path:
        path = tmp_path / 'nova-precache.conf'
        path.write_text(f"""\
[DEFAULT]
transport_url = {url}
state_path = {tmp_path}
instances_path = {tmp_path}/instances
[api]
auth_strategy = noauth2
[database]
connection = sqlite:///{tmp_path}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
""")
        database = session.connect(options.new(config_files=[str(path)]))
        schema.sync(database)
        database.dispose()
        return path

    return write


@pytest.mark.parametrize(
    ('command', 'spoil', 'why'),
    [
        ('conductor', _with_wrong_password, 'ACCESS_REFUSED'),
        ('conductor', _with_unknown_vhost, 'NOT_ALLOWED'),
        ('conductor', 'forbidden', 'NOT_ALLOWED'),
        ('compute', _with_wrong_password, 'ACCESS_REFUSED'),
        ('api', _with_unknown_vhost, 'NOT_ALLOWED'),
    ],
)
def test_refused_command_exits_with_one_line(
    rabbitmq: RabbitMQ,
    request: pytest.FixtureRequest,
    file: Callable[[str], pathlib.Path],
    tmp_path: pathlib.Path,
    command: str,
    spoil: Spoil | str,
    why: str,
) -> None:
    if isinstance(spoil, str):
        spoil = request.getfixturevalue(spoil)
    arguments = [str(BIN / f'nova-precache-{command}'), '--config-file']
    arguments.append(str(file(spoil(rabbitmq.make_vhost()))))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / 'notify'))
        notified.setblocking(False)
        ended = subprocess.run(
            arguments,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            env={**os.environ, 'NOTIFY_SOCKET': str(tmp_path / 'notify')},
        )
        with pytest.raises(BlockingIOError):
            notified.recv(100)

    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith('[DEFAULT] transport_url (rabbit://127.0.0.1:'), ended.stderr
    assert why in last
    assert 'Traceback' not in ended.stderr
    SECRETS.look_into(ended.stderr, f'what a {command} says that is refused')


def test_broker_restart_logs_two_lines(
    rabbitmq: RabbitMQ,
    file: Callable[[str], pathlib.Path],
    tmp_path: pathlib.Path,
    free_port: Callable[[], int],
) -> None:
    with Link(free_port(), rabbitmq.port) as link, contextlib.ExitStack() as running:
        url = rabbitmq.make_vhost().replace(f':{rabbitmq.port}/', f':{link.port}/')
        path = file(url)
        path.write_text(f'{path.read_text()}{_QUICK}')
        database = session.connect(options.new(config_files=[str(path)]))
        inventory.Inventory(database).create_cell('one', url)
        database.dispose()
        logs = [_start(command, path, running) for command in ('conductor', 'compute')]
        wait_until(lambda: 'is registered and serves' in logs[1].read_text(), 'it is served')

        link.cut()
        wait_until(lambda: all(AWAY in log.read_text() for log in logs), 'it is logged')
        # The API's broker, which is the same one, and the cell's.
        wait_until(lambda: logs[0].read_text().count(AWAY) == 2, 'both are logged')
        link.restore()
        wait_until(lambda: logs[0].read_text().count(BACK) == 2, 'the conductor is back')
        wait_until(lambda: BACK in logs[1].read_text(), 'the compute is back')

    assert [log.read_text().count(AWAY) for log in logs] == [2, 1]
    for log in logs:
        lines = log.read_text().splitlines()
        assert all('Broker rabbit://127.0.0.1:' in line for line in lines if AWAY in line)
        others = [line for line in lines if ' ERROR ' in line and AWAY not in line]
        assert others == []
    assert '(cell one, ' in logs[0].read_text()


_QUICK = """
[DEFAULT]
report_interval = 1
rpc_response_timeout = 6
[conductor]
rpc_connect_retries = 0
[oslo_messaging_rabbit]
rabbit_interval_max = 1
kombu_reconnect_delay = 0.1
"""


def _start(command: str, file: pathlib.Path, running: contextlib.ExitStack) -> pathlib.Path:
    """Start a command and return its log."""
    log = SECRETS.expect(file.with_name(f'{command}.log'))
    arguments = [str(BIN / f'nova-precache-{command}'), '--config-file', str(file)]
    with log.open('ab') as out:
        started = subprocess.Popen(arguments, stdout=out, stderr=out)
    running.callback(started.wait, TIMEOUT_SECONDS)
    running.callback(started.terminate)
    return log


class Endpoint(rpc.Endpoint):
    def name(self, ctxt: context.RequestContext) -> str:
        return 'served'


@contextlib.contextmanager
def _serving(url: str) -> Iterator[None]:
    server = rpc.Server(rpc.connect(options.new(config_files=[]), url), TOPIC, 's', [Endpoint()])
    server.start()
    try:
        yield
    finally:
        server.stop()


def _call(transport: rpc.Transport, timeout_seconds: float = TIMEOUT_SECONDS) -> object:
    client = rpc.Client(transport, TOPIC, retries=0)
    return client.call(CTXT, 'name', '1.0', timeout_seconds=timeout_seconds)


def test_any_live_broker_host_used(rabbitmq: RabbitMQ, free_port: Callable[[], int]) -> None:
    url = rabbitmq.make_vhost()
    head, _, vhost = url.rpartition('/')
    dead = [head.replace(f':{rabbitmq.port}', f':{free_port()}') for _ in range(2)]
    dead = [each.removeprefix('rabbit://') for each in dead]
    with _serving(url):
        for _ in range(4):  # oslo.messaging shuffles them
            transport = rpc.connect(
                options.new(config_files=[]), f'rabbit://{",".join(dead)},{head[9:]}/{vhost}'
            )
            assert _call(transport) == 'served'
            transport.retire()


@pytest.mark.parametrize(
    'option',
    [
        {'amqp_durable_queues': True},
        {'amqp_auto_delete': True},
        {'rabbit_quorum_queue': True},
        {'rabbit_quorum_queue': True, 'rabbit_transient_quorum_queue': True},
        {
            'rabbit_transient_quorum_queue': True,
            'rabbit_stream_fanout': True,
            'rabbit_qos_prefetch_count': 10,
        },
        {'heartbeat_timeout_threshold': 0},
    ],
    ids='-'.join,
)
def test_every_queue_type_supported(rabbitmq: RabbitMQ, option: dict[str, object]) -> None:
    query = '&'.join(f'{name}={value}' for name, value in option.items())
    url = f'{rabbitmq.make_vhost()}?{query}'
    with _serving(url):
        transport = rpc.connect(options.new(config_files=[]), url)
        assert _call(transport) == 'served'
        rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'name', '1.0')
        transport.retire()


def test_silent_broker_abandoned_then_reused(
    rabbitmq: RabbitMQ, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rabbitmq.make_vhost()
    monkeypatch.setattr(rpc.Transport.probe, '__defaults__', (3.0,))
    with _serving(url), Link(free_port(), rabbitmq.port) as link:
        transport = rpc.connect(
            options.new(config_files=[]), url.replace(f':{rabbitmq.port}/', f':{link.port}/')
        )
        rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'ping', '1.0')
        link.silence()
        with pytest.raises(exception.CellUnreachable):
            _call(transport)
        link.restore()

        def is_served() -> bool:
            with contextlib.suppress(exception.CellUnreachable):
                return _call(transport) == 'served'
            return False

        wait_until(is_served, 'the broker is used again')
        transport.retire()


def test_refusing_cell_broker_served_after_recovery(
    rabbitmq: RabbitMQ,
    forbidden: Spoil,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc.server, 'LONGEST_START_PAUSE_SECONDS', 0.1)
    url = forbidden(rabbitmq.make_vhost())
    transport = rpc.connect(options.new(config_files=[]), url, 'cell one')
    server = rpc.Server(transport, TOPIC, 's', [Endpoint()])
    server.start_in_background()
    for _ in range(3):
        with pytest.raises(exception.BrokerRefused, match='NOT_ALLOWED'):
            _call(transport)

    vhost = urllib.parse.urlsplit(url).path[1:]
    rabbitmq.permit(vhost)
    served = threading.Event()

    def is_served() -> bool:
        # A call sent before the server has declared its queue times out.
        with contextlib.suppress(exception.CellUnreachable, TimeoutError):
            served.set() if _call(transport, timeout_seconds=5.0) == 'served' else None
        return served.is_set()

    wait_until(is_served, 'the cell is served')
    server.stop()
    transport.retire()
    lines = [each for each in caplog.messages if each.startswith(transport.outage.name)]
    assert '(cell one)' in transport.outage.name
    assert len(lines) == 2, lines
    assert 'NOT_ALLOWED' in lines[0]
    assert 'is available again' in lines[1]
