# SPDX-License-Identifier: Apache-2.0
"""An image service over a faulty link: the test chooses the fault and the byte where it strikes."""

import contextlib
import dataclasses
import enum
import threading
from collections.abc import Callable, Iterable, Iterator

from nova_precache import exception, model
from nova_precache.image import fake, service
from tools.waiting import TIMEOUT_SECONDS


class Kind(enum.StrEnum):
    """A fault of one open of an image's data."""

    NONE = 'none'
    CUT = 'cut'  # the connection breaks
    SPOIL = 'spoil'  # one byte is changed
    CALL = 'call'  # a callback runs meanwhile, and the download continues
    STOP = 'stop'  # another thread stops the work: no data arrives until the connection is cut
    REFUSED = 'refused'  # the token is refused
    SILENT = 'silent'  # no answer
    WHOLE = 'whole'  # the range is ignored
    ELSEWHERE = 'elsewhere'  # the answer does not say at which byte it starts
    SHORT = 'short'  # few bytes per read


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A fault that strikes when the download reaches a byte of the image."""

    kind: Kind
    at_byte: int = 0


NO_TROUBLE = Trouble(Kind.NONE)
_SHORT_BYTES = 1000


class RoughLink:
    """Wraps an image service; each open takes the next of the remaining faults.

    :ivar opens: start byte of each open that returned data
    :ivar served_bytes: bytes sent
    :ivar position: how many bytes, from the first of the image, a reader has that resumes each
       time where the last connection ended
    :param noting: called with the start byte of each such open
    :param struck: called at a ``CALL`` or ``STOP``
    """

    def __init__(
        self,
        images: fake.FakeImageService,
        troubles: Iterable[Trouble] = (),
        *,
        struck: Callable[[], None] = lambda: None,
        noting: Callable[[int], None] = lambda offset_bytes: None,
    ) -> None:
        self._images = images
        self.troubles = list(troubles)
        self._left = list(self.troubles)
        self._struck = struck
        self._noting = noting
        self.opens: list[int] = []
        self.served_bytes = 0
        self.position = 0

    def show(self, image_id: str) -> model.Image:
        return self._images.show(image_id)

    def is_member(self, image_id: str, project_id: str) -> bool:
        return self._images.is_member(image_id, project_id)

    @contextlib.contextmanager
    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> Iterator[service.Connection]:
        trouble = self._left.pop(0) if self._left else NO_TROUBLE
        if trouble.kind is Kind.REFUSED:
            raise exception.ImageUnauthorized('the token was refused')
        if trouble.kind is Kind.SILENT:
            raise exception.DownloadInterrupted('no answer')
        start = 0 if trouble.kind is Kind.WHOLE else offset_bytes
        with self._images.open(image_id, start, size_bytes) as connection:
            self.opens.append(offset_bytes)
            self._noting(offset_bytes)
            yield _RoughConnection(self, connection, trouble, start)

    def strike(self) -> None:
        self._struck()


class _RoughConnection:
    def __init__(
        self, link: RoughLink, connection: service.Connection, trouble: Trouble, start: int
    ) -> None:
        self._is_elsewhere = trouble.kind is Kind.ELSEWHERE and start > 0
        self._link = link
        self._connection = connection
        self._trouble = trouble
        link.position = 0 if self.start_bytes is None else start
        self._is_struck = False
        self._is_cut = threading.Event()

    @property
    def start_bytes(self) -> int | None:
        return None if self._is_elsewhere else self._connection.start_bytes

    def read_into(self, buffer: memoryview) -> int:
        buffer = buffer[: self._most_bytes(len(buffer))]
        count = self._connection.read_into(buffer)
        at = self._trouble.at_byte - self._link.position
        if self._trouble.kind is Kind.SPOIL and 0 <= at < count:
            buffer[at] ^= 0xFF
        self._link.position += count
        self._link.served_bytes += count
        return count

    def cut(self) -> None:
        self._is_cut.set()
        self._connection.cut()

    def _most_bytes(self, most: int) -> int:
        """Limit the read to the byte of the fault, and apply the fault there."""
        kind = self._trouble.kind
        if kind is Kind.SHORT:
            return min(most, _SHORT_BYTES)
        if kind not in {Kind.CUT, Kind.CALL, Kind.STOP} or self._is_struck:
            return most
        left = self._trouble.at_byte - self._link.position
        if left > 0:
            return min(most, left)
        self._is_struck = True
        self._strike()
        return most

    def _strike(self) -> None:
        if self._trouble.kind is Kind.CUT:
            raise exception.DownloadInterrupted('the connection was cut')
        if self._trouble.kind is Kind.CALL:
            self._link.strike()
            return
        threading.Thread(target=self._link.strike).start()
        assert self._is_cut.wait(TIMEOUT_SECONDS), 'the connection of stopped work stays open'
