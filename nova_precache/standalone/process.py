# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the process that started them."""

import pathlib


def dies_with_parent(command: list[str], signal_name: str) -> list[str]:
    """Give the command under which the kernel sends it a signal when its parent is gone.

    It holds even when the parent is killed with SIGKILL. The kernel counts the
    *thread* that started the child as its parent: start children from the main
    thread, or from one that lives as long as they shall.
    """
    return ['setpriv', '--pdeathsig', signal_name, '--', *command]


def last_lines(text: str, count: int = 20) -> str:
    """Shorten the output of a command to what tells why it failed."""
    return '\n'.join(text.splitlines()[-count:])


def tail(path: pathlib.Path, count: int = 20) -> str:
    """Give the last lines of a log, or say that there is none."""
    try:
        return last_lines(path.read_text(errors='replace'), count)
    except FileNotFoundError:
        return f'({path} was not written)'
