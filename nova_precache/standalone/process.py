# SPDX-License-Identifier: Apache-2.0
"""Child processes, such as servers, that never outlive their parent."""

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
START_SECONDS = 300  # only one that hangs takes so long
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
        """Return the server's environment; build it if needed."""

    @abc.abstractmethod
    def _prepare(self, home: pathlib.Path) -> None:
        """Write configuration and database; the port is already bound."""

    @abc.abstractmethod
    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        """Return the command that serves on the listener."""

    @abc.abstractmethod
    def _variables(self) -> Mapping[str, str]:
        """Return the environment variables that the command gets in addition to ours."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers.

        It dies with the calling thread (see ``dies_with_parent``).

        :raises ServerFailed: it runs already, did not come up, or the port is taken
        :raises nova_precache.standalone.environment.EnvironmentFailed: it could not be installed
        """
        if self._process is not None:
            raise ServerFailed(f'{self.name} is already running at {self.url}')
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
        """Stop the server if it runs; kill it if it takes too long."""
        if self._process is None:
            return
        stop(self._process, self.stop_signal)
        self._process = None

    def _listen(self) -> socket.socket:
        """Bind the port here, so that no other process takes it before the server uses it."""
        try:
            return socket.create_server((HOST, self.port), backlog=128)
        except OSError as exc:
            raise ServerFailed(f'cannot listen on {HOST}:{self.port}: {exc}') from exc

    def _run(
        self, command: list[str], what: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Run a command of the preparation to its end.

        :param variables: added to its environment, where other users cannot read a secret
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
            # A session of its own: Ctrl-C in the terminal reaches only the parent, which
            # stops the server last.
            return subprocess.Popen(
                # When the parent dies, the server gets the parent's stop signal.
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
        """Send one request: the port is open already, and the server answers as soon as it is up.

        Only the server holds the port now, so it is closed if the server dies.
        """
        try:
            requests.get(self.url, timeout=START_SECONDS).raise_for_status()
        except requests.RequestException as exc:
            raise ServerFailed(f'{self.name} did not start:\n{tail(self.log)}') from exc


def dies_with_parent(command: list[str], signal_name: str) -> list[str]:
    """Return the command with a prefix by which the kernel signals it when its parent dies.

    This works even if the parent is killed with SIGKILL. The kernel regards the *thread* that
    started the child as its parent: start children from the main thread, or from one that
    outlives them.
    """
    # A parent that died before prctl() causes no signal, so check that it still lives.
    still = ['sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    return ['setpriv', '--pdeathsig', signal_name, '--', *still, *command]


def stop(
    child: subprocess.Popen[bytes],
    stop_signal: signal.Signals = signal.SIGTERM,
    seconds: float = STOP_SECONDS,
) -> None:
    """Stop a child that leads its own session; kill the session if it takes too long."""
    child.send_signal(stop_signal)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_lines(text: str, count: int = 20) -> str:
    """Return the last lines of a command's output, which say why it failed."""
    return '\n'.join(text.splitlines()[-count:])


def tail(path: pathlib.Path, count: int = 20) -> str:
    """Return the last lines of a log, or a note that it was not written."""
    try:
        with open(path, 'rb', opener=files.regular) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_MAX_BYTES))
            return last_lines(file.read(_TAIL_MAX_BYTES).decode(errors='replace'), count)
    except FileNotFoundError:
        return f'({path} was not written)'
