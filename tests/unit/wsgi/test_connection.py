# SPDX-License-Identifier: Apache-2.0
"""A connection takes only complete and correct requests, and each phase of it has a timeout."""

import dataclasses
import json
import socket
from collections.abc import Iterator

import pytest

from nova_precache.wsgi import connection, gateway
from tests.clock import Clock

LIMITS = connection.ConnectionLimits(max_head_bytes=8192, max_body_bytes=1000)
HEAD = b'POST /v1/requests HTTP/1.1\r\nHost: x\r\n'
CHUNKED = HEAD + b'Transfer-Encoding: chunked\r\n\r\n'
ANSWER = gateway.Answer(200, b'OK', [(b'Content-Type', b'text/plain')], b'good')
Phase = connection.ConnectionPhase


@dataclasses.dataclass
class Link:
    """A connection, and its client's end."""

    served: connection.HttpConnection
    client: socket.socket
    clock: Clock

    def send(self, data: bytes) -> None:
        self.client.sendall(data)
        self.served.proceed()

    def end(self) -> None:
        self.client.shutdown(socket.SHUT_WR)
        self.served.proceed()

    def answer(self, answer: gateway.Answer = ANSWER) -> None:
        assert self.served.take_request() is not None
        self.served.answer(answer)
        self.served.proceed()

    def received(self) -> bytes:
        """Return what the client has received so far."""
        if self.served.phase is Phase.ANSWERING:
            self.served.proceed()
        try:
            return self.client.recv(65536)
        except BlockingIOError:
            return b''

    def pass_seconds(self, seconds: float) -> None:
        self.clock.now += seconds
        self.served.expire()


@pytest.fixture
def link() -> Iterator[Link]:
    client, served = socket.socketpair()
    with client, served:
        client.setblocking(False)
        served.setblocking(False)
        clock = Clock()
        address = gateway.Address('client', 1), gateway.Address('server', 2)
        yield Link(connection.HttpConnection(served, *address, LIMITS, clock), client, clock)


def _status(answer: bytes) -> int:
    assert answer.startswith(b'HTTP/1.1 '), answer
    return int(answer.split()[1])


def _refused(link: Link) -> int:
    """Check that a request was refused and that nothing more is read, and return the status."""
    assert link.served.take_request() is None
    answer = link.received()
    head, _, body = answer.partition(b'\r\n\r\n')
    assert b'\r\nConnection: close' in head
    assert json.loads(body)['error']['code'] == _status(answer)
    assert json.loads(body)['error']['message']
    assert link.served.phase is Phase.LINGERING
    assert link.received() == b''  # the end
    assert link.served.held_bytes == 0
    return _status(answer)


# Accepted requests


GOOD = {
    'no body': (b'GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n', b''),
    'a length': (HEAD + b'Content-Length: 5\r\n\r\n12345', b'12345'),
    'chunks': (CHUNKED + b'2;a=b\r\n12\r\n3\r\n345\r\n0\r\n\r\n', b'12345'),
    'trailers': (CHUNKED + b'5\r\n12345\r\n0\r\nX: y\r\n\r\n', b'12345'),
    'capitals': (HEAD + b'TRANSFER-ENCODING: Chunked\r\n\r\n1\r\nA\r\n0\r\n\r\n', b'A'),
    'HTTP/1.0': (b'POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nA', b'A'),
    'one length twice': (HEAD + b'Content-Length: 1\r\nContent-Length: 1\r\n\r\nA', b'A'),
    'an upgrade': (b'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n', b''),
    'the longest body': (HEAD + b'Content-Length: 1000\r\n\r\n' + b'1' * 1000, b'1' * 1000),
}


@pytest.mark.parametrize('name', GOOD)
@pytest.mark.parametrize('piece_bytes', [1, 7, 65536])
def test_request_delivered_once_complete(link: Link, name: str, piece_bytes: int) -> None:
    data, body = GOOD[name]
    for begin in range(0, len(data), piece_bytes):
        assert link.served.take_request() is None
        link.send(data[begin : begin + piece_bytes])

    request = link.served.take_request()

    assert request is not None
    assert (request.body, request.client.host) == (body, 'client')
    assert link.served.take_request() is None
    assert link.served.events == 0


def test_next_request_follows_answer(link: Link) -> None:
    for _ in range(3):
        link.send(GOOD['a length'][0])
        link.answer()
        answer = link.received()
        assert _status(answer) == 200
        assert b'\r\nContent-Length: 4\r\n' in answer
        assert answer.endswith(b'\r\n\r\ngood')
        assert link.served.phase is Phase.IDLE


@pytest.mark.parametrize(
    'data',
    [
        b'GET / HTTP/1.0\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n',
        GOOD['chunks'][0],
    ],
)
def test_connection_closes_after_last_request(link: Link, data: bytes) -> None:
    link.send(data)
    link.answer()
    assert b'\r\nConnection: close\r\n' in link.received()
    assert link.received() == b''


@pytest.mark.parametrize('more', [b'GET /2 HTTP/1.1\r\nHost: x\r\n\r\n', b'\0\x16garbage'])
def test_pipelined_request_not_served(link: Link, more: bytes) -> None:
    link.send(GOOD['a length'][0] + more)
    link.answer()
    answer = link.received()
    assert (_status(answer), answer.count(b'HTTP/1.1 ')) == (200, 1)
    assert b'\r\nConnection: close\r\n' in answer
    assert link.served.take_request() is None
    assert link.received() == b''


def test_expect_continue_is_answered(link: Link) -> None:
    link.send(HEAD + b'Expect: 100-continue\r\nContent-Length: 5\r\n\r\n')
    assert link.received() == b'HTTP/1.1 100 Continue\r\n\r\n'
    link.send(b'12345')
    link.answer()
    assert _status(link.received()) == 200


def test_expect_continue_with_excess_refused(link: Link) -> None:
    link.send(HEAD + b'Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n')
    assert _refused(link) == 413


def test_client_may_close_after_request(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.client.shutdown(socket.SHUT_WR)
    link.answer()
    assert _status(link.received()) == 200
    link.served.proceed()
    assert link.served.phase is Phase.CLOSED


# Refused requests


MALFORMED = {
    'HTTP/0.9': b'GET /\r\n',
    'no version': b'GET / \r\n\r\n',
    'HTTP/2': b'GET / HTTP/2.0\r\nHost: x\r\n\r\n',
    'HTTP/1.10': b'GET / HTTP/1.10\r\nHost: x\r\n\r\n',
    'signed version': b'GET / HTTP/+1.1\r\nHost: x\r\n\r\n',
    'two spaces': b'GET  / HTTP/1.1\r\nHost: x\r\n\r\n',
    'a tab': b'GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n',
    'too many words': b'GET / / HTTP/1.1\r\nHost: x\r\n\r\n',
    'an empty line': b'\r\n\r\n',
    'no method': b' / HTTP/1.1\r\nHost: x\r\n\r\n',
    'strange method': b'G(T / HTTP/1.1\r\nHost: x\r\n\r\n',
    'TLS': b'\x16\x03\x01\x02\x00\x01\x00',
    'NUL in a path': b'GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n',
    'a byte of no ASCII in a path': b'GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n',
    'absolute': b'GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n',
    'asterisk': b'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n',
    'fragment': b'GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n',
    'bare LF': b'GET / HTTP/1.1\nHost: x\n\n',
    'bare LF later': b'GET / HTTP/1.1\r\nHost: x\n\r\n',
    'two bare LF in the end': b'GET / HTTP/1.1\r\nHost: x\n\n',
    'bare CR': b'GET / HTTP/1.1\r\nHost: x\rY: z\r\n\r\n',
    'no host': b'GET / HTTP/1.1\r\n\r\n',
    'two hosts': b'GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n',
    'space before the colon': HEAD + b'Content-Length : 5\r\n\r\n12345',
    'a line that goes on': HEAD + b'X: a\r\n b\r\n\r\n',
    'no colon': HEAD + b'X\r\n\r\n',
    'no name': HEAD + b': x\r\n\r\n',
    'NUL in a value': HEAD + b'X: \0\r\n\r\n',
    'a space in a name': HEAD + b'X Y: z\r\n\r\n',
    **{
        f'length {value!r}': HEAD + b'Content-Length: %b\r\n\r\n' % value
        for value in (
            b'-1',
            b'+5',
            b'5_0',
            b'5.0',
            b'0x5',
            b'five',
            b'',
            b'1 1',
            b'5, 6',
            b'9' * 40,
            b'9' * 5000,
            '\u0665'.encode(),
        )
    },
    'two lengths': HEAD + b'Content-Length: 1\r\nContent-Length: 2\r\n\r\n12',
    **{
        f'encoding {value!r}': HEAD + b'Transfer-Encoding: %b\r\n\r\n0\r\n\r\n' % value
        for value in (b'gzip', b'gzip, chunked', b'chunked, chunked', b'identity', b'', b'x')
    },
    'encoding twice': HEAD + b'Transfer-Encoding: chunked\r\n' * 2 + b'\r\n0\r\n\r\n',
    'encoding after a tab': HEAD + b'Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n',
    'length and encoding': HEAD
    + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    'encoding in HTTP/1.0': b'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    **{
        f'chunk {line!r}': CHUNKED + line + b'\r\nx\r\n0\r\n\r\n'
        for line in (b'-1', b'+1', b'0x1', b'1_0', b'g', b'', b' 1', b'F' * 40, b'1\0')
    },
    'more than a chunk says': CHUNKED + b'1\r\nxyz\r\n0\r\n\r\n',
    'an endless line before a chunk': CHUNKED + b'1;' + b'a' * 5000,
    'a bad trailer': CHUNKED + b'0\r\nX\0: y\r\n\r\n',
    'endless trailers': CHUNKED + b'0\r\n' + b'X: y\r\n' * 1000,
}


@pytest.mark.parametrize('name', MALFORMED)
def test_malformed_request_is_bad_request(link: Link, name: str) -> None:
    link.send(MALFORMED[name])
    assert _refused(link) == 400


TOO_LARGE = {
    'length': HEAD + b'Content-Length: 1001\r\n\r\n',
    'a large length': HEAD + b'Content-Length: 1610612736\r\n\r\n',
    'one chunk': CHUNKED + b'3e9\r\n' + b'1' * 1001,
    'an enormous chunk': CHUNKED + b'FFFFFFFFFFFFFFFF\r\n' + b'1' * 1001,
    'chunks': CHUNKED + b'200\r\n' + b'1' * 512 + b'\r\n200\r\n' + b'1' * 512,
    'many chunks': CHUNKED + b'0001;a=b\r\n1\r\n' * 1001,
    'lines of headers': HEAD + b'a:b\r\n' * 1000,
    'a header': HEAD + b'X: ' + b'1' * 8192,
    'a path': b'GET /' + b'a' * 8192,
    'a method': b'A' * 8193,
    'a whole head': HEAD + b'X: ' + b'1' * 8192 + b'\r\n\r\n',
}


@pytest.mark.parametrize('name', TOO_LARGE)
def test_too_large_request_refused(link: Link, name: str) -> None:
    link.send(TOO_LARGE[name])
    assert _refused(link) == 413


@pytest.mark.parametrize(
    'data', [b'GET /\r\n'[:-1], HEAD, HEAD + b'Content-Length: 5\r\n\r\n1', CHUNKED + b'5\r\n1']
)
def test_truncated_request_is_refused(link: Link, data: bytes) -> None:
    link.send(data)
    assert link.served.phase is Phase.READING
    link.end()
    assert _refused(link) == 400


def test_connect_method_is_refused(link: Link) -> None:
    link.send(b'CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n')
    assert _refused(link) == 405


def test_answer_does_not_echo_request(link: Link) -> None:
    link.send(HEAD + b'X-Auth-Token: secret\0\r\n\r\n')
    assert b'secret' not in link.received()


# Timeouts


@pytest.mark.parametrize(
    ('first', 'byte'),
    [
        (b'GET /', b'a'),
        (HEAD + b'X: ', b'a'),
        (HEAD + b'Content-Length: 999\r\n\r\n', b'a'),
        (CHUNKED + b'3e7\r\n', b'a'),
        (CHUNKED, b'0'),
        (HEAD + b'Expect: 100-continue\r\nContent-Length: 9\r\n\r\n', b''),
    ],
)
def test_incomplete_request_times_out(link: Link, first: bytes, byte: bytes) -> None:
    link.send(first)
    link.received()  # the permission to continue
    for _ in range(14):
        link.pass_seconds(1)
        if byte:
            link.send(byte)
        assert link.served.phase is Phase.READING

    link.pass_seconds(1)

    assert _refused(link) == 408


def test_silent_client_is_disconnected(link: Link) -> None:
    link.pass_seconds(14.9)
    assert link.served.phase is Phase.READING
    link.pass_seconds(0.1)
    assert link.served.phase is Phase.CLOSED


def test_idle_connection_closes(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.answer()
    link.pass_seconds(59)
    assert link.served.phase is Phase.IDLE
    link.pass_seconds(1)
    assert link.served.phase is Phase.CLOSED


def test_later_request_has_full_timeout(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.answer()
    link.received()
    link.pass_seconds(50)
    link.send(b'GET /')
    link.pass_seconds(14)
    assert link.served.phase is Phase.READING
    link.pass_seconds(1)
    assert _refused(link) == 408


def test_application_may_be_slow(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.pass_seconds(1000)
    link.answer()
    assert _status(link.received()) == 200


def test_slow_reader_times_out_despite_progress(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.answer(dataclasses.replace(ANSWER, body=b'x' * 10_000_000))
    assert link.served.held_bytes > 1_000_000
    for _ in range(59):
        link.pass_seconds(1)
        link.client.recv(4096)
        link.served.proceed()
        assert link.served.phase is Phase.ANSWERING

    link.pass_seconds(1)

    assert (link.served.phase, link.served.held_bytes) == (Phase.CLOSED, 0)


def test_refused_client_is_soon_disconnected(link: Link) -> None:
    link.send(MALFORMED['HTTP/0.9'])
    assert _refused(link) == 400
    link.send(b'more')
    link.pass_seconds(1)
    assert link.served.phase is Phase.LINGERING
    link.pass_seconds(1)
    assert link.served.phase is Phase.CLOSED


def test_bytes_after_refusal_limited(link: Link) -> None:
    link.send(TOO_LARGE['length'])
    assert _refused(link) == 413
    sent = 0
    while link.served.phase is Phase.LINGERING:
        link.send(b'x' * 65536)
        sent += 65536
    assert sent <= LIMITS.max_linger_bytes + 65536


# Answers of the application


def _answered(link: Link, answer: gateway.Answer, method: bytes = b'GET') -> bytes:
    link.send(method + b' / HTTP/1.1\r\nHost: x\r\n\r\n')
    link.answer(answer)
    return link.received()


def test_head_has_no_body(link: Link) -> None:
    answer = _answered(link, gateway.Answer(200, b'OK', [(b'Content-Length', b'9')], b''), b'HEAD')
    assert b'\r\nContent-Length: 9\r\n' in answer
    assert answer.endswith(b'\r\n\r\n')
    assert link.served.phase is Phase.IDLE


def test_no_content_has_no_length(link: Link) -> None:
    answer = _answered(link, gateway.Answer(204, b'No Content', [], b''))
    assert b'content-length' not in answer.lower()
    assert link.served.phase is Phase.IDLE


@pytest.mark.parametrize(
    'answer',
    [
        gateway.Answer(200, b'OK', [(b'Content-Length', b'5')], b'good'),
        gateway.Answer(200, b'OK', [(b'Content-Length', b'3')], b'good'),
        gateway.Answer(200, b'OK', [(b'X', b'a\r\nY: b')], b'good'),
        gateway.Answer(100, b'Continue', [], b''),
    ],
)
def test_non_http_answer_returns_500(
    link: Link, answer: gateway.Answer, caplog: pytest.LogCaptureFixture
) -> None:
    assert _status(_answered(link, answer)) == 500
    assert 'The application returned an invalid HTTP response' in caplog.text


def test_answer_to_gone_client_dropped(link: Link) -> None:
    link.send(GOOD['no body'][0])
    link.client.close()
    link.answer(dataclasses.replace(ANSWER, body=b'x' * 10_000_000))
    assert link.served.phase is Phase.CLOSED
