# SPDX-License-Identifier: Apache-2.0
"""A stock tempest finds our plugin and runs it against the service under a real Keystone."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from tests import tempest
from tests.conftest import require_environment
from tests.integration.keystone_site import Site
from tools.servers import keystone as keystone_server

pytestmark = pytest.mark.slow


@pytest.fixture
def stock_tempest(site: Site, tmp_path: pathlib.Path) -> Iterator[tempest.Tempest]:
    require_environment(tempest.ENVIRONMENT)
    # It uploads in chunks without a length, which the gateway does not forward.
    site.keystone.register('image', site.glance.url)
    site.keystone.register('compute', site.compute_url)
    yield tempest.Tempest(tmp_path, _configuration(site))
    site.register()


def _configuration(site: Site) -> tempest.Configuration:
    admin, url = site.keystone.admin, site.keystone.url
    return {
        'auth': {
            'use_dynamic_credentials': True,
            'create_isolated_networks': False,
            'admin_username': admin.name,
            'admin_password': admin.password,
            'admin_project_name': admin.project,
            'admin_domain_name': 'Default',
        },
        'identity': {
            'auth_version': 'v3',
            'uri_v3': url,
            'region': keystone_server.REGION,
            'v3_endpoint_type': 'public',
        },
        'service_available': dict.fromkeys(('neutron', 'cinder', 'swift', 'horizon'), False),
        'image_precache': {'build_timeout': 120, 'build_interval': 0.3},
    }


def _written_tests() -> list[str]:
    """List the tests in the plugin's files."""
    files = (tempest.ROOT / tempest.PLUGIN).rglob('test_*.py')
    written = '\n'.join(path.read_text() for path in files)
    return re.findall(r'^    def (test_\w+)', written, re.MULTILINE)


def test_tempest_finds_the_plugin_and_runs_every_test_of_it(stock_tempest: tempest.Tempest) -> None:
    assert re.search(
        r'\| nova_precache +\| nova_precache_tempest_plugin\.', stock_tempest.run('list-plugins')
    )

    report = stock_tempest.run_tests(tempest.PLUGIN)

    ended = dict(re.findall(r'^ - (\w+): (\d+)$', report, re.MULTILINE))
    assert ended == {'Passed': str(len(_written_tests())), 'Skipped': '0', 'Failed': '0'}, report
