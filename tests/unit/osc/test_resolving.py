# SPDX-License-Identifier: Apache-2.0
"""Names of images, as the image service answers for them."""

from typing import Any

import pytest
from keystoneauth1 import fixture

from tests.openstack import OpenStack
from tests.unit.osc.conftest import IMAGE_ID, Wire, request


def _ids(number: int) -> str:
    return ', '.join(f'{IMAGE_ID[:-1]}{each}' for each in range(number))


def _named(wire: Wire, *ids: str) -> None:
    images: list[dict[str, Any]] = [{'id': found, 'name': 'debian'} for found in ids]
    wire.answer('GET', '/v2/images', (200, {'images': images}))


def test_name_becomes_id(wire: Wire, openstack: OpenStack) -> None:
    _named(wire, IMAGE_ID)
    wire.answer('POST', '/v1/requests', (202, {'request': request()}))

    said = openstack('precache', 'create', '--aggregate', 'edge', 'debian')

    assert said.status == 0, said.err
    assert wire.bodies('POST', '/v1/requests')[0]['request']['images'] == [IMAGE_ID]


@pytest.mark.parametrize(
    ('number', 'listed'),
    [
        (2, f'{_ids(2)}; use an ID'),
        (6, f'{_ids(5)} and more; use an ID'),
    ],
)
def test_ambiguous_name_lists_ids(
    wire: Wire, openstack: OpenStack, number: int, listed: str
) -> None:
    _named(wire, *_ids(number).split(', '))

    said = openstack('precache', 'create', '--aggregate', 'edge', 'debian')

    assert said.status == 1
    assert said.err == f"<image>: several images are named 'debian': {listed}\n"


@pytest.mark.parametrize(
    ('arguments', 'option'),
    [
        (('create', '--aggregate', 'edge', 'debain'), '<image>'),
        (('list', '--image', 'debain'), '--image'),
    ],
)
def test_unknown_name_is_refused(
    wire: Wire, openstack: OpenStack, arguments: tuple[str, ...], option: str
) -> None:
    _named(wire)

    said = openstack('precache', *arguments)

    assert (said.status, said.err) == (1, f"{option}: no image has the name or ID 'debain'\n")


def test_image_service_error_names_option(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v2/images', (403, {'message': 'no'}))
    wire.answer('GET', '/v2/images/debian', (403, {'message': 'no'}))

    said = openstack('precache', 'list', '--image', 'debian')

    assert said.status == 1
    assert said.err.startswith("--image: 'debian' cannot be looked up: ")
    assert said.err.count('\n') == 1


def test_id_needs_no_image_service(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': []}))

    assert openstack('precache', 'image', 'host', 'list', IMAGE_ID).status == 0
    assert [asked.path for asked in wire.asked] == [f'/v1/images/{IMAGE_ID}/hosts']


def test_project_name_is_resolved(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    token = fixture.V3Token()
    token.set_project_scope()
    for service, url in (('image-precache', f'{wire.url}/v1'), ('identity', f'{wire.url}/v3')):
        catalog = token.add_service(service)
        catalog.add_standard_endpoints(public=url, region='RegionOne')
    wire.answer('GET', '/v3', (200, {'version': fixture.V3Discovery(f'{wire.url}/v3')}))
    wire.answer('POST', '/v3/auth/tokens', (201, token))
    found = [{'id': 'a-project-id', 'name': 'mine'}]
    wire.answer('GET', '/v3/projects', (200, {'projects': found}), (200, {'projects': []}))
    wire.answer('GET', '/v1/requests', (200, {'requests': []}))
    openstack = OpenStack('keystone', capsys)

    known = openstack('precache', 'list', '--project', 'mine')
    unknown = openstack('precache', 'list', '--project', 'theirs')

    assert known.status == 0, known.err
    assert wire.queries('/v1/requests') == [{'project_id': 'a-project-id'}]
    assert unknown.err == "--project: no project has the name or ID 'theirs'\n"


def test_project_used_as_typed_without_keystone(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/requests', (200, {'requests': []}))

    said = openstack('precache', 'list', '--project', 'mine')

    assert said.status == 0, said.err
    assert wire.queries('/v1/requests') == [{'project_id': 'mine'}]


def test_project_used_as_typed_in_standalone(wire: Wire, openstack: OpenStack) -> None:
    nova = {'id': 'v2.1', 'status': 'CURRENT', 'version': '2.81', 'min_version': '2.1'}
    links = [{'rel': 'self', 'href': f'{wire.url}/nowhere'}]
    wire.answer('GET', '/nowhere', (200, {'version': {**nova, 'links': links}}))
    wire.answer('GET', '/v1/requests', (200, {'requests': []}))

    said = openstack('precache', 'list', '--project', 'mine')

    assert said.status == 0, said.err
    assert wire.queries('/v1/requests') == [{'project_id': 'mine'}]


def test_ambiguous_cell_lists_uuids(wire: Wire, openstack: OpenStack) -> None:
    cells = [{'id': each, 'name': 'cell1'} for each in ('a', 'b')]
    wire.answer('GET', '/v1/cells', (200, {'cells': cells}))

    said = openstack('precache', 'host', 'list', '--cell', 'cell1')

    assert said.status == 1
    assert said.err == "--cell: several cells are named 'cell1': a, b; use an ID\n"
