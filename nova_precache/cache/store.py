# SPDX-License-Identifier: Apache-2.0
"""The directory of base files: what it contains, when it was used, and publication.

A base file is published by one rename, complete and synced to the disk. Before that it has
a unique name that no boot looks for.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator, Sequence

from nova_precache import capabilities, exception, files, model
from nova_precache.cache import layout, notes
from nova_precache.inspection import content

LOG = logging.getLogger(__name__)

BLOCK_BYTES = 512
# Errors of a link that resolves to no file.
_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES})
# Two clocks never agree exactly, and a file system's clock advances in steps.
_SAME_TIME_SECONDS = 5.0
_KINDS = (
    (stat.S_ISDIR, 'a directory'),
    (stat.S_ISLNK, 'a symbolic link to no image'),
    (stat.S_ISFIFO, 'a FIFO'),
    (stat.S_ISSOCK, 'a socket'),
)


@dataclasses.dataclass(frozen=True)
class BaseFile:
    """The state of a base file when it was examined; another inode is another file.

    :ivar inode: that of the target if the name is a link
    :ivar changed_ns: the ctime, which a change of the owner and a rename update, too
    :ivar owner: the user id
    """

    name: str
    inode: int
    mtime_ns: int
    bytes_on_disk: int
    size_bytes: int
    changed_ns: int = dataclasses.field(default=0, compare=False)
    owner: int = dataclasses.field(default=0, compare=False)

    def age_seconds(self, now: float) -> float:
        return now - self.mtime_ns / 1e9


class CacheStore:
    """One cache on a file system.

    :param force_raw: base files are raw; one that is not counts as absent
    :param clock: the time of the clock that stamps the files, in seconds since the epoch; None
        asks the file system
    :param host_now: the time of this host's clock
    """

    def __init__(
        self,
        paths: layout.CacheLayout,
        *,
        force_raw: bool = True,
        clock: Callable[[], float] | None = None,
        host_now: Callable[[], float] = time.time,
    ) -> None:
        self.layout = paths
        self.now = clock or self._stamped_now
        self._host_now = host_now
        self._lag_seconds = 0.0
        self._force_raw = force_raw
        self._store_id: str | None = None
        self._untouched: dict[str, BaseFile] = {}
        self._bootable: dict[str, tuple[BaseFile, int]] = {}

    def prepare(self) -> None:
        """Create the directories, with the modes that Nova would set.

        :raises nova_precache.exception.StorageError: the file system refused
        """
        with storage_errors(f'Creating {self.layout.base_directory}'):
            os.makedirs(self.layout.base_directory, exist_ok=True)
            os.makedirs(self.layout.lock_directory, exist_ok=True)

    def store_id(self) -> str:
        """Return the id of this store, the same for all hosts that share it.

        The first call creates a missing id, later ones do not: if it is gone, the mount may be
        gone, too.

        :raises nova_precache.exception.StorageError: it can be neither read nor created
        """
        path = self.layout.store_id_path
        with storage_errors(f'Reading {path}'):
            if self._store_id is None:
                self._store_id = files.kept_uuid(path)
            return files.read_uuid(path)

    def check_mounted(self) -> None:
        """Check that the directories exist; create removed ones again.

        The mount point of an unmounted file system must not be filled: nothing is created
        unless the store id is the one read first. Opening the directory also makes NFS look
        again for a file that was missing a moment ago.

        :raises nova_precache.exception.StorageError: they are gone and were not created again
        """
        base, locks_path = self.layout.base_directory, self.layout.lock_directory
        with storage_errors(f'Checking {base}'):
            is_there = {base: _is_directory(base), locks_path: os.path.isdir(locks_path)}
        if all(is_there.values()):
            return
        paths = ' and '.join(path for path, there in is_there.items() if not there)
        refusal, id_path = f'{paths} is missing and is not recreated', self.layout.store_id_path
        with storage_errors(f'{refusal}: Reading {id_path}'):
            found = files.read_uuid(id_path)
        if found != self._store_id:
            raise exception.StorageError(
                f'{refusal}: {id_path} contains {found} instead of {self._store_id}'
            )
        self.prepare()
        LOG.warning('Recreated %s, which was removed', paths)

    def _stamped_now(self) -> float:
        """Return the time stamp of a file touched now; over NFS, the server's time.

        Touching a directory takes no space, and needs the same rights as making files in it.
        """
        path = self.layout.base_directory
        with storage_errors(f'Touching {path}'):
            os.utime(path)
            return os.stat(path).st_mtime

    def measure_lag(self) -> float:
        """Measure by how many seconds the clock that stamps the files is behind this host's.

        If the difference changed little, return the previous value, so that dependent results
        stay stable.

        :returns: 0 if the clocks agree; negative if the file system's is ahead
        :raises nova_precache.exception.StorageError: the file system refused
        """
        lag_seconds = self._host_now() - self.now()
        if abs(lag_seconds - self._lag_seconds) > _SAME_TIME_SECONDS:
            self._lag_seconds = lag_seconds if abs(lag_seconds) > _SAME_TIME_SECONDS else 0.0
            LOG.warning(
                'The clock of the file system of %s is %.0f s behind that of this host, from which '
                'nova-compute computes the age of files',
                self.layout.base_directory,
                self._lag_seconds,
            )
        return self._lag_seconds

    def is_hit(self, image_id: str) -> bool:
        """Return whether the base file exists and a boot can use it.

        :raises nova_precache.exception.NotOurs: it exists, but its permissions forbid reading
        :raises nova_precache.exception.StorageError: it cannot be read
        """
        return self.is_hit_file(layout.base_name(image_id))

    def is_hit_file(self, name: str) -> bool:
        """Return the same as :meth:`is_hit` for the name of a base file."""
        path = self.layout.path_of(name)
        with storage_errors(f'Reading {path}'):
            file = _base_file(name, path)
            try:
                return file is not None and self._is_bootable(file)
            except exception.NotOurs:
                if file is not None:
                    self._untouched[name] = file
                raise

    def _is_bootable(self, file: BaseFile) -> bool:
        """Return whether a boot can use a file, and it is raw if ``force_raw`` is set."""
        if not file.size_bytes or not self._force_raw:
            return bool(file.size_bytes)
        path = self.layout.path_of(file.name)
        with storage_errors(f'Reading {path}'):
            try:
                with open(path, 'rb', buffering=0, opener=files.regular_or_link) as opened:
                    return not content.begins_as_image(opened.read(content.START_BYTES))
            except FileNotFoundError:  # It may expire between stat and open.
                return False
            except PermissionError as exc:
                raise _not_ours('read', path) from exc

    def has_companion(self, companion: model.Companion) -> bool:
        """Return whether a kernel or ramdisk is cached complete.

        Nova writes these in place: if it was killed, the file has the name, but not the size.

        :raises nova_precache.exception.StorageError: the file cannot be examined
        """
        path = self.layout.base_path(companion.id)
        with storage_errors(f'Checking {path}'):
            file = _base_file(layout.base_name(companion.id), path)
        if file is None:
            return False
        size = companion.size_bytes
        return file.size_bytes > 0 if size is None else file.size_bytes == size

    def noted(self, name: str) -> tuple[model.Companion, ...] | None:
        """Return the companions noted for the image of a base file.

        :returns: None if the note is damaged or may not be read
        :raises nova_precache.exception.StorageError: the note cannot be read
        """
        path = self.layout.note_path(name)
        with storage_errors(f'Reading {path}'):
            try:
                return notes.read(path)
            except PermissionError:
                return None

    def note(self, name: str, needed: Sequence[model.Companion]) -> None:
        """Record the companions of a base file's image; the caller holds its lock.

        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        """
        path = self.layout.note_path(name)
        with storage_errors(f'Writing {path}'):
            notes.write(path, needed)

    def touch(self, image_id: str, *, is_boot: bool = False) -> bool:
        """Touch the base file, as :meth:`touch_file`.

        :param is_boot: a boot uses the file even if it may not touch it
        """
        try:
            return self.touch_file(layout.base_name(image_id))
        except exception.NotOurs as exc:
            if not is_boot:
                raise
            LOG.warning('Using the base file of image %s without touching it: %s', image_id, exc)
            return True

    def touch_file(self, name: str) -> bool:
        """Touch a file: the age of unused files counts from their mtime.

        :returns: whether it exists, and thus stays for a while
        :raises nova_precache.exception.NotOurs: it exists, and may not be touched
        :raises nova_precache.exception.StorageError: the file system refused
        """
        path = self.layout.path_of(name)
        with storage_errors(f'Touching {path}'):
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            except PermissionError as exc:
                file = _base_file(name, path)
                if file is not None:
                    self._untouched[name] = file
                raise _not_ours('kept', path) from exc
            # The touched file may have been put aside meanwhile, see remove_unchanged.
            return os.path.exists(path)

    def touch_changed(self) -> None:
        """Touch the files that could not be touched before, if they have changed since."""
        for name, before in list(self._untouched.items()):
            path = self.layout.path_of(name)
            try:
                with storage_errors(f'Checking {path}'):
                    file = _base_file(name, path)
                if file == before and file.changed_ns == before.changed_ns:
                    continue
                self._untouched.pop(name, None)
                if self.is_hit_file(name) and self.touch_file(name):
                    LOG.info('Touched %s, which has changed', path)
            except exception.CacheError as exc:
                LOG.info('Cannot touch %s, which has changed: %s', path, exc)

    def base_files(self) -> list[BaseFile]:
        """List the files with names of images; other files are not ours to judge.

        :raises nova_precache.exception.StorageError: they cannot be listed
        """
        directory = self.layout.base_directory
        with storage_errors(f'Listing {directory}'):
            names = sorted(filter(layout.is_base_name, os.listdir(directory)))
            found = [_base_file(name, self.layout.path_of(name)) for name in names]
        return [file for file in found if file is not None]

    def images(self) -> list[BaseFile]:
        """List the images in the cache: the files that are hits, and those that cannot be read.

        Images without one of their noted companions are left out. Not thread-safe.

        :raises nova_precache.exception.StorageError: they cannot be listed
        """
        files = self.base_files()
        bootable = {file.name: file for file in files if self._may_be_bootable(file)}
        self._bootable = {name: (file, file.changed_ns) for name, file in bootable.items()}
        noted = self._all_noted()
        companions = {
            layout.base_name(each.id) for needed in noted.values() for each in needed or ()
        }
        return [
            file
            for file in files
            if file.name in companions
            or (file.name in bootable and self._is_whole(noted.get(file.name, ())))
        ]

    def _all_noted(self) -> dict[str, tuple[model.Companion, ...] | None]:
        """Map the base files that have a note to the companions in it, as :meth:`noted`."""
        directory = self.layout.base_directory
        with storage_errors(f'Listing {directory}'):
            names = [each for each in os.listdir(directory) if each.endswith(layout.NOTE_SUFFIX)]
        found: dict[str, tuple[model.Companion, ...] | None] = {}
        for base_name in filter(None, map(layout.base_name_of_note, names)):
            try:
                found[base_name] = self.noted(base_name)
            except exception.CacheError as exc:  # of this image alone
                LOG.debug('Cannot read the companions of %s: %s', base_name, exc)
                found[base_name] = None
        return found

    def images_needing(self, name: str) -> list[str]:
        """List the base files in the cache whose images need the file ``name`` as a companion.

        :raises nova_precache.exception.StorageError: they cannot be listed
        """
        return sorted(
            image
            for image, needed in self._all_noted().items()
            if any(layout.base_name(each.id) == name for each in needed or ())
            and os.path.lexists(self.layout.path_of(image))
        )

    def _is_whole(self, needed: tuple[model.Companion, ...] | None) -> bool:
        try:
            return needed is not None and all(map(self.has_companion, needed))
        except exception.CacheError as exc:
            LOG.debug('Cannot check a companion: %s', exc)
            return False

    def _may_be_bootable(self, file: BaseFile) -> bool:
        if self._bootable.get(file.name) == (file, file.changed_ns):
            return True
        try:
            return self._is_bootable(file)
        except exception.CacheError as exc:
            LOG.debug('Assuming that %s is an image: %s', file.name, exc)
            return True

    def remove_unchanged(self, file: BaseFile) -> bool:
        """Remove a base file and its note unless it was touched or replaced since it was listed.

        It is renamed before the last check. A process that touches it without the lock did so
        before the rename, and is seen, or finds no file.

        :returns: whether it was removed
        :raises nova_precache.exception.StorageError: the file system refused
        """
        path = self.layout.path_of(file.name)
        aside = self.layout.new_path_beside(file.name, 'expired')
        with storage_errors(f'Removing {path}'):
            if _base_file(file.name, path) != file:
                return False
            os.rename(path, aside)
            if _base_file(file.name, aside) != file:
                os.rename(aside, path)
                return False
            os.unlink(aside)
            files.remove_if_there(self.layout.note_path(file.name))
            return True

    def check_place(self, image_id: str) -> None:
        """Check, before the download, that the image can be published.

        :raises nova_precache.exception.PlaceTaken: a file that cannot be replaced has its name
        :raises nova_precache.exception.StorageError: the path cannot be examined
        """
        path = self.layout.base_path(image_id)
        with storage_errors(f'Checking {path}'):
            try:
                there = os.lstat(path)
            except FileNotFoundError:
                return
            directory = os.stat(self.layout.base_directory)
            if not stat.S_ISREG(there.st_mode):
                kind = next((name for is_it, name in _KINDS if is_it(there.st_mode)), 'a device')
                raise exception.PlaceTaken(f'{path} is {kind}, which the image cannot replace')
            owners = {there.st_uid, directory.st_uid, 0}
            if directory.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
                raise exception.PlaceTaken(
                    f'{path} is not an image and belongs to another user, in a directory where '
                    'only its owner may replace it'
                )
            if _is_immutable(path):
                raise exception.PlaceTaken(f'{path} is not an image and cannot be replaced')

    def publish(self, path: str, image_id: str) -> None:
        """Publish a finished temporary file as the base file of an image.

        Drop its pages from the page cache, which is for the guests.

        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        """
        target = self.layout.base_path(image_id)
        with storage_errors(f'Publishing {target}'):
            descriptor = files.open_regular(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.rename(path, target)
                files.synchronise(self.layout.base_directory)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Translate errors of the operating system; ``doing`` begins the reason."""
    try:
        yield
    except OSError as exc:
        raise exception.storage_failure(doing, exc) from exc


def _base_file(name: str, path: str) -> BaseFile | None:
    """Return a base file, following links as a boot does; None: there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in _LEADS_NOWHERE and os.path.islink(path):
            return None
        raise
    if not stat.S_ISREG(status.st_mode):
        return None
    return BaseFile(
        name=name,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        bytes_on_disk=status.st_blocks * BLOCK_BYTES,
        size_bytes=status.st_size,
        changed_ns=status.st_ctime_ns,
        owner=status.st_uid,
    )


def _is_directory(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except FileNotFoundError:
        return False
    return True


def _not_ours(cannot_be: str, path: str) -> exception.NotOurs:
    """Build the error for a file whose permissions forbid the required use."""
    status = os.stat(path)
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    if cannot_be == 'read':
        why = f'its mode is {stat.S_IMODE(status.st_mode):04o}'
    elif _is_immutable(path):
        why = 'it is immutable'
    elif capabilities.has_fowner():
        why = 'CAP_FOWNER has no effect on its file system'
    else:
        why = 'this process lacks CAP_FOWNER'
    return exception.NotOurs(cannot_be, f'owned by {owner}, and {why} ({path})')


def _is_immutable(path: str) -> bool:
    """Return whether even the owner may not change a file, as after ``chattr +i``."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as exc:
        return exc.errno == errno.EPERM
    return False
