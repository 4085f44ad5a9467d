# SPDX-License-Identifier: Apache-2.0
"""The commands in the chapters for operators, run in the order of each page."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest
import sqlalchemy as sa

from nova_precache.standalone import glance as glance_server
from tests.conftest import UploadImage, require_server, running_databases
from tests.functional.conftest import starting
from tools import documentation, quickstart
from tools.documentation import Block
from tools.servers import databases
from tools.waiting import wait_until

pytestmark = pytest.mark.slow

LOOKED_AT = ('doc/source/logs.rst', 'doc/source/sizing.rst', 'doc/source/troubleshooting.rst')
BACKUP = 'doc/source/backup.rst'
CONFIGURATION = '.nova-precache/nova-precache.conf'


class Shell:
    """Runs blocks in a home directory with a configuration of the service."""

    def __init__(
        self, home: pathlib.Path, configuration: str, clouds: pathlib.Path, **variables: str
    ) -> None:
        self._home = home
        self._variables = {
            **os.environ,
            'PATH': f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
            'HOME': str(home),
            'OS_CLIENT_CONFIG_FILE': str(clouds),
            'OS_CLOUD': 'precache',
            **variables,
        }
        (home / CONFIGURATION).parent.mkdir()
        (home / CONFIGURATION).write_text(configuration)

    def run(self, blocks: Sequence[Block], replaced: Mapping[str, str] | None = None) -> str:
        """Run blocks in their order, and return what they print.

        :param replaced: what is printed in the page, and what stands for it here
        """
        return ''.join(self._run(block, replaced or {}) for block in blocks)

    def _run(self, block: Block, replaced: Mapping[str, str]) -> str:
        text = block.text
        for printed, ours in replaced.items():
            text = text.replace(printed, ours)
        ran = subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', text],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._home,
            env=self._variables,
            timeout=240,
        )
        assert ran.returncode == 0, f'{block.place}:\n{ran.stdout}{ran.stderr}'
        return ran.stdout


def _blocks(page: str) -> list[Block]:
    return documentation.run_by('chapters', page)


def _require(*programs: str) -> None:
    for program in programs:
        require_server(program, shutil.which(program) is not None, f'apt-get install {program}')


def test_all_chapters_are_run() -> None:
    pages = {block.page for block in documentation.run_by('chapters')}
    assert pages == {*LOOKED_AT, BACKUP}


@pytest.fixture(scope='module')
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[quickstart.Service, dict[str, str]]]:
    """The service as a process with a log, and a request that its user has cancelled."""
    directory = tmp_path_factory.mktemp('chapters')
    with quickstart.started(directory, keep=False) as service:
        image = directory / 'image'
        image.write_bytes(os.urandom(2**20))
        service.openstack(
            *('image', 'create', '--disk-format', 'raw', '--file', str(image)),
            *('--public', 'debian-12'),
        )
        service.openstack('aggregate', 'create', 'edge')
        service.openstack('aggregate', 'add', 'host', 'edge', service.hosts[0]['name'])
        made = service.openstack(
            *('precache', 'create', '--aggregate', 'edge', '--not-before', '+1h', 'debian-12'),
            *('-f', 'value', '-c', 'id', '-c', 'request_id'),
        )
        request, request_id = made.split()
        wait_until(
            lambda: service.get(f'/requests/{request}')['request']['status'] == 'planned',
            'the request is planned',
        )
        service.openstack('precache', 'cancel', request)
        yield service, {'request': request, 'request_id': request_id}


@pytest.mark.parametrize('page', LOOKED_AT)
@pytest.mark.timeout(600)
def test_page_commands_print_as_shown(
    page: str, running: tuple[quickstart.Service, dict[str, str]], tmp_path: pathlib.Path
) -> None:
    _require('logrotate')
    service, variables = running
    replaced = {
        'compute-17': service.hosts[0]['name'],
        '-C nova-precache-compute': '-C nova-precache-standalone',
        '/var/log/nova-precache': str(service.directory),
        '/etc/logrotate.d': str(tmp_path),
        # The request was cancelled.
        'show --wait "$request"': 'show --wait "$request" || [ $? = 1 ]',
    }
    (rotation,) = (
        block.text
        for block in documentation.blocks('doc/source/logs.rst')
        if 'delaycompress' in block.text
    )
    rotated = rotation.replace('/var/log/nova-precache', str(service.directory))
    (tmp_path / 'nova-precache').write_text(f'{rotated}\n')
    configuration = pathlib.Path(service.description['conf']).read_text()
    shell = Shell(tmp_path, configuration, service.directory / 'clouds.yaml', **variables)

    printed = shell.run(_blocks(page), replaced)

    assert [part for part in EXPECTED[page] if part not in printed] == []


# Parts of what the commands of a page print.
EXPECTED: Mapping[str, Sequence[str]] = {
    'doc/source/logs.rst': ['conductor.tracker', 'is planned: 1 hosts, 1 tasks'],
    'doc/source/sizing.rst': ['RSS', 'nova-precache-standalone', 'space_needed_bytes'],
    'doc/source/troubleshooting.rst': ['the request was cancelled', '| up', 'Check: Cells'],
}


@pytest.mark.parametrize('kind', ['mariadb', 'sqlite'])
@pytest.mark.timeout(600)
def test_restored_database_has_old_requests(
    kind: str,
    glance: glance_server.GlanceServer,
    upload_image: UploadImage,
    tmp_path: pathlib.Path,
) -> None:
    _require('sqlite3', 'mariadb', 'mariadb-dump')
    saving, restoring, looking = _steps(kind)
    image_id = upload_image(os.urandom(1024))
    with _options(kind, tmp_path) as options, starting(tmp_path, glance.url) as begin:
        first = begin(**options)
        aggregate_id = first.service.aggregate('edge')
        forgotten = first.service.aggregate('of the time after the backup', ())
        first.service.wait(first.service.cache(aggregate_id, image_id))
        configuration = pathlib.Path(first.conf).read_text()
        overriding = (tmp_path / 'options.conf').read_text()
        shell = Shell(tmp_path, f'{configuration}\n{overriding}', tmp_path / 'state/clouds.yaml')
        shell.run(saving)
        later = first.service.cache(forgotten, image_id)
        first.service.wait(later)
        first.stop()

        # It warns if the dump is older than service_down_time: then no conductor is up.
        shell.run(restoring, {'upgrade check': 'upgrade check || [ $? = 1 ]'})

        second = begin(**options)
        assert later not in [each['id'] for each in second.service.get('/requests')['requests']]
        again = second.service.wait(second.service.cache(aggregate_id, image_id))
        assert again['counts'] == {'existing': len(second.service.hosts)}
        assert len(second.service.get('/requests')['requests']) == 2
        assert '| up ' in shell.run(looking)


def _steps(kind: str) -> tuple[list[Block], list[Block], list[Block]]:
    """Return the blocks that save, restore and look; those of the other database left out."""
    others = {'mariadb': ['sqlite'], 'sqlite': ['mariadb', 'db sync']}[kind]
    blocks = [
        block for block in _blocks(BACKUP) if not any(other in block.text for other in others)
    ]
    saving, restoring, looking = blocks
    return [saving], [restoring], [looking]


@contextlib.contextmanager
def _options(kind: str, home: pathlib.Path) -> Iterator[dict[str, dict[str, str]]]:
    """Make an empty database, and let the clients of MariaDB find it."""
    if kind == 'sqlite':
        yield {}
        return
    with running_databases(databases.MARIADB) as server, server.empty('nova_precache') as url:
        found = sa.make_url(url)
        (home / '.my.cnf').write_text(
            f'[client]\nuser = {found.username}\nsocket = {found.query["unix_socket"]}\n'
        )
        yield {'database': {'connection': url}}
