# SPDX-License-Identifier: Apache-2.0
"""The base files of disks, read from real overlays and from broken ones."""

import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.cache import layout, notes
from nova_precache.virt.libvirt import usage
from tests import disk_images

NAME = layout.base_name('image')


@pytest.fixture
def paths(instances_path: pathlib.Path, qemu_img: str) -> layout.CacheLayout:
    found = layout.CacheLayout(str(instances_path))
    os.makedirs(found.base_directory)
    os.makedirs(found.lock_directory)
    return found


@pytest.fixture
def base(paths: layout.CacheLayout) -> pathlib.Path:
    return disk_images.raw(pathlib.Path(paths.path_of(NAME)))


@pytest.fixture
def disk(instances_path: pathlib.Path, base: pathlib.Path) -> pathlib.Path:
    """An instance's root disk, an overlay over the base file."""
    directory = instances_path / 'instance'
    directory.mkdir()
    return disk_images.qcow2_with_backing_file(directory / 'disk', base)


def backing_names(paths: layout.CacheLayout) -> frozenset[str]:
    return usage.DiskUsage(paths).backing_names()


def test_without_disks_nothing_used(paths: layout.CacheLayout, base: pathlib.Path) -> None:
    assert backing_names(paths) == frozenset()


def test_overlay_uses_base_file_until_removed(
    paths: layout.CacheLayout, base: pathlib.Path, disk: pathlib.Path
) -> None:
    assert backing_names(paths) == {NAME}
    assert usage.DiskUsage(paths).is_backing(str(base))
    assert not usage.DiskUsage(paths).is_backing(paths.base_path('other'))
    shutil.rmtree(disk.parent)
    assert backing_names(paths) == frozenset()


@pytest.mark.parametrize('directory', ['instance_resize', 'instance_del', 'snapshots'])
@pytest.mark.parametrize('file', ['disk', 'disk.rescue', 'disk.swap', 'delta'])
def test_files_in_all_directories_count(
    paths: layout.CacheLayout, disk: pathlib.Path, directory: str, file: str
) -> None:
    (disk.parent.with_name(directory)).mkdir()
    disk.rename(disk.parent.with_name(directory) / file)
    assert backing_names(paths) == {NAME}


def test_every_file_of_chain_used(paths: layout.CacheLayout, disk: pathlib.Path) -> None:
    snapshot = disk.with_name('disk.snapshot')
    disk_images.qemu_img(
        'create', '-f', 'qcow2', '-b', str(disk), '-F', 'qcow2', '-u', str(snapshot), '1M'
    )
    assert backing_names(paths) == {NAME, 'disk'}


def test_overlay_of_resized_uses_only_that(
    paths: layout.CacheLayout, base: pathlib.Path, instances_path: pathlib.Path
) -> None:
    resized = disk_images.raw(base.with_name(f'{NAME}_20'))
    (instances_path / 'instance').mkdir()
    disk_images.qcow2_with_backing_file(instances_path / 'instance' / 'disk', resized)
    assert backing_names(paths) == {f'{NAME}_20'}


@pytest.mark.parametrize(
    'backing_file',
    [
        f'../_base/{NAME}',
        f'file:/elsewhere/_base/{NAME}',
        f'file:{NAME}',
        f'/mounted/elsewhere/_base/{NAME}',
        'json:' + json.dumps({'driver': 'raw', 'file': {'filename': f'/instances/_base/{NAME}'}}),
        'json:' + json.dumps({'driver': 'raw', 'file.filename': f'/instances/_base/{NAME}'}),
        'json:' + json.dumps({'children': [{'file': {'filename': f'/instances/_base/{NAME}'}}]}),
    ],
)
def test_base_file_recognized_in_any_spelling(
    paths: layout.CacheLayout, disk: pathlib.Path, backing_file: str
) -> None:
    disk_images.qemu_img('rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', backing_file, str(disk))
    assert NAME in backing_names(paths)


def test_link_to_base_file_resolved(
    paths: layout.CacheLayout, disk: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / 'link').symlink_to(base)
    disk_images.qemu_img(
        'rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', str(tmp_path / 'link'), str(disk)
    )
    assert backing_names(paths) == {NAME, 'link'}


def test_disks_behind_link_count(
    paths: layout.CacheLayout, disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk.parent.rename(tmp_path / 'big-disk')
    disk.parent.symlink_to(tmp_path / 'big-disk')
    assert backing_names(paths) == {NAME}


def test_standalone_disks_have_no_base(
    paths: layout.CacheLayout, instances_path: pathlib.Path
) -> None:
    directory = instances_path / 'instance'
    directory.mkdir()
    disk_images.raw(directory / 'disk')
    disk_images.luks(directory / 'disk.eph0')
    disk_images.converted(directory / 'disk.eph1', 'qcow2')
    (directory / 'console.log').write_bytes(b'')
    os.mkfifo(directory / 'console.fifo')
    assert backing_names(paths) == frozenset()


def test_downloads_and_locks_not_disks(
    paths: layout.CacheLayout, base: pathlib.Path, disk: pathlib.Path
) -> None:
    """A hostile image that is being downloaded would end every round."""
    shutil.copy(disk, paths.new_partial_path('hostile', 'part'))
    (base.parent / 'cut.part').write_bytes(b'QFI\xfb')
    shutil.copy(disk, paths.lock_directory)
    disk.unlink()
    assert backing_names(paths) == frozenset()


def name_offset(disk: pathlib.Path) -> int:
    return int.from_bytes(disk.read_bytes()[8:16])


Break = Callable[[pathlib.Path], object]
BROKEN: dict[str, tuple[Break, str]] = {
    'nothing left': (lambda disk: disk_images.truncated(disk, 0), 'it is truncated'),
    'cut header': (lambda disk: disk_images.truncated(disk, 10), 'it is truncated'),
    'cut name': (
        lambda disk: disk_images.truncated(disk, name_offset(disk) + 9),
        'name of its backing file is truncated',
    ),
    'version': (lambda disk: disk_images.patched(disk, 4, bytes([0, 0, 0, 9])), 'version is 9'),
    'far offset': (
        lambda disk: disk_images.patched(disk, 8, (1 << 40).to_bytes(8)),
        'name of its backing file is truncated',
    ),
    'absurd offset': (lambda disk: disk_images.patched(disk, 8, b'\xff' * 8), 'offset'),
    'absurd length': (
        lambda disk: disk_images.patched(disk, 16, b'\xff' * 4),
        'name of its backing file has 4294967295 bytes',
    ),
    'zeros in the name': (
        lambda disk: disk_images.patched(disk, name_offset(disk), bytes(4)),
        'name of its backing file is truncated',
    ),
}


@pytest.mark.parametrize('how', BROKEN)
def test_broken_header_error_names_disk(
    paths: layout.CacheLayout, disk: pathlib.Path, how: str
) -> None:
    break_it, reason = BROKEN[how]
    break_it(disk)
    with pytest.raises(
        exception.StorageError, match=f'header of {disk} cannot be read: .*{reason}'
    ):
        backing_names(paths)


@pytest.mark.parametrize(
    'backing_file', ['json:{', 'json:' + 1018 * '[', r'json:["a\u0000"]', r'json:["\ud800"]']
)
def test_unintelligible_backing_name_is_error(
    paths: layout.CacheLayout, disk: pathlib.Path, backing_file: str
) -> None:
    disk_images.patched(disk, 16, len(backing_file).to_bytes(4))
    disk_images.patched(disk, name_offset(disk), backing_file.encode())
    with pytest.raises(exception.StorageError, match=f'The header of {disk} cannot be read'):
        backing_names(paths)


def test_disk_must_match_nova_note(paths: layout.CacheLayout, disk: pathlib.Path) -> None:
    """Zeroed by a crash, it would pass for raw, without a base file."""
    notes = disk.with_name('disk.info')
    notes.write_text(json.dumps({f'/before/the/resize/{disk.name}': 'qcow2'}))
    assert backing_names(paths) == {NAME}
    disk_images.patched(disk, 0, bytes(512))
    with pytest.raises(
        exception.StorageError, match=f'{disk} cannot be read: it is no longer qcow2'
    ):
        backing_names(paths)
    notes.write_text(json.dumps({str(disk): 'raw'}))
    assert backing_names(paths) == frozenset()


def test_guest_data_ends_no_round(paths: layout.CacheLayout, disk: pathlib.Path) -> None:
    raw = disk_images.raw(disk.with_name('disk.local'))
    disk_images.patched(raw, 0, b'QFI\xfb' + bytes(512))
    with pytest.raises(exception.StorageError, match=str(raw)):
        backing_names(paths)
    disk.with_name('disk.info').write_text(json.dumps({str(raw): 'raw'}))
    assert backing_names(paths) == {NAME}


@pytest.mark.parametrize('text', ['{', '[]', '"qcow2"'])
def test_unreadable_nova_note_is_error(
    paths: layout.CacheLayout, disk: pathlib.Path, text: str
) -> None:
    notes = disk.with_name('disk.info')
    notes.write_text(text)
    with pytest.raises(exception.StorageError, match=f'{notes} cannot be read'):
        backing_names(paths)
    notes.write_text('')  # Nova creates it empty, and fills it in afterwards.
    assert backing_names(paths) == {NAME}


@pytest.mark.parametrize('error', [errno.EACCES, errno.EIO, errno.ESTALE])
def test_unreadable_disk_is_error(
    paths: layout.CacheLayout,
    disk: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    def refuse(path: str, mode: str, **more: object) -> None:
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(usage, 'open', refuse, raising=False)
    disk.with_name('disk.info').unlink(missing_ok=True)
    with pytest.raises(exception.StorageError, match=os.strerror(error)):
        backing_names(paths)


@pytest.mark.parametrize('log', ['console.log', 'console.log.0'])
def test_console_log_not_a_disk(paths: layout.CacheLayout, disk: pathlib.Path, log: str) -> None:
    disk.with_name(log).write_bytes(b'QFI\xfb' + bytes(3))
    assert backing_names(paths) == {NAME}


def test_foreign_non_disks_not_read(
    paths: layout.CacheLayout, disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, recovered = disk.with_name('console.log'), disk.parent.with_name('lost+found')
    log.write_bytes(b'Linux')
    recovered.mkdir()
    scan = os.scandir

    def refuse(path: str, mode: str = '', **more: Any) -> object:
        if path in (str(log), str(recovered)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open(path, mode, **more) if mode else scan(path)

    monkeypatch.setattr(usage, 'open', refuse, raising=False)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert backing_names(paths) == {NAME}


def test_disk_deleted_during_scan_ignored(
    paths: layout.CacheLayout, disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_first(path: str, mode: str, **more: Any) -> object:
        if path == str(disk):
            disk.unlink()
        return open(path, mode, **more)

    monkeypatch.setattr(usage, 'open', delete_first, raising=False)
    assert backing_names(paths) == frozenset()


def test_instance_deleted_during_scan_ignored(
    paths: layout.CacheLayout, disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def delete_first(path: str) -> object:
        if path == str(disk.parent):
            shutil.rmtree(path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', delete_first)
    assert backing_names(paths) == frozenset()


@pytest.mark.parametrize('what', ['disk', 'instance'])
def test_link_to_unmounted_path_fails(
    paths: layout.CacheLayout, disk: pathlib.Path, tmp_path: pathlib.Path, what: str
) -> None:
    link = disk if what == 'disk' else disk.parent
    link.rename(tmp_path / 'unmounted')
    link.symlink_to(tmp_path / 'not-there')
    with pytest.raises(exception.StorageError, match=f'{link} is a broken symbolic link'):
        backing_names(paths)


def test_missing_instances_path_is_error(paths: layout.CacheLayout) -> None:
    shutil.rmtree(paths.instances_path)
    with pytest.raises(exception.StorageError, match='No such file or directory'):
        backing_names(paths)


def test_disks_counted_per_base_file(
    paths: layout.CacheLayout,
    base: pathlib.Path,
    disk: pathlib.Path,
    instances_path: pathlib.Path,
) -> None:
    other = disk_images.raw(pathlib.Path(paths.path_of(layout.base_name('other'))))
    for instance, backing in (('second', base), ('third', other)):
        (instances_path / instance).mkdir()
        disk_images.qcow2_with_backing_file(instances_path / instance / 'disk', backing)
    assert usage.DiskUsage(paths).counts() == {NAME: 2, other.name: 1}
    shutil.rmtree(disk.parent)
    assert usage.DiskUsage(paths).counts() == {NAME: 1, other.name: 1}


# Kernels and ramdisks


def _copies(
    paths: layout.CacheLayout, instances_path: pathlib.Path, **content: bytes
) -> pathlib.Path:
    """Make the directory of an instance as Nova does, which copies both there."""
    directory = instances_path / 'instance'
    directory.mkdir(exist_ok=True)
    for name, data in content.items():
        (directory / name).write_bytes(data)
        pathlib.Path(paths.base_path(f'{name} image')).write_bytes(data)
    return directory


@pytest.mark.parametrize('name', ['kernel', 'ramdisk'])
def test_kernel_used_while_instance_has_copy(
    paths: layout.CacheLayout, instances_path: pathlib.Path, name: str
) -> None:
    directory = _copies(paths, instances_path, **{name: b'x' * 100_000})
    pathlib.Path(paths.base_path('of the same size')).write_bytes(b'y' * 100_000)
    pathlib.Path(paths.base_path('of another size')).write_bytes(b'x' * 100_001)
    disk_usage = usage.DiskUsage(paths)
    base = layout.base_name(f'{name} image')
    assert disk_usage.backing_names() == {base}
    assert disk_usage.counts() == {base: 1}
    shutil.rmtree(directory)
    assert disk_usage.backing_names() == frozenset()


def test_each_copy_counts_and_read_once(
    paths: layout.CacheLayout, instances_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _copies(paths, instances_path, kernel=b'k' * 1000, ramdisk=b'r' * 1000)
    shutil.copytree(directory, directory.with_name('second'))
    read: list[str] = []
    digest = usage._digest

    def note(content: Any) -> bytes | None:
        read.append(content.path)
        return digest(content)

    monkeypatch.setattr(usage, '_digest', note)
    disk_usage = usage.DiskUsage(paths)
    both = {layout.base_name('kernel image'): 2, layout.base_name('ramdisk image'): 2}
    assert disk_usage.counts() == both
    assert disk_usage.counts() == both
    assert len(read) == len(set(read)) == 6

    (directory / 'kernel').write_bytes(b'K' * 1000)
    assert disk_usage.counts() == {**both, layout.base_name('kernel image'): 1}
    assert len(read) == 7


def test_companions_of_used_image_count_once(
    paths: layout.CacheLayout, instances_path: pathlib.Path, disk: pathlib.Path
) -> None:
    companion = model.Companion('kernel-image', 1000)
    notes.write(paths.note_path(NAME), [companion])
    kernel = layout.base_name(companion.id)
    disk_usage = usage.DiskUsage(paths)
    assert disk_usage.counts() == {NAME: 1, kernel: 1}
    (disk.parent / 'kernel').write_bytes(b'k' * 1000)
    pathlib.Path(paths.path_of(kernel)).write_bytes(b'k' * 1000)
    assert disk_usage.counts() == {NAME: 1, kernel: 1}
    assert not disk_usage.is_backing(paths.path_of(kernel))
    disk.unlink()
    assert disk_usage.counts() == {kernel: 1}


@pytest.mark.parametrize('damage', [b'', b'{}', b'\xff'])
def test_damaged_note_is_ignored(
    paths: layout.CacheLayout, disk: pathlib.Path, damage: bytes
) -> None:
    pathlib.Path(paths.note_path(NAME)).write_bytes(damage)
    assert usage.DiskUsage(paths).counts() == {NAME: 1}


def test_kernel_is_no_backing_file(paths: layout.CacheLayout, instances_path: pathlib.Path) -> None:
    """So a base file that Nova was killed over may be replaced, though it was copied."""
    _copies(paths, instances_path, kernel=b'half')
    assert not usage.DiskUsage(paths).is_backing(paths.base_path('kernel image'))


def test_empty_or_baseless_kernel_uses_nothing(
    paths: layout.CacheLayout, instances_path: pathlib.Path, base: pathlib.Path
) -> None:
    directory = _copies(paths, instances_path, kernel=b'')
    (directory / 'ramdisk').write_bytes(b'of a base file that is gone')
    assert usage.DiskUsage(paths).counts() == {}
