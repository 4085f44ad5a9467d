# SPDX-License-Identifier: Apache-2.0
"""Databases that are left open: SQLite files of which this process still has a descriptor.

Python 3.13 warns of such a connection when it is collected; earlier ones say nothing, so
descriptors are counted, which finds them under every Python.
"""

import collections
import os
import pathlib

_SUFFIXES = ('.sqlite', '.db')


def databases(directory: pathlib.Path) -> collections.Counter[str]:
    """Count the connections to each database below a directory."""
    found: collections.Counter[str] = collections.Counter()
    for descriptor in os.listdir('/proc/self/fd'):
        try:
            path = os.readlink(f'/proc/self/fd/{descriptor}')
        except FileNotFoundError:
            continue  # the one that lists the directory, or that another thread closed
        if path.startswith(f'{directory}/') and path.endswith(_SUFFIXES):
            found[path] += 1
    return found
