# SPDX-License-Identifier: Apache-2.0
"""Callers are answered in time, however slow the services behind the API; no thread is kept."""

import contextlib
import pathlib
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme
import webob
from oslo_config import cfg

from nova_precache import conf as configuration, model
from nova_precache.api import app
from nova_precache.cells import inventory
from nova_precache.db.engine import session
from nova_precache.wiring import images as wiring_images
from tests.service import wait_until
from tests.unit.api.conftest import Api, make_api
from tools.waiting import TIMEOUT_SECONDS

SECONDS = 2.0
# The same share of what a caller is promised.
PROMISED_SECONDS = SECONDS * 15 / 12 + 20  # on a busy machine
IMAGE_ID = 'b6a9a5cc-3b7e-4b8e-9d3e-0c5bb8f4d5a1'
HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'
# Sent a byte at a time; a socket's timeout restarts at each.
SLOW = {
    'silent': b'',
    'a head without end': HEAD + b'X-More: ' + b'x' * 1000,
    'a body without end': HEAD + b'Content-Length: 1000\r\n\r\n' + b'{' + b' ' * 1000,
    'pieces without end': HEAD + b'Transfer-Encoding: chunked\r\n\r\n' + b'1\r\n \r\n' * 300,
    'a body until it closes': HEAD + b'Connection: close\r\n\r\n' + b' ' * 1000,
}
# The head comes at once, then one byte per interval.
BYTE_SECONDS = 0.2


class SlowServer:
    """Accepts connections, and answers each a byte at a time."""

    def __init__(self, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=64)
        self._closing = threading.Event()
        self._taker = threading.Thread(target=self._take, daemon=True)
        self._taker.start()
        self.taken = 0
        self.port = self._listener.getsockname()[1]
        self.url = f'{"https" if tls else "http"}://127.0.0.1:{self.port}'

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._taker.join()
        self._listener.close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                connection, _ = self._listener.accept()
                self.taken += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            plain = connection
            if self._tls is not None:
                plain = self._tls.wrap_socket(connection, server_side=True)
            with plain:
                plain.recv(65536)
                for byte in self._answer:
                    plain.sendall(bytes([byte]))
                    in_head = byte in HEAD[:20]
                    if self._closing.wait(0.001 if in_head else BYTE_SECONDS):
                        return
                self._closing.wait()


@pytest.fixture(params=list(SLOW.values()), ids=list(SLOW))
def slow(request: pytest.FixtureRequest) -> Iterator[SlowServer]:
    server = SlowServer(request.param)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, 'ANSWER_SECONDS', SECONDS)


def _answered(ask: Callable[[], webob.Response]) -> webob.Response:
    """Send a request; check that the answer comes in time and that the thread is free then."""
    threads = threading.active_count()
    began_at = time.monotonic()
    answer = ask()
    assert time.monotonic() - began_at < PROMISED_SECONDS
    wait_until(lambda: threading.active_count() <= threads + 1, 'no thread is kept')
    return answer


def _assert_unavailable(answer: webob.Response) -> None:
    assert (answer.status_int, [*answer.json]) == (503, ['serviceUnavailable'])
    assert int(answer.headers['Retry-After']) > 0


def _with_glance(
    conf: cfg.ConfigOpts, database: session.Database, stock: inventory.Inventory, url: str
) -> Api:
    conf.set_override('endpoint_override', url, 'glance')
    return make_api(conf, database, stock, images_for=wiring_images.of_callers(conf))


def test_slow_glance_returns_503(
    conf: cfg.ConfigOpts,
    database: session.Database,
    api: Api,
    aggregate: model.Aggregate,
    slow: SlowServer,
) -> None:
    asking = _with_glance(conf, database, api.inventory, slow.url)
    body = {'cache': [{'id': IMAGE_ID}, {'id': IMAGE_ID.replace('b6', 'b7')}]}
    path = f'/v2.1/os-aggregates/{aggregate.id}/images'
    _assert_unavailable(_answered(lambda: asking.post(path, body)))
    assert api.saved_requests() == 0


def test_slow_tls_glance_returns_503(
    conf: cfg.ConfigOpts,
    database: session.Database,
    api: Api,
    aggregate: model.Aggregate,
    tmp_path: pathlib.Path,
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('127.0.0.1').configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / 'ca.pem'))
    conf.set_override('cafile', str(tmp_path / 'ca.pem'), 'glance')
    server = SlowServer(SLOW['a body without end'], tls)
    asking = _with_glance(conf, database, api.inventory, server.url)
    path = f'/v2.1/os-aggregates/{aggregate.id}/images'
    answer = _answered(lambda: asking.post(path, {'cache': [{'id': IMAGE_ID}]}))
    server.close()
    assert server.taken
    _assert_unavailable(answer)


def test_slow_keystone_returns_503(
    tmp_path: pathlib.Path, database: session.Database, slow: SlowServer
) -> None:
    path = tmp_path / 'nova-precache.conf'
    path.write_text(
        f"""\
[keystone_authtoken]
www_authenticate_uri = {slow.url}
auth_type = password
auth_url = {slow.url}/v3
username = precache
password = secret
project_name = service
user_domain_name = Default
project_domain_name = Default
"""
    )
    guarded = make_api(
        configuration.new(config_files=[str(path)]), database, inventory.Inventory(database)
    )
    _assert_unavailable(_answered(lambda: guarded.get('/v1/requests', token='some-token')))


def test_locked_database_returns_503(
    conf: cfg.ConfigOpts, api: Api, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / 'precache.sqlite', isolation_level=None)
    other.execute('BEGIN IMMEDIATE')
    answer = _answered(lambda: api.post('/v2.1/os-aggregates', {'aggregate': {'name': 'new'}}))
    other.execute('ROLLBACK')
    other.close()
    _assert_unavailable(answer)
    monkeypatch.setattr(app, 'ANSWER_SECONDS', TIMEOUT_SECONDS)
    assert api.post('/v2.1/os-aggregates', {'aggregate': {'name': 'new'}}).status_int == 200
