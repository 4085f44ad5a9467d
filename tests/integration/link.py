# SPDX-License-Identifier: Apache-2.0
"""A network link to a broker that tests can cut: a TCP proxy on the loopback.

It passes the broker's own bytes. A cut link breaks its connections and refuses new ones; a
silent link passes nothing, without an error.
"""

import contextlib
import socket
import threading
from typing import Self

_CHUNK_BYTES = 64 * 1024


class Link:
    """Listens on ``port`` and forwards to a port of this machine."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            broken, self._connections = self._connections, set()
        for each in [*broken, *([listener] if listener else [])]:
            _close(each)
        self._flows.set()

    def silence(self) -> None:
        """Stop passing data, without closing a connection."""
        self._flows.clear()

    def restore(self) -> None:
        """Accept connections and pass data again."""
        self._flows.set()
        with self._lock:
            if self._listener is None:
                self._listener = socket.create_server(('127.0.0.1', self.port))
                self._start(self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(('127.0.0.1', self._target_port))
            except OSError:
                _close(near)  # as if the broker were down
                continue
            with self._lock:
                is_cut = self._listener is not listener
                self._connections |= set() if is_cut else {near, far}
            if is_cut:
                _close(near)
                _close(far)
                return
            self._start(self._pass, near, far)
            self._start(self._pass, far, near)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                sink.sendall(data)
        with self._lock:
            self._connections -= {source, sink}
        _close(source)
        _close(sink)

    def _start(self, work: object, *sockets: socket.socket) -> None:
        threading.Thread(target=work, args=sockets, daemon=True).start()  # type: ignore[arg-type]


def _close(connection: socket.socket) -> None:
    """Close a socket and wake up a thread that waits on it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
