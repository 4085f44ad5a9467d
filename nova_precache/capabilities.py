# SPDX-License-Identifier: Apache-2.0
"""Check the capability of this process to touch files of other users.

At the first boot, libvirt changes the owner of a base file to the user of its machines, and no
restart reverts this. From then on only root, or a process with CAP_FOWNER, may set its times; a
capability works on local file systems, not on an NFS server.
"""

import pathlib

_STATUS = pathlib.Path('/proc/self/status')
_FOWNER_BIT = 3  # linux/capability.h


def has_fowner() -> bool:
    """Return whether CAP_FOWNER is in effect, as for root outside of most containers."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == 'CapEff':
            return bool(int(value, 16) >> _FOWNER_BIT & 1)
    return False
