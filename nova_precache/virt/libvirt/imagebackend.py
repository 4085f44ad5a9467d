# SPDX-License-Identifier: Apache-2.0
"""The boot side: create root disks from the cache.

On a miss it fetches the image by the same routine and under the same lock as a precache
request, so a boot waits for a download in progress. The partial disk of a killed process is
removed with the directory of its instance.
"""

import contextlib
import errno
import logging
import os
import re
import subprocess
import uuid
from collections.abc import Iterator

from nova_precache import exception, files, model, shown
from nova_precache.cache import layout, locks, populator, space as spaces, store as cache_store
from nova_precache.image import service
from nova_precache.inspection import formats, qemu_img
from nova_precache.transfer_control import Control
from nova_precache.virt import driver

LOG = logging.getLogger(__name__)

DISK_NAME = 'disk'
_COPY_SECONDS = 3600
# How often the base file may be removed between its download and the creation of the disk.
_MOST_FETCHES = 5

_INSTANCE_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,254}')


class RootDiskMaker:
    """Creates root disks in the directories of instances.

    :param overlay: create qcow2 overlays; else raw copies
    """

    def __init__(
        self,
        *,
        store: cache_store.CacheStore,
        space: spaces.CacheSpace,
        image_locks: locks.ImageLocks,
        cache_populator: populator.CachePopulator,
        inspector: formats.ImageInspector,
        qemu: qemu_img.QemuImg,
        overlay: bool,
    ) -> None:
        self._store = store
        self._space = space
        self._locks = image_locks
        self._populator = cache_populator
        self._inspector = inspector
        self._qemu = qemu
        self._overlay = overlay

    def create(
        self,
        images: service.ImageService,
        image_id: str,
        instance: str,
        size_bytes: int | None,
        progress: model.ProgressCallback,
        control: Control,
    ) -> driver.RootDisk:
        """Create one, as :meth:`nova_precache.virt.driver.ComputeDriver.create_root_disk`."""
        path = self._disk_path(instance)
        if os.path.lexists(path):
            raise exception.RootDiskExists(path)
        with _directory(os.path.dirname(path)):  # fails before a useless download
            return self._create(images, image_id, path, size_bytes, progress, control)

    def _create(
        self,
        images: service.ImageService,
        image_id: str,
        path: str,
        size_bytes: int | None,
        progress: model.ProgressCallback,
        control: Control,
    ) -> driver.RootDisk:
        for _ in range(_MOST_FETCHES):
            filled = self._populator.fill(images, image_id, progress, control)
            with self._kept(image_id, control) as is_kept:
                if is_kept:
                    size_bytes = self._create_from_base(image_id, path, size_bytes, control)
                    break
            LOG.info('The base file of image %s was removed during a boot', image_id)
        else:
            raise exception.StorageError(
                f'The base file of image {image_id} was removed {_MOST_FETCHES} times during the '
                'boot'
            )
        LOG.info('Created root disk %s from image %s, %s', path, image_id, shown.size(size_bytes))
        return driver.RootDisk(
            path=path,
            format='qcow2' if self._overlay else 'raw',
            size_bytes=size_bytes,
            backing_file=self._store.layout.base_path(image_id) if self._overlay else None,
            image_existing=filled.existing,
        )

    def _create_from_base(
        self, image_id: str, path: str, size_bytes: int | None, control: Control
    ) -> int:
        """Create a root disk from a base file that is kept meanwhile; return the disk's size."""
        base_path = self._store.layout.base_path(image_id)
        base = self._inspector.inspect_base(base_path)
        disk_bytes = _disk_size(image_id, size_bytes, base.virtual_size_bytes)
        with _new_file(path) as temporary:
            if self._overlay:
                self._qemu.create_overlay(temporary, base_path, base.qemu_format, disk_bytes)
            else:
                self._copy(base_path, base, temporary, disk_bytes, control)
        return disk_bytes

    def _disk_path(self, instance: str) -> str:
        paths = self._store.layout
        taken = {paths.subdirectory_name, os.path.basename(paths.lock_directory)}
        if not _INSTANCE_NAME.fullmatch(instance) or instance in taken:
            raise exception.InvalidInput(f'instance: {instance!r} is not the name of an instance')
        return os.path.join(paths.instances_path, instance, DISK_NAME)

    @contextlib.contextmanager
    def _kept(self, image_id: str, control: Control) -> Iterator[bool]:
        """Keep a base file from being removed until its disk exists; yield whether it is there.

        As in Nova, its lock is held, so that boots from one image create their disks in turn.
        """
        with self._locks.hold(layout.base_name(image_id), control):
            is_there = self._store.touch(image_id, is_boot=True)
            yield is_there
            # An expiry round that listed the file before the disk existed now keeps it.
            if is_there:
                self._store.touch(image_id, is_boot=True)

    def _copy(
        self,
        base_path: str,
        base: formats.InspectedImage,
        target: str,
        size_bytes: int,
        control: Control,
    ) -> None:
        """Copy the content of the base file, preserving holes, and grow it."""
        with self._space.reserve(base.virtual_size_bytes, [target]):
            if base.qemu_format == 'raw':
                _copy_sparse(base_path, target, control)
            else:
                self._qemu.convert_to_raw(base_path, base.qemu_format, target, control)
        with cache_store.storage_errors(f'Growing {target}'):
            os.truncate(target, size_bytes)


def _disk_size(image_id: str, size_bytes: int | None, virtual_size_bytes: int) -> int:
    if not size_bytes:
        return virtual_size_bytes
    if size_bytes < virtual_size_bytes:
        raise exception.RootDiskTooSmall(image_id, size_bytes, virtual_size_bytes)
    return size_bytes


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[str]:
    """Yield a temporary path; on leaving, sync the file and publish it at ``path``.

    :raises nova_precache.exception.RootDiskExists: another process created it meanwhile
    """
    temporary = f'{path}.{uuid.uuid4().hex}.part'
    try:
        yield temporary
        with cache_store.storage_errors(f'Publishing {path}'):
            _publish(temporary, path)
    finally:
        files.remove_if_there(temporary)


def _publish(temporary: str, path: str) -> None:
    files.synchronise(temporary)
    try:
        os.link(temporary, path)  # A rename would replace an existing disk.
    except FileExistsError as exc:
        raise exception.RootDiskExists(path) from exc
    files.synchronise(os.path.dirname(path))


@contextlib.contextmanager
def _directory(path: str) -> Iterator[None]:
    """Create a directory if it is missing; on an error, remove it again."""
    existed = os.path.isdir(path)
    if not existed:
        with cache_store.storage_errors(f'Creating {path}'), contextlib.suppress(FileExistsError):
            os.mkdir(path)  # not its parents, which may be a mount
    try:
        yield
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def _copy_sparse(source: str, target: str, control: Control) -> None:
    command = ['cp', '--sparse=always', '--reflink=auto', '--', source, target]
    copying = subprocess.Popen(
        command,
        env={**os.environ, 'LC_ALL': 'C'},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        process_group=0,  # Ctrl-C in the terminal reaches only this process, which kills the child
    )
    with copying, control.on_stop(copying.kill):
        try:
            _, errors = copying.communicate(timeout=_COPY_SECONDS)
        except subprocess.TimeoutExpired as exc:
            copying.kill()
            raise exception.StorageError(
                f'Copying to {target} took more than {_COPY_SECONDS} s'
            ) from exc
    control.check()
    if copying.returncode != 0:
        reason = errors.strip()
        if os.strerror(errno.ENOSPC) in reason:
            raise exception.NotEnoughSpace(f'Copying to {target}: {reason}')
        raise exception.StorageError(f'Copying to {target}: {reason}')
