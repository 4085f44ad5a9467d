# SPDX-License-Identifier: Apache-2.0
"""The deadline of a thread's work, which limits every wait within it.

The API sets it once per request; waits for databases and other services end by then.
"""

import contextlib
import contextvars
import math
import socket
import threading
import time
from collections.abc import Iterator


class _Scope:
    """A deadline, and the connections to shut down when it passes."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._connections: list[socket.socket] = []

    def watch(self, connection: socket.socket) -> None:
        """Shut a connection down at the deadline, unless the work has ended.

        A timeout of the socket would restart with each byte. The duplicated descriptor refers
        to the connection even after TLS has taken over the socket.
        """
        with self._lock:
            self._connections.append(
                socket.fromfd(connection.fileno(), connection.family, connection.type)
            )
            if self._timer is None:
                seconds = max(0.0, self.ends_at - time.monotonic())
                self._timer = threading.Timer(seconds, self._cut)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)


_SCOPE: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar('deadline', default=None)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Set a deadline for all waits within; an earlier one of an outer scope still applies."""
    around = _SCOPE.get()
    latest = math.inf if around is None else around.ends_at
    scope = _Scope(min(latest, time.monotonic() + seconds))
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)
        scope.close()


def is_set() -> bool:
    """Return whether this thread has a deadline."""
    return _SCOPE.get() is not None


def left(at_most: float = math.inf) -> float:
    """Return the remaining seconds, from 0 to ``at_most``."""
    scope = _SCOPE.get()
    return at_most if scope is None else max(0.0, min(at_most, scope.ends_at - time.monotonic()))


def watch(connection: socket.socket) -> None:
    """Shut a connection down at the deadline, if there is one."""
    scope = _SCOPE.get()
    if scope is not None:
        scope.watch(connection)
