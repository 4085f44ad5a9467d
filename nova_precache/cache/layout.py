# SPDX-License-Identifier: Apache-2.0
"""Where things of the cache are on disk, such that Nova finds them.

Names that Nova shares with us: the base file and the lock. Ours are the partial
files and the notes of companions, whose names Nova's cache manager takes for nothing that
it has to keep, and the store id. Partial files of one piece of work have one stem and
differ by suffix.
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
        """Files that a nova-compute with this instances path leaves behind.

        Its image cache manager registers in the first; the second, in the state
        directory, is there from its first start.
        """
        return (
            os.path.join(self.instances_path, 'compute_nodes'),
            os.path.join(os.path.dirname(self.instances_path), 'compute_id'),
        )

    def base_path(self, image_id: str) -> str:
        return self.path_of(base_name(image_id))

    def note_path(self, name: str) -> str:
        """Name the file that notes which companions the image of a base file needs."""
        return self.path_of(f'{name}.{NOTE_SUFFIX}')

    def path_of(self, name: str) -> str:
        return os.path.join(self.base_directory, name)

    def new_partial_path(self, image_id: str, suffix: str) -> str:
        """Give a name that nobody else has, in the directory of the base file."""
        return self.new_path_beside(base_name(image_id), suffix)

    def new_path_beside(self, name: str, suffix: str) -> str:
        return self.path_of(f'{name}.{uuid.uuid4().hex}.{suffix}')


def base_name(image_id: str) -> str:
    """Name the base file and, with the prefix, the lock of an image, as Nova does."""
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def is_base_name(name: str) -> bool:
    """Tell whether a file of this name is an image, as it came or resized.

    Others, such as Nova's ``swap_512`` and ``ephemeral_20_40d1d2c``, are not ours.
    """
    return re.fullmatch(_ORIGINAL, name) is not None or is_resized_name(name)


def is_resized_name(name: str) -> bool:
    """Tell whether a file of this name is what Nova once resized for overlays."""
    return re.fullmatch(_RESIZED, name) is not None


def base_name_of_partial(name: str) -> str | None:
    """Tell to which base file a partial file of ours belongs; None: it is not ours."""
    match = _PARTIAL_NAME.fullmatch(name)
    return match[1] if match else None


def base_name_of_journal(name: str) -> str | None:
    """Tell to which base file a journal belongs; None: it is not one of ours."""
    return base_name_of_partial(name) if name.endswith(f'.{JOURNAL_SUFFIX}') else None


def base_name_of_note(name: str) -> str | None:
    """Return of which base file a note is, or one being written; None: it is not ours."""
    match = _NOTE_NAME.fullmatch(name)
    return match[1] if match else None


def sibling(path: str, suffix: str) -> str:
    """Name the file of another suffix with the same stem as a partial file or journal."""
    return f'{path.rpartition(".")[0]}.{suffix}'
