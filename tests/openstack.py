# SPDX-License-Identifier: Apache-2.0
"""The real ``openstack`` command: in this process, beside it, or in a terminal of its own."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Self

import pytest

from tests.service import Service
from tools.waiting import TIMEOUT_SECONDS, TimedOut, wait_until

with warnings.catch_warnings():
    # Those of other projects' modules as they are imported.
    warnings.simplefilter('ignore')
    from openstackclient import shell
    from osc_lib import clientmanager

COMMAND = str(pathlib.Path(sys.executable).parent / 'openstack')
CTRL_C = b'\x03'


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


class OpenStack:
    """The openstack command, run in this process: quick, since it is imported once."""

    def __init__(self, cloud: str, capture: pytest.CaptureFixture[str]) -> None:
        self._cloud = cloud
        self._capture = capture

    def __call__(self, *arguments: str) -> Said:
        # It makes one client a process.
        vars(clientmanager.ClientManager)['image_precache']._handle = None
        self._capture.readouterr()
        with _logging_kept():
            try:
                status = shell.main(['--os-cloud', self._cloud, *arguments])
            except SystemExit as end:  # argparse
                status = int(end.code or 0)
        out, err = self._capture.readouterr()
        return Said(status, out, err)


class Terminal:
    """A command in a hidden terminal, where keys can be pressed."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            # Only the terminal of a session sends a signal when Ctrl-C is pressed; and where
            # these tests run in the background, it would be ignored.
            ['setsid', '--ctty', '--', 'env', '--default-signal=INT', *command],
            stdin=side,
            stdout=side,
            stderr=side,
            env={
                **os.environ,
                **environment,
                'TERM': 'xterm',
                'COLUMNS': '160',
                'PYTHONFAULTHANDLER': '1',
            },
        )
        os.close(side)
        self.text = ''
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._main)

    def press(self, key: bytes) -> None:
        os.write(self._main, key)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text, f'{text!r} is on the screen')

    def interrupt(self) -> int:
        """Press Ctrl-C until the command ends: Python loses one that comes at a bad moment."""
        try:
            wait_until(self._ends_after_ctrl_c, 'the command has ended')
        except TimedOut as exc:
            self.process.send_signal(signal.SIGABRT)  # it then says where each thread is
            self.process.wait(TIMEOUT_SECONDS)
            self._reader.join(TIMEOUT_SECONDS)
            raise AssertionError(f'{exc}; on the screen:\n{self.text}') from exc
        return self.end()

    def _ends_after_ctrl_c(self) -> bool:
        self.press(CTRL_C)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TIMEOUT_SECONDS / 4)
        return self.process.poll() is not None

    def end(self) -> int:
        """Wait until the command has ended and all that it said was read; give its status."""
        status = self.process.wait(TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)
        return status

    def _read(self) -> None:
        # Linux ends a terminal that no process has open with an error.
        with contextlib.suppress(OSError):
            while data := os.read(self._main, 65536):
                self.text += data.decode(errors='replace')


class Site:
    """A running standalone with the openstack command before it."""

    def __init__(self, service: Service, conf: str, capture: pytest.CaptureFixture[str]) -> None:
        self.service = service
        self.environment = {'OS_CLIENT_CONFIG_FILE': str(pathlib.Path(conf).parent / 'clouds.yaml')}
        self._openstack = OpenStack('precache', capture)

    def __call__(self, *arguments: str) -> Any:
        """Run a command that succeeds, and give what it printed as JSON."""
        return self.run(*arguments, '-f', 'json').json

    def run(self, *arguments: str) -> Said:
        """Run a command in this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return self._openstack(*arguments)

    @contextlib.contextmanager
    def in_terminal(self, *arguments: str) -> Iterator[Terminal]:
        with Terminal([COMMAND, '--os-cloud', 'precache', *arguments], self.environment) as opened:
            yield opened

    def beside(self, *arguments: str) -> subprocess.Popen[str]:
        """Run a command as a process of its own whose output goes to pipes."""
        return subprocess.Popen(
            [COMMAND, '--os-cloud', 'precache', *arguments],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Undo what the shell does to logging, which belongs to the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    known = {name: logging.getLogger(name).level for name in list(root.manager.loggerDict)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in known.items():
        logging.getLogger(name).setLevel(before)
