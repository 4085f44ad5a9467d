# SPDX-License-Identifier: Apache-2.0
"""Small files: only regular ones are opened, nothing blocks, and writes are complete."""

import logging
import os
import pathlib
import uuid
from concurrent import futures

import pytest
from oslo_concurrency import lockutils

from nova_precache import files
from tests import odd_files

ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'


@pytest.mark.parametrize('kind', odd_files.NOT_REGULAR)
@pytest.mark.parametrize('flags', [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])
def test_irregular_file_refused_and_named(tmp_path: pathlib.Path, kind: str, flags: int) -> None:
    path = tmp_path / 'file'
    odd_files.NOT_REGULAR[kind](path)
    with pytest.raises(files.NotRegular) as refusal:
        files.open_regular(path, flags)
    assert refusal.value.filename == str(path)
    assert refusal.value.strerror == f'it is {kind}, not a regular file'


@pytest.mark.parametrize('put', [odd_files.DANGLING, odd_files.DEVICE, odd_files.LOOP])
@pytest.mark.parametrize('flags', [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC])
def test_links_are_not_followed(tmp_path: pathlib.Path, put: odd_files.Put, flags: int) -> None:
    path = tmp_path / 'file'
    put(path)
    with pytest.raises(files.NotRegular, match='symbolic link'):
        files.open_regular(path, flags)


def test_intended_link_followed_to_regular_file(
    tmp_path: pathlib.Path,
) -> None:
    link, target = tmp_path / 'link', tmp_path / 'target'
    link.symlink_to(target)
    target.write_text('here')
    with open(link, opener=files.regular_or_link) as file:
        assert file.read() == 'here'
    for put in (os.mkfifo, pathlib.Path.mkdir, odd_files.DEVICE):
        target.rmdir() if target.is_dir() else target.unlink()
        put(target)
        with pytest.raises(files.NotRegular):
            files.open_regular(link, os.O_RDONLY, follow=True)


def test_absent_and_unopenable_files_distinguished(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / 'nothing', 1)
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError):
        files.read(tmp_path / 'file' / 'below', 1)


def test_large_file_read_partially(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    odd_files.DAMAGED['10 GiB of holes'](path)
    assert files.read(path, 5) == bytes(5)


@pytest.mark.parametrize(
    'text', [ID, f'{ID}\n', f'  {ID}\r\n', ID.upper(), f'{{{ID}}}', ID.replace('-', '')]
)
def test_uuid_spellings_are_normalized(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / 'id').write_text(text)
    assert files.kept_uuid(tmp_path / 'id') == ID
    assert (tmp_path / 'id').read_bytes() == text.encode()


@pytest.mark.parametrize('damage', odd_files.DAMAGED)
def test_invalid_uuid_file_replaced_with_warning(
    tmp_path: pathlib.Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'id'
    odd_files.DAMAGED[damage](path)
    with caplog.at_level(logging.WARNING):
        made = files.kept_uuid(path)
    assert str(uuid.UUID(made)) == made
    assert path.read_text() == made == files.kept_uuid(path)
    (line,) = caplog.messages
    assert line == f'{path} contained no UUID: replaced it with {made}'
    other = tmp_path / 'id-of-somebody-else'
    assert not other.exists() or other.read_text() == 'precious'


@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_object_at_uuid_file_stays(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / 'id'
    odd_files.IRREGULAR[kind](path)
    before = os.lstat(path)
    with pytest.raises(files.NotRegular):
        files.kept_uuid(path)
    assert os.path.samestat(os.lstat(path), before)


@pytest.mark.parametrize('damage', ['', None])
def test_concurrent_uuid_creators_get_same(tmp_path: pathlib.Path, damage: str | None) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        if damage is not None:
            path.write_text(damage)
        with futures.ThreadPoolExecutor(8) as pool:
            made = set(pool.map(files.kept_uuid, [path] * 8))
        assert made == {path.read_text()}


def test_late_repair_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Another host over NFS, which saw it before it was replaced and was slow."""
    path = tmp_path / 'id'
    path.touch()
    seen = os.stat(path)
    made = files.kept_uuid(path)
    files._replace_damaged(path, seen)
    assert path.read_text() == made == files.kept_uuid(path)


def test_identical_damaged_files_get_different_uuids(tmp_path: pathlib.Path) -> None:
    """For example, those of hosts that were made from one disk image."""
    made = set()
    for name in 'ab':
        (tmp_path / name).mkdir()
        path = tmp_path / name / 'id'
        path.touch()
        os.utime(path, (1, 1))
        made.add(files.kept_uuid(path))
    assert len(made) == 2


def test_created_file_keeps_existing_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    files.create_whole(path, 'first')
    files.create_whole(path, 'second')
    assert path.read_text() == 'first'
    files.replace_whole(path, 'third')
    assert path.read_text() == 'third'
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_replacement_not_written_in_place(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / 'file'
    odd_files.IRREGULAR[kind](path)
    if path.is_dir():
        with pytest.raises(IsADirectoryError):
            files.replace_whole(path, 'new')
        return
    files.replace_whole(path, 'new')
    assert files.read(path, 9) == b'new'
    other = tmp_path / 'file-of-somebody-else'
    assert not other.exists() or other.read_text() == 'precious'


def test_file_holds_exact_text(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    assert not files.holds(path, 'text')
    path.write_text('text')
    assert files.holds(path, 'text')
    assert not files.holds(path, 'tex')
    assert not files.holds(path, 'text!')
    path.unlink()
    os.mkfifo(path)
    assert not files.holds(path, '')


@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_lock_needs_regular_file(tmp_path: pathlib.Path, kind: str) -> None:
    lock = lockutils.external_lock('name', 'nova-', str(tmp_path / 'made'))
    files.open_lock(lock)
    with lock:
        pass
    path = tmp_path / 'made' / 'nova-name'
    path.unlink()
    odd_files.IRREGULAR[kind](path)
    with pytest.raises(files.NotRegular) as refusal:
        files.open_lock(lock)
    assert refusal.value.filename == str(path)
