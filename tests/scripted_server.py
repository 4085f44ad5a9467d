# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server that gives the answers that a test has written for it."""

import contextlib
import dataclasses
import http.server
import ssl
import threading
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of the server; ``length`` is what it claims to send."""

    status: int = 200
    body: bytes = b''
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    length: int | None = None
    content_type: str | None = 'application/octet-stream'
    hang: bool = False


@dataclasses.dataclass
class Server:
    """Gives its answers in order, and keeps what it was asked."""

    url: str
    answers: list[Answer] = dataclasses.field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    bodies: list[bytes] = dataclasses.field(default_factory=list)
    certificates: list[bool] = dataclasses.field(default_factory=list)
    connection_closed: threading.Event = dataclasses.field(default_factory=threading.Event)

    def tokens(self) -> list[str | None]:
        return [headers.get('x-auth-token') for _, headers in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the answers of :class:`Server`."""

    protocol_version = 'HTTP/1.1'
    server: Any

    def do_GET(self) -> None:
        script: Server = self.server.script
        headers = {name.lower(): value for name, value in self.headers.items()}
        script.requests.append((self.path, headers))
        script.bodies.append(self.rfile.read(int(headers.get('content-length', 0))))
        if isinstance(self.connection, ssl.SSLSocket):
            script.certificates.append(bool(self.connection.getpeercert()))
        answer = script.answers.pop(0)
        self._send(answer)
        if answer.hang:
            self._wait_until_client_closes()
            script.connection_closed.set()
        self.close_connection = True

    def do_POST(self) -> None:
        self.do_GET()

    def _wait_until_client_closes(self) -> None:
        self.connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            assert self.connection.recv(1) == b''

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        length = len(answer.body) if answer.length is None else answer.length
        if 'Transfer-Encoding' not in answer.headers:
            self.send_header('Content-Length', str(length))
        self.send_header('Connection', 'close')  # else the client may ask again while it closes
        if answer.content_type is not None:
            self.send_header('Content-Type', answer.content_type)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the output of the tests clean."""


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as listener:
        scheme = 'http'
        if tls is not None:
            scheme = 'https'
            listener.socket = tls.wrap_socket(listener.socket, server_side=True)
        script = Server(f'{scheme}://127.0.0.1:{listener.server_port}')
        listener.script = script  # type: ignore[attr-defined]
        thread = threading.Thread(target=listener.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        try:
            yield script
        finally:
            listener.shutdown()
            thread.join()
