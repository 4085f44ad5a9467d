# SPDX-License-Identifier: Apache-2.0
"""Removal from caches by the command: where, what it prints, and how it ends."""

import json
from typing import Any

import pytest

from tests.openstack import OpenStack
from tests.unit.osc.conftest import IMAGE_ID, Wire, fault

OTHER_ID = IMAGE_ID.replace('1', '2')
PINNED = 'pin 4fdd6ad5-6a0f-4f0a-8b3c-2d1e5f6a7b8c keeps it on aggregate edge'


def removal(host: str, status: str = 'removed', **fields: Any) -> tuple[int, Any]:
    return 200, {
        'removal': {
            'host': host,
            'image_id': IMAGE_ID,
            'status': status,
            'reason': None,
            'freed_bytes': 0,
            **fields,
        }
    }


def path(host: str, image_id: str = IMAGE_ID) -> str:
    return f'/v1/hosts/{host}/images/{image_id}'


def rows(said: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in json.loads(said.out)]


def test_removes_each_image_from_each_host(wire: Wire, openstack: OpenStack) -> None:
    for host in ('c1', 'c2'):
        for image_id in (IMAGE_ID, OTHER_ID):
            wire.answer('DELETE', path(host, image_id), removal(host, freed_bytes=2048))

    said = openstack(
        *('precache', 'cache', 'remove', IMAGE_ID, OTHER_ID, IMAGE_ID, '-f', 'json'),
        *('--host', 'c1', '--host', 'c2', '--host', 'c1'),
    )

    assert said.status == 0, said.err
    assert rows(said) == [
        (host, image_id, 'removed', 2048, None)
        for image_id in (IMAGE_ID, OTHER_ID)
        for host in ('c1', 'c2')
    ]
    assert [each.method for each in wire.asked] == ['DELETE'] * 4


@pytest.mark.parametrize(
    ('status', 'exits'), [('removed', 0), ('absent', 0), ('used', 1), ('pinned', 1)]
)
def test_exit_tells_whether_image_is_gone(
    wire: Wire, openstack: OpenStack, status: str, exits: int
) -> None:
    wire.answer('DELETE', path('c1'), removal('c1'))
    wire.answer('DELETE', path('c2'), removal('c2', status))

    said = openstack(
        *('precache', 'cache', 'remove', IMAGE_ID, '--host', 'c1', '--host', 'c2', '-f', 'json')
    )

    assert said.status == exits
    assert [row[2] for row in rows(said)] == ['removed', status]


def test_refused_host_does_not_stop_others(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('DELETE', path('c1'), fault(409, 'conflictingRequest', 'Host c1 is down'))
    wire.answer('DELETE', path('c2'), removal('c2', freed_bytes=5))

    said = openstack(
        *('precache', 'cache', 'remove', IMAGE_ID, '--host', 'c1', '--host', 'c2', '-f', 'json')
    )

    assert said.status == 1
    assert rows(said) == [
        ('c1', IMAGE_ID, 'error', None, 'Host c1 is down'),
        ('c2', IMAGE_ID, 'removed', 5, None),
    ]


def test_aggregate_means_hosts_with_image(wire: Wire, openstack: OpenStack) -> None:
    holding = f'/v1/images/{IMAGE_ID}/hosts'
    wire.answer('GET', holding, (200, {'hosts': [{'host': 'c1'}, {'host': 'c2'}]}))
    for host in ('c1', 'c2'):
        wire.answer('DELETE', path(host), removal(host))

    said = openstack(
        *('precache', 'cache', 'remove', IMAGE_ID, '--aggregate', 'edge', '-f', 'json')
    )

    assert said.status == 0, said.err
    assert [row[0] for row in rows(said)] == ['c1', 'c2']
    assert wire.queries(holding) == [{'aggregate': 'edge'}]


def test_aggregate_without_image_is_named(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': []}))

    said = openstack('precache', 'cache', 'remove', IMAGE_ID, '--aggregate', 'edge')

    assert said.status == 0
    assert f'No host of aggregate edge has image {IMAGE_ID}' in said.err


def test_failed_look_up_removes_nothing(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': [{'host': 'c1'}]}))
    wire.answer('GET', f'/v1/images/{OTHER_ID}/hosts', fault(404, 'itemNotFound', 'no aggregate'))

    said = openstack('precache', 'cache', 'remove', IMAGE_ID, OTHER_ID, '--aggregate', 'edge')

    assert (said.status, said.out) == (1, '')
    assert 'no aggregate' in said.err
    assert {each.method for each in wire.asked} == {'GET'}


@pytest.mark.parametrize('where', [(), ('--host', 'c1', '--aggregate', 'edge')])
def test_one_place_is_required(wire: Wire, openstack: OpenStack, where: tuple[str, ...]) -> None:
    assert openstack('precache', 'cache', 'remove', IMAGE_ID, *where).status == 2
    assert wire.asked == []


def test_table_fits_80_columns(wire: Wire, openstack: OpenStack) -> None:
    host = 'compute-017.example.org'
    wire.answer('DELETE', path(host), removal(host, 'pinned', reason=PINNED))

    said = openstack('precache', 'cache', 'remove', IMAGE_ID, '--host', host)

    assert max(map(len, said.out.splitlines())) <= 80, said.out
    assert f'| {host} |' in said.out
