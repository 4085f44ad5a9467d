# SPDX-License-Identifier: Apache-2.0
"""Convert between HTTP and WSGI: a complete request, and the answer to it."""

import dataclasses
import io
import json
import logging
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

import webob

LOG = logging.getLogger(__name__)

Application = Callable[..., Iterable[bytes]]
Header = tuple[bytes, bytes]

# In the WSGI environment: when the request was complete, in seconds of the monotonic clock.
ARRIVED_AT = 'nova_precache.arrived_at'

_FRAMING = frozenset({b'content-length', b'transfer-encoding'})


@dataclasses.dataclass(frozen=True)
class Address:
    """Host and port of one end of a connection."""

    host: str
    port: int


@dataclasses.dataclass(frozen=True)
class HttpRequest:
    """A request; header names are in lower case."""

    method: str
    target: bytes
    version: str
    headers: Sequence[Header]
    client: Address
    server: Address
    is_tls: bool
    body: bytes = b''
    arrived_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        """The path as the client wrote it, without the query; printable ASCII."""
        return self.target.partition(b'?')[0].decode('ascii')

    @property
    def is_chunked(self) -> bool:
        return any(name == b'transfer-encoding' for name, _ in self.headers)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer with its whole body."""

    status: int
    reason: bytes
    headers: Sequence[Header]
    body: bytes


def ask(application: Application, request: HttpRequest) -> Answer:
    """Call the application and return its answer, or 500 if it fails."""
    try:
        status, headers, chunks = webob.Request(_environ(request)).call_application(application)
        try:
            body = b''.join(chunks)
        finally:
            close = getattr(chunks, 'close', None)
            if close is not None:
                close()
        code, _, reason = status.partition(' ')
        encoded = [(name.encode(), value.strip().encode('latin-1')) for name, value in headers]
        return Answer(int(code), reason.encode('latin-1'), encoded, body)
    except Exception:
        LOG.exception('%s %s failed', request.method, request.path)
        return error(HTTPStatus.INTERNAL_SERVER_ERROR, 'See the log of the service.')


def error(status: HTTPStatus, message: str) -> Answer:
    """Build an error answer of the server itself, in the form that OpenStack's clients read."""
    told = {'code': status.value, 'title': status.phrase, 'message': message}
    body = json.dumps({'error': told}).encode()
    headers = [(b'Content-Type', b'application/json'), (b'Content-Length', b'%d' % len(body))]
    return Answer(status.value, status.phrase.encode(), headers, body)


def _environ(request: HttpRequest) -> dict[str, Any]:
    return {
        'REQUEST_METHOD': request.method,
        'SCRIPT_NAME': '',
        'PATH_INFO': urllib.parse.unquote_to_bytes(request.path).decode('latin-1'),
        'QUERY_STRING': request.target.partition(b'?')[2].decode('ascii'),
        'SERVER_PROTOCOL': f'HTTP/{request.version}',
        'SERVER_NAME': request.server.host,
        'SERVER_PORT': str(request.server.port),
        'REMOTE_ADDR': request.client.host,
        'REMOTE_PORT': str(request.client.port),
        ARRIVED_AT: request.arrived_at,
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': 'https' if request.is_tls else 'http',
        'wsgi.input': io.BytesIO(request.body),
        'wsgi.input_terminated': True,
        'wsgi.errors': sys.stderr,
        'wsgi.multithread': True,
        'wsgi.multiprocess': False,
        'wsgi.run_once': False,
        **_headers(request),
    }


def _headers(request: HttpRequest) -> dict[str, str]:
    """Convert headers to WSGI variables; join repeated ones into a list, as other servers do.

    Names with an underscore are dropped: WSGI cannot distinguish ``X_A`` from the ``X-A`` of a
    proxy.
    """
    found: dict[str, str] = {}
    for name, value in request.headers:
        if name in _FRAMING or b'_' in name:
            continue
        key = name.decode('latin-1').upper().replace('-', '_')
        key = key if key == 'CONTENT_TYPE' else f'HTTP_{key}'
        said = value.decode('latin-1')
        found[key] = f'{found[key]}, {said}' if key in found else said
    if not _FRAMING.isdisjoint(name for name, _ in request.headers):
        found['CONTENT_LENGTH'] = str(len(request.body))
    return found
