# SPDX-License-Identifier: Apache-2.0
"""The administrator's guide, followed command by command, from an installed wheel to an image.

The controller, the compute host and the client are machines of their own (see
``tests/slow/machine.py``), into which the guide installs the package. RabbitMQ, MariaDB, Keystone
and Glance run here. What is replaced in the commands is in the fixture ``guide``: passwords, and
where these servers answer.
"""

import contextlib
import hashlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import requests

from nova_precache.standalone import glance as glance_server
from tests import service
from tests.conftest import require_environment, require_server, running
from tests.leaks import SECRETS
from tests.openstack import Terminal
from tests.slow.machine import Machine, machine
from tools import documentation
from tools.documentation import ROOT, Block
from tools.servers import databases, keystone as keystone_server
from tools.servers.glance import GlanceUnderKeystone
from tools.servers.rabbitmq import Login, RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.slow

ADMIN = 'doc/source/admin.rst'
AUTHENTICATION = 'doc/source/authentication.rst'
CLIENT = 'doc/source/client.rst'
MANAGE = 'doc/source/manage.rst'
PIPELINE = 'doc/source/pipeline.rst'
IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
MIB = 1024**2
PASSWORDS = (
    'BROKER_PASSWORD',
    'CELL1_PASSWORD',
    'DATABASE_PASSWORD',
    'IMAGES_PASSWORD',
    'SERVICE_PASSWORD',
)
# Only services need these: none may be installed beside the openstack command.
OF_SERVICES = ('alembic', 'keystonemiddleware', 'oslo.messaging', 'oslo.service', 'SQLAlchemy')


class Here:
    """Runs scripts on this machine, with programs before those in PATH."""

    def __init__(self, directory: pathlib.Path, **programs: str) -> None:
        directory.mkdir()
        self.directory = directory
        for name, text in programs.items():
            path = directory / name
            path.write_text(f'#!/bin/bash\n{text}\n')
            path.chmod(0o755)

    def run(self, script: str, answers: str = '') -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ['/bin/bash', '-euo', 'pipefail', '-c', script],
            input=answers,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env={**os.environ, 'PATH': f'{self.directory}{os.pathsep}{os.environ["PATH"]}'},
            start_new_session=True,
            timeout=120,
        )


class Guide:
    """Follows the blocks of the guide in their order.

    :ivar replaced: what is printed, and what stands for it here
    :ivar answers: what is typed, by a part of the command that asks
    :ivar followed: the blocks that were run
    """

    def __init__(self, replaced: dict[str, str], hosts: dict[str, Machine | Here]) -> None:
        self.replaced = replaced
        self.answers: dict[str, str] = {}
        self.followed: list[Block] = []
        self._hosts = hosts

    def follow(self, page: str, *sections: str) -> str:
        """Run the blocks in some sections of a page, of all unless named; return the output."""
        blocks = documentation.run_by('guide', page)
        chosen = [block for block in blocks if not sections or block.section in sections]
        assert chosen, (page, sections)
        return ''.join([self._run(block) for block in chosen])

    def text(self, block: Block) -> str:
        """Return what is printed in a block, with the names of here."""
        text = block.text
        for printed, ours in self.replaced.items():
            text = text.replace(printed, ours)
        return text

    def _run(self, block: Block) -> str:
        host, *path = block.arguments
        self.followed.append(block)
        if path:
            written = self._hosts[host]
            assert isinstance(written, Machine)
            written.write(path[0], self.text(block))
            return ''
        text = self.text(block)
        answers = ''.join(typed for part, typed in self.answers.items() if part in text)
        if block.language == 'sql':
            text, answers = 'mariadb', text
        if '--password-prompt' in text:
            return self._type(block, host, answers.splitlines())
        ran = self._hosts[host].run(text, answers)
        assert ran.returncode == 0, f'{block.place}:\n{text}\n{ran.stdout}{ran.stderr}'
        return ran.stdout

    def _type(self, block: Block, host: str, passwords: list[str]) -> str:
        """Run a block in a terminal, and type a password whenever one is asked for."""
        asked = self._hosts[host]
        assert isinstance(asked, Machine)
        with Terminal(asked.command(self.text(block)), {}) as terminal:
            for count, password in enumerate(passwords, 1):
                service.wait_until(
                    lambda: terminal.text.count('assword:') == count,  # noqa: B023
                    f'password {count} is asked for',
                )
                terminal.press(f'{password}\n'.encode())
            terminal.process.wait(300)
            assert terminal.end() == 0, f'{block.place}:\n{terminal.text}'
            return terminal.text


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The package as it is released."""
    directory = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', f'--wheel-dir={directory}']
    subprocess.run([*pip, str(ROOT)], check=True)
    (built,) = directory.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def own_keystone(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[keystone_server.KeystoneServer]:
    """A Keystone whose catalog the guide fills."""
    require_environment(glance_server.ENVIRONMENT)
    directory = tmp_path_factory.mktemp('keystone')
    with running(keystone_server.KeystoneServer(directory, SECRETS.note)) as server:
        SECRETS.expect(server.log)
        yield server


@pytest.fixture(scope='module')
def own_glance(
    own_keystone: keystone_server.KeystoneServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GlanceUnderKeystone]:
    """A Glance with its own policy, until the guide adds to it."""
    with GlanceUnderKeystone(tmp_path_factory.mktemp('glance'), own_keystone) as server:
        own_keystone.register('image', server.url)
        yield server


@pytest.fixture(scope='module')
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[databases.MariaDB]:
    with running(databases.MariaDB(tmp_path_factory.mktemp('mariadb'))) as server:
        yield server


@pytest.fixture(scope='module')
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ to which the guide adds its user and its virtual hosts."""
    login = Login('operator', ('operator',), SECRETS.make('password of the operator'))
    with running(RabbitMQ(tmp_path_factory.mktemp('rabbitmq'), [login])) as server:
        yield server


@pytest.fixture(scope='module')
def machines(
    own_keystone: keystone_server.KeystoneServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Machine]]:
    require_server('root', os.geteuid() == 0, 'namespaces are for root')
    login = own_keystone.variables(own_keystone.admin)
    variables = {name: value for name, value in login.items() if name.startswith('OS_')}
    directory = tmp_path_factory.mktemp('machines')
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(machine(directory / name, given))
            for name, given in (('controller', {}), ('compute', {}), ('client', variables))
        }


@pytest.fixture(scope='module')
def guide(
    machines: dict[str, Machine],
    own_rabbitmq: RabbitMQ,
    mariadb: databases.MariaDB,
    own_keystone: keystone_server.KeystoneServer,
    own_glance: GlanceUnderKeystone,
    wheel: pathlib.Path,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Guide:
    directory = tmp_path_factory.mktemp('here')
    port = free_port()
    passwords = {name: SECRETS.make(name) for name in PASSWORDS}
    variables = own_rabbitmq._variables().items()
    exported = ''.join(f'export {name}={shlex.quote(value)}\n' for name, value in variables)
    ctl = f'{exported}exec /usr/lib/rabbitmq/bin/rabbitmqctl "$@"'
    socket = f'--socket={mariadb._socket}'
    hosts: dict[str, Machine | Here] = {
        **machines,
        'server': machines['controller'],
        'broker': Here(directory / 'broker', rabbitmqctl=ctl),
        'db': Here(directory / 'db', mariadb=f'exec /usr/bin/mariadb --no-defaults {socket} "$@"'),
        'glance': Here(directory / 'glance', systemctl=f'touch {directory}/restart'),
    }
    return Guide(
        {
            **passwords,
            'apt-get install': 'apt-get install --no-upgrade',
            './nova-precache/etc/nova-precache/constraints.txt': str(
                ROOT / 'etc/nova-precache/constraints.txt'
            ),
            './nova-precache[': f'{wheel}[',
            'broker:5672': f'127.0.0.1:{own_rabbitmq.port}',
            '@db/': f'@127.0.0.1:{mariadb.port}/',
            'https://keystone/v3': own_keystone.url,
            'https://glance:9292': own_glance.url,
            'http://controller:8774': f'http://127.0.0.1:{port}',
            '127.0.0.1:8774': f'127.0.0.1:{port}',
            '/etc/glance': str(own_glance.directory),
        },
        hosts,
    )


@pytest.mark.timeout(1800)  # it installs the package three times, and runs everything
def test_guide_from_wheel_to_cached_image(
    guide: Guide,
    machines: dict[str, Machine],
    own_keystone: keystone_server.KeystoneServer,
    own_glance: GlanceUnderKeystone,
) -> None:
    passwords = {name: guide.replaced[name] for name in PASSWORDS}
    broker = guide.replaced['broker:5672']
    url = f'rabbit://precache:{passwords["BROKER_PASSWORD"]}@{broker}'
    guide.answers = {
        '--password-prompt nova-precache\n': f'{passwords["SERVICE_PASSWORD"]}\n' * 2,
        '--password-prompt nova-precache-images\n': f'{passwords["IMAGES_PASSWORD"]}\n' * 2,
        'cell1 --transport-url -': f'{url}/cell1\n',
    }
    controller, compute, client = (machines[name] for name in ('controller', 'compute', 'client'))
    client.run('python3 -m venv /opt/openstack')
    client.run('export PATH=/opt/openstack/bin:$PATH')

    guide.follow(CLIENT, 'The openstack client')
    installed = client.run('pip list --format=freeze').stdout
    assert 'python-openstackclient==' in installed
    assert [name for name in OF_SERVICES if f'{name}==' in installed] == []
    refused = client.run('nova-precache-conductor')
    assert refused.stderr == (
        'nova-precache-conductor needs the extra "server": install nova-precache[server]\n'
    )

    guide.follow(ADMIN, 'Install')
    port = guide.replaced['127.0.0.1:8774'].partition(':')[2]
    controller.write('/etc/nova-precache/nova-precache-api.conf', f'[api]\nbind_port = {port}\n')
    where = controller.run(
        '/opt/nova-precache/bin/python -c "import nova_precache; print(nova_precache.__file__)"'
    )
    assert where.stdout.startswith('/opt/nova-precache/lib/')
    guide.follow(ADMIN, 'Configure')

    policy = controller.run('cat /opt/nova-precache/share/nova-precache/glance/*.yaml').stdout
    here = pathlib.Path(guide.replaced['/etc/glance'])
    _put_policy(guide, policy)
    guide.follow(AUTHENTICATION)
    assert (here / 'policy.d' / 'image-precacher.yaml').read_text() == policy
    own_glance.stop()
    own_glance.start()
    _upload(own_glance, own_keystone)

    printed = guide.follow(ADMIN, 'Deploy')

    assert '| compute-17 ' in printed
    digest = hashlib.sha1(IMAGE.encode()).hexdigest()  # noqa: S324
    cached = compute.run(f'stat --format="%U %s" /var/lib/nova/instances/_base/{digest}')
    assert cached.stdout == f'nova {MIB}\n', cached.stderr
    assert own_glance.served(IMAGE) == 1
    disk = guide.follow(ADMIN, 'Kernels and ramdisks').strip()
    assert compute.run(f'test -f {disk}').returncode == 0
    assert own_glance.served(IMAGE) == 1

    controller.write('/root/cell2.url', f'{url}/cell2\n', 0o600)
    controller.write('/root/cell3.conf', f'[DEFAULT]\ntransport_url = {url}/cell3\n', 0o600)
    guide.follow(MANAGE)
    assert ' cell3 ' in controller.run('nova-precache-manage cell list').stdout

    controller.run('systemctl stop nova-precache-api')
    _serve_otherwise(guide, controller)
    assert {block.place for block in guide.followed} == {
        block.place for block in documentation.run_by('guide')
    }


def _put_policy(guide: Guide, policy: str) -> None:
    """Copy the policy to the host of Glance, as the guide says in words."""
    glance = guide._hosts['glance']
    assert isinstance(glance, Here)
    (glance.directory / 'image-precacher.yaml').write_text(policy)


def _upload(glance: GlanceUnderKeystone, keystone: keystone_server.KeystoneServer) -> None:
    """Put an image there that only its own project and the role of the guide see."""
    headers = {'X-Auth-Token': keystone.token(keystone.admin)}
    image = {
        'id': IMAGE,
        'name': 'debian-12',
        'disk_format': 'raw',
        'container_format': 'bare',
        'visibility': 'private',
    }
    images = f'{glance.url}/v2/images'
    requests.post(images, json=image, headers=headers, timeout=TIMEOUT_SECONDS).raise_for_status()
    requests.put(
        f'{images}/{IMAGE}/file',
        data=os.urandom(MIB),
        headers={**headers, 'Content-Type': 'application/octet-stream'},
        timeout=TIMEOUT_SECONDS,
    ).raise_for_status()


def _serve_otherwise(guide: Guide, controller: Machine) -> None:
    """Start the API in the other servers, each until it answers."""
    address = guide.replaced['127.0.0.1:8774']
    sample = '/opt/nova-precache/etc/nova-precache/uwsgi.ini'
    controller.run(f'sed -i s/127.0.0.1:8774/{address}/ {sample}')
    for block in documentation.run_by('guide', PIPELINE):
        guide.followed.append(block)
        command = controller.command(guide.text(block))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as server:
            try:
                service.wait_until(lambda: _answers(address), f'{block.place} serves', 120)
            finally:
                os.killpg(server.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        return requests.get(f'http://{address}/v1', timeout=5).status_code == 200
    except requests.RequestException:
        return False
