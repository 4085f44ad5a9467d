# SPDX-License-Identifier: Apache-2.0
"""Checks of the cache and of the computes after any failures."""

import collections
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
from collections.abc import Iterable, Sequence

from benchmarks import observed
from benchmarks.soak import site
from nova_precache.cache import layout
from nova_precache.standalone import process

MIB = 1024**2
PART_SUFFIX = 'part'
FLAT_GROWTH_BYTES = 16 * MIB
# Connections kept for the next request: at most as many as run in parallel.
_SPARE_SOCKETS = 8
_SOCKET = 'socket:[]'


def wrong_files(images: Sequence[site.SoakImage], paths: layout.CacheLayout) -> list[str]:
    """List the base files with wrong content; missing ones are not wrong."""
    return [f'{image.name} is wrong' for image in images if is_right(image, paths) is False]


def is_right(image: site.SoakImage, paths: layout.CacheLayout) -> bool | None:
    """Return whether the base file of an image has the right content; None if it is missing."""
    try:
        with open(paths.base_path(image.id), 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest() == image.sha256
    except FileNotFoundError:
        return None


def leftovers(paths: layout.CacheLayout, *, finished: bool) -> list[str]:
    """List the files that must not be in the cache directory while no transfer runs.

    :param finished: all images are cached, so no partial download is to be resumed
    """
    names = set(os.listdir(paths.base_directory))
    left = {name for name in names if not layout.is_base_name(name)}
    if finished:
        return sorted(left)
    journals = filter(layout.base_name_of_journal, left)
    resumable = {name for name in journals if _notes(paths, name)}
    resumable |= {layout.sibling(name, PART_SUFFIX) for name in resumable}
    return sorted(left - resumable)


def _notes(paths: layout.CacheLayout, journal_name: str) -> bool:
    """Return whether a journal records bytes that are on the disk."""
    lines = pathlib.Path(paths.path_of(journal_name)).read_text().splitlines()
    return len(lines) > 1 and json.loads(lines[-1])['synced_bytes'] > 0


def wrong_disks(disks: dict[pathlib.Path, site.SoakImage]) -> list[str]:
    """List the root disks whose content differs from their image."""
    found = []
    for path, image in disks.items():
        command = [
            'qemu-img',
            'compare',
            '-f',
            'qcow2',
            '-F',
            'raw',
            str(path),
            str(image.expected),
        ]
        result = subprocess.run(
            process.dies_with_parent(command, 'KILL'),
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            found.append(f'root disk of {image.name}: {result.stdout}{result.stderr}'.strip())
    return found


def leaked_handles(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """List the handles that a process has opened and not closed."""
    more = collections.Counter(after) - collections.Counter(before)
    if more[_SOCKET] <= _SPARE_SOCKETS:
        del more[_SOCKET]
    return [f'{count} times {name}' for name, count in sorted(more.items())]


def growth_bytes(samples: Sequence[tuple[float, int]]) -> float:
    """Return the growth of memory from the second quarter to the last; the first is warm-up."""
    quarter = len(samples) // 4
    if quarter == 0:
        return 0.0
    early = statistics.median(size for _, size in samples[quarter : 2 * quarter])
    late = statistics.median(size for _, size in samples[-quarter:])
    return late - early


def slope_bytes_per_minute(samples: Sequence[tuple[float, int]]) -> float:
    """Return the slope of memory over time, without the first quarter."""
    later = samples[len(samples) // 4 :]
    if len({at for at, _ in later}) < 2:
        return 0.0
    times, sizes = zip(*later, strict=True)
    return statistics.linear_regression(times, sizes).slope * 60


def left_processes(directory: pathlib.Path, but: Iterable[int]) -> list[str]:
    """List the processes that work in a directory, except some."""
    known = {str(pid) for pid in but}
    found = observed.processes_naming(str(directory))
    return [each for each in found if each.partition(':')[0] not in known]
