# SPDX-License-Identifier: Apache-2.0
"""Which base files the disks of instances are based on."""

import os
import struct

from nova_precache.cache import store

# Magic, version, offset and length of the backing file's name.
_QCOW2_HEADER = struct.Struct('>4sIQI')
_QCOW2_MAGIC = b'QFI\xfb'


class DiskUsage:
    """What the disks below an instances path use."""

    def __init__(self, instances_path: str) -> None:
        self._instances_path = instances_path

    def is_backing(self, path: str) -> bool:
        """Tell whether the disk of some instance has this file as its backing file.

        :raises nova_precache.exception.StorageError: a disk cannot be read, so nobody knows
        """
        wanted = os.path.realpath(path)
        with store.storage_errors(f'Looking for disks based on {path}'):
            return any(_backing_file(disk) == wanted for disk in self._files())

    def _files(self) -> list[str]:
        with os.scandir(self._instances_path) as entries:
            directories = [entry.path for entry in entries if entry.is_dir()]
        files: list[str] = []
        for directory in directories:
            with os.scandir(directory) as entries:
                files += [entry.path for entry in entries if entry.is_file()]
        return files


def _backing_file(path: str) -> str | None:
    """Read the backing file's path from a qcow2 header; None: there is none."""
    try:
        with open(path, 'rb') as file:
            header = file.read(_QCOW2_HEADER.size)
            if len(header) < _QCOW2_HEADER.size or not header.startswith(_QCOW2_MAGIC):
                return None
            _, _, offset, length = _QCOW2_HEADER.unpack(header)
            file.seek(offset)
            name = os.fsdecode(file.read(length)) if offset else ''
    except FileNotFoundError:
        return None  # The instance was deleted meanwhile.
    return os.path.realpath(os.path.join(os.path.dirname(path), name)) if name else None
