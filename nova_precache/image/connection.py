# SPDX-License-Identifier: Apache-2.0
"""Read the data of an image from Glance's response: where it starts, and the bytes as they come."""

import contextlib
import io
import re
import threading
from typing import Any

import requests
import urllib3.exceptions

from nova_precache import exception

_CONTENT_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')


class GlanceConnection:
    """A response with the data of an image; implements ``image.service.Connection``."""

    def __init__(
        self,
        response: requests.Response,
        image_id: str,
        offset_bytes: int,
        size_bytes: int | None,
    ) -> None:
        self.start_bytes = _start_of(response, offset_bytes, size_bytes)
        self._response = response
        self._image_id = image_id
        self._is_cut = False
        self._shutting = threading.Lock()
        self._body = _plain_body(response)

    def check_data(self) -> None:
        """Check that the response carries image data.

        :raises nova_precache.exception.ImageGone: deleted, deactivated or without data
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: it carries something else
        """
        response, image_id = self._response, self._image_id
        code = response.status_code
        empty = response.headers.get('Content-Length') == '0'
        if code == requests.codes.no_content or (code == requests.codes.ok and empty):
            raise exception.ImageGone(f'Image {image_id} has no data')
        if code in {requests.codes.ok, requests.codes.partial_content}:
            _check_encoding(response, image_id)
            return
        if code == requests.codes.unauthorized:
            raise exception.ImageUnauthorized(f'Glance refuses the token for image {image_id}')
        if code in {requests.codes.forbidden, requests.codes.not_found, requests.codes.gone}:
            raise exception.ImageGone(
                f'Image {image_id} was deleted, deactivated or hidden (HTTP {code})'
            )
        raise exception.DownloadInterrupted(f'Image {image_id} cannot be read: HTTP {code}')

    def read_into(self, buffer: memoryview) -> int:
        """Wait for bytes, as :meth:`nova_precache.image.service.Connection.read_into`."""
        try:
            count = self._read(buffer)
        # The latter two are raised if the socket is shut down at this moment.
        except (urllib3.exceptions.HTTPError, OSError, AttributeError, ValueError) as exc:
            raise exception.DownloadInterrupted(
                f'The download of image {self._image_id} was interrupted: {exc}'
            ) from exc
        # After its shutdown, a TLS socket returns encrypted bytes.
        if self._is_cut:
            raise exception.DownloadInterrupted(
                f'The download of image {self._image_id} was interrupted by this process'
            )
        return count

    def cut(self) -> None:
        self._is_cut = True
        # If it was closed, or all bytes were received, no thread waits for it.
        with self._shutting, contextlib.suppress(OSError, RuntimeError, ValueError):
            self._response.raw.shutdown()

    def close(self) -> None:
        with self._shutting:
            self._response.close()

    def _read(self, buffer: memoryview) -> int:
        if self._body is not None:
            return self._body.read_into(buffer)
        data: bytes = self._response.raw.read1(len(buffer), decode_content=False)
        buffer[: len(data)] = data
        return len(data)


class _PlainBody:
    """A body of known length, received directly into the caller's buffer.

    ``read1`` of urllib3 returns the same bytes, but copying them takes more CPU time than
    receiving them.
    """

    def __init__(self, stream: io.BufferedReader, length: int) -> None:
        self._stream = stream
        self._left = length
        self._may_be_buffered = True  # bytes received together with the headers

    def read_into(self, buffer: memoryview) -> int:
        wanted = buffer[: self._left]
        if not wanted:
            return 0
        count = self._read_buffered(wanted) if self._may_be_buffered else self._receive(wanted)
        if not count:
            raise ConnectionError(f'the response ended {self._left} bytes early')
        self._left -= count
        return count

    def _read_buffered(self, wanted: memoryview) -> int:
        data = self._stream.read1(len(wanted))
        wanted[: len(data)] = data
        self._may_be_buffered = len(data) == len(wanted)
        return len(data)

    def _receive(self, wanted: memoryview) -> int:
        stream: Any = self._stream.raw
        count: int = stream.readinto(wanted)
        return count


def _plain_body(response: requests.Response) -> _PlainBody | None:
    """Return the body of a response; None if it is chunked or ends with the connection."""
    plain = getattr(response.raw, '_original_response', None)
    stream, length = getattr(plain, 'fp', None), getattr(plain, 'length', None)
    if not length or getattr(plain, 'chunked', True) or not isinstance(stream, io.BufferedReader):
        return None
    return _PlainBody(stream, length)


def _check_encoding(response: requests.Response, image_id: str) -> None:
    """Refuse compressed data: Glance hashed the uncompressed bytes, and offsets differ."""
    encoding = response.headers.get('Content-Encoding', 'identity')
    if encoding != 'identity':
        raise exception.DownloadInterrupted(
            f'Image {image_id} was sent with Content-Encoding {encoding!r}, which was not requested'
        )


def _start_of(response: requests.Response, offset_bytes: int, size_bytes: int | None) -> int | None:
    """Return the offset at which the response begins; None if it is not a usable one."""
    if response.status_code != requests.codes.partial_content:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get('Content-Range', ''))
    if match is None or match[1] != str(offset_bytes):
        return None
    is_other = size_bytes is not None and match[2] not in {'*', str(size_bytes)}
    return None if is_other else offset_bytes
