# SPDX-License-Identifier: Apache-2.0
"""The cheapest possible download writes what it receives, and ends when it cannot."""

import errno
import io
import os
import pathlib

import pytest

from benchmarks import lower_bound
from nova_precache.download import pipeline

# More than all buffers hold, with the last one partly full.
DATA = os.urandom(4096) * (pipeline.BUFFERS * pipeline.BUFFER_BYTES // 4096 + 1)


@pytest.fixture(autouse=True)
def any_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'O_DIRECT', 0)


def test_received_bytes_are_written(tmp_path: pathlib.Path) -> None:
    lower_bound.download(io.BytesIO(DATA), str(tmp_path / 'file'))
    assert (tmp_path / 'file').read_bytes() == DATA


def test_failed_write_is_reported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lower_bound, '_STUCK_SECONDS', 0.1)
    monkeypatch.setattr(os, 'write', full)
    with pytest.raises(OSError, match='No space left'):
        lower_bound.download(io.BytesIO(DATA), str(tmp_path / 'file'))
