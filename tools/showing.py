# SPDX-License-Identifier: Apache-2.0
"""Steps, commands and an image for the commands that show the service at work."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from rich import console

from nova_precache.standalone import process
from tools import boot_sector

BINARIES = pathlib.Path(sys.executable).parent
COMMAND_SECONDS = 300

CONSOLE = console.Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120
)


class StepFailed(Exception):
    """A step failed; the message has the step and the reason."""


def step(title: str) -> None:
    CONSOLE.print(f'\n{title}', style='bold', markup=False)


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, watched: bool = False
) -> str:
    """Show a command, run it, and return its output.

    :param watched: show its errors while it runs
    :raises StepFailed: it failed, or took too long
    """
    CONSOLE.print(f'$ {" ".join(command)}', style='dim', markup=False)
    path = f'{BINARIES}{os.pathsep}{os.environ["PATH"]}'
    # Without the variables of another cloud.
    ours = {name: value for name, value in os.environ.items() if not name.startswith('OS_')}
    try:
        result = subprocess.run(
            process.dies_with_parent([*command], 'KILL'),
            env={**ours, 'PATH': path, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if watched else subprocess.PIPE,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise StepFailed(f'"{" ".join(command)}" took too long: {exc.timeout} s') from exc
    if result.returncode != 0:
        said = process.last_lines(result.stdout + (result.stderr or ''))
        raise StepFailed(f'"{" ".join(command)}" failed:\n{said}')
    return result.stdout


@contextlib.contextmanager
def random_qcow2(directory: pathlib.Path, mib: int) -> Iterator[pathlib.Path]:
    """Create a temporary qcow2 image of data that does not compress.

    A guest that boots from it writes ``boot_sector.LINE`` to its serial console.
    """
    raw, qcow2 = directory / 'random.raw', directory / 'random.qcow2'
    try:
        with raw.open('wb') as file:
            file.write(boot_sector.content())
            file.write(os.urandom(mib * 2**20 - file.tell()))
        run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', str(raw), str(qcow2)])
        yield qcow2
    finally:
        raw.unlink(missing_ok=True)
        qcow2.unlink(missing_ok=True)
