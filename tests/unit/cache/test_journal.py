# SPDX-License-Identifier: Apache-2.0
"""A journal is trusted up to its first damage, and has one owner."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

from nova_precache.cache import journal

IDENTITY = journal.Identity('image', 4096, 'sha512', 'ab' * 64, 'cd' * 16)
FIRST_LINE = json.dumps({'version': 1, **dataclasses.asdict(IDENTITY)})


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / 'a.journal')


def create(path: str, *synced_bytes: int, identity: journal.Identity = IDENTITY) -> None:
    """Write a journal as a process that then ended."""
    made = journal.Journal.create(path, identity)
    assert made is not None
    with contextlib.closing(made):
        for each in synced_bytes:
            made.note(each)


def own(path: str) -> journal.Journal:
    owned = journal.Journal.own(path)
    assert owned is not None
    return owned


def read(path: str) -> tuple[journal.Identity | None, int]:
    with contextlib.closing(own(path)) as found:
        return found.identity, found.synced_bytes


def test_last_note_counts(path: str) -> None:
    create(path, 10, 30, 20)
    assert read(path) == (IDENTITY, 20)


def test_reopened_journal_continues_at_end(path: str) -> None:
    create(path, 10)
    with contextlib.closing(own(path)) as found:
        found.note(20)
    assert read(path) == (IDENTITY, 20)
    assert len(pathlib.Path(path).read_text().splitlines()) == 3


@pytest.mark.parametrize('torn_bytes', range(1, len('{"synced_bytes": 20}\n')))
def test_torn_last_line_overwritten(path: str, torn_bytes: int) -> None:
    create(path, 10, 20)
    os.truncate(path, os.path.getsize(path) - torn_bytes)
    assert read(path) == (IDENTITY, 10)
    with contextlib.closing(own(path)) as found:
        found.note(9)
    assert read(path) == (IDENTITY, 9)


@pytest.mark.parametrize(
    'text',
    [
        '',
        FIRST_LINE,
        FIRST_LINE[:20] + '\n',
        '\n',
        '[1]\n',
        '1\n',
        '"text"\n',
        'null\n',
        '[' * 100_000 + '\n',
        '\0' * 100 + '\n',
        FIRST_LINE.replace('"version": 1', '"version": 2') + '\n{"synced_bytes": 1}\n',
        FIRST_LINE.replace('"version": 1, ', '') + '\n{"synced_bytes": 1}\n',
        FIRST_LINE.replace('"size"', '"length"') + '\n{"synced_bytes": 1}\n',
        FIRST_LINE + '\n{"synced_bytes": -1}\n',
        FIRST_LINE + '\n{"synced_bytes": "1"}\n',
        FIRST_LINE + '\n{"synced_bytes": true}\n',
        FIRST_LINE + '\n{"synced_bytes": 1.5}\n',
        FIRST_LINE + '\n{"synced": 1}\n',
        FIRST_LINE + '\n[]\n',
        FIRST_LINE + '\n{"synced_b\n{"synced_bytes": 1}\n',
        '{"synced_bytes": 1}\n{"synced_bytes": 1}\n',
    ],
)
def test_unknown_journal_format_ignored(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text)
    assert read(path) == (None, 0)
    with contextlib.closing(own(path)) as found:
        assert not found.is_resumable


@pytest.mark.parametrize(
    ('fields', 'resumable'),
    [
        ({}, True),
        ({'checksum': None}, True),
        ({'hash_algo': None, 'hash_value': None}, True),
        ({'hash_value': None, 'checksum': None}, False),
        ({'hash_algo': None, 'hash_value': None, 'checksum': None}, False),
    ],
)
def test_unverifiable_partial_not_resumed(
    path: str, fields: dict[str, None], resumable: bool
) -> None:
    create(path, 10, identity=dataclasses.replace(IDENTITY, **fields))  # type: ignore[arg-type]
    with contextlib.closing(own(path)) as found:
        assert found.is_resumable is resumable


def test_journal_without_bytes_not_resumed(path: str) -> None:
    create(path, 10, 0)
    with contextlib.closing(own(path)) as found:
        assert not found.is_resumable


def test_journal_has_one_owner_per_process(path: str) -> None:
    create(path)
    with contextlib.closing(own(path)):
        assert journal.Journal.own(path) is None
    own(path).close()


_OWNER = """
import sys
from nova_precache.cache import journal
owned = journal.Journal.own(sys.argv[1])
print('owned' if owned else 'refused', flush=True)
sys.stdin.read()
"""


def test_dead_process_releases_its_journal(path: str) -> None:
    create(path)
    command = [sys.executable, '-W', 'ignore', '-c', _OWNER, path]
    with contextlib.closing(own(path)):
        refused = subprocess.run(command, input='', capture_output=True, text=True, check=True)
        assert refused.stdout == 'refused\n'
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == 'owned\n'
        assert journal.Journal.own(path) is None
        owner.kill()
    own(path).close()


def test_missing_journal_has_no_owner(path: str) -> None:
    assert journal.Journal.own(path) is None


def test_journal_removed_before_lock_unowned(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep may own a new journal before its creator does."""
    lock = fcntl.flock

    def sweep_first(descriptor: int, how: int) -> None:
        os.unlink(path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, 'flock', sweep_first)
    assert journal.Journal.create(path, IDENTITY) is None


def test_journal_replaced_before_lock_unowned(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create(path)
    lock = fcntl.flock

    def replace_first(descriptor: int, how: int) -> None:
        os.unlink(path)
        pathlib.Path(path).touch()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, 'flock', replace_first)
    assert journal.Journal.own(path) is None


def test_torn_write_on_full_disk_raises(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create(path, 10)
    write = os.pwrite
    with contextlib.closing(own(path)) as found:
        monkeypatch.setattr(os, 'pwrite', lambda fd, data, at: write(fd, data[:5], at))
        with pytest.raises(OSError, match='No space left') as caught:
            found.note(20)
        monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert read(path) == (IDENTITY, 10)
