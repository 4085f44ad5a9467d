# SPDX-License-Identifier: Apache-2.0
"""The server of the API serves many at once, and lets them end when it stops."""

import contextlib
import http.client
import json
import pathlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import pytest
import requests
import trustme

from nova_precache import exception
from nova_precache.wsgi import server

WAIT_SECONDS = 20
THREADS = 4


class Application:
    """Answers ``/quick`` at once and everything else when it may."""

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
        if environ['PATH_INFO'] != '/quick':
            self.waits.set()
            assert self.may_answer.wait(WAIT_SECONDS)
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [environ['PATH_INFO'].encode()]


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def serving(application: Application) -> Iterator[server.HttpServer]:
    made = server.HttpServer(application, '127.0.0.1', 0, THREADS)
    made.start()
    yield made
    application.may_answer.set()
    made.stop()


def _get(serving: server.HttpServer, path: str) -> str:
    return requests.get(f'http://127.0.0.1:{serving.port}{path}', timeout=WAIT_SECONDS).text


def _send(
    serving: server.HttpServer, *headers: tuple[str, str], method: str = 'GET', body: bytes = b''
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', serving.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest(method, '/headers', skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()


def test_versions_of_two_services_may_have_a_header_each(serving: server.HttpServer) -> None:
    name = 'OpenStack-API-Version'
    _, said = _send(serving, (name, 'compute 2.81'), (name, 'image-precache 1.0'))
    assert json.loads(said)['HTTP_OPENSTACK_API_VERSION'] == 'compute 2.81, image-precache 1.0'


def test_a_header_with_an_underscore_is_not_taken_for_that_of_a_proxy(
    serving: server.HttpServer,
) -> None:
    _, said = _send(serving, ('X-Forwarded-Host', 'proxy'), ('X_Forwarded_Host', 'somebody'))
    assert json.loads(said)['HTTP_X_FORWARDED_HOST'] == 'proxy'


def test_two_lengths_are_none(serving: server.HttpServer) -> None:
    lengths = [('Content-Length', '2'), ('Content-Length', '4')]
    status, _ = _send(serving, *lengths, method='POST', body=b'{}  ')
    assert status == 400


@pytest.mark.parametrize(
    ('length', 'status'), [(server.MAX_HEADER_BYTES - 1000, 200), (server.MAX_HEADER_BYTES, 413)]
)
def test_headers_have_a_limit(serving: server.HttpServer, length: int, status: int) -> None:
    assert _send(serving, ('X-Auth-Token', 'x' * length))[0] == status


def test_what_is_unread_of_a_body_is_no_other_request(serving: server.HttpServer) -> None:
    head = b'POST /quick HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
    # The line before a chunk may look like one that begins a request.
    unread = b'F;X /quick HTTP/1.1\r\n' + b'Host: x\r\nX: x\r\n' + b'\r\n0\r\n\r\n'
    with socket.create_connection(('127.0.0.1', serving.port), timeout=WAIT_SECONDS) as sender:
        sender.sendall(head + unread)
        answers = b''.join(iter(lambda: sender.recv(65536), b''))
    assert answers.count(b'HTTP/1.1 ') == 1
    assert b'\r\nConnection: close\r\n' in answers


def test_a_slow_request_does_not_hold_up_another(
    serving: server.HttpServer, application: Application
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(_get, serving, '/slow')
        assert application.waits.wait(WAIT_SECONDS)

        assert _get(serving, '/quick') == '/quick'
        assert not slow.done()

        application.may_answer.set()
        assert slow.result(WAIT_SECONDS) == '/slow'


def test_more_requests_than_threads_are_all_served(serving: server.HttpServer) -> None:
    with futures.ThreadPoolExecutor(5 * THREADS) as pool:
        answers = [pool.submit(_get, serving, '/quick') for _ in range(25 * THREADS)]

    assert {answer.result() for answer in answers} == {'/quick'}


def test_a_request_being_served_ends_before_the_server_has_stopped(
    application: Application,
) -> None:
    serving = server.HttpServer(application, '127.0.0.1', 0, THREADS)
    serving.start()
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(_get, serving, '/slow')
        assert application.waits.wait(WAIT_SECONDS)
        stopping = pool.submit(serving.stop)
        application.may_answer.set()

        assert slow.result(WAIT_SECONDS) == '/slow'
        stopping.result(WAIT_SECONDS)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', serving.port), timeout=WAIT_SECONDS)


# TLS


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> pathlib.Path:
    """The certificate of whoever signed that of the server, which is beside it."""
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


def test_with_a_certificate_the_server_speaks_tls_and_says_so(
    secure: server.HttpServer, authority: pathlib.Path
) -> None:
    with requests.Session() as caller:  # so that a connection is used twice
        for _ in range(2):
            url = f'https://127.0.0.1:{secure.port}/headers'
            answer = caller.get(url, verify=str(authority), timeout=WAIT_SECONDS)
            assert answer.json()['scheme'] == 'https'


def test_who_does_not_know_the_authority_is_not_served(secure: server.HttpServer) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f'https://127.0.0.1:{secure.port}/quick', timeout=WAIT_SECONDS)


def test_who_speaks_no_tls_gets_nothing_and_holds_up_nobody(
    secure: server.HttpServer, authority: pathlib.Path
) -> None:
    with pytest.raises(requests.ConnectionError):
        _get(secure, '/quick')
    url = f'https://127.0.0.1:{secure.port}/quick'
    assert requests.get(url, verify=str(authority), timeout=WAIT_SECONDS).text == '/quick'


def test_who_says_nothing_keeps_nobody_from_being_accepted(
    application: Application, authority: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    certificate = server.Certificate(str(tmp_path / 'server.pem'))
    serving = server.HttpServer(application, '127.0.0.1', 0, 2, certificate)
    serving.start()
    with socket.create_connection(('127.0.0.1', serving.port)):
        url = f'https://127.0.0.1:{serving.port}/quick'
        # Less than the ten seconds that the server waits for whoever says nothing.
        assert requests.get(url, verify=str(authority), timeout=5).text == '/quick'
    serving.stop()


@pytest.mark.parametrize('content', [None, 'no certificate'])
def test_a_certificate_that_is_of_no_use_is_named(
    application: Application, tmp_path: pathlib.Path, content: str | None
) -> None:
    path = tmp_path / 'server.pem'
    if content is not None:
        path.write_text(content)
    with pytest.raises(exception.ConfigError, match=rf'\[api\] cert_file = {path} cannot be used'):
        server.HttpServer(application, '127.0.0.1', 0, 1, server.Certificate(str(path)))
