# SPDX-License-Identifier: Apache-2.0
"""Names of images, as the image service answers for them."""

from typing import Any

import pytest

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
