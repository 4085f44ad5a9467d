# SPDX-License-Identifier: Apache-2.0
"""An image service in memory, with the faults that a real one has on a bad day.

It passes the same contract tests as Glance. A fault is armed for a number of
opens; a gate holds a download at a byte until the test lets it go on.
"""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

from oslo_utils import uuidutils

from nova_precache import exception, model

CHUNK_BYTES = 64 * 1024
GATE_TIMEOUT_SECONDS = 30


class Gate:
    """Holds whoever downloads an image before the byte at ``at_byte`` is given out."""

    def __init__(self, at_byte: int = 0) -> None:
        self.at_byte = at_byte
        self._reached = threading.Event()
        self._opened = threading.Event()

    def wait_reached(self) -> None:
        """Wait until a download stands at the gate."""
        if not self._reached.wait(GATE_TIMEOUT_SECONDS):
            raise TimeoutError('no download reached the gate')

    def release(self) -> None:
        """Let this download, and each later one, pass."""
        self._opened.set()

    def hold(self) -> None:
        """Stand at the gate: called by the image service."""
        self._reached.set()
        if not self._opened.wait(GATE_TIMEOUT_SECONDS):
            raise TimeoutError('the gate was not released')


@dataclasses.dataclass
class Faults:
    """What goes wrong: each list is used up from its front, one item an open.

    :param cuts: bytes after which the connection breaks
    :param unauthorized: opens that find the token refused
    :param unavailable: shows and opens that find no service
    :param corrupt: opens whose first byte is wrong
    :param gate: where every open is held
    """

    cuts: list[int] = dataclasses.field(default_factory=list)
    unauthorized: int = 0
    unavailable: int = 0
    corrupt: int = 0
    gate: Gate | None = None


class FakeImageService:
    """Images in memory; stands behind ``image.service.ImageService``.

    ``served_bytes`` counts the bytes that were given out, ``opens`` holds the
    (image id, offset) of each open that gave data.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.served_bytes = 0
        self.opens: list[tuple[str, int]] = []
        self._images: dict[str, model.Image] = {}
        self._data: dict[str, bytes] = {}
        self._members: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def add(self, data: bytes, **fields: Any) -> model.Image:
        """Add an image with its hashes; ``fields`` are those of ``model.Image``."""
        known = {
            'id': uuidutils.generate_uuid(),
            'disk_format': 'raw',
            'container_format': 'bare',
            'visibility': 'public',
            'size': len(data),
            'checksum': hashlib.md5(data, usedforsecurity=False).hexdigest(),
            'hash_algo': 'sha512',
            'hash_value': hashlib.sha512(data).hexdigest(),
        }
        image = model.Image(**{**known, **fields})
        self._images[image.id] = image
        self._data[image.id] = data
        return image

    def update(self, image_id: str, **fields: Any) -> None:
        """Change metadata, such as the status."""
        self._images[image_id] = dataclasses.replace(self._images[image_id], **fields)

    def delete(self, image_id: str) -> None:
        """Make the image unknown; a running download goes on."""
        del self._images[image_id]

    def accept(self, image_id: str, project_id: str) -> None:
        """Have a project as a member that accepted the image."""
        self._members.add((image_id, project_id))

    def show(self, image_id: str) -> model.Image:
        if self._strikes('unavailable'):
            raise exception.ImageServiceUnavailable('The image service does not answer')
        if image_id not in self._images:
            raise exception.ImageNotUsable(image_id, 'could not be found.')
        return self._images[image_id]

    def is_member(self, image_id: str, project_id: str) -> bool:
        image = self.show(image_id)
        return image.visibility == 'shared' and (image_id, project_id) in self._members

    @contextlib.contextmanager
    def open(self, image_id: str, offset_bytes: int = 0) -> Iterator[Iterator[bytes]]:
        self._check_open(image_id, offset_bytes)
        with self._lock:
            self.opens.append((image_id, offset_bytes))
            cut_bytes = self.faults.cuts.pop(0) if self.faults.cuts else None
        data = self._data[image_id]
        if self._strikes('corrupt'):
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        yield self._chunks(data, offset_bytes, cut_bytes)

    def _check_open(self, image_id: str, offset_bytes: int) -> None:
        if self._strikes('unavailable'):
            raise exception.DownloadInterrupted('The image service does not answer')
        if self._strikes('unauthorized'):
            raise exception.ImageUnauthorized(f'The token was refused for image {image_id}')
        if image_id not in self._images or self._images[image_id].status == 'deactivated':
            raise exception.ImageGone(f'Image {image_id} was deleted, deactivated or hidden')
        if not self._data[image_id]:
            raise exception.ImageGone(f'Image {image_id} has no data')
        if offset_bytes >= len(self._data[image_id]):
            raise exception.DownloadInterrupted(f'Image {image_id} has no byte {offset_bytes}')

    def _strikes(self, fault: str) -> bool:
        with self._lock:
            left: int = getattr(self.faults, fault)
            setattr(self.faults, fault, max(0, left - 1))
            return left > 0

    def _chunks(self, data: bytes, offset_bytes: int, cut_bytes: int | None) -> Iterator[bytes]:
        end = len(data) if cut_bytes is None else min(len(data), offset_bytes + cut_bytes)
        for start in range(offset_bytes, end, CHUNK_BYTES):
            chunk = data[start : min(start + CHUNK_BYTES, end)]
            self._stand_at_gate(start, len(chunk))
            with self._lock:
                self.served_bytes += len(chunk)
            yield chunk
        if cut_bytes is not None:
            raise exception.DownloadInterrupted('The connection was cut')

    def _stand_at_gate(self, start: int, length: int) -> None:
        gate = self.faults.gate
        if gate is not None and start <= gate.at_byte < start + length:
            gate.hold()
