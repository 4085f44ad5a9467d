# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of a process and of a file."""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess

from nova_precache.standalone import process

_TICKS_PER_SECOND = os.sysconf('SC_CLK_TCK')
_CPU_FIELDS = slice(11, 15)  # utime, stime, cutime, cstime: after the name, from field 3 on


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a process: what is resident now, and the most that ever was."""

    resident_bytes: int
    peak_bytes: int


def cpu_seconds(pid: int) -> float:
    """Tell the CPU time of a process and of its children that ended, user and system."""
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    fields = text.rpartition(')')[2].split()
    return sum(map(int, fields[_CPU_FIELDS])) / _TICKS_PER_SECOND


def memory(pid: int) -> Memory:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
    kibibytes = dict(re.findall(r'^(Vm\w+):\s+(\d+) kB$', status, re.MULTILINE))
    return Memory(int(kibibytes['VmRSS']) * 1024, int(kibibytes['VmHWM']) * 1024)


def threads(pid: int) -> int:
    return len(os.listdir(f'/proc/{pid}/task'))


def open_files(pid: int) -> list[str]:
    """Name what a process has open, sockets and pipes without their numbers."""
    found = []
    directory = f'/proc/{pid}/fd'
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r'\d+', '', os.readlink(f'{directory}/{name}')))
    return sorted(found)


def processes_naming(text: str) -> list[str]:
    """Give the commands that run with this text in their arguments, but this process's own."""
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
            if text in command:
                found.append(f'{entry.name}: {command.strip()}')
    return found


def cached_bytes(path: pathlib.Path) -> int:
    """Tell how much of a file is in the page cache."""
    command = ['fincore', '--bytes', '--noheadings', '--raw', '--output', 'RES', str(path)]
    result = subprocess.run(
        process.dies_with_parent(command, 'KILL'), check=True, capture_output=True, text=True
    )
    return int(result.stdout)


def disk_bytes(path: pathlib.Path) -> int:
    """Tell how much of the disk a file takes."""
    return path.stat().st_blocks * 512


def same_content(one: pathlib.Path, other: pathlib.Path) -> bool:
    command = ['cmp', '--silent', str(one), str(other)]
    return subprocess.run(process.dies_with_parent(command, 'KILL'), check=False).returncode == 0
