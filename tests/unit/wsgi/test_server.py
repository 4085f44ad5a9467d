# SPDX-License-Identifier: Apache-2.0
"""The server of the API serves many at once, and lets them end when it stops."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import pytest
import requests

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
