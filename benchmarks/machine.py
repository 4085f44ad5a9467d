# SPDX-License-Identifier: Apache-2.0
"""A description of the machine, and the packages that it lacks."""

import os
import pathlib
import platform
import shutil

GIB = 1024**3
COMMANDS = {'qemu-img': 'qemu-utils', 'setpriv': 'util-linux', 'fincore': 'util-linux'}


def missing_commands() -> list[str]:
    """List the missing Debian packages."""
    missing = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    return sorted(missing)


def describe(directory: pathlib.Path) -> str:
    """Describe the properties that affect results, without names of the machine."""
    memory_gib = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB
    release = '.'.join(platform.release().split('.')[:2])
    return (
        f'{os.cpu_count()} cores ({_processor()}), {memory_gib:.0f} GiB of memory, '
        f'Linux {release}, {_file_system(directory)}, Python {platform.python_version()}.'
    )


def _processor() -> str:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.machine()


def _file_system(directory: pathlib.Path) -> str:
    """Describe the file system of a directory and its kind of disk."""
    mounts = [line.split()[:3] for line in pathlib.Path('/proc/mounts').read_text().splitlines()]
    device, _, kind = max(
        (mount for mount in mounts if directory.resolve().is_relative_to(mount[1])),
        key=lambda mount: len(mount[1]),
    )
    disk = pathlib.Path(device).name
    if disk.startswith('vd'):
        return f'{kind} on a virtual disk'
    if disk.startswith('nvme'):
        return f'{kind} on an NVMe disk'
    return f'{kind} on {"a disk" if device.startswith("/dev/") else "no disk"}'
