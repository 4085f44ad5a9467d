# SPDX-License-Identifier: Apache-2.0
"""Serve all connections of a server in one thread, which never blocks on a single one."""

import collections
import contextlib
import functools
import logging
import selectors
import socket
import time
from collections.abc import Callable

from nova_precache import shown
from nova_precache.wsgi import connection, gateway

LOG = logging.getLogger(__name__)

# Below the number of files that a process may open.
MAX_CONNECTIONS = 512
# Held for incomplete requests, and for answers that clients have not received.
MAX_HELD_BYTES = 64 * 1024**2

_LOOK_SECONDS = 0.5
_CHECK_SECONDS = 0.1
_STOP_SECONDS = 5
# Longer than a request of the API may take.
_PART_SECONDS = 15
_WARN_SECONDS = 60
_ACCEPTED_AT_ONCE = 64
_RETRY_SECONDS = 0.1

_Phase = connection.ConnectionPhase
_WAITING = frozenset({_Phase.HANDSHAKE, _Phase.READING, _Phase.IDLE})


class Loop:
    """Accepts connections, and hands over each complete request.

    :param listener: closed when serving ends
    :param wrap: wraps a socket in TLS if configured
    :param ask: takes a request, and a callback for its answer, called from any thread
    """

    def __init__(
        self,
        listener: socket.socket,
        wrap: Callable[[socket.socket], socket.socket],
        ask: Callable[[gateway.HttpRequest, Callable[[gateway.Answer], None]], None],
        limits: connection.ConnectionLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._wrap = wrap
        self._ask = ask
        self._limits = limits
        self._clock = clock
        self._connections: set[connection.HttpConnection] = set()
        self._answers: collections.deque[tuple[connection.HttpConnection, gateway.Answer]] = (
            collections.deque()
        )
        self._is_stopping = False
        self._next_check = self._next_warning = clock()
        self._waker, self._woken = socket.socketpair()
        for each in (listener, self._waker, self._woken):
            each.setblocking(False)

    def run(self) -> None:
        """Serve until :meth:`stop`; then answer open requests for at most ``_PART_SECONDS``."""
        with self._waker, self._woken, selectors.DefaultSelector() as self._selector:
            with self._listener:
                self._selector.register(self._listener, selectors.EVENT_READ)
                self._selector.register(self._woken, selectors.EVENT_READ)
                while not self._is_stopping:
                    self._look()
                self._selector.unregister(self._listener)
            self._part()
            ends_at = self._clock() + _PART_SECONDS
            while self._connections and self._clock() < ends_at:
                self._look()
            for each in list(self._connections):
                self._do(each, each.close)

    def stop(self) -> None:
        """Stop accepting connections, and end when every request has its answer."""
        self._is_stopping = True
        self._wake()

    def _answered(self, asking: connection.HttpConnection, answer: gateway.Answer) -> None:
        self._answers.append((asking, answer))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full, so the loop wakes anyway, or the loop has ended
            self._waker.send(b'\0')

    def _look(self) -> None:
        for key, _ in self._selector.select(_LOOK_SECONDS if self._connections else None):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._woken:
                self._woken.recv(4096)
            else:
                self._do(key.data, key.data.proceed)
        while self._answers:
            asking, answer = self._answers.popleft()
            self._do(asking, functools.partial(self._answer, asking, answer))
        if self._clock() >= self._next_check:
            self._next_check = self._clock() + _CHECK_SECONDS
            for each in list(self._connections):
                self._do(each, each.expire)
            self._free_memory()

    def _do(self, each: connection.HttpConnection, step: Callable[[], None]) -> None:
        """Run a step, unless an earlier event of the same round has closed the connection."""
        if each not in self._connections:
            return
        try:
            step()
            self._follow(each)
        except Exception:  # an error caused by one client must not end the server
            LOG.exception('A connection failed')
            each.close()
            self._follow(each)

    def _follow(self, each: connection.HttpConnection) -> None:
        """Hand over a complete request, and update the watched events of a connection."""
        request = each.take_request()
        if request is not None:
            self._ask(request, lambda answer: self._answered(each, answer))
        key = self._selector.get_map().get(each.socket)
        watched = 0 if key is None else key.events
        if each.events != watched:
            if watched:
                self._selector.unregister(each.socket)
            if each.events:
                self._selector.register(each.socket, each.events, each)
        if each.phase is _Phase.CLOSED:
            each.socket.close()
            self._connections.discard(each)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                self._warn('Cannot accept a connection: %s', exc)
                self._close_oldest()
                time.sleep(_RETRY_SECONDS)
                return
            try:
                self._add(accepted, gateway.Address(*address[:2]))
            except OSError as exc:
                LOG.debug('Lost a connection of %s: %s', address[0], exc)
                accepted.close()

    def _add(self, accepted: socket.socket, client: gateway.Address) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = gateway.Address(*accepted.getsockname()[:2])
        wrapped = self._wrap(accepted)
        wrapped.setblocking(False)  # eventlet's wrapper does not inherit it
        made = connection.HttpConnection(wrapped, client, server, self._limits, self._clock)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._warn('%d connections are open: closing the oldest', MAX_CONNECTIONS)
            self._close_oldest()
        self._connections.add(made)
        self._do(made, made.proceed)  # its first bytes may have arrived already

    def _answer(self, asking: connection.HttpConnection, answer: gateway.Answer) -> None:
        asking.answer(answer, is_last=self._is_stopping)
        if self._is_stopping:
            asking.hurry(_STOP_SECONDS)
        asking.proceed()

    def _free_memory(self) -> None:
        """Close the oldest connections while all together hold too many bytes."""
        held = sum(each.held_bytes for each in self._connections)
        if held <= MAX_HELD_BYTES:
            return
        most = shown.size(MAX_HELD_BYTES)
        self._warn('Connections hold more than %s: closing the oldest', most)
        for each in [each for each in self._oldest() if each.held_bytes][:-1]:
            if held > MAX_HELD_BYTES:
                held -= each.held_bytes
                self._do(each, each.close)

    def _close_oldest(self) -> None:
        for each in self._oldest()[:1]:
            self._do(each, each.close)

    def _oldest(self) -> list[connection.HttpConnection]:
        """Return the connections that may be closed, those longest in their phase first."""
        clients = [each for each in self._connections if each.phase is not _Phase.ASKING]
        return sorted(clients, key=lambda each: each.since)

    def _part(self) -> None:
        """Close connections without a complete request, and limit the time of open answers."""
        for each in list(self._connections):
            if each.phase in _WAITING:
                self._do(each, each.close)
            elif each.phase is _Phase.ANSWERING:
                each.hurry(_STOP_SECONDS)

    def _warn(self, message: str, *values: object) -> None:
        """Log a warning at most once a minute, since clients can cause it at will."""
        if self._clock() >= self._next_warning:
            self._next_warning = self._clock() + _WARN_SECONDS
            LOG.warning(message, *values)
