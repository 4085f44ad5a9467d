# SPDX-License-Identifier: Apache-2.0
"""An image service in memory, which can simulate the faults of a real one.

It passes the same contract tests as Glance. A fault is armed for a number of
opens; a gate holds a download at a byte until the test releases it.
"""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from oslo_utils import uuidutils

from nova_precache import exception, model

CHUNK_BYTES = 64 * 1024
GATE_TIMEOUT_SECONDS = 120


class Gate:
    """Holds the downloads of an image before the byte at ``at_byte`` is served."""

    def __init__(self, at_byte: int = 0) -> None:
        self.at_byte = at_byte
        self._changed = threading.Condition()
        self._is_reached = False
        self._is_open = False

    def wait_reached(self) -> None:
        """Wait until a download has reached the gate."""
        self._wait(lambda: self._is_reached, 'no download reached the gate')

    def release(self) -> None:
        """Release this download and each later one."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def hold(self, is_cut: Callable[[], bool]) -> None:
        """Wait at the gate; called by the image service."""
        with self._changed:
            self._is_reached = True
            self._changed.notify_all()
        self._wait(lambda: self._is_open or is_cut(), 'the gate was not released')

    def look(self) -> None:
        """Wake the waiting downloads to check whether they were cut."""
        with self._changed:
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, GATE_TIMEOUT_SECONDS):
                raise TimeoutError(complaint)


@dataclasses.dataclass
class Faults:
    """The armed faults: each open consumes the first item of ``cuts``, and counts others down.

    :param cuts: bytes after which the connection breaks
    :param unauthorized: opens that fail because the token is refused
    :param unavailable: shows and opens that get no answer
    :param corrupt: opens whose first byte is wrong
    :param whole: opens from an offset on that return the whole image
    :param elsewhere: opens whose answer begins at another byte than requested
    :param gate: holds every open
    """

    cuts: list[int] = dataclasses.field(default_factory=list)
    unauthorized: int = 0
    unavailable: int = 0
    corrupt: int = 0
    whole: int = 0
    elsewhere: int = 0
    gate: Gate | None = None


class FakeImageService:
    """Images in memory; implements ``image.service.ImageService``.

    ``served_bytes`` counts the bytes served, ``opens`` holds the (image id, offset) of each
    open that returned data.
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
        """Delete the image; a running download continues."""
        del self._images[image_id]

    def share(self, image_id: str, project_id: str) -> None:
        """Make a project a member of the image, whatever its member status."""
        self._members.add((image_id, project_id))

    def unshare(self, image_id: str, project_id: str) -> None:
        """End the membership of a project."""
        self._members.remove((image_id, project_id))

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
    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> Iterator['FakeConnection']:
        self._check_open(image_id, offset_bytes)
        with self._lock:
            self.opens.append((image_id, offset_bytes))
            cut_bytes = self.faults.cuts.pop(0) if self.faults.cuts else None
        data = self._data[image_id]
        start = self._start_of(data, offset_bytes, size_bytes)
        if self._strikes('corrupt'):
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        connection = FakeConnection(data, start, cut_bytes, self.faults.gate, self._count)
        try:
            yield connection
        finally:
            connection.cut()

    def _start_of(self, data: bytes, offset_bytes: int, size_bytes: int | None) -> int | None:
        if offset_bytes and (self._strikes('whole') or offset_bytes >= len(data)):
            return 0
        is_other = offset_bytes and size_bytes is not None and size_bytes != len(data)
        return None if self._strikes('elsewhere') or is_other else offset_bytes

    def _count(self, served_bytes: int) -> None:
        with self._lock:
            self.served_bytes += served_bytes

    def _check_open(self, image_id: str, offset_bytes: int) -> None:
        if self._strikes('unavailable'):
            raise exception.DownloadInterrupted('The image service does not answer')
        if self._strikes('unauthorized'):
            raise exception.ImageUnauthorized(f'The token was refused for image {image_id}')
        if image_id not in self._images or self._images[image_id].status == 'deactivated':
            raise exception.ImageGone(f'Image {image_id} was deleted, deactivated or hidden')
        if not self._data[image_id]:
            raise exception.ImageGone(f'Image {image_id} has no data')

    def _strikes(self, fault: str) -> bool:
        with self._lock:
            left: int = getattr(self.faults, fault)
            setattr(self.faults, fault, max(0, left - 1))
            return left > 0


class FakeConnection:
    """Serves the bytes of an image; implements ``image.service.Connection``."""

    def __init__(
        self,
        data: bytes,
        start_bytes: int | None,
        cut_bytes: int | None,
        gate: Gate | None,
        count: Callable[[int], None],
    ) -> None:
        self.start_bytes = start_bytes
        self._data = data
        self._at = start_bytes or 0
        self._end = len(data) if cut_bytes is None else min(len(data), self._at + cut_bytes)
        self._breaks = cut_bytes is not None
        self._gate = gate
        self._count = count
        self._is_cut = False

    def read_into(self, buffer: memoryview) -> int:
        length = min(len(buffer), CHUNK_BYTES, self._end - self._at)
        if self._gate is not None and self._at <= self._gate.at_byte < self._at + length:
            self._gate.hold(lambda: self._is_cut)
        if self._is_cut or (self._breaks and not length):
            raise exception.DownloadInterrupted('The connection was interrupted')
        buffer[:length] = self._data[self._at : self._at + length]
        self._at += length
        self._count(length)
        return length

    def cut(self) -> None:
        self._is_cut = True
        if self._gate is not None:
            self._gate.look()
