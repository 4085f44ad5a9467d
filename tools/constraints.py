# SPDX-License-Identifier: Apache-2.0
"""Writes the versions that are installed here as the constraints of a release.

``tools/run-tests.sh`` installs with these constraints, so CI runs with exactly these versions. For
newer ones: ``pip install --upgrade`` what setup.cfg and the requirements files name into ``.venv``,
run this there (``.venv/bin/python -m tools.constraints``), and then all tests.

They are in etc/nova-precache, and so in the package, since operators need them to install it.
"""

import pathlib
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging import requirements, utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATH = ROOT / 'etc' / 'nova-precache' / 'constraints.txt'
PROJECT = 'nova-precache'
# What the tests run. The others are not installed with the service: tempest has an environment of
# its own, and of memcache nothing is tested.
EXTRAS = ('eventlet', 'mysql', 'osc', 'postgresql', 'server')
# The WSGI servers of the guide.
SERVERS = ('gunicorn', 'pyuwsgi')
_HEAD = """\
# The versions with which this release was tested: python -m tools.constraints writes them.
"""


def main() -> int:
    pins = dict(_installed(PROJECT, EXTRAS))
    for server in SERVERS:
        pins.update(_installed(server))
    del pins[PROJECT]
    lines = [f'{name}=={version}\n' for name, version in sorted(pins.items())]
    PATH.write_text(_HEAD + ''.join(lines))
    print(f'{PATH}: {len(lines)} versions')
    return 0


def _installed(name: str, extras: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield a distribution and all that it requires here, with their versions."""
    open_ends = [(name, extras)]
    seen = set()
    while open_ends:
        end = open_ends.pop()
        if end in seen:
            continue
        seen.add(end)
        distribution = metadata.distribution(end[0])
        yield utils.canonicalize_name(end[0]), distribution.version
        open_ends += _required(distribution, end[1])


def _required(
    distribution: metadata.Distribution, extras: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for text in distribution.requires or []:
        # Some old packages write an extra with a blank before the bracket.
        required = requirements.Requirement(re.sub(r' \[', '[', text))
        marker = required.marker
        if marker is None or any(marker.evaluate({'extra': extra}) for extra in ('', *extras)):
            yield utils.canonicalize_name(required.name), tuple(sorted(required.extras))


if __name__ == '__main__':
    sys.exit(main())
