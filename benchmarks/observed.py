# SPDX-License-Identifier: Apache-2.0
"""Figures that the kernel keeps about a process or a file."""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess

import psutil

from nova_precache.standalone import process

_TICKS_PER_SECOND = os.sysconf('SC_CLK_TCK')
_CPU_FIELDS = slice(11, 15)  # utime, stime, cutime, cstime: after the name, from field 3 on


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory of a process, now and at its peak."""

    resident_bytes: int
    peak_bytes: int


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, of a process and of its children that ended."""
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    fields = text.rpartition(')')[2].split()
    return sum(map(int, fields[_CPU_FIELDS])) / _TICKS_PER_SECOND


def pid_of_child(name: str) -> int:
    """Return the process with that name among the children of this process, and theirs."""
    found = psutil.Process().children(recursive=True)
    return next(each.pid for each in found if each.name() == name)


def memory(pid: int) -> Memory:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
    kibibytes = dict(re.findall(r'^(Vm\w+):\s+(\d+) kB$', status, re.MULTILINE))
    return Memory(int(kibibytes['VmRSS']) * 1024, int(kibibytes['VmHWM']) * 1024)


def threads(pid: int) -> int:
    return len(os.listdir(f'/proc/{pid}/task'))


def open_files(pid: int) -> list[str]:
    """List the open files of a process, sockets and pipes without their numbers."""
    found = []
    directory = f'/proc/{pid}/fd'
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r'\d+', '', os.readlink(f'{directory}/{name}')))
    return sorted(found)


def processes_naming(text: str) -> list[str]:
    """List the other processes with a text in their arguments."""
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
    """Return how many bytes of a file are in the page cache."""
    command = ['fincore', '--bytes', '--noheadings', '--raw', '--output', 'RES', str(path)]
    result = subprocess.run(
        process.dies_with_parent(command, 'KILL'), check=True, capture_output=True, text=True
    )
    return int(result.stdout)


def disk_bytes(path: pathlib.Path) -> int:
    """Return how many bytes of the disk a file takes."""
    return path.stat().st_blocks * 512


def same_content(one: pathlib.Path, other: pathlib.Path) -> bool:
    command = ['cmp', '--silent', str(one), str(other)]
    return subprocess.run(process.dies_with_parent(command, 'KILL'), check=False).returncode == 0
