# SPDX-License-Identifier: Apache-2.0
"""Run a program on untrusted input: within limits, killed on demand.

Small launchers set the limits and then exec the program, so it is the only process: killing it
leaves nothing behind. It also dies with this process.
"""

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from nova_precache import priority
from nova_precache.transfer_control import Control

# Part of util-linux, like ionice.
PROGRAMS = ('setpriv', 'prlimit')
LAUNCHERS = (*PROGRAMS, 'ionice')


@dataclasses.dataclass(frozen=True)
class ResourceLimits:
    """Resource limits of a program.

    :ivar file_bytes: largest size of a file that it writes, and of its output
    """

    address_space_bytes: int
    cpu_seconds: int
    wall_seconds: float
    file_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """The result of a program; a negative exit code is that of a signal."""

    exit_code: int
    output: str
    errors: str


def run(
    command: Sequence[str],
    limits: ResourceLimits,
    control: Control | None = None,
    *,
    idle_priority: bool = False,
) -> Ended:
    """Run a program to its end.

    :param control: stopping it kills the program
    :param idle_priority: run it only while the host is otherwise idle, until it is urgent
    :raises nova_precache.exception.CacheError: the control was stopped with it
    :raises TimeoutError: it took longer than allowed
    :raises OSError: it could not be started
    """
    control = control or Control()
    control.check()
    idle_priority = idle_priority and not control.is_boot  # niceness cannot always be restored
    with open(os.memfd_create('output'), 'r+b') as output:  # a file, so that its size is limited
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
        # The messages are parsed for file system errors, so they are in English. An arena per
        # thread would take as much address space as many images need.
        env={**os.environ, 'LC_ALL': 'C', 'MALLOC_ARENA_MAX': '2'},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C in the terminal reaches only this process, which kills the child
    )


def _command(command: Sequence[str], limits: ResourceLimits, idle_priority: bool) -> list[str]:
    file_limit = [] if limits.file_bytes is None else [f'--fsize={limits.file_bytes}']
    limited = [
        # With CAP_FOWNER, a program that an image took over could open the disks of all guests.
        *('setpriv', '--pdeathsig', 'KILL', '--inh-caps=-fowner', '--ambient-caps=-fowner'),
        *('prlimit', f'--as={limits.address_space_bytes}', f'--cpu={limits.cpu_seconds}'),
        *('--core=0', *file_limit),
        *command,
    ]
    return priority.idle_command(limited) if idle_priority else limited


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process on leaving."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _text(data: bytes) -> str:
    return data.decode(errors='replace')
