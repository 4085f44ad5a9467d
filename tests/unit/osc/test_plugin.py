# SPDX-License-Identifier: Apache-2.0
"""How the openstack command finds the service, and which version it asks for."""

import pytest
from keystoneauth1 import fixture

from tests.openstack import OpenStack
from tests.unit.osc.conftest import TOKEN, Wire


@pytest.mark.parametrize(('version', 'header'), [('1', None), ('1.0', 'image-precache 1.0')])
def test_given_microversion_is_requested(
    wire: Wire, openstack: OpenStack, version: str, header: str | None
) -> None:
    wire.answer('GET', '/v1/requests', (200, {'requests': []}))

    said = openstack('--os-image-precache-api-version', version, 'precache', 'list')

    assert said.status == 0, said.err
    assert wire.asked[0].headers.get('OpenStack-API-Version') == header


def test_service_found_in_catalog(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    token = fixture.V3Token()
    token.set_project_scope()
    catalog = token.add_service('image-precache')
    catalog.add_standard_endpoints(public=f'{wire.url}/found/v1', region='RegionOne')
    wire.answer('GET', '/v3', (200, {'version': fixture.V3Discovery(f'{wire.url}/v3')}))
    wire.answer('POST', '/v3/auth/tokens', (201, token))
    wire.answer('GET', '/found/v1/requests', (200, {'requests': []}))

    said = OpenStack('keystone', capsys)('precache', 'list')

    assert said.status == 0, said.err
    assert wire.asked[-1].path == '/found/v1/requests'
    assert wire.asked[-1].headers['X-Auth-Token'] == TOKEN
