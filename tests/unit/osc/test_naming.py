# SPDX-License-Identifier: Apache-2.0
"""Names of images in tables: from Glance in one question, ids where there are none."""

from typing import Any

from nova_precache.osc import naming
from tests.openstack import OpenStack
from tests.unit.osc.conftest import IMAGE_ID, Wire, fault, task

OTHER_ID = '0b5f7c40-0000-4000-8000-000000000002'


def _tasks(wire: Wire, *ids: str) -> None:
    found = [task(f'c{number}', 'cached', image_id=each) for number, each in enumerate(ids)]
    wire.answer('GET', '/v1/tasks', (200, {'tasks': found}))


def _images(wire: Wire, *pages: list[dict[str, Any]]) -> None:
    wire.answer('GET', '/v2/images', *((200, {'images': page}) for page in pages))


def test_names_asked_for_at_once(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID, OTHER_ID, IMAGE_ID)
    _images(wire, [{'id': IMAGE_ID, 'name': 'debian'}, {'id': OTHER_ID, 'name': 'windows'}])

    table = openstack('precache', 'task', 'list').out

    assert table.count(' debian ') == 2
    assert ' windows ' in table
    (query,) = wire.queries('/v2/images')
    assert query['id'] == f'in:{IMAGE_ID},{OTHER_ID}'


def test_hidden_image_has_name(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID, OTHER_ID)
    _images(wire, [{'id': IMAGE_ID, 'name': 'new'}], [{'id': OTHER_ID, 'name': 'old'}])

    table = openstack('precache', 'task', 'list').out

    assert ' old ' in table
    assert [query['os_hidden'] for query in wire.queries('/v2/images')] == ['false', 'true']


def test_missing_image_shows_id(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID, OTHER_ID)
    _images(wire, [{'id': OTHER_ID, 'name': None}])

    table = openstack('precache', 'task', 'list', '-c', 'Image').out

    assert IMAGE_ID in table
    assert OTHER_ID in table


def test_failing_image_service_shows_ids(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID)
    wire.answer('GET', '/v2/images', fault(403, 'forbidden', 'You may not.'))

    said = openstack('precache', 'task', 'list', '-c', 'Image')

    assert (said.status, said.err) == (0, '')
    assert IMAGE_ID in said.out


def test_control_codes_are_removed(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID)
    _images(wire, [{'id': IMAGE_ID, 'name': 'a\x1b[31m\nb'}])

    assert '| a b   |' in openstack('precache', 'task', 'list', '-c', 'Image').out


def test_many_ids_asked_in_batches(wire: Wire, openstack: OpenStack) -> None:
    ids = [f'0b5f7c40-0000-4000-8000-{number:012}' for number in range(naming.BATCH + 1)]
    _tasks(wire, *ids)
    found = [{'id': each, 'name': f'image-{each[-3:]}'} for each in ids]
    _images(wire, found[: naming.BATCH], found[naming.BATCH :])

    table = openstack('precache', 'task', 'list').out

    assert ' image-100 ' in table
    assert [query['limit'] for query in wire.queries('/v2/images')] == ['100', '1']


def test_long_list_has_ids(wire: Wire, openstack: OpenStack) -> None:
    _tasks(wire, IMAGE_ID)
    _images(wire, [{'id': IMAGE_ID, 'name': 'debian'}])

    table = openstack('precache', 'task', 'list', '--long').out

    assert ' debian ' in table
    assert f' {IMAGE_ID} ' in table
