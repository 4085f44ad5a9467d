# SPDX-License-Identifier: Apache-2.0
"""The server of the API serves many at once, and lets them finish when it stops."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import pytest
import requests
import trustme

from nova_precache import exception
from nova_precache.wsgi import loop, server
from tests import bad_clients
from tools.waiting import TIMEOUT_SECONDS

THREADS = 4


class Application:
    """Answers ``/quick`` and ``/check`` at once and everything else when it may."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        self.may_answer = threading.Event()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ['PATH_INFO'] == '/headers':
            start_response('200 OK', [('Content-Type', 'application/json')])
            said = {name: environ[name] for name in environ if name.startswith('HTTP_')}
            said['scheme'] = environ['wsgi.url_scheme']
            return [json.dumps(said).encode()]
        if environ['PATH_INFO'] not in {'/quick', '/check'}:
            self.waits.set()
            assert self.may_answer.wait(TIMEOUT_SECONDS)
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [environ['PATH_INFO'].encode()]


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def serving(application: Application) -> Iterator[server.HttpServer]:
    made = server.HttpServer(application, '127.0.0.1', 0, THREADS, reserved_path='/check')
    made.start()
    yield made
    application.may_answer.set()
    made.stop()


def _get(serving: server.HttpServer, path: str) -> str:
    return requests.get(f'http://127.0.0.1:{serving.port}{path}', timeout=TIMEOUT_SECONDS).text


def _send(
    serving: server.HttpServer, *headers: tuple[str, str], method: str = 'GET', body: bytes = b''
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', serving.port, timeout=TIMEOUT_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest(method, '/headers', skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()


def test_both_microversion_headers_accepted(serving: server.HttpServer) -> None:
    name = 'OpenStack-API-Version'
    _, said = _send(serving, (name, 'compute 2.81'), (name, 'image-precache 1.0'))
    assert json.loads(said)['HTTP_OPENSTACK_API_VERSION'] == 'compute 2.81, image-precache 1.0'


def test_underscore_header_not_proxy_header(
    serving: server.HttpServer,
) -> None:
    _, said = _send(serving, ('X-Forwarded-Host', 'proxy'), ('X_Forwarded_Host', 'somebody'))
    assert json.loads(said)['HTTP_X_FORWARDED_HOST'] == 'proxy'


def test_two_content_lengths_refused(serving: server.HttpServer) -> None:
    lengths = [('Content-Length', '2'), ('Content-Length', '4')]
    status, _ = _send(serving, *lengths, method='POST', body=b'{}  ')
    assert status == 400


@pytest.mark.parametrize(
    ('length', 'status'), [(server.MAX_HEADER_BYTES - 1000, 200), (server.MAX_HEADER_BYTES, 413)]
)
def test_headers_are_limited(serving: server.HttpServer, length: int, status: int) -> None:
    assert _send(serving, ('X-Auth-Token', 'x' * length))[0] == status


def test_unread_body_not_next_request(serving: server.HttpServer) -> None:
    head = b'POST /quick HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
    # The line before a chunk may look like the first line of a request.
    unread = b'F;X /quick HTTP/1.1\r\n' + b'Host: x\r\nX: x\r\n' + b'\r\n0\r\n\r\n'
    with socket.create_connection(('127.0.0.1', serving.port), timeout=TIMEOUT_SECONDS) as sender:
        sender.sendall(head + unread)
        answers = b''.join(iter(lambda: sender.recv(65536), b''))
    assert answers.count(b'HTTP/1.1 ') == 1
    assert b'\r\nConnection: close\r\n' in answers


@pytest.mark.parametrize('method', ['GET', 'OPTIONS', 'POST', 'DELETE'])
def test_too_large_body_refused_before_application(serving: server.HttpServer, method: str) -> None:
    length = ('Content-Length', str(server.MAX_BODY_BYTES + 1))
    status, said = _send(serving, length, method=method)
    assert status == 413
    assert (
        f'max_request_body_size ({server.MAX_BODY_BYTES})' in json.loads(said)['error']['message']
    )


def test_body_of_maximum_size_accepted(serving: server.HttpServer) -> None:
    body = b'x' * server.MAX_BODY_BYTES
    status, _ = _send(serving, ('Content-Length', str(len(body))), method='POST', body=body)
    assert status == 200


def test_failing_application_is_server_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise ValueError('inside')

    made = server.HttpServer(failing, '127.0.0.1', 0, 1)
    made.start()
    answer = requests.get(f'http://127.0.0.1:{made.port}/a%0Ab', timeout=TIMEOUT_SECONDS)
    made.stop()
    assert answer.status_code == 500
    assert 'inside' not in answer.text
    assert 'GET /a%0Ab failed' in caplog.text


def test_taken_port_error_names_address(application: Application) -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        made = server.HttpServer(application, '127.0.0.1', port, 1)
        with pytest.raises(exception.ConfigError, match=rf'cannot listen on 127.0.0.1:{port}'):
            made.start()
    made.stop()  # a second stop does no harm


# Bad clients


def _asks(serving: server.HttpServer) -> socket.socket:
    """Open a connection that the server knows, since its request was answered."""
    client = socket.create_connection(('127.0.0.1', serving.port), timeout=TIMEOUT_SECONDS)
    client.sendall(b'GET /quick HTTP/1.1\r\nHost: x\r\n\r\n')
    assert client.recv(65536)
    return client


def _is_open(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        return client.recv(1) != b''
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_bad_clients_do_not_block_others(
    serving: server.HttpServer, application: Application
) -> None:
    application.may_answer.set()
    with bad_clients.opened(serving.port, 20 * THREADS) as bad:
        for _ in range(3):
            assert _get(serving, '/quick') == '/quick'
            bad.dribble()


def test_excess_connections_close_oldest_idle_one(
    serving: server.HttpServer, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, 'MAX_CONNECTIONS', 4)
    with contextlib.ExitStack() as stack, futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(_get, serving, '/slow')
        assert application.waits.wait(TIMEOUT_SECONDS)
        clients = [stack.enter_context(_asks(serving)) for _ in range(6)]

        assert [_is_open(each) for each in clients] == [False, False, False, True, True, True]
        application.may_answer.set()
        assert slow.result(TIMEOUT_SECONDS) == '/slow'


def test_connection_closed_midway_is_harmless(
    serving: server.HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, 'MAX_CONNECTIONS', 4)
    look, held, goes_on = loop.Loop._look, threading.Event(), threading.Event()

    def hold(self: loop.Loop) -> None:
        held.set()
        assert goes_on.wait(TIMEOUT_SECONDS)
        look(self)

    with contextlib.ExitStack() as stack:
        old = [stack.enter_context(_asks(serving)) for _ in range(4)]
        monkeypatch.setattr(loop.Loop, '_look', hold)
        old[0].sendall(b'G')  # so that it comes to the next look
        assert held.wait(TIMEOUT_SECONDS)
        for _ in range(4):
            place = ('127.0.0.1', serving.port)
            stack.enter_context(socket.create_connection(place, timeout=TIMEOUT_SECONDS))
        for each in old:
            each.sendall(b'G')  # one look finds new connections, and old ones that it closes
        goes_on.set()

        assert _get(serving, '/quick') == '/quick'


def test_abandoned_answers_use_limited_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_bytes, limit = 20_000_000, 30_000_000

    def large(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response('200 OK', [])
        return [b'x' * answer_bytes]

    monkeypatch.setattr(loop, 'MAX_HELD_BYTES', limit)
    monkeypatch.setattr(loop, '_CHECK_SECONDS', 0)
    made = server.HttpServer(large, '127.0.0.1', 0, 1)
    made.start()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_asks(made)) for _ in range(6)]
        whole = [_count(each, answer_bytes) >= answer_bytes for each in clients]
    made.stop()
    assert not any(whole[:4])
    assert whole[-1]


def _count(client: socket.socket, up_to_bytes: int) -> int:
    """Count the bytes that a client still receives, until the server closes."""
    count = 65536  # by _asks, at most
    with contextlib.suppress(ConnectionError):
        while count < up_to_bytes and (data := client.recv(1_000_000)):
            count += len(data)
    return count


def test_incomplete_request_does_not_delay_stop(
    application: Application,
) -> None:
    application.may_answer.set()
    made = server.HttpServer(application, '127.0.0.1', 0, THREADS)
    made.start()
    with bad_clients.opened(made.port, 20), futures.ThreadPoolExecutor() as pool:
        pool.submit(made.stop).result(TIMEOUT_SECONDS)


def test_slow_request_does_not_block_others(
    serving: server.HttpServer, application: Application
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(_get, serving, '/slow')
        assert application.waits.wait(TIMEOUT_SECONDS)

        assert _get(serving, '/quick') == '/quick'
        assert not slow.done()

        application.may_answer.set()
        assert slow.result(TIMEOUT_SECONDS) == '/slow'


def test_reserved_path_answers_under_full_load(
    serving: server.HttpServer, application: Application
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        slow = [pool.submit(_get, serving, '/slow') for _ in range(3 * THREADS)]
        assert application.waits.wait(TIMEOUT_SECONDS)

        assert _get(serving, '/check?a=b') == '/check'
        assert not any(each.done() for each in slow)

        application.may_answer.set()
        assert {each.result(TIMEOUT_SECONDS) for each in slow} == {'/slow'}


def test_more_requests_than_threads_served(serving: server.HttpServer) -> None:
    with futures.ThreadPoolExecutor(5 * THREADS) as pool:
        answers = [pool.submit(_get, serving, '/quick') for _ in range(25 * THREADS)]

    assert {answer.result() for answer in answers} == {'/quick'}


def test_running_request_finishes_before_stop(
    application: Application,
) -> None:
    serving = server.HttpServer(application, '127.0.0.1', 0, THREADS)
    serving.start()
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(_get, serving, '/slow')
        assert application.waits.wait(TIMEOUT_SECONDS)
        stopping = pool.submit(serving.stop)
        application.may_answer.set()

        assert slow.result(TIMEOUT_SECONDS) == '/slow'
        stopping.result(TIMEOUT_SECONDS)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', serving.port), timeout=TIMEOUT_SECONDS)


# TLS


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> pathlib.Path:
    """The certificate of the CA that signed the server's, which is beside it."""
    made = trustme.CA()
    made.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(
        tmp_path / 'server.pem'
    )
    made.cert_pem.write_to_path(tmp_path / 'ca.pem')
    return tmp_path / 'ca.pem'


@pytest.fixture
def secure(
    application: Application, authority: pathlib.Path, tmp_path: pathlib.Path
) -> Iterator[server.HttpServer]:
    """A server with one thread, which speaks TLS."""
    certificate = server.Certificate(str(tmp_path / 'server.pem'))
    made = server.HttpServer(application, '127.0.0.1', 0, 1, certificate)
    made.start()
    yield made
    made.stop()


def test_certificate_enables_tls(secure: server.HttpServer, authority: pathlib.Path) -> None:
    with requests.Session() as caller:  # so that a connection is used twice
        for _ in range(2):
            url = f'https://127.0.0.1:{secure.port}/headers'
            answer = caller.get(url, verify=str(authority), timeout=TIMEOUT_SECONDS)
            assert answer.json()['scheme'] == 'https'


def test_client_distrusting_certificate_not_served(secure: server.HttpServer) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f'https://127.0.0.1:{secure.port}/quick', timeout=TIMEOUT_SECONDS)


def test_plain_client_gets_nothing_over_tls(
    secure: server.HttpServer, authority: pathlib.Path
) -> None:
    with pytest.raises(requests.ConnectionError):
        _get(secure, '/quick')
    url = f'https://127.0.0.1:{secure.port}/quick'
    assert requests.get(url, verify=str(authority), timeout=TIMEOUT_SECONDS).text == '/quick'


def test_bad_clients_do_not_block_tls(
    secure: server.HttpServer, authority: pathlib.Path, application: Application
) -> None:
    application.may_answer.set()
    tls = ssl.create_default_context(cafile=str(authority))
    url = f'https://127.0.0.1:{secure.port}/quick'
    with bad_clients.opened(secure.port, 60, tls) as bad:
        for _ in range(3):
            assert (
                requests.get(url, verify=str(authority), timeout=TIMEOUT_SECONDS).text == '/quick'
            )
            bad.dribble()


def test_large_tls_answer_read_slowly(authority: pathlib.Path, tmp_path: pathlib.Path) -> None:
    body = os.urandom(3_000_000)

    def large(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response('200 OK', [])
        return [environ['wsgi.input'].read(), body]

    certificate = server.Certificate(str(tmp_path / 'server.pem'))
    made = server.HttpServer(large, '127.0.0.1', 0, 1, certificate)
    made.start()
    url = f'https://127.0.0.1:{made.port}/'
    sent = os.urandom(100_000)
    with requests.post(
        url, sent, stream=True, verify=str(authority), timeout=TIMEOUT_SECONDS
    ) as answer:
        assert b''.join(answer.iter_content(50_000)) == sent + body
    made.stop()


def test_silent_client_does_not_block_accept(
    application: Application, authority: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    certificate = server.Certificate(str(tmp_path / 'server.pem'))
    serving = server.HttpServer(application, '127.0.0.1', 0, 2, certificate)
    patient = dataclasses.replace(serving._limits, request_seconds=2 * TIMEOUT_SECONDS)
    serving._limits = patient
    serving.start()
    with socket.create_connection(('127.0.0.1', serving.port)):
        url = f'https://127.0.0.1:{serving.port}/quick'
        # Less than the fifteen seconds that the server waits for a silent client.
        assert requests.get(url, verify=str(authority), timeout=10).text == '/quick'
    serving.stop()


@pytest.mark.parametrize('content', [None, 'no certificate'])
def test_unusable_certificate_is_named(
    application: Application, tmp_path: pathlib.Path, content: str | None
) -> None:
    path = tmp_path / 'server.pem'
    if content is not None:
        path.write_text(content)
    with pytest.raises(exception.ConfigError, match=rf'\[api\] cert_file = {path} cannot be used'):
        server.HttpServer(application, '127.0.0.1', 0, 1, server.Certificate(str(path)))
