# SPDX-License-Identifier: Apache-2.0
"""Names of images, as the image service answers for them."""

from typing import Any

from tests.openstack import OpenStack
from tests.unit.osc.conftest import IMAGE_ID, Wire, request


def _named(wire: Wire, *ids: str) -> None:
    images: list[dict[str, Any]] = [{'id': found, 'name': 'debian'} for found in ids]
    wire.answer('GET', '/v2/images', (200, {'images': images}))


def test_name_becomes_id(wire: Wire, openstack: OpenStack) -> None:
    _named(wire, IMAGE_ID)
    wire.answer('POST', '/v1/requests', (202, {'request': request()}))

    said = openstack('precache', 'create', '--aggregate', 'edge', 'debian')

    assert said.status == 0, said.err
    assert wire.bodies('POST', '/v1/requests')[0]['request']['images'] == [IMAGE_ID]


def test_ambiguous_name_is_refused(wire: Wire, openstack: OpenStack) -> None:
    _named(wire, IMAGE_ID, '0b5f7c40-0000-4000-8000-000000000002')

    said = openstack('precache', 'create', '--aggregate', 'edge', 'debian')

    assert said.status == 1
    assert said.err == 'More than one image is named debian: use an ID.\n'


def test_unknown_name_is_refused(wire: Wire, openstack: OpenStack) -> None:
    _named(wire)

    said = openstack('precache', 'image', 'show', 'debain')

    assert (said.status, said.err) == (1, 'No image has the name or ID debain.\n')


def test_id_needs_no_image_service(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': []}))

    assert openstack('precache', 'image', 'host', 'list', IMAGE_ID).status == 0
    assert [asked.path for asked in wire.asked] == [f'/v1/images/{IMAGE_ID}/hosts']
