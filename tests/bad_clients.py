# SPDX-License-Identifier: Apache-2.0
"""Clients that hold a server up: each connection sends something bad, or too little, or slowly."""

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence

from tools.waiting import TIMEOUT_SECONDS

_HOST = b'Host: x\r\n'
_GOOD = b'GET /healthcheck HTTP/1.1\r\n' + _HOST + b'\r\n'
_POST = b'POST /v1/requests HTTP/1.1\r\n' + _HOST

# What each kind sends at once, and the byte that it sends from time to time, if any.
KINDS: dict[str, tuple[bytes, bytes]] = {
    'silent': (b'', b''),
    'slow head': (b'GET /heal', b'a'),
    'half a head': (_GOOD[:-2], b''),
    'endless header': (_GOOD[:-2] + b'X-Long: ', b'x'),
    'half a body': (_POST + b'Content-Length: 100000\r\n\r\n' + b'{' * 50_000, b''),
    'slow body': (_POST + b'Content-Length: 100000\r\n\r\n', b'{'),
    'half a chunk': (_POST + b'Transfer-Encoding: chunked\r\n\r\nfff0\r\n{', b''),
    'slow chunk': (_POST + b'Transfer-Encoding: chunked\r\n\r\nfff0\r\n', b'{'),
    'asks whether to continue': (
        _POST + b'Content-Length: 9\r\nExpect: 100-continue\r\n\r\n',
        b'',
    ),
    'idle after an answer': (_GOOD, b''),
    'unread answers': (b'GET / HTTP/1.1\r\nHost: x\r\n\r\n' * 20, b''),
    'garbage after a request': (_GOOD + b'\x16\x03\x01\0garbage' * 100, b''),
}
# Those of a client that is to speak TLS and never does.
WITHOUT_TLS: dict[str, tuple[bytes, bytes]] = {
    'no handshake': (b'', b''),
    'half a handshake': (b'\x16\x03\x01\x02\x00\x01\x00', b'\x01'),
    'no TLS': (_GOOD, b''),
}


class BadClients:
    """Connections of all kinds that are open at the same time."""

    def __init__(self, connections: Sequence[tuple[socket.socket, bytes]]) -> None:
        self._connections = connections

    def dribble(self) -> None:
        """Send one more byte on each connection of a slow kind that is still open."""
        for connection, byte in self._connections:
            if byte:
                with contextlib.suppress(OSError):
                    connection.send(byte)


@contextlib.contextmanager
def opened(port: int, count: int, tls: ssl.SSLContext | None = None) -> Iterator[BadClients]:
    """Open connections to a port of the loopback, as many of each kind.

    :param tls: what the server speaks; then some of them never do
    """
    kinds = [(True, *each) for each in KINDS.values()]
    if tls is not None:
        kinds += [(False, *each) for each in WITHOUT_TLS.values()]
    with contextlib.ExitStack() as stack:
        connections = []
        for number in range(count):
            wraps, first, byte = kinds[number % len(kinds)]
            connection = stack.enter_context(_connect(port))
            if tls is not None and wraps:
                connection = stack.enter_context(
                    tls.wrap_socket(connection, server_hostname='127.0.0.1')
                )
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # the rest of it finds no room
                connection.send(first)
            connections.append((connection, byte))
        yield BadClients(connections)


def _connect(port: int) -> socket.socket:
    connection = socket.socket()
    # Little of an answer is on its way before the client reads.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(TIMEOUT_SECONDS)
    connection.connect(('127.0.0.1', port))
    return connection
