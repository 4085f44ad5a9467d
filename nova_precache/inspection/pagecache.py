# SPDX-License-Identifier: Apache-2.0
"""Examine the page cache of a file, and test for direct I/O."""

import contextlib
import errno
import mmap
import os
import secrets

from nova_precache import files

# The smallest piece that a disk may end with: an image's size is a multiple of it.
_SECTOR_BYTES = 512
_SAMPLES = 64


def takes_direct_writes(path: str) -> bool:
    """Return whether a new file can be written past the page cache on its file system.

    The file exists afterwards, and is empty.

    :raises OSError: the file system takes no write at all
    """
    os.close(files.open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
    try:
        direct = files.open_regular(path, os.O_WRONLY | os.O_DIRECT)
        with open(direct, 'wb', buffering=0) as file:
            try:
                # A view that an error still holds would prevent the page from being closed.
                with (
                    contextlib.closing(mmap.mmap(-1, mmap.PAGESIZE)) as page,
                    memoryview(page) as whole,
                    whole[:_SECTOR_BYTES] as sector,
                ):
                    return file.write(sector) == _SECTOR_BYTES
            finally:
                file.truncate(0)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise


def is_mostly_cached(path: str) -> bool:
    """Return whether half of a file is in the page cache, by a sample of its pages.

    The sampled pages that were not cached are cached afterwards, and no others.

    :raises OSError: it cannot be read
    """
    with open(path, 'rb', buffering=0, opener=files.regular_or_link) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # without read-ahead
        step = max(1, os.fstat(file.fileno()).st_size // _SAMPLES)
        # A further call must not find the pages that this one loads.
        places = (number * step + secrets.randbelow(step) for number in range(_SAMPLES))
        found = [_is_cached(file.fileno(), place) for place in places]
    return sum(found) * 2 >= len(found)


def _is_cached(file: int, offset: int) -> bool:
    try:
        os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:  # as network file systems answer
            raise
    return True
