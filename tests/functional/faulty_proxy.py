# SPDX-License-Identifier: Apache-2.0
"""Images over a rough link: at which byte of a download what happens is the test's to say."""

import contextlib
import dataclasses
import enum
import threading
from collections.abc import Callable, Iterable, Iterator

from nova_precache import exception, model
from nova_precache.image import fake, service

CUT_SECONDS = 30


class Kind(enum.StrEnum):
    """What befalls one open of an image's data."""

    NONE = 'none'
    CUT = 'cut'  # the connection breaks
    SPOIL = 'spoil'  # one byte is another one
    CALL = 'call'  # something happens meanwhile, and the download goes on
    STOP = 'stop'  # the work is stopped from elsewhere: nothing comes until it is cut
    REFUSED = 'refused'  # the token
    SILENT = 'silent'  # no answer
    WHOLE = 'whole'  # the range is not heeded
    ELSEWHERE = 'elsewhere'  # the answer begins somewhere that it does not tell
    SHORT = 'short'  # few bytes at a time


@dataclasses.dataclass(frozen=True)
class Trouble:
    """It strikes once the download has come to a byte of the image."""

    kind: Kind
    at_byte: int = 0


NO_TROUBLE = Trouble(Kind.NONE)
_SHORT_BYTES = 1000


class RoughLink:
    """Stands before an image service; each open has the first of the troubles that are left.

    :ivar opens: from which byte on each open was asked that gave data
    :ivar served_bytes: given out
    :ivar position: how many bytes of the image, from its first one on, somebody has who
        began each time where the last connection came to
    :param noting: told of each such open at once
    :param struck: what happens at a ``CALL`` or ``STOP``
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
        """Come to the byte of the trouble exactly, and let it strike there."""
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
        assert self._is_cut.wait(CUT_SECONDS), 'the connection of stopped work stays open'
