# SPDX-License-Identifier: Apache-2.0
"""Where things of the cache are on disk, such that Nova finds them.

Names that Nova shares with us: the base file and the lock. Ours are the partial
files, whose names Nova's cache manager takes for nothing of its own, and the
store id.
"""

import dataclasses
import hashlib
import os
import re
import uuid

PARTIAL_SUFFIXES = ('part', 'converted')
LOCK_PREFIX = 'nova-'

_PARTIAL_NAME = re.compile(rf'([0-9a-f]{{40}})\.[0-9a-f]{{32}}\.({"|".join(PARTIAL_SUFFIXES)})')


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

    def base_path(self, image_id: str) -> str:
        return os.path.join(self.base_directory, base_name(image_id))

    def new_partial_path(self, image_id: str, suffix: str) -> str:
        """Give a name that nobody else has, in the directory of the base file."""
        return os.path.join(
            self.base_directory, f'{base_name(image_id)}.{uuid.uuid4().hex}.{suffix}'
        )


def base_name(image_id: str) -> str:
    """Name the base file and, with the prefix, the lock of an image, as Nova does."""
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def base_name_of_partial(name: str) -> str | None:
    """Tell to which base file a partial file of ours belongs; None: it is not ours."""
    match = _PARTIAL_NAME.fullmatch(name)
    return match[1] if match else None
