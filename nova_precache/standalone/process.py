# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the process that started them, and servers among them."""

import abc
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Mapping
from typing import BinaryIO, ClassVar, Self

import requests

from nova_precache import exception, files

HOST = '127.0.0.1'
START_SECONDS = 60
PREPARE_SECONDS = 600.0
STOP_SECONDS = 15
_TAIL_MAX_BYTES = 64 * 1024


class ServerFailed(exception.PrecacheError):
    """A server could not be set up or started; the message has the last lines of its log."""


class ServerProcess(abc.ABC):
    """A server on a port of the loopback, with all its data and its log in one directory.

    :param port: port to listen on; 0 takes a free one at the first start and keeps it
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: pathlib.Path, port: int = 0) -> None:
        self.directory = directory.resolve()
        self.port = port
        self.log = self.directory / f'{self.name.lower()}.log'
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f'http://{HOST}:{self.port}'

    @abc.abstractmethod
    def _install(self) -> pathlib.Path:
        """Give the environment that the server runs in, built when it must be."""

    @abc.abstractmethod
    def _prepare(self, home: pathlib.Path) -> None:
        """Write configuration and database; the port is known and ours."""

    @abc.abstractmethod
    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        """Give the command that serves on the listener."""

    @abc.abstractmethod
    def _variables(self) -> Mapping[str, str]:
        """Give what the command finds in its environment, beside ours."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers.

        It dies with the thread that calls this (see ``dies_with_parent``).

        :raises ServerFailed: it runs already, did not come up, or the port is taken
        :raises nova_precache.standalone.environment.EnvironmentFailed: it is not installed
            and could not be
        """
        if self._process is not None:
            raise ServerFailed(f'{self.name} runs already at {self.url}')
        home = self._install()
        with self._listen() as listener:
            self.port = listener.getsockname()[1]
            self._prepare(home)
            self._process = self._spawn(self._command(home, listener), listener)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, with force when it takes too long; nothing when it does not run."""
        if self._process is None:
            return
        stop(self._process, self.stop_signal)
        self._process = None

    def _listen(self) -> socket.socket:
        """Take the port here, so that nobody else can between choosing and using it."""
        try:
            return socket.create_server((HOST, self.port), backlog=128)
        except OSError as exc:
            raise ServerFailed(f'cannot listen on {HOST}:{self.port}: {exc}') from exc

    def _run(
        self, command: list[str], what: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Run a command to its end, as a part of the preparation.

        :param variables: for its environment, where no other process sees a secret
        """
        try:
            with self._opened_log() as log:
                result = subprocess.run(
                    dies_with_parent(command, 'KILL'),
                    env={**os.environ, **(variables or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=PREPARE_SECONDS,
                )
        except subprocess.TimeoutExpired as exc:
            raise ServerFailed(f'{what} took more than {PREPARE_SECONDS:g} s') from exc
        if result.returncode != 0:
            raise ServerFailed(f'{what} failed:\n{tail(self.log)}')

    def _spawn(self, command: list[str], listener: socket.socket) -> subprocess.Popen[bytes]:
        with self._opened_log() as log:
            # A session of its own: a Ctrl-C in the terminal reaches whoever runs the
            # server, who stops it last.
            return subprocess.Popen(
                # When its parent is gone it is to stop as it would be stopped by it.
                dies_with_parent(command, self.stop_signal.name.removeprefix('SIG')),
                env={**os.environ, **self._variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def _opened_log(self) -> BinaryIO:
        try:
            return open(self.log, 'ab', opener=files.regular)
        except OSError as exc:
            raise ServerFailed(f'the log {self.log} cannot be used: {exc.strerror}') from exc

    def _wait_until_it_answers(self) -> None:
        """Ask once: the port is open already, and the answer comes as soon as it is up.

        Only the server holds the port now, so it is closed when the server dies.
        """
        try:
            requests.get(self.url, timeout=START_SECONDS).raise_for_status()
        except requests.RequestException as exc:
            raise ServerFailed(f'{self.name} did not come up:\n{tail(self.log)}') from exc


def dies_with_parent(command: list[str], signal_name: str) -> list[str]:
    """Give the command under which the kernel sends it a signal when its parent is gone.

    It holds even when the parent is killed with SIGKILL. The kernel counts the
    *thread* that started the child as its parent: start children from the main
    thread, or from one that lives as long as they shall.
    """
    # One that was gone before the kernel was told sends no signal any more.
    still = ['sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    return ['setpriv', '--pdeathsig', signal_name, '--', *still, *command]


def stop(
    child: subprocess.Popen[bytes],
    stop_signal: signal.Signals = signal.SIGTERM,
    seconds: float = STOP_SECONDS,
) -> None:
    """Stop a child that leads a session of its own, with force when it takes too long."""
    child.send_signal(stop_signal)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_lines(text: str, count: int = 20) -> str:
    """Shorten the output of a command to what tells why it failed."""
    return '\n'.join(text.splitlines()[-count:])


def tail(path: pathlib.Path, count: int = 20) -> str:
    """Give the last lines of a log, or say that there is none."""
    try:
        with open(path, 'rb', opener=files.regular) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_MAX_BYTES))
            return last_lines(file.read(_TAIL_MAX_BYTES).decode(errors='replace'), count)
    except FileNotFoundError:
        return f'({path} was not written)'
