# SPDX-License-Identifier: Apache-2.0
"""One command starts a whole deployment, which works, and leaves nothing afterwards."""

import os
import pathlib
import re
import shutil
import signal
from collections.abc import Iterator

import pytest

from nova_precache.standalone import glance as glance_server
from tests.command import Command
from tests.conftest import require_environment, require_server
from tests.service import wait_until
from tools.servers import keystone as keystone_server
from tools.waiting import TIMEOUT_SECONDS

PROGRAMS = {
    'epmd': 'rabbitmq-server',
    'mariadbd': 'mariadb-server',
    'qemu-img': 'qemu-utils',
    'setpriv': 'util-linux',
}
CONFIGURATION = {'.conf', '.yaml'}
# A password, also one within a URL.
SECRET = re.compile(r'password: (\w+)|^password = (\w+)|://\w+:(\w+)@', re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _servers() -> None:
    for program, package in PROGRAMS.items():
        path = f'{os.environ["PATH"]}{os.pathsep}/usr/sbin'
        require_server(program, shutil.which(program, path=path) is not None, package)
    for each in (glance_server.ENVIRONMENT, keystone_server.ENVIRONMENT):
        require_environment(each)


@pytest.fixture
def command(tmp_path: pathlib.Path) -> Iterator[Command]:
    started = Command(tmp_path, 'tools.deploy_local', '--keep', '--computes=2')
    try:
        yield started
    finally:
        started.end()


@pytest.mark.timeout(600)  # the whole deployment, in some thirty processes
def test_deployment_caches_image_and_leaves_nothing(
    command: Command,
) -> None:
    command.wait_for(lambda: 'until Ctrl-C' in command.said(), 'it was shown, and waits')
    (run,) = (command.directory / 'runs').iterdir()
    files = [path for path in run.rglob('*') if path.is_file() and not path.is_symlink()]

    configured = {path.name: path.read_text() for path in files if path.suffix in CONFIGURATION}
    secrets = {''.join(found) for text in configured.values() for found in SECRET.findall(text)}
    assert len(secrets) >= 6  # the operator, two services, MariaDB and two logins of RabbitMQ
    assert not run.stat().st_mode & 0o077
    assert not any((run / name).stat().st_mode & 0o077 for name in ('api.conf', 'clouds.yaml'))
    # A compute knows the URL of its cell's broker.
    assert len(SECRET.findall(configured['cell1-compute1.conf'])) == 1

    command_lines = ' '.join(word for line in command.alive() for word in line)
    assert 'mariadbd' in command_lines
    logs = ''.join(path.read_text(errors='replace') for path in files if path.suffix == '.log')
    told = command.said() + command_lines + logs
    assert [secret for secret in secrets if secret in told] == []

    command.process.send_signal(signal.SIGINT)

    assert command.process.wait(TIMEOUT_SECONDS) == 0, command.said()
    wait_until(lambda: not command.alive(), 'nothing is left')
    assert 'Glance served the image 2 times, to 2 hosts.' in command.said()
    assert re.search(r'counts +\| (cached|existing): 2', command.said())


def test_killed_deployment_leaves_no_process(command: Command) -> None:
    def is_on_its_way() -> bool:
        lines = [' '.join(line) for line in command.alive()]
        return all(any(word in line for line in lines) for word in ('beam', 'epmd', 'mariadbd'))

    command.wait_for(is_on_its_way, 'the first servers run')

    command.process.kill()

    command.process.wait()
    wait_until(lambda: not command.alive(), f'nothing is left: {command.alive()}')
