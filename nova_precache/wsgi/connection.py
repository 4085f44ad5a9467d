# SPDX-License-Identifier: Apache-2.0
"""One connection of a client: its request, its deadlines and its answer.

No call here waits for the client: a connection buffers a request until it is complete, and an
answer until the client has received it, so that neither occupies a thread. h11 implements the
protocol; forms that it accepts only for old clients are refused here.
"""

import dataclasses
import email.utils
import enum
import logging
import re
import selectors
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus

import h11

from nova_precache.wsgi import gateway

LOG = logging.getLogger(__name__)

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# At least one TLS record, so that no part of one stays in a buffer that no selector sees.
_RECEIVED_BYTES = 64 * 1024
# The line before a chunk, or all lines after the last one.
_MAX_INCOMPLETE_BYTES = 4096
_FOREVER = float('inf')
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n")
# A line end that other servers do not accept, a continuation line, and NUL.
_STRAY = re.compile(rb'(?<!\r)\n|\r(?=[^\n])|\n[ \t]|\0')


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """Limits on the data of a client, and on the duration of each phase of a connection.

    :ivar request_seconds: for TLS, head and body together
    :ivar answer_seconds: until the client has taken the whole answer
    :ivar idle_seconds: between two requests
    :ivar linger_seconds: until the client has closed, after the last answer
    """

    max_head_bytes: int
    max_body_bytes: int
    max_head_lines: int = 200
    max_chunks: int = 1000
    max_linger_bytes: int = 1024**2
    request_seconds: float = 15
    answer_seconds: float = 60
    idle_seconds: float = 60
    linger_seconds: float = 2


class ConnectionPhase(enum.StrEnum):
    """The phase of a connection; while ``ASKING``, the application has its request."""

    HANDSHAKE = enum.auto()
    READING = enum.auto()
    ASKING = enum.auto()
    ANSWERING = enum.auto()
    LINGERING = enum.auto()
    IDLE = enum.auto()
    CLOSED = enum.auto()


class HttpConnection:
    """An accepted connection.

    :ivar phase: the current phase
    :ivar since: start of the phase, by the clock
    :ivar events: the selector events that it waits for on its socket; 0 for none
    """

    phase: ConnectionPhase
    since: float
    events: int
    _deadline: float

    def __init__(
        self,
        client_socket: socket.socket,
        client: gateway.Address,
        server: gateway.Address,
        limits: ConnectionLimits,
        clock: Callable[[], float],
    ) -> None:
        self.socket = client_socket
        self._client = client
        self._server = server
        self._limits = limits
        self._clock = clock
        self._tls = client_socket if isinstance(client_socket, ssl.SSLSocket) else None
        self._head = bytearray()
        self._begun: _Begun | None = None
        self._unsent = memoryview(b'')
        self._is_last = False
        self._discarded_bytes = 0
        first = ConnectionPhase.READING if self._tls is None else ConnectionPhase.HANDSHAKE
        self._enter(first, limits.request_seconds)

    @property
    def held_bytes(self) -> int:
        """Approximate size of the request or answer in memory."""
        body = 0 if self._begun is None else len(self._begun.body)
        return len(self._head) + body + len(self._unsent)

    def proceed(self) -> None:
        """Receive or send what the socket is ready for."""
        try:
            self._proceed()
        except ssl.SSLWantReadError:
            self.events = _READ
        except ssl.SSLWantWriteError:
            self.events = _WRITE
        except BlockingIOError:
            pass  # the socket was not ready
        except OSError as exc:
            LOG.debug('Lost the connection of %s: %s', self._client.host, exc)
            self.close()

    def take_request(self) -> gateway.HttpRequest | None:
        """Return a complete request, once."""
        if self.phase is not ConnectionPhase.ASKING or self._begun is None or self._begun.is_taken:
            return None
        self._begun.is_taken = True
        return dataclasses.replace(self._begun.request, body=bytes(self._begun.body))

    def answer(self, answer: gateway.Answer, is_last: bool = False) -> None:
        """Start to send the answer to the request.

        :param is_last: the connection is closed after it
        """
        if self._begun is None:
            return
        parser, request = self._begun.parser, self._begun.request
        # After chunks, servers may disagree where the next request begins. A request that was
        # sent before this answer is not served: such clients would get more than their share.
        is_last = is_last or request.is_chunked or bool(parser.trailing_data[0])
        try:
            data = _serialise(parser, request.method, answer, is_last)
        except h11.LocalProtocolError as exc:
            LOG.error('The application returned an invalid HTTP response: %s', exc)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, 'See the log of the service.')
            return
        self._send(data, is_last=parser.our_state is not h11.DONE)

    def expire(self) -> None:
        """End a phase whose deadline has passed."""
        if self._clock() < self._deadline:
            return
        if self.phase is ConnectionPhase.READING and (self._head or self._begun):
            seconds = self._limits.request_seconds
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f'No complete request within {seconds:g} seconds'
            )
            return
        LOG.debug(
            'Closing the connection of %s: too long in phase %s', self._client.host, self.phase
        )
        self.close()

    def hurry(self, seconds: float) -> None:
        """Limit the rest of the current phase to this time."""
        self._deadline = min(self._deadline, self._clock() + seconds)

    def close(self) -> None:
        """Mark the connection as closed; the loop closes the socket."""
        self._forget()
        self._enter(ConnectionPhase.CLOSED, _FOREVER)

    def _enter(self, phase: ConnectionPhase, seconds: float) -> None:
        self.phase = phase
        self.since = self._clock()
        self._deadline = self.since + seconds
        self.events = {
            ConnectionPhase.ASKING: 0,
            ConnectionPhase.ANSWERING: _WRITE,
            ConnectionPhase.CLOSED: 0,
        }.get(phase, _READ)

    def _forget(self) -> None:
        """Discard the last request and its answer."""
        self._head = bytearray()
        self._begun = None
        self._unsent = memoryview(b'')

    def _proceed(self) -> None:
        if self.phase is ConnectionPhase.HANDSHAKE and self._tls is not None:
            self._tls.do_handshake()
            self.phase, self.events = ConnectionPhase.READING, _READ  # the deadline stays
        elif self.phase is ConnectionPhase.IDLE:
            self._enter(ConnectionPhase.READING, self._limits.request_seconds)
        if self.phase is ConnectionPhase.READING:
            self._receive()
        elif self.phase is ConnectionPhase.ANSWERING:
            self._write()
        elif self.phase is ConnectionPhase.LINGERING:
            self._discard()

    # A request

    def _receive(self) -> None:
        data = self.socket.recv(_RECEIVED_BYTES)
        if data:
            self._take(data)
        elif self._head or self._begun:
            self._refuse(HTTPStatus.BAD_REQUEST, 'The request is incomplete')
        else:
            self.close()

    def _take(self, data: bytes) -> None:
        try:
            if self._begun is None:
                scanned = max(0, len(self._head) - 1)
                self._head += data
                self._begun = self._read_head(scanned)
            else:
                self._begun.parser.receive_data(data)
            if self._begun is not None:
                self._read_body(self._begun)
        except _Refused as refused:
            self._refuse(refused.status, str(refused))
        except h11.RemoteProtocolError as exc:
            # The rest of the message quotes the client's bytes.
            self._refuse(HTTPStatus.BAD_REQUEST, str(exc).partition(': bytearray(')[0])

    def _read_head(self, scanned_bytes: int) -> '_Begun | None':
        end = self._head.find(b'\r\n\r\n')
        size = len(self._head) if end < 0 else end + len(b'\r\n\r\n')
        _check_head(self._head, scanned_bytes, size, self._limits)
        if end < 0:
            return None
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_INCOMPLETE_BYTES)
        parser.receive_data(bytes(self._head))
        self._head = bytearray()
        event = parser.next_event()
        if not isinstance(event, h11.Request):
            raise _Refused('Malformed request')
        _check_request(event, self._limits)
        request = gateway.HttpRequest(
            method=event.method.decode('ascii'),
            target=event.target,
            version=event.http_version.decode('ascii'),
            headers=list(event.headers),
            client=self._client,
            server=self._server,
            is_tls=self._tls is not None,
        )
        return _Begun(parser, request)

    def _read_body(self, begun: '_Begun') -> None:
        parser = begun.parser
        event = parser.next_event()
        while isinstance(event, h11.Data):
            begun.body += event.data
            begun.chunks += event.chunk_start
            if len(begun.body) > self._limits.max_body_bytes:
                raise _too_large(self._limits)
            if begun.chunks > self._limits.max_chunks:
                raise _Refused('Too many chunks', HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            event = parser.next_event()
        if event is h11.NEED_DATA:
            if parser.they_are_waiting_for_100_continue:
                self._continue(parser)
        else:
            self._enter(ConnectionPhase.ASKING, _FOREVER)

    def _continue(self, parser: h11.Connection) -> None:
        """Ask for the body; sending so few bytes blocks only if the client reads nothing."""
        goes_on = h11.InformationalResponse(status_code=100, reason=b'Continue', headers=[])
        self.socket.send(parser.send(goes_on))

    # An answer

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        LOG.debug('Refusing a request from %s with %d', self._client.host, status)
        refusal = gateway.error(status, message)
        self._send(_serialise(h11.Connection(h11.SERVER), '', refusal, True), is_last=True)

    def _send(self, data: bytes, is_last: bool) -> None:
        self._forget()
        self._unsent = memoryview(data)
        self._is_last = is_last
        self._enter(ConnectionPhase.ANSWERING, self._limits.answer_seconds)

    def _write(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        if self._is_last:
            self._linger()
        else:
            self._enter(ConnectionPhase.IDLE, self._limits.idle_seconds)

    def _linger(self) -> None:
        """Leave the client time to read the answer, which a reset would discard."""
        self.socket.shutdown(socket.SHUT_WR)
        self._enter(ConnectionPhase.LINGERING, self._limits.linger_seconds)

    def _discard(self) -> None:
        data = self.socket.recv(_RECEIVED_BYTES)
        self._discarded_bytes += len(data)
        if not data or self._discarded_bytes > self._limits.max_linger_bytes:
            self.close()


@dataclasses.dataclass
class _Begun:
    """A request whose head is complete, and the body received so far."""

    parser: h11.Connection
    request: gateway.HttpRequest
    body: bytearray = dataclasses.field(default_factory=bytearray)
    chunks: int = 0
    is_taken: bool = False


class _Refused(Exception):
    """This server does not accept the request."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def _too_large(limits: ConnectionLimits) -> _Refused:
    return _Refused(
        f'Request is too large. Larger than max_request_body_size ({limits.max_body_bytes}).',
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )


def _check_head(head: bytearray, scanned_bytes: int, size: int, limits: ConnectionLimits) -> None:
    """Refuse an invalid head, even before it is complete.

    :param scanned_bytes: length of the start of ``head`` that was checked before
    :param size: length of the head received so far
    """
    if b'\n' in head and not _REQUEST_LINE.match(head):
        raise _Refused('Malformed request line')
    if _STRAY.search(head, scanned_bytes, size):
        raise _Refused('Malformed header line')
    if size > limits.max_head_bytes or head.count(b'\n', 0, size) > limits.max_head_lines:
        raise _Refused('The headers are too large', HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _check_request(request: h11.Request, limits: ConnectionLimits) -> None:
    if request.method == b'CONNECT':
        raise _Refused('This server is not a proxy', HTTPStatus.METHOD_NOT_ALLOWED)
    if not request.target.startswith(b'/') or b'#' in request.target:
        raise _Refused('The target of a request must be a path')
    headers = dict(request.headers)
    if b'transfer-encoding' in headers and (
        b'content-length' in headers or request.http_version != b'1.1'
    ):
        raise _Refused('Transfer-Encoding requires HTTP/1.1 and excludes Content-Length')
    if int(headers.get(b'content-length', b'0')) > limits.max_body_bytes:
        raise _too_large(limits)


def _serialise(parser: h11.Connection, method: str, answer: gateway.Answer, is_last: bool) -> bytes:
    """Return the bytes of an answer.

    :raises h11.LocalProtocolError: its headers cannot be sent, or contradict its body
    """
    headers = [*answer.headers]
    names = {name.lower() for name, _ in headers}
    if b'content-length' not in names and method != 'HEAD' and answer.status not in _BODILESS:
        headers.append((b'Content-Length', b'%d' % len(answer.body)))
    if b'date' not in names:
        headers.append((b'Date', email.utils.formatdate(usegmt=True).encode()))
    if is_last:
        headers.append((b'Connection', b'close'))
    response = h11.Response(status_code=answer.status, reason=answer.reason, headers=headers)
    events: list[h11.Event] = [response]
    if method != 'HEAD':
        events.append(h11.Data(data=answer.body))
    return b''.join(parser.send(event) or b'' for event in [*events, h11.EndOfMessage()])
