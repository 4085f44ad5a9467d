# SPDX-License-Identifier: Apache-2.0
"""Runs a program that reads what somebody unknown wrote: within limits, ended on demand.

The limits are set by small programs that turn into the one to be run, so it is
the only process: ending it leaves nothing behind. It also ends when this process does.
"""

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from nova_precache import priority
from nova_precache.transfer_control import Control

# Part of util-linux, as what makes a program idle is.
PROGRAMS = ('setpriv', 'prlimit')
LAUNCHERS = (*PROGRAMS, 'ionice')


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    :ivar file_bytes: to which a file may grow that it writes, and what it prints
    """

    address_space_bytes: int
    cpu_seconds: int
    wall_seconds: float
    file_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended; a negative exit code is that of a signal."""

    exit_code: int
    output: str
    errors: str


def run(
    command: Sequence[str],
    limits: Limits,
    control: Control | None = None,
    *,
    idle_priority: bool = False,
) -> Ended:
    """Run a program to its end.

    :param control: ends it when stopped
    :param idle_priority: run it only while there is nothing else to do, until it is urgent
    :raises nova_precache.exception.CacheError: what the control was stopped with
    :raises TimeoutError: it took more than its time
    :raises OSError: it could not be started
    """
    control = control or Control()
    control.check()
    idle_priority = idle_priority and not control.is_boot  # niceness is not always given back
    with open(os.memfd_create('output'), 'r+b') as output:  # a file, of which the size is limited
        process = _start(_command(command, limits, idle_priority), output)
        following = (
            priority.follow(process.pid, control) if idle_priority else contextlib.nullcontext()
        )
        with process, _ended(process), control.on_stop(process.kill), following:
            try:
                _, errors = process.communicate(timeout=limits.wall_seconds)
            except subprocess.TimeoutExpired as exc:
                raise TimeoutError from exc
        control.check()
        output.seek(0)
        return Ended(process.returncode, _text(output.read()), _text(errors))


def _start(command: Sequence[str], output: BinaryIO) -> 'subprocess.Popen[bytes]':
    return subprocess.Popen(
        command,
        # Its messages tell what the file system refused. Each thread's arena would
        # take of the address space as much as many images need.
        env={**os.environ, 'LC_ALL': 'C', 'MALLOC_ARENA_MAX': '2'},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        process_group=0,  # a Ctrl-C in the terminal is for this process, which ends it
    )


def _command(command: Sequence[str], limits: Limits, idle_priority: bool) -> list[str]:
    file_limit = [] if limits.file_bytes is None else [f'--fsize={limits.file_bytes}']
    limited = [
        # With it, a program that an image took over could open the disks of all guests.
        *('setpriv', '--pdeathsig', 'KILL', '--inh-caps=-fowner', '--ambient-caps=-fowner'),
        *('prlimit', f'--as={limits.address_space_bytes}', f'--cpu={limits.cpu_seconds}'),
        *('--core=0', *file_limit),
        *command,
    ]
    return priority.idle_command(limited) if idle_priority else limited


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no process behind, however the work with it ends."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _text(data: bytes) -> str:
    return data.decode(errors='replace')
