# SPDX-License-Identifier: Apache-2.0
"""A compute in a process of its own that dies, or whose disk fails, at a chosen moment.

Processes are forked from one that has imported everything, so that a test can kill
hundreds of them. The harness records what such a process synchronised with the disk, so
that a test can discard the rest, as a power loss does.
"""

import contextlib
import dataclasses
import enum
import functools
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from types import FrameType
from typing import Any

import nova_precache
from nova_precache import conf as precache_conf, exception, model, transfer_control as reins
from nova_precache.cache import layout, partials
from nova_precache.image import fake
from nova_precache.virt import libvirt
from tests.functional import faulty_proxy

_PACKAGE = os.path.dirname(nova_precache.__file__)
_TRACED = tuple(os.path.join(_PACKAGE, name) for name in ('cache', 'download'))
_SYNCS = ('fsync', 'fdatasync')
_WRITES = ('write', 'pwrite')
_NAMES = ('rename', 'replace', 'link', 'unlink', 'remove')
_GROWING = (*_SYNCS, *_WRITES, 'writev', 'pwritev', 'posix_fallocate', 'rename', 'replace', 'link')
_OTHERS = ('open', 'truncate', 'ftruncate', 'writev', 'pwritev', 'posix_fallocate', 'utime')
OPERATIONS = (*_SYNCS, *_WRITES, *_NAMES, *_OTHERS)
BLOCK_BYTES = 512
_LOST_NAMES = 0.1
_GARBAGE = b'\xaa' * BLOCK_BYTES
_replace = os.replace  # the original, while others are wrapped


class When(enum.StrEnum):
    """The point where a process dies, counted from the start of its attempt."""

    BEFORE = 'before'  # the n-th operation on files
    WITHIN = 'within'  # during it: half of a write is done, nothing of a synchronisation
    AFTER = 'after'
    LINE = 'line'  # the n-th line executed in the cache and the download


@dataclasses.dataclass(frozen=True)
class Death:
    when: When
    nth: int


@dataclasses.dataclass(frozen=True)
class Fault:
    """The n-th operation on files fails; with ``lasts``, so do all later writes."""

    errno: int
    nth: int
    lasts: bool = False


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The work of one process: start a compute's driver, and cache or remove an image."""

    instances_path: str
    image: model.Image
    data: bytes
    troubles: tuple[faulty_proxy.Trouble, ...] = ()
    death: Death | None = None
    options: tuple[tuple[str, object], ...] = ()
    init_host: bool = False
    synced: str | None = None
    removes: bool = False


@dataclasses.dataclass
class Ended:
    """The result; ``status`` is ``died`` if the process did."""

    status: str = 'died'
    reason: str | None = None
    opens: list[int] = dataclasses.field(default_factory=list)
    operations: int = 0
    lines: int = 0


class QuickControl(reins.Control):
    """Transfer control that does not wait between attempts."""

    def wait(self, seconds: float) -> None:
        super().wait(0)


def make_driver(instances_path: str, **options: object) -> libvirt.LibvirtDriver:
    """Make a driver without starting it; options of groups are called ``group__name``."""
    conf = precache_conf.new([], [])
    conf.set_override('instances_path', instances_path)
    conf.set_override('reserved_disk_bytes', 0, 'image_cache')
    conf.set_override('idle_priority', False, 'image_cache')  # or other work slows tests
    for name, value in options.items():
        group, _, option = name.rpartition('__')
        conf.set_override(option, value, group or None)
    return libvirt.LibvirtDriver(conf)


def try_to_cache(
    driver: libvirt.LibvirtDriver,
    images: Any,
    image_id: str,
    control: reins.Control | None = None,
    progress: model.ProgressCallback = lambda progress: None,
) -> tuple[str, str | None]:
    """Return status and reason of one attempt, as a compute would report it."""
    try:
        result = driver.cache_image(images, image_id, progress, control or QuickControl())
    except exception.CacheError as exc:
        return type(exc).__name__, str(exc)
    return ('existing' if result.existing else 'cached'), None


def note_often(setattr: Callable[[object, str, object], None]) -> None:  # noqa: A002
    """Make downloads record their progress every few bytes, as they do for large images."""
    rules = functools.partial(partials.SyncRules, write_back_bytes=64 * 1024, sync_bytes=256 * 1024)
    setattr(partials, 'SyncRules', rules)


_context = multiprocessing.get_context('forkserver')
# Each process imports the main module, which is pytest's.
_context.set_forkserver_preload([__name__, 'pytest'])


def run(attempt: Attempt) -> Ended:
    """Run an attempt in a process, and wait until it ends or dies."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_live, args=(attempt, theirs))
    process.start()
    theirs.close()
    ended = Ended()
    with ours, contextlib.suppress(EOFError, OSError):
        while True:
            message = ours.recv()
            if isinstance(message, int):
                ended.opens.append(message)
            else:
                ended.status, ended.reason, ended.operations, ended.lines = message
    process.join()
    assert process.exitcode == (-signal.SIGKILL if ended.status == 'died' else 0)
    process.close()
    return ended


def _live(attempt: Attempt, told: connection.Connection) -> None:
    note_often(setattr)
    images = fake.FakeImageService()
    images.add(attempt.data, **dataclasses.asdict(attempt.image))
    disk = Disk(attempt.instances_path, death=attempt.death, synced=attempt.synced)
    link = faulty_proxy.RoughLink(images, attempt.troubles, struck=die, noting=told.send)
    driver = make_driver(attempt.instances_path, **dict(attempt.options))
    with disk.watched():
        if attempt.init_host:
            driver.init_host()
        if attempt.removes:
            removal = driver.remove_image(attempt.image.id)
            status, reason = removal.status, removal.reason
        else:
            status, reason = try_to_cache(driver, link, attempt.image.id)
    told.send((status, reason, disk.operations, disk.lines))


def _copy_whole(source: str | pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file so that a kill in between never leaves a partial copy."""
    temporary = f'{target}.{threading.get_ident()}'
    shutil.copyfile(source, temporary)
    _replace(temporary, target)


def _write_half(write: Callable[..., int], descriptor: int, data: bytes, *rest: int) -> None:
    with contextlib.suppress(OSError):  # A direct write must be of whole sectors.
        write(descriptor, memoryview(data)[: len(data) // 2], *rest)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Disk:
    """Watches this process's file operations below a directory; kills it or fails them there.

    :param synced: directory that receives the synchronised content of each file
    """

    def __init__(
        self,
        directory: str,
        *,
        death: Death | None = None,
        fault: Fault | None = None,
        synced: str | None = None,
    ) -> None:
        self._directory = os.path.join(directory, '')
        self._death = death
        self._fault = fault
        self._synced = pathlib.Path(synced) if synced else None
        self._lock = threading.Lock()
        self.operations = 0
        self.failed: set[str] = set()
        self.lines = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator['Disk']:
        originals = {name: getattr(os, name) for name in OPERATIONS}
        for name, original in originals.items():
            setattr(os, name, self._wrapped(name, original))
        if self._death and self._death.when is When.LINE:
            threading.settrace(self._trace)
            sys.settrace(self._trace)
        try:
            yield self
        finally:
            if self._death and self._death.when is When.LINE:
                sys.settrace(None)
                threading.settrace(None)  # type: ignore[arg-type]
            for name, original in originals.items():
                setattr(os, name, original)

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **options: Any) -> Any:
            if not self._is_ours(arguments[0]):
                return original(*arguments, **options)
            when = self._begin(name)
            if when is When.BEFORE or (when is When.WITHIN and name in _SYNCS):
                die()
            if when is When.WITHIN and name in _WRITES:
                _write_half(original, *arguments)
                die()
            self._before(name, arguments)
            try:
                result = original(*arguments, **options)
                self._after(name, arguments)
            finally:
                if when is not None:
                    die()
            return result

        return operate

    def _is_ours(self, file: Any) -> bool:
        path = os.readlink(f'/proc/self/fd/{file}') if isinstance(file, int) else os.fspath(file)
        return str(path).startswith(self._directory)

    def _begin(self, name: str) -> When | None:
        """Count an operation; raise the fault, or return when the process dies of it."""
        with self._lock:
            self.operations += 1
            nth = self.operations
        fault = self._fault
        if fault and (nth == fault.nth or (fault.lasts and nth > fault.nth and name in _GROWING)):
            self.failed.add(name)
            raise OSError(fault.errno, os.strerror(fault.errno))
        death = self._death
        return death.when if death and death.when is not When.LINE and death.nth == nth else None

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._trace_line if frame.f_code.co_filename.startswith(_TRACED) else None

    def _trace_line(self, frame: FrameType, event: str, argument: object) -> Any:
        with self._lock:
            self.lines += 1
            dies = self._death is not None and self.lines == self._death.nth
        if dies:
            die()
        return self._trace_line

    def _before(self, name: str, arguments: Sequence[Any]) -> None:
        """Record the content that a synchronisation writes to disk: that of its start."""
        if self._synced is None or name not in _SYNCS:
            return
        path = os.readlink(f'/proc/self/fd/{arguments[0]}')
        if os.path.isfile(path):
            _copy_whole(path, self._noted(path))

    def _after(self, name: str, arguments: Sequence[Any]) -> None:
        """Follow files to their new names."""
        if self._synced is None or name not in _NAMES:
            return
        noted = self._noted(arguments[0])
        if name in {'unlink', 'remove'}:
            noted.unlink(missing_ok=True)
        elif noted.exists():
            _copy_whole(noted, self._noted(arguments[1]))

    def _noted(self, path: str) -> pathlib.Path:
        assert self._synced is not None
        return self._synced / os.path.basename(path)


def noted_bytes(directory: pathlib.Path, image: model.Image) -> int:
    """Return how much of the image, in its present version, is recorded as on disk."""
    journals = directory.glob(f'{layout.base_name(image.id)}.*.journal')
    usable = [path for path in journals if path.with_suffix('.part').exists()]
    return max((_noted(path.read_bytes(), image) for path in usable), default=0)


def _noted(text: bytes, image: model.Image) -> int:
    try:
        described, *notes = map(json.loads, text[: text.rfind(b'\n') + 1].splitlines())
    except ValueError:  # A power loss left nothing readable.
        return 0
    is_of_it = (described['size'], described['hash_value']) == (image.size, image.hash_value)
    return int(notes[-1]['synced_bytes']) if is_of_it and notes else 0


def lose_power(directory: pathlib.Path, synced: pathlib.Path, chance: random.Random) -> None:
    """Discard what was not synchronised: each block has its old or its new content.

    Names of unfinished files, for which the directory is not synchronised, may be gone.
    """
    for path in sorted(directory.iterdir()):
        if not layout.is_base_name(path.name) and chance.random() < _LOST_NAMES:
            path.unlink()
            continue
        noted = synced / path.name
        old = noted.read_bytes() if noted.exists() else b''
        new = path.read_bytes()
        if new != old:
            path.write_bytes(_torn(old, new, chance))


def _torn(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """Build a possible content of a file after a power loss; new blocks may hold garbage."""
    size = len(chance.choice((old, new)))
    weights = chance.choice(((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)))
    blocks = []
    for start in range(0, size, BLOCK_BYTES):
        end = min(start + BLOCK_BYTES, size)
        kept, written = (data[start:end].ljust(end - start, b'\0') for data in (old, new))
        other = _GARBAGE[: end - start] if start >= len(old) else written
        blocks += chance.choices((kept, written, other), weights)
    return b''.join(blocks)
