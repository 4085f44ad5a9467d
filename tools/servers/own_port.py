# SPDX-License-Identifier: Apache-2.0
"""Servers of Debian's packages, each on a port and in a directory of its own.

None touches what the packages set up, and none outlives the process that started it.
"""

import abc
import os
import pathlib
import shutil
import socket
from collections.abc import Mapping
from typing import Self

from nova_precache.standalone import process
from tools import waiting


class ProgramMissing(process.ServerFailed):
    """A program is not installed; the message names its package."""


class OwnPort(process.ServerProcess):
    """A server that opens its port itself.

    ``start`` returns before it serves, so that several can start at once; then call ``wait``.
    """

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self) -> None:
        """Wait until it serves.

        :raises nova_precache.standalone.process.ServerFailed: it ended, or takes too long
        """
        waiting.wait_for_child(self.name, self._process, self._serves, self.log)

    @abc.abstractmethod
    def _serves(self) -> bool:
        """Return whether it answers yet."""

    def _listen(self) -> socket.socket:
        return reserve(self.port)

    def _wait_until_it_answers(self) -> None:
        """Do nothing; ``wait`` waits."""

    def _variables(self) -> Mapping[str, str]:
        return {}


def reserve(port: int = 0) -> socket.socket:
    """Reserve a port until the socket is closed: the kernel then assigns it to no other socket.

    A server can still open it by its number, since this socket does not listen.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((process.HOST, port))
    return reserved


def accepts(port: int) -> bool:
    """Return whether a server listens on a port of the loopback."""
    with socket.socket() as client:
        return client.connect_ex((process.HOST, port)) == 0


def program(name: str, package: str, *directories: str) -> pathlib.Path:
    """Return the path of a program, from the directories first, then from PATH.

    :raises ProgramMissing: it is in none
    """
    found = shutil.which(name, path=os.pathsep.join(directories)) or shutil.which(name)
    if found is None:
        raise ProgramMissing(f'{name} is missing: apt-get install {package}')
    return pathlib.Path(found)
