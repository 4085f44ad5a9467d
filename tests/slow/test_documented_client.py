# SPDX-License-Identifier: Apache-2.0
"""The documentation's commands for the openstack client and curl, run in the order of each page."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from nova_precache.standalone import glance as glance_server
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import starting
from tools import documentation
from tools.documentation import Block

pytestmark = pytest.mark.slow

PAGES = (
    'doc/source/admin.rst',
    'doc/source/client.rst',
    'doc/source/pins.rst',
    'doc/source/proxy.rst',
    'doc/source/requests.rst',
)
MIB = 2**20
# That of the pages.
IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
CLOUD = 'mycloud'
VARIABLES = ('request', 'pin', 'id')


class Shell:
    """Runs blocks as a user would, one after the other in one directory.

    :param replaced: what is printed, and what stands for it here
    """

    def __init__(self, directory: pathlib.Path, replaced: dict[str, str]) -> None:
        self.directory = directory
        self._replaced = replaced
        self._state = directory / 'state'
        self._state.touch()

    def text(self, block: Block) -> str:
        text = block.text
        for printed, ours in self._replaced.items():
            text = text.replace(printed, ours)
        return text

    def run(self, block: Block) -> str:
        """Run a block to its end; its variables stay for the next."""
        script = (
            f'. {self._state}\n{self.text(block)}\ndeclare -p {" ".join(VARIABLES)} >state || :'
        )
        ran = subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', script],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env={
                **os.environ,
                'PATH': f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
                'OS_CLIENT_CONFIG_FILE': str(self.directory / 'clouds.yaml'),
                'OS_CLOUD': CLOUD,
                'TOKEN': 'admin',
            },
            timeout=240,
        )
        assert ran.returncode == 0, f'{block.place}:\n{ran.stdout}{ran.stderr}'
        return ran.stdout


@pytest.fixture(scope='module')
def link(glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    with site_link.Gateway(glance.url) as opened:
        yield opened


@pytest.fixture(scope='module')
def images(upload_image: UploadImage) -> dict[str, str]:
    return {
        'debian-12': upload_image(os.urandom(4 * MIB), id=IMAGE, name='debian-12'),
        'windows-2025': upload_image(os.urandom(MIB), name='windows-2025'),
    }


@pytest.fixture(scope='module')
def started(
    link: site_link.Gateway, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    with starting(tmp_path_factory.mktemp('documented'), link.url) as begin:
        running = begin()
        running.service.aggregate('edge')
        yield running


@pytest.fixture
def shell(started: Any, tmp_path: pathlib.Path) -> Shell:
    """A directory with what the pages call request.json and clouds.yaml."""
    doors = started.service
    made = Shell(
        tmp_path,
        {
            'http://controller:8774/v1': doors.precache_url,
            'https://nova.example:8774/v2.1': doors.compute_url,
            'compute-17': doors.hosts[0].name,
            'compute-18': doors.hosts[1].name,
        },
    )
    for block in _blocks('request.json'):
        (tmp_path / 'request.json').write_text(made.text(block))
    (clouds,) = _blocks('clouds.yaml')
    ours = yaml.safe_load((pathlib.Path(started.conf).parent / 'clouds.yaml').read_text())
    login = {
        name: value
        for name, value in ours['clouds']['precache'].items()
        if not name.startswith('image_precache')
    }
    documented = yaml.safe_load(made.text(clouds))['clouds'][CLOUD]
    text = yaml.safe_dump({'clouds': {CLOUD: {**login, **documented}}})
    (tmp_path / 'clouds.yaml').write_text(text)
    return made


def _blocks(*arguments: str) -> list[Block]:
    return [each for each in documentation.run_by('client') if each.arguments == arguments]


def test_all_client_pages_are_run() -> None:
    assert {block.page for block in documentation.run_by('client')} == set(PAGES)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: pathlib.Path(page).stem)
@pytest.mark.timeout(400)
def test_page_commands_work(
    page: str, shell: Shell, started: Any, link: site_link.Gateway, images: dict[str, str]
) -> None:
    around: dict[str, Callable[[str], None]] = {
        'precache retry': lambda _: _let_the_cancelled_end(started, link, images),
        'precache pause': lambda _: _hold_a_download(started, link, images),
    }
    for block in (each for each in _blocks() if each.page == page):
        for part, prepare in around.items():
            if part in block.text:
                prepare(part)
        printed = shell.run(block)
        for part, expected in EXPECTED.items():
            if part in block.text:
                assert expected in printed, f'{block.place}:\n{printed}'


# What a command has printed, by a part of it.
EXPECTED = {
    'create --aggregate edge --wait': '| completed',
    'retry --not-before': '| completed',
    'precache host list --status up': '| up',
    'pin show': '| active',
    'curl -s -X POST': '"status": "accepted"',
    'curl -i -X POST': '404',
}


def _hold_a_download(started: Any, link: site_link.Gateway, images: dict[str, str]) -> None:
    """Delay the next request for the image."""
    _wait_for_requests(started, images)  # one that is held does not end
    for host in started.service.hosts:
        host.base_path(images['debian-12']).unlink(missing_ok=True)
    link.hold()


def _let_the_cancelled_end(started: Any, link: site_link.Gateway, images: dict[str, str]) -> None:
    _wait_for_requests(started, images)
    link.release()


def _wait_for_requests(started: Any, images: dict[str, str]) -> None:
    found = started.service.get(f'/requests?image={images["debian-12"]}')['requests']
    for request in found:
        started.service.wait(request['id'])
