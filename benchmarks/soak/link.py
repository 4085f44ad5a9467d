# SPDX-License-Identifier: Apache-2.0
"""A slow TCP proxy to Glance that can cut, stall and corrupt its connections."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self

_PIECE_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack('ii', 1, 0)
# Answers without image data are far shorter, and stay as they are.
_SPOILED_FROM_BYTES = 16 * 1024


class Link:
    """Forwards connections from ``url``; thread-safe.

    :param rate_bytes: a second and connection, from Glance
    :ivar spoiled: number of corrupted bytes
    """

    def __init__(self, port: int, rate_bytes: int) -> None:
        self._port = port
        self._rate_bytes = rate_bytes
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=64)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._held_until = 0.0
        self._to_spoil = 0
        self.spoiled = 0

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._listener.getsockname()[1]}'

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self, *, reset: bool = False) -> int:
        """Close all connections and return their number.

        :param reset: with RST, as on a lost machine
        """
        with self._lock:
            broken = list(self._open)
        for connection in broken:
            if reset:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            _break(connection)
        return len(broken)

    def stall(self, seconds: float) -> None:
        """Forward no data from Glance for some seconds."""
        self._held_until = time.monotonic() + seconds

    def spoil(self) -> None:
        """Corrupt one byte of the next image data."""
        with self._lock:
            self._to_spoil += 1

    def heal(self) -> None:
        """End stalls and corruption."""
        self._held_until = 0.0
        with self._lock:
            self._to_spoil = 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            glance = socket.create_connection(('127.0.0.1', self._port))
            with glance, self._known(client):
                up = threading.Thread(target=_pass_on, args=(client, glance), daemon=True)
                up.start()
                try:
                    self._pass_back(glance, client)
                finally:
                    _break(client)
                    _break(glance)
                    up.join()

    @contextlib.contextmanager
    def _known(self, client: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(client)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(client)

    def _pass_back(self, glance: socket.socket, client: socket.socket) -> None:
        while True:
            started = time.monotonic()
            piece = bytearray(glance.recv(_PIECE_BYTES))
            if not piece:
                return
            while (held := self._held_until - time.monotonic()) > 0:
                time.sleep(min(held, 0.1))
            if len(piece) >= _SPOILED_FROM_BYTES:
                self._may_spoil(piece)
            client.sendall(piece)
            time.sleep(max(0.0, started + len(piece) / self._rate_bytes - time.monotonic()))

    def _may_spoil(self, piece: bytearray) -> None:
        with self._lock:
            if self._to_spoil == 0:
                return
            self._to_spoil -= 1
            self.spoiled += 1
        piece[-1] ^= 0xFF


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _pass_on(client: socket.socket, glance: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := client.recv(_PIECE_BYTES):
            glance.sendall(piece)
        glance.shutdown(socket.SHUT_WR)
