# SPDX-License-Identifier: Apache-2.0
"""Open the files of this service safely: another process may have put something else there.

A FIFO would block the opener for ever, a symbolic link lead it to a file of another user, a
device have side effects. So a file is opened without blocking and without following a link in
the last part of its path, and used only if it is a regular file. Reads are limited in size.

Files are written completely under a unique temporary name, and then renamed or linked.
"""

import contextlib
import errno
import logging
import os
import stat
import uuid
from collections.abc import Iterator

import fasteners

LOG = logging.getLogger(__name__)

Path = str | os.PathLike[str]

# A text of a UUID has 36 to 45 characters, perhaps with a line end.
_UUID_MAX_BYTES = 64
# How often another process may remove the file between two steps.
_RACES = 5
_KINDS = {
    stat.S_IFIFO: 'a FIFO',
    stat.S_IFLNK: 'a symbolic link',
    stat.S_IFDIR: 'a directory',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}


class NotRegular(OSError):
    """The path is not a regular file."""

    def __init__(self, path: Path, mode: int) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), 'of another kind')
        super().__init__(errno.EINVAL, f'it is {kind}, not a regular file', os.fspath(path))


def open_regular(path: Path, flags: int, mode: int = 0o666, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor.

    :param flags: as for ``os.open``
    :param follow: the path may be a symbolic link
    :raises NotRegular: the path is not a regular file
    :raises OSError: it cannot be opened
    """
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, mode)
    except OSError:
        _check_kind(path, follow=follow)  # clearer than "no such device" for a socket
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(path, status.st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def regular(path: str, flags: int) -> int:
    """Open a regular file, as an ``opener`` for ``open``; raises as :func:`open_regular`."""
    return open_regular(path, flags)


def regular_or_link(path: str, flags: int) -> int:
    """Open a regular file, also through a symbolic link, as an ``opener`` for ``open``."""
    return open_regular(path, flags, follow=True)


def is_regular(path: Path) -> bool:
    """Return whether the path is a regular file, not a symbolic link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def read(path: Path, max_bytes: int) -> bytes:
    """Read the start of a regular file; raises as :func:`open_regular`."""
    with open(path, 'rb', opener=regular) as file:
        return file.read(max_bytes)


def holds(path: Path, text: str) -> bool:
    """Return whether a regular file holds this text and nothing else."""
    wanted = text.encode()
    try:
        return read(path, len(wanted) + 1) == wanted
    except OSError:
        return False


def kept_uuid(path: Path) -> str:
    """Return the UUID stored in a file; if it is missing or holds none, store a new one.

    Concurrent callers, also on other machines, get the same UUID.

    :raises NotRegular: the path is not a regular file
    :raises OSError: the file can be neither read nor created
    """
    for _ in range(_RACES):
        try:
            with open(path, 'rb', opener=regular) as file:
                status, data = os.fstat(file.fileno()), file.read(_UUID_MAX_BYTES)
        except FileNotFoundError:
            create_whole(path, str(uuid.uuid4()))
            continue
        with contextlib.suppress(ValueError):
            return _parse_uuid(data)
        _replace_damaged(path, status)
    raise OSError(errno.EAGAIN, 'other processes keep replacing it', os.fspath(path))


def read_uuid(path: Path) -> str:
    """Return the UUID stored in a file; never create one.

    :raises NotRegular: the path is not a regular file
    :raises OSError: the file cannot be read, or holds no UUID
    """
    try:
        return _parse_uuid(read(path, _UUID_MAX_BYTES))
    except ValueError as exc:
        raise OSError(errno.EINVAL, 'it contains no UUID', os.fspath(path)) from exc


def create_whole(path: Path, text: str) -> None:
    """Create a file with its content atomically; keep an existing one.

    :raises OSError: the file system refused
    """
    with _written(path, text) as temporary, contextlib.suppress(FileExistsError):
        os.link(temporary, path)


def replace_whole(path: Path, text: str) -> None:
    """Replace a path, except a directory, by a file with this content atomically.

    :raises OSError: the file system refused
    """
    with _written(path, text) as temporary:
        os.rename(temporary, path)


def open_lock(lock: fasteners.InterProcessLock) -> None:
    """Open the file of a lock safely, unlike the lock itself.

    Create its directory, but not the parent, where a file system may be unmounted.

    :raises NotRegular: the path is not a regular file
    :raises OSError: it cannot be opened
    """
    path = os.fsdecode(lock.path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path))
    lock.lockfile = open(path, 'a', opener=regular)  # noqa: SIM115 - the lock closes it


def synchronise(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_there(path: str) -> bool:
    """Remove a temporary file; log one that cannot be removed, and leave it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as exc:
        LOG.warning('%s cannot be removed: %s', path, exc)
        return False
    return True


def _check_kind(path: Path, *, follow: bool) -> None:
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except OSError:
        return  # The error of the open suffices.
    if not stat.S_ISREG(mode):
        raise NotRegular(path, mode)


def _parse_uuid(data: bytes) -> str:
    return str(uuid.UUID(data.decode('ascii').strip()))


def _replace_damaged(path: Path, status: os.stat_result) -> None:
    """Replace a file that holds no UUID.

    All processes that saw this file, however late, store the same UUID: the first one creates
    an heir file with it, named after the inode and mtime. The heir stays for late processes.
    """
    heir = f'{os.fspath(path)}.{status.st_ino:x}-{status.st_mtime_ns:x}'
    create_whole(heir, str(uuid.uuid4()))
    made = read_uuid(heir)
    replace_whole(path, made)
    LOG.warning('%s contained no UUID: replaced it with %s', path, made)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[str]:
    """Yield a synced temporary file with the text, removed on leaving unless renamed."""
    temporary = f'{os.fspath(path)}.{uuid.uuid4().hex}'
    try:
        with open(temporary, 'x', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        synchronise(os.path.dirname(path) or os.curdir)
    finally:
        remove_if_there(temporary)
