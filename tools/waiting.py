# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, or for a child process to serve."""

import contextlib
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from nova_precache import exception
from nova_precache.standalone import process

TIMEOUT_SECONDS = 120
POLL_SECONDS = 0.05


class TimedOut(exception.PrecacheError):
    """A condition did not become true in time; the message names it."""


def wait_until(
    condition: Callable[[], Any],
    what: str,
    timeout_seconds: float = TIMEOUT_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> Any:
    """Wait until a condition returns a true value, and return that value.

    :raises TimedOut: it returned none in time
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout_seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimedOut(f'timed out after {timeout_seconds:g} s: {what}')
        pause.wait(poll_seconds)
    return found


def wait_until_frozen(pid: int) -> None:
    """Wait until a process that got SIGSTOP stands still.

    The signal stops its threads one after the other; until then, one of them may still answer.
    """

    def states() -> set[str]:
        found = set()
        for stat in pathlib.Path(f'/proc/{pid}/task').glob('*/stat'):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found.add(stat.read_text().rpartition(')')[2].split()[0])
        return found

    wait_until(lambda: states() <= {'T', 'Z'}, f'process {pid} stands still')


def wait_for_child(
    name: str,
    child: subprocess.Popen[bytes] | None,
    serves: Callable[[], bool],
    log: pathlib.Path,
    timeout_seconds: float = process.START_SECONDS,
) -> None:
    """Wait until a child process serves.

    :raises nova_precache.standalone.process.ServerFailed: it ended, or does not serve in time; the
        message has the last lines of its log
    """

    def ended() -> bool:
        return child is None or child.poll() is not None

    try:
        wait_until(lambda: ended() or serves(), f'{name} serves', timeout_seconds)
    except TimedOut:
        pass
    else:
        if not ended():
            return
    raise process.ServerFailed(f'{name} did not start:\n{process.tail(log)}')
