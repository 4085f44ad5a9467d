# SPDX-License-Identifier: Apache-2.0
"""Python environments for servers that cannot share ours.

Each OpenStack server pins its dependencies, and the pins of two servers seldom agree. So a
server that standalone or the tools run is installed into an environment of its own, once per
user, in the user's cache directory.
"""

import dataclasses
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import ClassVar

from oslo_concurrency import lockutils

from nova_precache import exception, files
from nova_precache.standalone import process

LOG = logging.getLogger(__name__)

_STAMP = 'complete'
INSTALL_SECONDS = 3600.0


class EnvironmentFailed(exception.PrecacheError):
    """An environment could not be built; the message has the command and its last lines."""


@dataclasses.dataclass(frozen=True)
class PythonEnvironment:
    """A named virtual environment and its requirements."""

    name: str
    requirements: tuple[str, ...]

    @property
    def path(self) -> pathlib.Path:
        """Its directory: each Python has its own, so that none is replaced while in use."""
        return cache_directory() / self._own_name

    @property
    def _own_name(self) -> str:
        return f'{self.name}-python-{platform.python_version()}'

    def ensure(self) -> pathlib.Path:
        """Build the environment unless it exists, and return its directory.

        Virtual environments cannot be moved, so it is built in place: the stamp, written last,
        distinguishes a complete one from the rest of an interrupted build. Concurrent callers
        wait for the first.

        :raises EnvironmentFailed: a command failed
        """
        lock = lockutils.external_lock(self._own_name, 'lock-', str(cache_directory()))
        with lockutils.internal_lock(self._own_name):
            try:
                cache_directory().mkdir(parents=True, exist_ok=True)
                files.open_lock(lock)
            except OSError as exc:
                raise EnvironmentFailed(f'{exc.filename} cannot be used: {exc.strerror}') from exc
            with lock:
                if not files.holds(self.path / _STAMP, self._stamp()):
                    self._build()
        return self.path

    def _stamp(self) -> str:
        """Return the inputs of the build; without its Python an environment is unusable."""
        return '\n'.join([sys.version, os.path.realpath(sys.executable), *self.requirements])

    def _build(self) -> None:
        LOG.info('Building %s with %s', self.path, ', '.join(self.requirements))
        if self.path.exists():
            shutil.rmtree(self.path)
        _run([sys.executable, '-m', 'venv', str(self.path)])
        pip = [str(self.path / 'bin' / 'python'), '-m', 'pip', '--disable-pip-version-check']
        _run([*pip, 'install', '--progress-bar', 'off', *self.requirements])
        files.replace_whole(self.path / _STAMP, self._stamp())


class PythonServer(process.ServerProcess):
    """A server that is installed into an environment of its own."""

    python_environment: ClassVar[PythonEnvironment]

    def _install(self) -> pathlib.Path:
        return self.python_environment.ensure()

    def _manage(
        self,
        home: pathlib.Path,
        program: str,
        configuration: pathlib.Path,
        command: str,
        *options: str,
        **variables: str,
    ) -> None:
        """Run a command of the server's management program to its end.

        :param variables: added to its environment variables
        """
        arguments = [str(home / 'bin' / program), f'--config-file={configuration}', command]
        self._run([*arguments, *options], f'{program} {command}', variables)


def cache_directory() -> pathlib.Path:
    """Return the directory of the environments: ``$XDG_CACHE_HOME/nova-precache``."""
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'nova-precache'


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            process.dies_with_parent(command, 'KILL'),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            check=False,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as exc:
        raise EnvironmentFailed(
            f'"{" ".join(command)}" took more than {INSTALL_SECONDS:g} s'
        ) from exc
    if result.returncode != 0:
        raise EnvironmentFailed(
            f'"{" ".join(command)}" ended with {result.returncode}:\n'
            f'{process.last_lines(result.stdout)}'
        )
