# SPDX-License-Identifier: Apache-2.0
"""Errors of the disk: the reason names the path, and says whether space is missing."""

import errno
import os

import pytest

from nova_precache import exception


@pytest.mark.parametrize(
    ('doing', 'path', 'reason'),
    [
        ('Writing /cache/a', None, 'Writing /cache/a: Permission denied'),
        ('Writing /cache/a', '/cache/a', 'Writing /cache/a: Permission denied'),
        ('Listing /cache', '/cache/a', 'Listing /cache: Permission denied: /cache/a'),
        ('Opening it', '/cache/a', 'Opening it: Permission denied: /cache/a'),
    ],
)
def test_storage_failure_names_path(doing: str, path: str | None, reason: str) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    assert str(exception.storage_failure(doing, error)) == reason


@pytest.mark.parametrize(
    ('number', 'kind'),
    [
        (errno.ENOSPC, exception.NotEnoughSpace),
        (errno.EDQUOT, exception.NotEnoughSpace),
        (errno.EFBIG, exception.NotEnoughSpace),
        (errno.EROFS, exception.StorageError),
    ],
)
def test_full_disk_is_told_apart(number: int, kind: type[Exception]) -> None:
    found = exception.storage_failure('Writing /a', OSError(number, os.strerror(number)))

    assert type(found) is kind
