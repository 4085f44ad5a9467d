# SPDX-License-Identifier: Apache-2.0
"""A command of ``tools`` that brings a deployment up, and all processes of it."""

import contextlib
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable

import psutil

from tests.service import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARK = 'NOVA_PRECACHE_TEST_OF_DEPLOYMENT'


class Command:
    """A module of ``tools`` as it was started, and every process of it, daemons as well.

    :param directory: for its output and its runs
    """

    def __init__(self, directory: pathlib.Path, module: str, *arguments: str) -> None:
        self.directory = directory
        self._mark = uuid.uuid4().hex
        command = [sys.executable, '-W', 'ignore', '-m', module, *arguments]
        with self.output.open('wb') as output:
            self.process = subprocess.Popen(
                [*command, f'--directory={directory / "runs"}'],
                cwd=ROOT,
                env={**os.environ, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> pathlib.Path:
        return self.directory / 'output'

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(
        self, condition: Callable[[], object], what: str, timeout_seconds: float = 420
    ) -> None:
        """Wait until something is so, unless the command ends before."""

        def so_or_ended() -> bool:
            return bool(condition()) or self.process.poll() is not None

        wait_until(so_or_ended, what, timeout_seconds)
        assert condition(), self.said()

    def alive(self) -> list[list[str]]:
        """Return the command lines of all processes of it that run."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                if self._is_ours(each):
                    found.append(each.cmdline())
        return found

    def _is_ours(self, each: psutil.Process) -> bool:
        try:
            return each.environ().get(MARK) == self._mark
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False

    def end(self) -> None:
        """Kill all that is left of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                if self._is_ours(each):
                    each.kill()
