# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver of a stock nova-compute, as a child process that takes commands."""

import dataclasses
import json
import pathlib
import subprocess
from typing import Any, Self

from nova_precache.standalone import process
from tools.servers import nova

_SCRIPT = pathlib.Path(__file__).with_name('libvirt_script.py')
_NOWHERE = 'http://127.0.0.1:9'
_CONFIGURATION = """\
[DEFAULT]
state_path = {directory}
[database]
connection = sqlite:///{directory}/nova.sqlite
[glance]
num_retries = 0
"""

Options = dict[str, dict[str, Any]]


class NovaError(Exception):
    """An error of stock Nova; the message has the name of its exception and its message."""


@dataclasses.dataclass
class LibvirtCompute:
    """A stock Nova without libvirt; one command at a time.

    :param directory: for its configuration, database and log
    """

    directory: pathlib.Path

    def __enter__(self) -> Self:
        configuration = self.directory / 'nova.conf'
        configuration.write_text(_CONFIGURATION.format(directory=self.directory))
        python = nova.ENVIRONMENT.path / 'bin' / 'python'
        command = [str(python), '-P', str(_SCRIPT), f'--config-file={configuration}']
        with (self.directory / 'stderr.log').open('wb') as log:
            self._process = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, what: str, options: Options, glance_url: str | None, **arguments: Any) -> Any:
        """Run a command and return its result.

        :param glance_url: None for an address without a server
        :raises NovaError: Nova raised an error
        """
        glance = {'api_servers': [glance_url or _NOWHERE]}
        command = {'do': what, 'options': {**options, 'glance': glance}, **arguments}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + '\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, process.tail(self.directory / 'stderr.log')
        answer = json.loads(line)
        if 'error' in answer:
            raise NovaError(f'{answer["error"]}: {answer["message"]}')
        return answer['result']
