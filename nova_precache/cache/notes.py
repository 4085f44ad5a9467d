# SPDX-License-Identifier: Apache-2.0
"""Record the companions of cached images in notes beside their base files.

A base file does not show that its image also needs a kernel and a ramdisk; only Glance
knows. With the note, a boot or a report of the cached images need not ask Glance. An image
without companions has no note, nor has one that only Nova has fetched so far. A note is
written under the lock of the image, and removed after its base file is gone.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence

from nova_precache import exception, files, model, wire

_MAX_BYTES = 4096


def read(path: str) -> tuple[model.Companion, ...] | None:
    """Return the noted companions, none without a note; None if the note is damaged.

    :raises OSError: the note cannot be read
    """
    try:
        return wire.companions(json.loads(files.read(path, _MAX_BYTES)), 'note')
    except FileNotFoundError:
        return ()
    except (files.NotRegular, ValueError, RecursionError, exception.InvalidInput):
        return None


def write(path: str, needed: Sequence[model.Companion]) -> None:
    """Record companions, unless the same are noted already; remove the note for none.

    :raises OSError: the file system refused
    """
    with contextlib.suppress(PermissionError):  # replaced below
        if read(path) == tuple(needed):
            return
    if needed:
        files.replace_whole(path, json.dumps([dataclasses.asdict(each) for each in needed]))
    else:
        os.unlink(path)
