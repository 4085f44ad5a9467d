# SPDX-License-Identifier: Apache-2.0
"""A stock tempest finds our plugin and runs it against the service under a real Keystone."""

import configparser
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import tempest
from tests.conftest import require_environment
from tests.integration.keystone_site import Site
from tools import documentation
from tools.documentation import Block
from tools.servers import keystone as keystone_server

pytestmark = pytest.mark.slow

BLOCKS = documentation.run_by('tempest')


@pytest.fixture
def stock_tempest(site: Site, tmp_path: pathlib.Path) -> Iterator[tempest.Tempest]:
    require_environment(tempest.ENVIRONMENT)
    # It uploads in chunks without a length, which the gateway does not forward.
    site.keystone.register('image', site.glance.url)
    site.keystone.register('compute', site.compute_url)
    yield tempest.Tempest(tmp_path, _configuration(site))
    site.register()


def _configuration(site: Site) -> tempest.Configuration:
    """Return the guide's tempest.conf, with what is this site's own."""
    (block,) = [each for each in BLOCKS if each.language == 'ini']
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(block.text)
    printed = {section: dict(parser[section]) for section in parser.sections()}
    admin, url = site.keystone.admin, site.keystone.url
    ours = {
        'auth': {
            'admin_username': admin.name,
            'admin_password': admin.password,
            'admin_project_name': admin.project,
        },
        'identity': {'uri_v3': url, 'region': keystone_server.REGION},
        'image_precache': {'build_timeout': '120', 'build_interval': '0.3'},
    }
    return {section: {**printed[section], **ours.get(section, {})} for section in printed}


def _written_tests() -> list[str]:
    """List the tests in the plugin's files."""
    files = (tempest.ROOT / tempest.PLUGIN).rglob('test_*.py')
    written = '\n'.join(path.read_text() for path in files)
    return re.findall(r'^    def (test_\w+)', written, re.MULTILINE)


@pytest.mark.timeout(900)
def test_tempest_runs_every_plugin_test(stock_tempest: tempest.Tempest) -> None:
    assert re.search(
        r'\| nova_precache +\| nova_precache_tempest_plugin\.', stock_tempest.run('list-plugins')
    )

    (command,) = [each.text for each in BLOCKS if each.text.startswith('tempest run ')]
    (regex,) = shlex.split(command.removeprefix('tempest run --regex'))
    report = stock_tempest.run_tests(regex)

    ended = dict(re.findall(r'^ - (\w+): (\d+)$', report, re.MULTILINE))
    assert ended == {'Passed': str(len(_written_tests())), 'Skipped': '0', 'Failed': '0'}, report


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'block', [each for each in BLOCKS if 'pip install' in each.text], ids=lambda each: each.place
)
def test_tempest_finds_documented_installation(block: Block, tmp_path: pathlib.Path) -> None:
    home = tmp_path / 'environment'
    subprocess.run([sys.executable, '-m', 'venv', str(home)], check=True)
    if '--no-deps' in block.text:
        _add_tempest(home)

    script = block.text.replace('./nova-precache', str(tempest.ROOT))
    path = f'{home / "bin"}{os.pathsep}{os.environ["PATH"]}'
    subprocess.run(['bash', '-euc', script], check=True, env={**os.environ, 'PATH': path})

    listed = subprocess.run(
        [str(home / 'bin' / 'python'), '-m', 'tempest.cmd.main', 'list-plugins'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, 'HOME': str(tmp_path)},
    )
    assert '| nova_precache ' in listed.stdout


def _add_tempest(home: pathlib.Path) -> None:
    """Add the packages of tempest's environment to another one."""
    (theirs,) = tempest.ENVIRONMENT.ensure().glob('lib/python*/site-packages')
    (ours,) = home.glob('lib/python*/site-packages')
    (ours / 'tempest.pth').write_text(f'{theirs}\n')
