# SPDX-License-Identifier: Apache-2.0
"""The engine's surroundings in its tests: a real file, a real server, a recorded control."""

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import itertools
import json
import os
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova_precache import exception, model, transfer_control
from nova_precache.download import engine, retry, source
from nova_precache.image import fake, glance, service
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

IMAGE_ID = 'b6a9a5cc-3b7e-4b8e-9d3e-0c5bb8f4d5a1'
DATA = hashlib.sha512(b'seed').digest() * 65536  # 4 MiB


class FileTarget:
    """A real file that can refuse writes; stands in for ``download.target.Target``.

    :ivar refuse_at: the file system is full at this byte
    :ivar stop_at: writes from this byte on wait for :meth:`go_on`
    """

    def __init__(self, path: pathlib.Path, kept: bytes = b'') -> None:
        self.path = path
        path.write_bytes(kept)
        self.kept_bytes = len(kept)
        self.has_readers = False
        self.refuse_at: int | None = None
        self.stop_at: int | None = None
        self.raises: Exception | None = None
        self.keep_error: Exception | None = None
        self.log: list[object] = []
        self.written: list[tuple[int, int]] = []
        self.writers: set[str] = set()
        self._at = len(kept)
        self._waits = threading.Event()
        self._goes_on = threading.Event()

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def read_kept(self, buffer: memoryview, offset_bytes: int) -> int:
        with self.path.open('rb') as file:
            file.seek(offset_bytes)
            return file.readinto(buffer[: self.kept_bytes - offset_bytes])

    def write(self, buffer: bytearray, length: int, offset_bytes: int) -> None:
        assert offset_bytes == self._at, 'pieces follow each other'
        self.writers.add(threading.current_thread().name)
        if self.stop_at is not None and offset_bytes + length > self.stop_at:
            self._waits.set()
            assert self._goes_on.wait(TIMEOUT_SECONDS)
        if self.raises is not None:
            raise self.raises
        if self.refuse_at is not None and offset_bytes + length > self.refuse_at:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise exception.storage_failure('Writing', full)
        with self.path.open('r+b') as file:
            file.seek(offset_bytes)
            file.write(memoryview(buffer)[:length])
        self._at += length
        self.written.append((offset_bytes, length))

    def wait_until_stopped(self) -> None:
        assert self._waits.wait(TIMEOUT_SECONDS)

    def go_on(self) -> None:
        self._goes_on.set()

    def restart(self) -> None:
        self.log.append('restart')
        self.path.write_bytes(b'')
        self._at = 0

    def finish(self, size_bytes: int) -> None:
        assert size_bytes == self._at, 'all has been written'
        self.log.append(('finish', size_bytes))

    def keep(self) -> None:
        if self.keep_error is not None:
            raise self.keep_error
        self.log.append(('keep', self._at))


@dataclasses.dataclass
class Onlooker:
    """Records all bytes, and refuses them at one; stands in for ``engine.Watcher``."""

    seen: bytearray = dataclasses.field(default_factory=bytearray)
    pieces: list[int] = dataclasses.field(default_factory=list)
    refuse_at: int | None = None

    def feed(self, data: memoryview) -> None:
        self.seen += data
        self.pieces.append(len(data))
        if self.refuse_at is not None and len(self.seen) > self.refuse_at:
            raise exception.UnsafeImage('as the test has it')

    def restart(self) -> None:
        self.seen.clear()
        self.pieces.clear()


class Reins(transfer_control.Control):
    """A control whose pauses take no time, but are recorded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pauses: list[float] = []
        self.on_pause: Callable[[], object] = lambda: None

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.on_pause()
        super().wait(0)


@dataclasses.dataclass
class Attempt:
    """One download with the progress that it reported."""

    target: FileTarget
    watcher: Onlooker = dataclasses.field(default_factory=Onlooker)
    control: Reins = dataclasses.field(default_factory=Reins)
    progress: list[model.Progress] = dataclasses.field(default_factory=list)

    def run(
        self, images: service.ImageService, image: model.Image, opens: int = 3, **options: Any
    ) -> int:
        downloader = engine.Downloader(resume=retry.ResumePolicy(max_opens=opens), **options)
        origin = source.ImageServiceSource(images, image)
        return downloader.download(
            origin, self.target, self.watcher, self.control, self.progress.append
        )


class OddSource:
    """Returns a given number of bytes a read, and is cut after given numbers of bytes."""

    def __init__(self, data: bytes, cuts: list[int], reads: list[int]) -> None:
        self.image = image_of(data)
        self.opens: list[int] = []
        self._data = data
        self._cuts = list(cuts)
        self._reads = itertools.cycle(reads)

    def check_unchanged(self) -> None:
        """Do nothing: the image is always the same."""

    @contextlib.contextmanager
    def open(self, offset_bytes: int = 0) -> Iterator[service.Connection]:
        self.opens.append(offset_bytes)
        yield OddConnection(self._data, offset_bytes, self._cuts, self._reads)


class OddConnection:
    def __init__(
        self, data: bytes, start_bytes: int, cuts: list[int], reads: Iterator[int]
    ) -> None:
        self.start_bytes = start_bytes
        self._left = memoryview(data)[start_bytes:]
        self._until_cut = cuts.pop(0) if cuts else len(data) + 1
        self._reads = reads

    def read_into(self, buffer: memoryview) -> int:
        if not self._until_cut:
            raise exception.DownloadInterrupted('The connection was cut')
        count = min(next(self._reads), len(buffer), len(self._left), self._until_cut)
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self._until_cut -= count
        return count

    def cut(self) -> None:
        """Do nothing: these tests do not cut it."""


class Running:
    """A download in a thread of its own, to be stopped from outside."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name='download', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            self.error = exc

    def failure(self) -> BaseException | None:
        """Wait for its end, and return its error."""
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), 'the download goes on'
        return self.error


@dataclasses.dataclass
class Link:
    """A server with one image, over real sockets; each list is used up from its front.

    :ivar cuts: bytes after which each of the next answers is cut
    :ivar silent_at: bytes after which answers fall silent; -1: they come only after ``late``
    :ivar accepted: tokens that are let in; None: each, and none
    :ivar no_parts: the status of the answer to each Range; None: the part that is asked for
    """

    url: str
    data: bytes = DATA
    cuts: list[int] = dataclasses.field(default_factory=list)
    silent_at: int | None = None
    accepted: set[str] | None = None
    no_parts: int | None = None
    ranges: list[str | None] = dataclasses.field(default_factory=list)
    tokens: list[str | None] = dataclasses.field(default_factory=list)
    shown: model.Image | None = None
    closed: int = 0
    going_on: int = 0
    late: threading.Event = dataclasses.field(default_factory=threading.Event)
    has_fallen_silent: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def image(self) -> model.Image:
        return self.shown or image_of(self.data)

    def images(self, **with_token: Any) -> glance.GlanceImageService:
        settings = glance.GlanceSettings(
            connect_timeout_seconds=TIMEOUT_SECONDS, read_timeout_seconds=3 * TIMEOUT_SECONDS
        )
        with_token.setdefault('token', None)
        return glance.GlanceImageService.with_token(settings, endpoint=self.url, **with_token)

    def wait_closed(self, count: int = 1) -> None:
        """Wait until the client has closed this many of the connections that fell silent."""
        wait_until(lambda: self.closed >= count, 'the connection is closed', TIMEOUT_SECONDS)


class LinkHandler(http.server.BaseHTTPRequestHandler):
    """Serves a :class:`Link`."""

    protocol_version = 'HTTP/1.1'
    server: Any

    def do_GET(self) -> None:
        link: Link = self.server.link
        self.close_connection = True
        link.tokens.append(self.headers.get('X-Auth-Token'))
        if link.accepted is not None and link.tokens[-1] not in link.accepted:
            self._answer(401, b'')
        elif self.path.endswith('/file'):
            link.going_on += 1
            self._send_data(link)
            link.going_on -= 1
        else:
            shown = link.image
            document = {
                'id': shown.id,
                'status': shown.status,
                'size': shown.size,
                'os_hash_algo': shown.hash_algo,
                'os_hash_value': shown.hash_value,
            }
            self._answer(200, json.dumps(document).encode(), 'application/json')

    def _answer(self, status: int, body: bytes, content_type: str = 'text/plain') -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Content-Type', content_type)
        self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(body)

    def _send_data(self, link: Link) -> None:
        asked = self.headers.get('Range')
        link.ranges.append(asked)
        if asked and link.no_parts is not None:
            self._answer(link.no_parts, b'no parts here')
            return
        if link.silent_at == -1:
            link.has_fallen_silent.set()
            assert link.late.wait(TIMEOUT_SECONDS)
            link.silent_at = None
        start = int(re.fullmatch(r'bytes=(\d+)-', asked)[1]) if asked else 0  # type: ignore[index]
        self.send_response(206 if asked else 200)
        if asked:
            size = len(link.data)
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        self.send_header('Content-Length', str(len(link.data) - start))
        self.send_header('Connection', 'close')
        self.end_headers()
        stop = link.cuts.pop(0) if link.cuts else link.silent_at
        with contextlib.suppress(OSError):
            self.wfile.write(link.data[start:] if stop is None else link.data[start:][:stop])
            if link.silent_at is not None:
                self._be_silent(link)

    def _be_silent(self, link: Link) -> None:
        link.has_fallen_silent.set()
        self.connection.settimeout(3 * TIMEOUT_SECONDS)
        with contextlib.suppress(ConnectionResetError):
            assert self.connection.recv(1) == b''
        link.closed += 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the output of the tests clean."""


def image_of(data: bytes, **fields: Any) -> model.Image:
    known = {'hash_algo': 'sha512', 'hash_value': hashlib.sha512(data).hexdigest()}
    return model.Image(id=IMAGE_ID, **{'size': len(data), **known, **fields})


@pytest.fixture
def link() -> Iterator[Link]:
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), LinkHandler) as listener:
        found = Link(f'http://127.0.0.1:{listener.server_port}')
        listener.link = found  # type: ignore[attr-defined]
        thread = threading.Thread(target=listener.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield found
        listener.shutdown()
        thread.join()


@pytest.fixture
def dead_end() -> Iterator[str]:
    """The URL of a server that neither accepts nor refuses connections."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(0)
        address = listener.getsockname()
        with contextlib.ExitStack() as waiting:
            for _ in range(4):  # until its queue is full
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
            yield f'http://127.0.0.1:{address[1]}'


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


MakeTarget = Callable[..., FileTarget]
NewAttempt = Callable[[], Attempt]


@pytest.fixture
def make_target(tmp_path: pathlib.Path) -> MakeTarget:
    def make(kept: bytes = b'') -> FileTarget:
        return FileTarget(tmp_path / 'file', kept)

    return make


@pytest.fixture
def new_attempt(make_target: MakeTarget) -> NewAttempt:
    return lambda: Attempt(make_target())


@pytest.fixture
def attempt(new_attempt: NewAttempt) -> Attempt:
    return new_attempt()


@pytest.fixture
def nothing_left() -> Iterator[Callable[[], None]]:
    """Return a function that checks that the test has left no thread and no file open."""
    threads_before = set(threading.enumerate())
    files_before = open_files()

    def check() -> None:
        wait_until(
            lambda: not ours(set(threading.enumerate()) - threads_before), 'no thread is left'
        )
        wait_until(lambda: open_files() <= files_before, 'no descriptor is left')

    yield check
    check()


def ours(threads: set[threading.Thread]) -> list[str]:
    """Return those that do not belong to the server."""
    return [thread.name for thread in threads if 'process_request_thread' not in thread.name]


def open_files() -> int:
    return len(os.listdir('/proc/self/fd'))
