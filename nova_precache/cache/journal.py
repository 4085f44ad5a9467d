# SPDX-License-Identifier: Apache-2.0
"""Record the progress and the ownership of a partial file in a journal beside it.

The journal consists of JSON lines: the first identifies the image, each later one records
how many bytes, counted from the first, are on the disk. Bytes after the last line end were
being written when the process died, and are ignored.

A process that uses the files of a stem holds a lock on their journal. The lock of the image
does not suffice: Nova's cache manager may unlink its file, and then two processes can hold
it. The partial file itself is not locked, since over NFS that would stop qemu-img from
opening it.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
from typing import Self

from nova_precache import files, model

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1

# A journal has one line per tens of MiB; a larger file was not written by us.
_MAX_BYTES = 16 * 1024**2
# Errors of parsing a file that is not a journal of this release.
_NOT_UNDERSTOOD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The properties of an image that a partial file must match to be resumed."""

    image_id: str
    size: int | None
    hash_algo: str | None
    hash_value: str | None
    checksum: str | None

    @classmethod
    def of(cls, image: model.Image) -> Self:
        return cls(image.id, image.size, image.hash_algo, image.hash_value, image.checksum)

    @property
    def has_hash(self) -> bool:
        """Whether a hash is known, so that mixed-up bytes are detected."""
        return bool((self.hash_algo and self.hash_value) or self.checksum)


class Journal:
    """An open journal, and the ownership of its stem; every method may raise OSError.

    :ivar identity: None if the journal cannot be parsed
    :ivar synced_bytes: how many bytes of the image are on the disk
    """

    def __init__(self, path: str, descriptor: int, text: bytes) -> None:
        self.path = path
        self.identity: Identity | None = None
        self.synced_bytes = 0
        self._descriptor = descriptor
        self._end_bytes = text.rfind(b'\n') + 1
        lines = text[: self._end_bytes].splitlines()
        with contextlib.suppress(*_NOT_UNDERSTOOD):
            self.identity, self.synced_bytes = _identity(lines[0]), _synced_bytes(lines[1:])

    @classmethod
    def create(cls, path: str, identity: Identity) -> Self | None:
        """Create and lock a journal; None: another process removed it before it was locked."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        created = cls.own(path)
        if created is not None:
            try:
                created._begin(identity)
            except BaseException:
                created.close()
                raise
        return created

    @classmethod
    def own(cls, path: str) -> Self | None:
        """Open and lock a journal; None: it is locked, belongs to another user, or is absent."""
        try:
            descriptor = files.open_regular(path, os.O_RDWR)
        except (FileNotFoundError, files.NotRegular):
            return None
        except PermissionError as exc:
            LOG.warning('Skipping %s: %s', path, exc.strerror)
            return None
        try:
            if not _lock(descriptor, path):
                os.close(descriptor)
                return None
            # A file with a second hard link would change under that name, too.
            is_ours = os.fstat(descriptor).st_nlink == 1
            return cls(path, descriptor, os.pread(descriptor, _MAX_BYTES, 0) if is_ours else b'')
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def is_resumable(self) -> bool:
        """Whether another download of the same image can resume from the recorded bytes."""
        return self.identity is not None and self.identity.has_hash and self.synced_bytes > 0

    @property
    def mtime(self) -> float:
        """Time of the last record, in seconds since the epoch."""
        return os.fstat(self._descriptor).st_mtime

    def note(self, synced_bytes: int) -> None:
        """Record durably how many bytes are on the disk."""
        self._append({'synced_bytes': synced_bytes})
        self.synced_bytes = synced_bytes

    def close(self) -> None:
        """Release the stem."""
        os.close(self._descriptor)

    def _begin(self, identity: Identity) -> None:
        self._append({'version': FORMAT_VERSION, **dataclasses.asdict(identity)})
        self.identity = identity

    def _append(self, document: model.Json) -> None:
        """Write and sync a line after the last complete one."""
        line = json.dumps(document).encode() + b'\n'
        if os.pwrite(self._descriptor, line, self._end_bytes) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._end_bytes += len(line)
        os.ftruncate(self._descriptor, self._end_bytes)
        os.fdatasync(self._descriptor)


def _lock(descriptor: int, path: str) -> bool:
    """Lock an open file, unless another process holds it or has replaced or removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _identity(line: bytes) -> Identity:
    document = json.loads(line)
    if document.pop('version') != FORMAT_VERSION:
        raise ValueError('unknown journal version')
    return Identity(**document)


def _synced_bytes(lines: list[bytes]) -> int:
    """Return the last record; every record must be valid."""
    notes = [json.loads(line)['synced_bytes'] for line in lines]
    if not all(type(note) is int and note >= 0 for note in notes):
        raise ValueError('synced_bytes is not a number of bytes')
    return notes[-1] if notes else 0
