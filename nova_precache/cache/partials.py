# SPDX-License-Identifier: Apache-2.0
"""Partial files: unfinished downloads that a later attempt can resume.

A partial file has a journal beside it, which records the image of its bytes and how many of
them are on the disk. A later attempt resumes there: bytes written after that may or may not
have reached the disk, and are cut off.
"""

import contextlib
import dataclasses
import errno
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from nova_precache import exception, files, model, shown
from nova_precache.cache import journal as journals, layout, readers, store as cache_store

LOG = logging.getLogger(__name__)

# Blocks of zeros become holes, in the unit in which file systems and qemu-img count holes.
BLOCK_BYTES = 4096
_ZEROS = bytes(BLOCK_BYTES)
# How much is written into the page cache at once. For larger writes the kernel allocates
# larger pages. If the host is itself a guest, its hypervisor may have reclaimed those, and
# getting them back takes several times the CPU of the write.
_PAGES_BYTES = 256 * 1024
_MAX_FILE_BYTES = 2**63 - 1  # the kernel's limit; an image may claim more


@dataclasses.dataclass(frozen=True)
class SyncRules:
    """When received bytes are synced to the disk.

    :ivar write_back_bytes: the kernel is asked to start writeback each time this many arrived
    :ivar sync_bytes: they are synced and recorded each time this many arrived
    :ivar sync_seconds: likewise after this time, if bytes arrive slowly
    :ivar window_bytes: while the file is read, that many of the last bytes stay in the page cache
    """

    write_back_bytes: int = 8 * 1024**2
    sync_bytes: int = 64 * 1024**2
    sync_seconds: float = 5
    window_bytes: int = 64 * 1024**2
    clock: Callable[[], float] = time.monotonic


class Partials:
    """The partial files of one cache; the caller holds the lock of the image.

    :param rules: None: the defaults
    """

    def __init__(self, paths: layout.CacheLayout, rules: SyncRules | None = None) -> None:
        self._layout = paths
        self._rules = rules or SyncRules()

    @contextlib.contextmanager
    def open(self, image: model.Image, *, keep_pages: bool = False) -> 'Iterator[Partial]':
        """Open the partial file to resume, or a new one; remove the image's others.

        On leaving, a file that can be resumed stays: :meth:`clear` removes it.

        :param keep_pages: leave it in the page cache, since it is read again at once
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        """
        with contextlib.ExitStack() as stack:
            with cache_store.storage_errors(f'Opening a partial file of image {image.id}'):
                journal = self._best(image) or self._new(image)
                stack.callback(_leave, journal)
                partial = Partial(journal, self._rules, keep_pages=keep_pages)
                stack.callback(partial.close)
            yield partial

    def clear(self, image_id: str) -> None:
        """Remove the partial files of an image that are not in use.

        A file that cannot be removed is left for the next sweep.
        """
        try:
            with cache_store.storage_errors(f'Removing partial files of image {image_id}'):
                for journal in self._owned(image_id):
                    _discard(journal)
        except exception.CacheError as exc:  # does not change the result of the download
            LOG.warning('%s', exc)

    def _best(self, image: model.Image) -> journals.Journal | None:
        """Acquire the matching partial file with the most bytes; remove the rest."""
        identity = journals.Identity.of(image)
        owned = self._owned(image.id)
        fitting = [each for each in owned if _fits(each, identity)]
        best = max(fitting, key=lambda each: each.synced_bytes, default=None)
        for journal in owned:
            if journal is not best:
                _discard(journal)
        return best

    def _owned(self, image_id: str) -> list[journals.Journal]:
        """Acquire every journal of an image that is not in use."""
        base_name = layout.base_name(image_id)
        with contextlib.ExitStack() as stack:
            owned = []
            for name in os.listdir(self._layout.base_directory):
                if layout.base_name_of_journal(name) == base_name:
                    journal = journals.Journal.own(self._layout.path_of(name))
                    if journal is not None:
                        stack.callback(journal.close)
                        owned.append(journal)
            stack.pop_all()
            return owned

    def _new(self, image: model.Image) -> journals.Journal:
        identity = journals.Identity.of(image)
        while True:
            path = self._layout.new_partial_path(image.id, layout.JOURNAL_SUFFIX)
            journal = journals.Journal.create(path, identity)
            if journal is not None:
                return journal


class Partial:
    """One partial file whose journal is owned; implements ``download.target.Target``.

    :ivar path: the file
    :ivar converted_path: path of the converted image; removed with the partial file
    :ivar check_space: called when the file starts over while readers keep its old bytes on the
        disk; its errors end the download
    """

    def __init__(self, journal: journals.Journal, rules: SyncRules, *, keep_pages: bool) -> None:
        self.path = layout.sibling(journal.path, 'part')
        self.converted_path = layout.sibling(journal.path, 'converted')
        self._journal = journal
        self._rules = rules
        self._keeps_pages = keep_pages
        self.check_space: Callable[[], None] = lambda: None
        self._sync: futures.Future[None] | None = None
        self._open_at(journal.synced_bytes)
        files.remove_if_there(self.converted_path)

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    @property
    def passed_bytes(self) -> int:
        """How many bytes of the image were received; holes take less space on the disk."""
        return self._file.position

    @property
    def has_readers(self) -> bool:
        return self._file.has_readers

    def open_reader(self, offset_bytes: int = 0) -> readers.Reader:
        """Open a reader of the received bytes, also of those kept; from any thread.

        :raises nova_precache.cache.readers.Ended: its writer has ended it
        :raises nova_precache.exception.StorageError: the file system refused
        """
        with cache_store.storage_errors(f'Opening {self.path}'):
            return self._file.open(offset_bytes)

    def check_size(self, size_bytes: int) -> None:
        """Check that file system and process limits allow a file of this size; write nothing.

        :raises nova_precache.exception.NotEnoughSpace: they do not
        :raises nova_precache.exception.StorageError: the file system refused
        """
        with cache_store.storage_errors(f'Growing {self.path} to {shown.size(size_bytes)}'):
            os.ftruncate(self._descriptor, max(min(size_bytes, _MAX_FILE_BYTES), self._kept_bytes))
            os.ftruncate(self._descriptor, self._kept_bytes)

    def check_converted(self, size_bytes: int) -> None:
        """Check the same for the converted file; create it empty, to reserve its name.

        Raises as :meth:`check_size`.
        """
        creating = f'Creating {self.converted_path} with {shown.size(size_bytes)}'
        with cache_store.storage_errors(creating):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptor = os.open(self.converted_path, flags, 0o666)
            try:
                os.ftruncate(descriptor, min(size_bytes, _MAX_FILE_BYTES))
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)

    def read_kept(self, buffer: memoryview, offset_bytes: int) -> int:
        wanted = max(0, min(len(buffer), self._kept_bytes - offset_bytes))
        with cache_store.storage_errors(f'Reading {self.path}'):
            count = os.preadv(self._descriptor, [buffer[:wanted]], offset_bytes)
            self._drop_pages(offset_bytes, offset_bytes + count)
        return count

    def write(self, buffer: bytearray | mmap.mmap, length: int, offset_bytes: int) -> None:
        with cache_store.storage_errors(f'Writing {self.path}'):
            with self._file.writing():
                for start, end in data_ranges(buffer, length, offset_bytes):
                    self._write_all(buffer, start, end, offset_bytes)
            self._file.advance(offset_bytes + length)
            self._write_back()
            if self._file.position >= self._due_bytes or self._rules.clock() >= self._due_at:
                self._begin_sync()

    def restart(self) -> None:
        """Discard all bytes, and take a new file: ended readers may still have the old one."""
        old = self._file
        with cache_store.storage_errors(f'Replacing {self.path}'):
            self._end_sync()
            # Record first: after a crash, the journal must not count missing bytes.
            self._journal.note(0)
            old.end()
            self._replace()
        if old.is_held:
            self.check_space()

    def finish(self, size_bytes: int) -> None:
        with cache_store.storage_errors(f'Writing {self.path}'):
            self._end_sync()
            os.ftruncate(self._descriptor, size_bytes)
        self._file.complete(size_bytes)

    def release_readers(self) -> None:
        """Let the readers go on after the close: the image was verified and published.

        The file of a converted image is removed for that: a later attempt could cut it.
        """
        files.remove_if_there(self.path)
        if not os.path.lexists(self.path):
            self._file.make_final()

    def keep(self) -> None:
        with cache_store.storage_errors(f'Syncing {self.path}'):
            self._end_sync()
            if self._file.position > self._journal.synced_bytes:
                self._begin_sync()
                self._end_sync()

    def close(self) -> None:
        """Close the file, and end its readers; :class:`Partials` closes its journal."""
        if self._sync is not None:
            futures.wait([self._sync])  # it uses the descriptor
        self._file.end()
        self._write_through_pages()
        _close(self._descriptor)

    def _open_at(self, position: int) -> None:
        """Open the file, cut to a position; create a new one for 0."""
        self._descriptor = _open_cut(self.path, position)
        self._direct = None if self._keeps_pages else _open_direct(self.path)
        window_bytes = _MAX_FILE_BYTES if self._keeps_pages else self._rules.window_bytes
        self._file = readers.GrowingFile(self.path, position, window_bytes)
        self._kept_bytes = self._written_back_bytes = position
        self._set_due()

    def _replace(self) -> None:
        old = self._descriptor
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._write_through_pages()
        self._open_at(0)
        _close(old)
        # Else after a crash the journal could count bytes of the old file.
        files.synchronise(os.path.dirname(self.path))

    def _set_due(self) -> None:
        self._due_bytes = self._file.position + self._rules.sync_bytes
        self._due_at = self._rules.clock() + self._rules.sync_seconds

    def _write_all(
        self, buffer: bytearray | mmap.mmap, start: int, end: int, offset_bytes: int
    ) -> None:
        """Write a range of a buffer; the buffer's first byte belongs at the offset."""
        with memoryview(buffer) as view:
            while start < end:  # A write may be short.
                with view[start:end] as rest:
                    start += self._write_some(rest, start, offset_bytes + start)

    def _write_some(self, data: memoryview, start: int, position: int) -> int:
        """Write whole blocks past the page cache if they are aligned in buffer and file.

        That takes half the CPU time, and no page cache from the guests. Readers, however, read
        through the page cache, and could find stale pages there.
        """
        whole = len(data) - len(data) % BLOCK_BYTES
        is_aligned = whole and not (start | position) % BLOCK_BYTES
        if self._direct is not None and is_aligned and not self._file.has_readers:
            try:
                with data[:whole] as pages:
                    return os.pwrite(self._direct, pages, position)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                # The disk has larger blocks, or the buffer is not aligned to them.
                self._write_through_pages()
        with data[:_PAGES_BYTES] as some:
            return os.pwrite(self._descriptor, some, position)

    def _write_through_pages(self) -> None:
        if self._direct is not None:
            _close(self._direct)
            self._direct = None

    def _write_back(self) -> None:
        """Start writeback of the new bytes, and drop the pages that were written before."""
        position = self._file.position
        if position - self._written_back_bytes >= self._rules.write_back_bytes:
            self._drop_pages(self._written_back_bytes - self._rules.write_back_bytes, position)
            self._written_back_bytes = position

    def _begin_sync(self) -> None:
        """Start to sync and record the received bytes while more are written.

        Each sync has its own thread, which inherits the writer's current I/O class. The next
        one waits for it, so that there are few dirty pages.
        """
        self._end_sync()
        position = self._file.position
        os.ftruncate(self._descriptor, position)  # Include a hole at the end.
        self._set_due()
        done: futures.Future[None] = futures.Future()
        threading.Thread(
            target=self._bring_to_disk, args=(position, done), name='image-sync'
        ).start()
        self._sync = done

    def _end_sync(self) -> None:
        """Wait for the current sync; a failed one raises on every call."""
        if self._sync is not None:
            self._sync.result()
            self._sync = None

    def _bring_to_disk(self, position: int, done: 'futures.Future[None]') -> None:
        try:
            os.fdatasync(self._descriptor)
            noted_bytes = self._journal.synced_bytes
            self._journal.note(position)
            # Also what stayed there for readers.
            self._drop_pages(noted_bytes - self._rules.window_bytes, position)
            done.set_result(None)
        except BaseException as exc:  # noqa: BLE001 - raised again by _end_sync
            done.set_exception(exc)

    def _drop_pages(self, start: int, end: int) -> None:
        """Free page cache for the guests; the kernel starts to write dirty pages.

        The pages that readers are about to read stay.
        """
        start, end = max(0, start), min(end, self._file.cold_bytes)
        if end > start and not self._keeps_pages:
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def data_ranges(
    buffer: bytearray | mmap.mmap, length: int, offset_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a buffer that hold data; skip blocks of zeros, which become holes.

    Blocks are counted in the file; the buffer's first byte belongs at the offset.
    """
    first = -offset_bytes % BLOCK_BYTES
    last = length - BLOCK_BYTES
    blocks = range(first, last + 1, BLOCK_BYTES)
    start = 0
    for hole in [block for block in blocks if _is_zero(buffer, block)]:
        if start < hole:
            yield start, hole
        start = hole + BLOCK_BYTES
    if start < length:
        yield start, length


def _is_zero(buffer: bytearray | mmap.mmap, block: int) -> bool:
    # The first byte rules out most blocks of data. mmap.find() cannot be used here: it reads
    # one byte past the end, which may be unmapped.
    if buffer[block]:
        return False
    with memoryview(buffer) as view, view[block : block + BLOCK_BYTES] as bytes_of_block:
        return _ZEROS.startswith(bytes_of_block)


def remove_stem(path: str, kept_suffixes: Sequence[str] = ()) -> int:
    """Remove the files of a stem, the journal last, and return their number."""
    suffixes = [each for each in layout.PARTIAL_SUFFIXES if each not in kept_suffixes]
    found = [layout.sibling(path, each) for each in suffixes]
    return sum(map(files.remove_if_there, found))


def _discard(journal: journals.Journal) -> None:
    """Remove the files of an owned journal, then the journal, and release it."""
    with contextlib.closing(journal):
        remove_stem(journal.path)


def _fits(journal: journals.Journal, identity: journals.Identity) -> bool:
    """Return whether a download can resume from the partial file of a journal."""
    if not journal.is_resumable or journal.identity != identity:
        return False
    try:
        status = os.lstat(layout.sibling(journal.path, 'part'))
    except OSError:
        return False
    # A file with a second hard link would change under that name, too.
    is_ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return is_ours and status.st_size >= journal.synced_bytes


def _leave(journal: journals.Journal) -> None:
    files.remove_if_there(layout.sibling(journal.path, 'converted'))
    if journal.is_resumable:
        journal.close()
    else:
        _discard(journal)


def _open_cut(path: str, size_bytes: int) -> int:
    """Open a partial file and cut it to a size; create a new one for 0."""
    if not size_bytes:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    descriptor = files.open_regular(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, size_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _close(descriptor: int) -> None:
    """Close a file; ignore write errors, which NFS may report only now.

    The bytes that count were synced before.
    """
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _open_direct(path: str) -> int | None:
    """Open a file to write past the page cache; None: its file system does not support it."""
    try:
        return files.open_regular(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return None
