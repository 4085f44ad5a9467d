# SPDX-License-Identifier: Apache-2.0
"""What is known about a partial file, in a small file beside it; and whose it is.

JSON lines: the first tells of which image the bytes are, each further one how many of
them, from the first on, have come to the disk. What follows the last line end was being
written when the process died, and counts for nothing.

Whoever uses the files of a stem has its journal locked. The lock of the image alone would
not do: Nova's cache manager may unlink that, and then two hold it. The partial file itself
is not locked since over NFS that would keep qemu-img from opening it.
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

# A journal takes a line for every tens of MiB; more than this was not written by us.
_MAX_BYTES = 16 * 1024**2
# What comes of reading a file that is not a journal of this release.
_NOT_UNDERSTOOD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What an image must have in common with a partial file that is to be gone on with."""

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
        """Whether bytes that were mixed up on the way would be found out."""
        return bool((self.hash_algo and self.hash_value) or self.checksum)


class Journal:
    """An open journal, and the ownership of its stem; each use raises OSError.

    :ivar identity: None where the journal cannot be understood
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
        """Begin a journal; None: somebody cleared it away before it was locked."""
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
        """Take a journal; None: it is in use, another user's, or there is none."""
        try:
            descriptor = files.open_regular(path, os.O_RDWR)
        except (FileNotFoundError, files.NotRegular):
            return None
        except PermissionError as exc:
            LOG.warning('%s is left alone: %s', path, exc.strerror)
            return None
        try:
            if not _lock(descriptor, path):
                os.close(descriptor)
                return None
            # Under another name it would change there, too.
            is_ours = os.fstat(descriptor).st_nlink == 1
            return cls(path, descriptor, os.pread(descriptor, _MAX_BYTES, 0) if is_ours else b'')
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def is_resumable(self) -> bool:
        """Whether it tells of bytes that another download of the same image can go on from."""
        return self.identity is not None and self.identity.has_hash and self.synced_bytes > 0

    @property
    def mtime(self) -> float:
        """When something was noted last, in seconds since the epoch."""
        return os.fstat(self._descriptor).st_mtime

    def note(self, synced_bytes: int) -> None:
        """Note how many bytes are on the disk; the note is there too afterwards."""
        self._append({'synced_bytes': synced_bytes})
        self.synced_bytes = synced_bytes

    def close(self) -> None:
        """Give the stem up."""
        os.close(self._descriptor)

    def _begin(self, identity: Identity) -> None:
        self._append({'version': FORMAT_VERSION, **dataclasses.asdict(identity)})
        self.identity = identity

    def _append(self, document: model.Json) -> None:
        """Write a line after the last whole one."""
        line = json.dumps(document).encode() + b'\n'
        if os.pwrite(self._descriptor, line, self._end_bytes) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._end_bytes += len(line)
        os.ftruncate(self._descriptor, self._end_bytes)
        os.fdatasync(self._descriptor)


def _lock(descriptor: int, path: str) -> bool:
    """Lock an open file, unless another has it, or took it away in between."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _identity(line: bytes) -> Identity:
    document = json.loads(line)
    if document.pop('version') != FORMAT_VERSION:
        raise ValueError('a journal of another release')
    return Identity(**document)


def _synced_bytes(lines: list[bytes]) -> int:
    """Read the last note; every one must be understood."""
    notes = [json.loads(line)['synced_bytes'] for line in lines]
    if not all(type(note) is int and note >= 0 for note in notes):
        raise ValueError('no number of bytes')
    return notes[-1] if notes else 0
