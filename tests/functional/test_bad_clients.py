# SPDX-License-Identifier: Apache-2.0
"""nova-precache-api answers while bad clients hold connections, and its memory stays bounded."""

import contextlib
import dataclasses
import pathlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest
import requests
import trustme

from nova_precache import backend, conf as options
from nova_precache.db.engine import schema, session
from tests import bad_clients, wsgi
from tests.leaks import SECRETS
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

CLIENTS = 200
ROUNDS = 5
# Less than the 15 s after which the API closes a connection without a request, so that a client
# that blocks it is found; much more than an answer takes on a busy machine.
TRY_SECONDS = 5
MIB = 1024**2
# Memory for 200 clients together, and for the first requests of a process.
MAX_GROWTH_BYTES = 100 * MIB


@dataclasses.dataclass(frozen=True)
class Api:
    """An API in a process of its own."""

    port: int
    process: subprocess.Popen[bytes]
    log_path: pathlib.Path
    verify: str | None

    @property
    def url(self) -> str:
        return f'{"http" if self.verify is None else "https"}://127.0.0.1:{self.port}'

    @property
    def tls(self) -> ssl.SSLContext | None:
        return None if self.verify is None else ssl.create_default_context(cafile=self.verify)

    def is_healthy(self, timeout_seconds: float = TRY_SECONDS) -> bool:
        try:
            return requests.get(
                f'{self.url}/healthcheck', timeout=timeout_seconds, verify=self.verify
            ).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    def memory_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


PLAIN = ('threading', 'plain')
KINDS = [PLAIN, ('threading', 'TLS'), ('eventlet', 'plain'), ('eventlet', 'TLS')]
of_one_kind = pytest.mark.parametrize('api', [PLAIN], indirect=True, scope='module')


@pytest.fixture(scope='module', params=KINDS, ids='-'.join)
def api(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Api]:
    threads, protocol = request.param
    tmp_path = tmp_path_factory.mktemp('api')
    authority = trustme.CA()
    authority.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(
        tmp_path / 'server.pem'
    )
    authority.cert_pem.write_to_path(tmp_path / 'ca.pem')
    is_tls = protocol == 'TLS'
    port = free_port()
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text(
        f"""\
[DEFAULT]
transport_url = fake:///bad_clients
concurrency_backend = {threads}
[api]
auth_strategy = noauth2
bind_port = {port}
{f'cert_file = {tmp_path}/server.pem' if is_tls else ''}
[database]
connection = sqlite:///{tmp_path}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
"""
    )
    database = session.connect(options.new(config_files=[str(conf)]))
    schema.sync(database)
    database.dispose()
    log_path = SECRETS.expect(tmp_path / 'api.log')
    command = [str(pathlib.Path(sys.executable).parent / 'nova-precache-api')]
    with (
        log_path.open('w') as log,
        subprocess.Popen(
            [*command, '--config-file', str(conf)],
            stdout=log,
            stderr=log,
            env={**wsgi.environment(conf), backend.VARIABLE: ''},
        ) as process,
    ):
        try:
            made = Api(port, process, log_path, str(tmp_path / 'ca.pem') if is_tls else None)
            wait_until(made.is_healthy, 'the API answers')
            yield made
            process.terminate()
            assert process.wait(TIMEOUT_SECONDS) == 0
        finally:
            process.kill()
    assert 'Traceback' not in log_path.read_text()


def test_200_mixed_bad_clients_block_none(api: Api) -> None:
    before = api.memory_bytes()
    with bad_clients.opened(api.port, CLIENTS, api.tls) as bad:
        for _ in range(ROUNDS):
            wait_until(api.is_healthy, 'it answers', TRY_SECONDS)
            bad.dribble()
        grown = api.memory_bytes() - before
    assert grown < MAX_GROWTH_BYTES


@pytest.mark.parametrize('kind', bad_clients.KINDS)
@of_one_kind
def test_200_equal_bad_clients_block_none(
    api: Api, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_clients, 'KINDS', {kind: bad_clients.KINDS[kind]})
    with bad_clients.opened(api.port, CLIENTS, api.tls) as bad:
        for _ in range(ROUNDS):
            wait_until(api.is_healthy, 'it answers', TRY_SECONDS)
            bad.dribble()


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('GET', '/healthcheck'),
        ('OPTIONS', '/v1/requests'),
        ('GET', '/'),
        ('POST', '/v1/requests'),
        ('POST', '/v2.1/os-aggregates'),
        ('PUT', '/nowhere'),
    ],
)
@pytest.mark.parametrize('framing', ['Content-Length: 1610612736', 'Transfer-Encoding: chunked'])
@of_one_kind
def test_huge_body_refused_unread_everywhere(
    api: Api, method: str, path: str, framing: str
) -> None:
    before = api.memory_bytes()
    head = f'{method} {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n'.encode()
    piece = b'100000\r\n' + b' ' * MIB + b'\r\n' if 'chunked' in framing else b' ' * MIB
    sent = 0
    with socket.create_connection(('127.0.0.1', api.port), timeout=TIMEOUT_SECONDS) as client:
        client.sendall(head)
        with contextlib.suppress(ConnectionError):
            while sent < 1536:
                client.sendall(piece)
                sent += 1
        answer = client.recv(65536)
    assert answer.startswith(b'HTTP/1.1 413 ')
    assert b'\r\nConnection: close\r\n' in answer
    assert sent < 64
    assert api.memory_bytes() - before < MAX_GROWTH_BYTES
    wait_until(api.is_healthy, 'it answers', TRY_SECONDS)
