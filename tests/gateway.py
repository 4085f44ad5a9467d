# SPDX-License-Identifier: Apache-2.0
"""A site's link to a real Glance: an HTTP proxy that tests slow down, cut and watch.

Everything is Glance's own answer; only the data of images can be held at a byte,
cut after one, or spoiled on the way.
"""

import dataclasses
import http.server
import re
import ssl
import threading
from collections.abc import Iterator
from typing import Any, Self

import requests

from tools.waiting import TIMEOUT_SECONDS

_DATA = re.compile(r'^/v2/images/([0-9a-f-]{36})/file$')
_CHUNK_BYTES = 64 * 1024
_HOLD_SECONDS = 600
_WITH_DATA = (200, 206)


@dataclasses.dataclass(eq=False)
class Download:
    """One answer with data: which image, from where on, and how far it came.

    :ivar size_bytes: of the data of the answer
    :ivar bytes_sent: counted before they are sent: the client may act at once on what arrives
    """

    image_id: str
    requested_range: str | None
    status: int = 0
    size_bytes: int = 0
    bytes_sent: int = 0
    is_over: bool = False
    request_id: str | None = None

    @property
    def is_sending(self) -> bool:
        """Whether the client does not have all data yet."""
        return not self.is_over and self.status in _WITH_DATA and self.bytes_sent < self.size_bytes


class Gateway:
    """Stands before Glance at ``url``; the attributes control the downloads.

    :ivar cuts: bytes after which each of the next downloads is cut
    :ivar spoil: how many of the next downloads have their first byte wrong
    :ivar refuse: status that every next download is answered with instead of data
    :param tls: speak it, and say so to the server behind; that may be another than Glance
    """

    def __init__(self, glance_url: str, tls: ssl.SSLContext | None = None) -> None:
        self._glance_url = glance_url
        self._changed = threading.Condition()
        self._hold_at_byte: int | None = None
        self._let_pass = 0
        self._hold_most: int | None = None
        self.downloads: list[Download] = []
        self.most_at_once = 0
        self.cuts: list[int] = []
        self.spoil = 0
        self.refuse: int | None = None
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self) -> None:
                gateway.serve(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815
            do_HEAD = do_OPTIONS = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._scheme = 'https' if tls else 'http'
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f'{self._scheme}://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, at_byte: int = 0, let_pass: int = 0, most: int | None = None) -> None:
        """Hold each download at a byte, except the first ``let_pass`` ones; at most ``most``."""
        with self._changed:
            self._hold_most = most
            self._hold_at_byte = at_byte
            self._let_pass = len(self.downloads) + let_pass

    def release(self) -> None:
        """Release every held download, and hold no other."""
        with self._changed:
            self._hold_at_byte = None
            self._changed.notify_all()

    def running(self) -> list[Download]:
        """List the running downloads."""
        with self._changed:
            return [download for download in self.downloads if not download.is_over]

    def wait_for(self, count: int, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until ``count`` downloads run at once, each held at its byte."""
        with self._changed:
            reached = self._changed.wait_for(
                lambda: sum(self._is_held(each) for each in self.downloads) >= count,
                timeout_seconds,
            )
        assert reached, f'{count} downloads were not held: {self.downloads}'

    def served(self, image_id: str) -> list[Download]:
        """List the downloads of an image that were answered with data."""
        return [
            each
            for each in self.downloads
            if each.image_id == image_id and each.status in _WITH_DATA
        ]

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        data = _DATA.match(handler.path)
        if data is None:
            self._pass(handler)
            return
        download = Download(
            data.group(1),
            handler.headers.get('Range'),
            request_id=handler.headers.get('X-OpenStack-Request-ID'),
        )
        with self._changed:
            self.downloads.append(download)
        try:
            self._serve_data(handler, download)
        finally:
            with self._changed:
                download.is_over = True
                self._changed.notify_all()

    def _pass(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get('Content-Length') or 0)
        answer = requests.request(
            handler.command,
            self._glance_url + handler.path,
            headers={**_end_to_end(dict(handler.headers)), **self._forwarded()},
            data=handler.rfile.read(length),
            timeout=TIMEOUT_SECONDS,
        )
        handler.send_response(answer.status_code)
        for name, value in _end_to_end(dict(answer.headers)).items():
            handler.send_header(name, value)
        handler.send_header('Content-Length', str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content)

    def _forwarded(self) -> dict[str, str]:
        if self._scheme == 'http':
            return {}
        return {'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': self.url.split('//')[1]}

    def _serve_data(self, handler: http.server.BaseHTTPRequestHandler, download: Download) -> None:
        if self.refuse is not None:
            download.status = self.refuse
            handler.send_response(self.refuse)
            handler.send_header('Content-Length', '0')
            handler.end_headers()
            return
        with requests.get(
            self._glance_url + handler.path,
            headers=_end_to_end(dict(handler.headers)),
            stream=True,
            timeout=TIMEOUT_SECONDS,
        ) as answer:
            download.size_bytes = int(answer.headers['Content-Length'])
            download.status = answer.status_code
            handler.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ('connection', 'transfer-encoding', 'server', 'date'):
                    handler.send_header(name, value)
            handler.end_headers()
            self._send(handler, download, answer.iter_content(_CHUNK_BYTES))

    def _send(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        download: Download,
        chunks: Iterator[bytes],
    ) -> None:
        with self._changed:
            cut = self.cuts.pop(0) if self.cuts else None
            spoil, self.spoil = self.spoil > 0, max(self.spoil - 1, 0)
        self._note(download, 0)
        for chunk in chunks:
            self._wait_while_held(download)
            sent = chunk
            if spoil and download.bytes_sent == 0:
                sent = bytes([chunk[0] ^ 0xFF]) + chunk[1:]
            if cut is not None:
                sent = sent[: cut - download.bytes_sent]
            self._note(download, len(sent))
            handler.wfile.write(sent)
            if len(sent) < len(chunk):
                handler.close_connection = True
                return

    def _note(self, download: Download, count: int) -> None:
        with self._changed:
            download.bytes_sent += count
            going_on = sum(each.is_sending for each in self.downloads)
            self.most_at_once = max(self.most_at_once, going_on)
            self._changed.notify_all()

    def _is_held(self, download: Download) -> bool:
        return (
            self._hold_at_byte is not None
            and download in self._to_hold()
            and not download.is_over
            and download.status in _WITH_DATA
            and download.bytes_sent >= self._hold_at_byte
        )

    def _to_hold(self) -> list[Download]:
        end = None if self._hold_most is None else self._let_pass + self._hold_most
        return self.downloads[self._let_pass : end]

    def _wait_while_held(self, download: Download) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held(download), _HOLD_SECONDS)


def _end_to_end(headers: dict[str, str]) -> dict[str, str]:
    hop_by_hop = {'connection', 'host', 'content-length', 'transfer-encoding', 'keep-alive'}
    also = {'accept-encoding', 'content-encoding', 'server', 'date'}
    return {k: v for k, v in headers.items() if k.lower() not in hop_by_hop | also}
