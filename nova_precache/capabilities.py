# SPDX-License-Identifier: Apache-2.0
"""What the kernel lets this process do to the files of other users.

libvirt gives a base file to the user of its machines at the first boot, and no restart takes
it back. Only root, or a process with CAP_FOWNER, may set its times from then on; a capability
counts on file systems of this machine, and not with an NFS server.
"""

import pathlib

_STATUS = pathlib.Path('/proc/self/status')
_FOWNER_BIT = 3  # linux/capability.h


def has_fowner() -> bool:
    """Return whether CAP_FOWNER is in effect, as it is for root outside of most containers."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == 'CapEff':
            return bool(int(value, 16) >> _FOWNER_BIT & 1)
    return False
