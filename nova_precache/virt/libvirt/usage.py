# SPDX-License-Identifier: Apache-2.0
"""Find the base files that instances use.

The header of a root disk names its base file. Headers are read here and not by qemu-img: there
may be thousands. A disk that cannot be read may be based on any file, so it is an error, never
"not based".

Nova counts a kernel or ramdisk as used while an instance exists that was booted with it. Here
only the files of instances are known: a kernel or ramdisk counts as used if it is noted as a
companion of a disk's image, or if an instance has a file with its content, since Nova copies
both into the directory of the instance.
"""

import collections
import dataclasses
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from nova_precache import exception, files
from nova_precache.cache import layout, notes, store

_ROOT_DISK = 'disk'
_DISK_FORMATS = 'disk.info'
_DISK_FORMATS_MAX_BYTES = 64 * 1024
# Only the two ends are compared: a host may have hundreds of instances with a kernel.
_COMPARED_BYTES = 64 * 1024
_COPIES = frozenset({'kernel', 'ramdisk'})

# Not disks, and owned by other users: by libvirt's, and by root in a mounted file system.
_CONSOLE_LOG = re.compile(r'console\.log(\.[0-9]+)?')
_RECOVERED = 'lost+found'

# Magic, version, offset and length of the backing file's name.
_QCOW2_HEADER = struct.Struct('>4sIQI')
_QCOW2_MAGIC = b'QFI\xfb'
_QCOW2_VERSIONS = (1, 2, 3)
_MAX_NAME_BYTES = 1023


class DiskUsage:
    """The base files used by the instances below an instances path."""

    def __init__(self, paths: layout.CacheLayout) -> None:
        self._paths = paths
        self._digests: dict[_Content, bytes] = {}

    def is_backing(self, path: str) -> bool:
        """Return whether the disk of any instance is based on this base file.

        :raises nova_precache.exception.StorageError: a disk cannot be read, so it is not known
        """
        return os.path.basename(path) in self._disks()

    def backing_names(self) -> frozenset[str]:
        """Return the names of the files used by disks, and as kernels and ramdisks.

        A disk that was moved, or reaches its base file through another mount, counts as based
        on the file of the same name, as in Nova.

        :raises nova_precache.exception.StorageError: one cannot be read, so it is not known
        """
        return frozenset(self.counts())

    def counts(self) -> Mapping[str, int]:
        """Count the disks and copies of each file, by its name; unused files have no entry.

        :raises nova_precache.exception.StorageError: one cannot be read, so it is not known
        """
        disks = self._disks()
        # An instance may have both a disk and the copies: it counts once.
        return disks + (self._copies() | self._companions(disks))

    def _disks(self) -> 'collections.Counter[str]':
        return collections.Counter(name for path in self._directories() for name in _names_in(path))

    def _companions(self, disks: Mapping[str, int]) -> 'collections.Counter[str]':
        """Count, for each noted kernel or ramdisk, the disks of the images that need it."""
        found: collections.Counter[str] = collections.Counter()
        for name, count in disks.items():
            if not layout.is_base_name(name):
                continue
            path = self._paths.note_path(name)
            with store.storage_errors(f'Reading {path}'):
                for companion in notes.read(path) or ():
                    found[layout.base_name(companion.id)] += count
        return found

    def _copies(self) -> 'collections.Counter[str]':
        """Count the kernels and ramdisks of instances that have the content of a base file.

        Only files of equal size are read, and each once.
        """
        copies = [
            found
            for directory in self._directories()
            for name in _COPIES
            if (found := _content(os.path.join(directory, name))) is not None
        ]
        sizes = {each.size for each in copies}
        bases = [each for each in self._base_files() if each.size in sizes] if sizes else []
        sizes = {each.size for each in bases}
        digests = {
            each: self._digests.get(each) or _digest(each)
            for each in [*bases, *copies]
            if each.size in sizes
        }
        self._digests = {each: digest for each, digest in digests.items() if digest is not None}
        uses = collections.Counter(map(self._digests.get, copies))
        return collections.Counter(
            {
                os.path.basename(each.path): uses[digest]
                for each in bases
                if (digest := self._digests.get(each)) is not None and uses[digest]
            }
        )

    def _base_files(self) -> list['_Content']:
        with store.storage_errors(f'Listing {self._paths.base_directory}'):
            names = list(filter(layout.is_base_name, os.listdir(self._paths.base_directory)))
        found = [_content(self._paths.path_of(name)) for name in names]
        return [each for each in found if each is not None]

    def _directories(self) -> list[str]:
        """List the directories of instances, including those being resized or deleted."""
        recovered = os.path.join(self._paths.instances_path, _RECOVERED)
        others = {self._paths.base_directory, self._paths.lock_directory, recovered}
        with store.storage_errors(f'Listing disks in {self._paths.instances_path}'):
            entries = _entries(self._paths.instances_path)
            return [entry.path for entry in entries if entry.is_dir() and entry.path not in others]


@dataclasses.dataclass(frozen=True)
class _Content:
    """The identity of a file whose content was read."""

    path: str
    inode: int
    size: int
    mtime_ns: int


def _content(path: str) -> _Content | None:
    """Return a file, None if it is missing or empty; an empty one was not copied yet."""
    with store.storage_errors(f'Checking {path}'):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
    is_copied = stat.S_ISREG(status.st_mode) and status.st_size > 0
    return _Content(path, status.st_ino, status.st_size, status.st_mtime_ns) if is_copied else None


def _digest(content: _Content) -> bytes | None:
    """Hash the ends of a file: a match that is none only keeps a base file."""
    with store.storage_errors(f'Reading {content.path}'):
        try:
            with open(content.path, 'rb', opener=files.regular_or_link) as file:
                digest = hashlib.blake2b(file.read(_COMPARED_BYTES))
                file.seek(max(0, content.size - _COMPARED_BYTES))
                digest.update(file.read(_COMPARED_BYTES))
                return digest.digest()
        except FileNotFoundError:
            return None  # The instance was deleted meanwhile.


def _names_in(directory: str) -> Iterator[str]:
    with store.storage_errors(f'Listing disks in {directory}'):
        try:
            entries = [entry for entry in _entries(directory) if entry.is_file()]
        except FileNotFoundError:
            return  # The instance was deleted meanwhile.
    formats = _disk_formats(os.path.join(directory, _DISK_FORMATS))
    for entry in entries:
        if not _CONSOLE_LOG.fullmatch(entry.name):  # a guest may write anything into it
            yield from _backing_names(entry, formats.get(entry.name))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as scanned:
        entries = list(scanned)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise exception.StorageError(f'{entry.path} is a broken symbolic link')
    return entries


def _disk_formats(path: str) -> dict[str, Any]:
    """Read the formats that Nova recorded for an instance's disks, by the disks' names."""
    with store.storage_errors(f'Reading {path}'):
        try:
            with open(path, 'rb', opener=files.regular_or_link) as file:
                text = file.read(_DISK_FORMATS_MAX_BYTES)
        except FileNotFoundError:
            return {}
    try:
        return {os.path.basename(disk): name for disk, name in json.loads(text or b'{}').items()}
    except (ValueError, AttributeError, RecursionError) as exc:
        raise exception.StorageError(f'{path} cannot be read: {exc}') from exc


def _backing_names(disk: os.DirEntry[str], noted_format: Any) -> set[str]:
    with store.storage_errors(f'Reading the header of {disk.path}'):
        try:
            with open(disk.path, 'rb', opener=files.regular_or_link) as file:
                named = _backing_paths(file, disk.name, noted_format)
            paths = [os.path.join(os.path.dirname(disk.path), path) for path in named]
            return {os.path.basename(each) for each in (*paths, *map(os.path.realpath, paths))}
        except FileNotFoundError:
            return set()  # The instance was deleted meanwhile.
        except (ValueError, RecursionError) as exc:
            if noted_format == 'raw':
                return set()  # The guest may write any header into a raw disk.
            raise exception.StorageError(
                f'The header of {disk.path} cannot be read: {exc}'
            ) from exc


def _backing_paths(disk: BinaryIO, name: str, noted_format: Any) -> list[str]:
    """Read the backing file from a qcow2 header; ValueError: the header is invalid."""
    header = disk.read(_QCOW2_HEADER.size)
    if not header.startswith(_QCOW2_MAGIC):
        if noted_format == 'qcow2':
            raise ValueError('it is no longer qcow2')
        if name == _ROOT_DISK and len(header) < _QCOW2_HEADER.size:
            raise ValueError('it is truncated')
        return []
    if len(header) < _QCOW2_HEADER.size:
        raise ValueError('it is truncated')
    _, version, offset, length = _QCOW2_HEADER.unpack(header)
    if version not in _QCOW2_VERSIONS:
        raise ValueError(f'its version is {version}')
    if not offset or not length:
        return []
    if length > _MAX_NAME_BYTES:
        raise ValueError(f'the name of its backing file has {length} bytes')
    disk.seek(offset)
    backing_file = disk.read(length)
    if len(backing_file) < length or b'\0' in backing_file:
        raise ValueError('the name of its backing file is truncated')
    return _paths_in(os.fsdecode(backing_file))


def _paths_in(backing_file: str) -> list[str]:
    """Return the paths that qemu's name of a backing file may denote."""
    if backing_file.startswith('json:'):
        return list(_strings(json.loads(backing_file.removeprefix('json:'))))
    return [backing_file.removeprefix('file:')]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
