# SPDX-License-Identifier: Apache-2.0
"""Paths and file names of the cache, compatible with Nova.

Nova shares the names of the base file and the lock. The partial files, the notes of
companions and the store id are ours; Nova's cache manager does not recognise the names of
partial files and notes. Partial files of one download share a stem and differ by suffix.
"""

import dataclasses
import hashlib
import os
import re
import uuid

JOURNAL_SUFFIX = 'journal'
PARTIAL_SUFFIXES = ('part', 'converted', 'expired', JOURNAL_SUFFIX)
NOTE_SUFFIX = 'companions'
LOCK_PREFIX = 'nova-'

_ORIGINAL = '[0-9a-f]{40}'
_RESIZED = f'{_ORIGINAL}_[0-9]+'
_PARTIAL_NAME = re.compile(
    rf'({_ORIGINAL}|{_RESIZED})\.[0-9a-f]{{32}}\.({"|".join(PARTIAL_SUFFIXES)})'
)
_NOTE_NAME = re.compile(rf'({_ORIGINAL})\.{NOTE_SUFFIX}(\.[0-9a-f]{{32}})?')


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The paths of one cache."""

    instances_path: str
    subdirectory_name: str = '_base'

    @property
    def base_directory(self) -> str:
        return os.path.join(self.instances_path, self.subdirectory_name)

    @property
    def lock_directory(self) -> str:
        return os.path.join(self.instances_path, 'locks')

    @property
    def store_id_path(self) -> str:
        return os.path.join(self.instances_path, '.nova-precache-store-id')

    @property
    def nova_marks(self) -> tuple[str, ...]:
        """Files that show that a nova-compute uses this instances path.

        Its image cache manager registers in the first; the second, in the state
        directory, exists from its first start.
        """
        return (
            os.path.join(self.instances_path, 'compute_nodes'),
            os.path.join(os.path.dirname(self.instances_path), 'compute_id'),
        )

    def base_path(self, image_id: str) -> str:
        return self.path_of(base_name(image_id))

    def note_path(self, name: str) -> str:
        """Return the path of the note that lists the companions of a base file's image."""
        return self.path_of(f'{name}.{NOTE_SUFFIX}')

    def path_of(self, name: str) -> str:
        return os.path.join(self.base_directory, name)

    def new_partial_path(self, image_id: str, suffix: str) -> str:
        """Return a unique path in the directory of the base file."""
        return self.new_path_beside(base_name(image_id), suffix)

    def new_path_beside(self, name: str, suffix: str) -> str:
        return self.path_of(f'{name}.{uuid.uuid4().hex}.{suffix}')


def base_name(image_id: str) -> str:
    """Return Nova's name for the base file of an image and, with the prefix, for its lock."""
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def is_base_name(name: str) -> bool:
    """Return whether a file name denotes an image, original or resized.

    Other names, such as Nova's ``swap_512`` and ``ephemeral_20_40d1d2c``, are not ours.
    """
    return re.fullmatch(_ORIGINAL, name) is not None or is_resized_name(name)


def is_resized_name(name: str) -> bool:
    """Return whether a file name denotes an image that old Nova resized for overlays."""
    return re.fullmatch(_RESIZED, name) is not None


def image_name(name: str) -> str:
    """Return the name of the original of an image, by the name of that or of a resized copy."""
    return name.partition('_')[0]


def base_name_of_partial(name: str) -> str | None:
    """Return the base file of one of our partial files; None: it is not ours."""
    match = _PARTIAL_NAME.fullmatch(name)
    return match[1] if match else None


def base_name_of_journal(name: str) -> str | None:
    """Return the base file of one of our journals; None: it is not ours."""
    return base_name_of_partial(name) if name.endswith(f'.{JOURNAL_SUFFIX}') else None


def base_name_of_note(name: str) -> str | None:
    """Return the base file of a note, also of one being written; None: it is not ours."""
    match = _NOTE_NAME.fullmatch(name)
    return match[1] if match else None


def sibling(path: str, suffix: str) -> str:
    """Return the path with another suffix and the stem of a partial file or journal."""
    return f'{path.rpartition(".")[0]}.{suffix}'
