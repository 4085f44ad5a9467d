# SPDX-License-Identifier: Apache-2.0
"""Remove the files that ended transfers left behind, unless another attempt may resume them."""

import contextlib
import logging
import os

from nova_precache import exception, files
from nova_precache.cache import journal as journals, layout, locks, partials, store

LOG = logging.getLogger(__name__)


class Sweeper:
    """Sweeps the directory of one cache.

    :param partial_max_age_seconds: how long an interrupted download can be resumed, counted
        from the last recorded bytes
    """

    def __init__(
        self,
        cache_store: store.CacheStore,
        image_locks: locks.ImageLocks,
        partial_max_age_seconds: float,
    ) -> None:
        self._store = cache_store
        self._layout = cache_store.layout
        self._locks = image_locks
        self._partial_max_age_seconds = partial_max_age_seconds

    def sweep(self) -> int:
        """Remove the files that ended transfers left behind, and return their number.

        Interrupted downloads stay until they are too old to resume, or the image is cached,
        such as by a boot of Nova's.

        :raises nova_precache.exception.StorageError: the file system refused
        """
        self._store.check_mounted()
        with store.storage_errors(f'Removing leftovers of {self._layout.base_directory}'):
            names = sorted(os.listdir(self._layout.base_directory))
            by_base_name: dict[str, list[str]] = {}
            for name in names:
                base_name = layout.base_name_of_partial(name)
                if base_name is not None:
                    by_base_name.setdefault(base_name, []).append(name)
            swept = sum(
                self._sweep_image(base_name, found) for base_name, found in by_base_name.items()
            )
            swept += sum(self._sweep_note(name) for name in names)
        if swept:
            LOG.info('Removed %d leftover files', swept)
        return swept

    def discard_partial(self, image_id: str) -> bool:
        """Remove the partial files of an image, unless its lock is held.

        :returns: whether none is left
        :raises nova_precache.exception.StorageError: the file system refused
        """
        base_name = layout.base_name(image_id)
        self._store.check_mounted()
        with (
            store.storage_errors(f'Removing partial files of image {image_id}'),
            self._locks.try_hold(base_name) as held,
        ):
            if not held:
                return False
            for path in self._journal_paths(base_name):
                self._sweep_stem(path, is_wanted=False)
            return not self._journal_paths(base_name)

    def partial_bytes(self, image_id: str) -> int:
        """Return the space that the partial files of an image take on the disk.

        :raises nova_precache.exception.StorageError: the file system refused
        """
        base_name, found_bytes = layout.base_name(image_id), 0
        with store.storage_errors(f'Listing partial files of image {image_id}'):
            for name in os.listdir(self._layout.base_directory):
                if layout.base_name_of_partial(name) == base_name:
                    with contextlib.suppress(FileNotFoundError):  # it is published or removed
                        blocks = os.lstat(self._layout.path_of(name)).st_blocks
                        found_bytes += blocks * store.BLOCK_BYTES
        return found_bytes

    def _journal_paths(self, base_name: str) -> set[str]:
        """Return the paths of the journals, existing or not, of an image's partial files."""
        names = os.listdir(self._layout.base_directory)
        found = [each for each in names if layout.base_name_of_partial(each) == base_name]
        return {self._layout.path_of(layout.sibling(each, layout.JOURNAL_SUFFIX)) for each in found}

    def _sweep_image(self, base_name: str, names: list[str]) -> int:
        journal_names = {layout.sibling(name, layout.JOURNAL_SUFFIX) for name in names}
        try:
            with (
                store.storage_errors(f'Removing leftovers of {base_name}'),
                self._locks.try_hold(base_name) as held,
            ):
                if not held:
                    return 0
                is_wanted = not self._store.is_hit_file(base_name)
                return sum(
                    self._sweep_stem(self._layout.path_of(name), is_wanted=is_wanted)
                    for name in journal_names
                )
        except exception.CacheError as exc:  # affects this image only
            LOG.warning('Cannot remove leftover files: %s', exc)
            return 0

    def _sweep_note(self, name: str) -> bool:
        """Remove a note whose base file is gone, or one whose writing was interrupted."""
        base_name = layout.base_name_of_note(name)
        if base_name is None:
            return False
        path, is_note = self._layout.path_of(name), name.endswith(layout.NOTE_SUFFIX)
        if is_note and os.path.lexists(self._layout.path_of(base_name)):
            return False  # the usual case, which needs no lock
        try:
            with self._locks.try_hold(base_name) as held:
                is_needed = is_note and os.path.lexists(self._layout.path_of(base_name))
                return held and not is_needed and files.remove_if_there(path)
        except exception.CacheError as exc:  # affects this image only
            LOG.warning('Cannot remove a companion note: %s', exc)
            return False

    def _sweep_stem(self, journal_path: str, *, is_wanted: bool) -> int:
        """Remove the files with the stem of a journal, except a download that can be resumed."""
        journal = journals.Journal.own(journal_path)
        if journal is None:
            return 0 if files.is_regular(journal_path) else partials.remove_stem(journal_path)
        with contextlib.closing(journal):
            stays = is_wanted and self._can_resume(journal)
            return partials.remove_stem(
                journal_path, ('part', layout.JOURNAL_SUFFIX) if stays else ()
            )

    def _can_resume(self, journal: journals.Journal) -> bool:
        is_young = self._store.now() - journal.mtime <= self._partial_max_age_seconds
        return (
            is_young
            and journal.is_resumable
            and os.path.exists(layout.sibling(journal.path, 'part'))
        )
