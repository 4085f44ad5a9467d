# SPDX-License-Identifier: Apache-2.0
"""Records what commands of the openstack client print in a terminal of 80 columns.

``python -m tools.captures`` starts nova-precache-standalone with a Glance, uploads two images,
pins one, caches both on four hosts at a low rate, and writes what the commands print meanwhile
to ``doc/source/client-captures.inc``.
"""

import contextlib
import os
import pathlib
import pty
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent import futures
from typing import Self

from nova_precache import model
from nova_precache.standalone import process
from tools import showing
from tools.quickstart import Service, started
from tools.waiting import wait_until

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'doc' / 'source' / 'client-captures.inc'
COLUMNS = 80
AGGREGATE = 'edge'
IMAGES = {'debian-12-genericcloud-amd64': 48, 'windows-2025': 24}
PINNED = 'windows-2025'
RATE = '2M'
WAITING = 'create --aggregate edge --wait debian-12-genericcloud-amd64 windows-2025'
# By command, as the page names it.
LISTS = ('list', 'task list', 'host list', 'image list --host', 'pin list')

# rich moves up and erases each line of the last frame before it draws the next.
_NEXT_FRAME = re.compile(r'(?:\r?\x1b\[2K|\x1b\[1A)+')
_ESCAPE = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')
# Of a host at work, and of the total.
_PACE = re.compile(r'downloading 0/2, \S+ MiB/s, \d+:\d\d:\d\d')


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix='captures-') as directory,
        started(pathlib.Path(directory), keep=False) as service,
    ):
        _prepare(service)
        PAGE.write_text(render(_capture(service)))
    return 0


def render(captures: Mapping[str, str]) -> str:
    """Return the captures as reStructuredText.

    :param captures: what each command printed
    """
    return '\n'.join(_block(command, said) for command, said in captures.items())


class Screen:
    """A command in a terminal of 80 columns, and the frame that it shows."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._main, side = pty.openpty()
        self._process = subprocess.Popen(
            process.dies_with_parent(command, 'KILL'),
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, **environment, 'TERM': 'xterm', 'COLUMNS': str(COLUMNS)},
        )
        os.close(side)
        self._text = ''
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._main)

    @property
    def frame(self) -> str:
        """The last complete frame."""
        *_, frame, _ = ['', *_NEXT_FRAME.split(self._text)]
        return _ESCAPE.sub('', frame.replace('\r\n', '\n'))

    def _read(self) -> None:
        # Linux ends a terminal that no process has open with an error.
        with contextlib.suppress(OSError):
            while data := os.read(self._main, 65536):
                self._text += data.decode(errors='replace')


def _prepare(service: Service) -> None:
    for name, mib in IMAGES.items():
        with showing.random_qcow2(service.directory, mib) as file:
            options = ('--disk-format', 'qcow2', '--file', str(file), '--public')
            service.openstack('image', 'create', *options, name)
    service.openstack('aggregate', 'create', AGGREGATE)
    for host in service.hosts:
        service.openstack('aggregate', 'add', 'host', AGGREGATE, host['name'])
    service.openstack('precache', 'pin', 'create', '--aggregate', AGGREGATE, PINNED)
    wait_until(lambda: _statuses(service) == {'completed'}, 'the pinned image is cached')


def _statuses(service: Service) -> set[str]:
    return {str(request['status']) for request in service.get('/requests')['requests']}


def _capture(service: Service) -> Mapping[str, str]:
    """Run the commands while a request is at work."""
    command, *rest = WAITING.split()
    words = ['openstack', 'precache', command, '--max-rate', RATE, *rest]
    words[0] = str(showing.BINARIES / words[0])
    with Screen(words, service.environment()) as screen:
        wait_until(lambda: _PACE.search(screen.frame), 'a host is at work')
        frame = screen.frame
        (request,) = (
            each
            for each in service.get('/requests')['requests']
            if each['status'] in model.REQUEST_ACTIVE
        )
        arguments = {'task list': [request['id']], 'image list --host': [service.hosts[0]['name']]}
        commands = [[*name.split(), *arguments.get(name, ())] for name in LISTS]
        # At the same time, while the request runs.
        with futures.ThreadPoolExecutor() as pool:
            said = pool.map(lambda words: service.openstack('precache', *words), commands)
        return {WAITING: frame, **dict(zip(map(' '.join, commands), said, strict=True))}


def _block(command: str, said: str) -> str:
    lines = (f'   {line}'.rstrip() for line in said.strip('\n').splitlines())
    return f'``openstack precache {command}``:\n\n.. code-block:: text\n\n' + ''.join(
        f'{line}\n' for line in lines
    )


if __name__ == '__main__':
    sys.exit(main())
