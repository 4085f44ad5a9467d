# SPDX-License-Identifier: Apache-2.0
"""Aggregates at /v2.1: status codes, bodies and messages are Nova's."""

import re
from typing import Any

import pytest

from nova_precache.cells import inventory

PATH = '/v2.1/os-aggregates'
TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}')
NAME_RULE = (
    "An invalid 'name' value was provided. "
    'The name must be: printable characters. Can not start or end with whitespace.'
)
LONG = 'x' * 256


def message(response: Any) -> str:
    (fault,) = response.json.values()
    assert fault['code'] == response.status_int
    return str(fault['message'])


def test_new_aggregate_returns_200_without_hosts(api: Any) -> None:
    response = api.post(PATH, {'aggregate': {'name': 'edge', 'availability_zone': 'az1'}})
    assert response.status_int == 200
    assert response.headers['Content-Type'] == 'application/json'
    body = response.json['aggregate']
    assert TIME.fullmatch(body.pop('created_at'))
    saved = api.inventory.get_aggregate(body['id'])
    assert body == {
        'id': saved.id,
        'uuid': saved.uuid,
        'name': 'edge',
        'availability_zone': 'az1',
        'updated_at': None,
        'deleted': False,
        'deleted_at': None,
    }
    assert saved.metadata == {'availability_zone': 'az1'}


@pytest.mark.parametrize('method', ['GET', 'DELETE'])
@pytest.mark.parametrize('bad_id', ['edge', '1.0', '1e3', '%20x', '1' * 5000])
def test_non_integer_id_is_bad_request(api: Any, method: str, bad_id: str) -> None:
    response = api.call(method, f'{PATH}/{bad_id}')
    assert response.status_int == 400
    assert message(response) == 'Invalid input received: id must be an integer'


@pytest.mark.parametrize('unknown', ['0', '-1', '4711', '99999999999999999999999'])
def test_unknown_aggregate_not_found(api: Any, unknown: str) -> None:
    body = {'aggregate': {'name': 'new'}}
    responses = [
        api.get(f'{PATH}/{unknown}'),
        api.call('DELETE', f'{PATH}/{unknown}'),
        api.call('PUT', f'{PATH}/{unknown}', body),
        api.post(f'{PATH}/{unknown}/action', {'add_host': {'host': 'host1'}}),
        api.post(f'{PATH}/{unknown}/action', {'set_metadata': {'metadata': {'a': 'b'}}}),
    ]
    assert [response.status_int for response in responses] == [404] * 5
    assert {message(r) for r in responses} == {f'Aggregate {unknown} could not be found.'}


@pytest.mark.parametrize(
    ('aggregate', 'expected'),
    [
        (
            {},
            "Invalid input for field/attribute aggregate. Value: {}. 'name' is a required property",
        ),
        (
            {'name': 1},
            "Invalid input for field/attribute name. Value: 1. 1 is not of type 'string'",
        ),
        (
            {'name': ''},
            "Invalid input for field/attribute name. Value: . '' should be non-empty",
        ),
        (
            {'name': LONG},
            f"Invalid input for field/attribute name. Value: {LONG}. '{LONG}' is too long",
        ),
        ({'name': ' edge'}, NAME_RULE),
        ({'name': 'edge '}, NAME_RULE),
        ({'name': 'ed\tge'}, NAME_RULE),
        ({'name': '\n'}, NAME_RULE),
        ({'name': 'ed\U0001f600ge'}, NAME_RULE),
        ({'name': 'ed\ud800ge'}, NAME_RULE),
        (
            {'name': 'edge', 'availability_zone': 'a:b'},
            (
                'Invalid input for field/attribute availability_zone. Value: a:b. '
                "'a:b' is not valid under any of the given schemas"
            ),
        ),
        (
            {'name': 'edge', 'hosts': []},
            (
                'Invalid input for field/attribute aggregate. '
                "Value: {'name': 'edge', 'hosts': []}. "
                "Additional properties are not allowed ('hosts' was unexpected)"
            ),
        ),
    ],
)
def test_bad_new_aggregate_refused_naming_field(api: Any, aggregate: Any, expected: str) -> None:
    response = api.post(PATH, {'aggregate': aggregate})
    assert response.status_int == 400
    assert message(response) == expected
    assert api.inventory.list_aggregates() == []


def test_taken_name_is_conflict(api: Any, aggregate: Any) -> None:
    other = api.inventory.create_aggregate('other')
    made = api.post(PATH, {'aggregate': {'name': 'edge'}})
    renamed = api.call('PUT', f'{PATH}/{other.id}', {'aggregate': {'name': 'edge'}})
    for response in (made, renamed):
        assert response.status_int == 409
        assert response.json == {
            'conflictingRequest': {'code': 409, 'message': 'Aggregate edge already exists.'}
        }
    assert api.inventory.get_aggregate(other.id).name == 'other'


def test_update_changes_fields_and_trims_name(api: Any, aggregate: Any) -> None:
    response = api.call('PUT', f'{PATH}/{aggregate.id}', {'aggregate': {'name': '  core '}})
    assert response.status_int == 200
    assert response.json['aggregate']['name'] == 'core'
    assert response.json['aggregate']['hosts'] == ['host1', 'host2']
    assert response.json['aggregate']['updated_at'] is not None

    zone = api.call('PUT', f'{PATH}/{aggregate.id}', {'aggregate': {'availability_zone': 'az2'}})
    assert zone.json['aggregate']['name'] == 'core'
    assert zone.json['aggregate']['metadata'] == {'availability_zone': 'az2'}


@pytest.mark.parametrize('aggregate_body', [{}, {'name': '   '}, {'name': None}, {'uuid': 'x'}])
def test_update_without_valid_change_refused(api: Any, aggregate: Any, aggregate_body: Any) -> None:
    response = api.call('PUT', f'{PATH}/{aggregate.id}', {'aggregate': aggregate_body})
    assert response.status_int == 400
    assert api.inventory.get_aggregate(aggregate.id) == aggregate


def test_zone_cannot_be_emptied(api: Any, aggregate: Any) -> None:
    update = {'aggregate': {'name': 'renamed', 'availability_zone': None}}
    updated = api.call('PUT', f'{PATH}/{aggregate.id}', update)
    metadata = {'set_metadata': {'metadata': {'availability_zone': None, 'a': 'b'}}}
    cleared = api.post(f'{PATH}/{aggregate.id}/action', metadata)
    assert (updated.status_int, cleared.status_int) == (400, 400)
    assert message(updated) == (
        f'Cannot update aggregate {aggregate.id}. '
        'Reason: Aggregate renamed does not support empty named availability zone.'
    )
    assert message(cleared) == (
        f'Cannot update metadata of aggregate {aggregate.id}. '
        'Reason: Aggregate edge does not support empty named availability zone.'
    )
    assert api.inventory.get_aggregate(aggregate.id) == aggregate


def test_host_belongs_to_one_zone(api: Any, aggregate: Any) -> None:
    api.inventory.update_aggregate(aggregate.id, availability_zone='az1')
    other = api.inventory.create_aggregate('other', 'az2')
    third = api.inventory.create_aggregate('third')
    api.inventory.add_host(third.id, 'host1')

    added = api.post(f'{PATH}/{other.id}/action', {'add_host': {'host': 'host1'}})
    zoned = api.call('PUT', f'{PATH}/{third.id}', {'aggregate': {'availability_zone': 'az3'}})
    metadata = {'set_metadata': {'metadata': {'availability_zone': 'az3'}}}
    tagged = api.post(f'{PATH}/{third.id}/action', metadata)

    why = "One or more hosts already in availability zone(s) ['az1']."
    assert (added.status_int, zoned.status_int, tagged.status_int) == (409, 400, 400)
    assert message(added) == f'Cannot add host to aggregate {other.id}. Reason: {why}'
    assert message(zoned) == f'Cannot update aggregate {third.id}. Reason: {why}'
    assert message(tagged) == f'Cannot update metadata of aggregate {third.id}. Reason: {why}'
    same = api.call('PUT', f'{PATH}/{third.id}', {'aggregate': {'availability_zone': 'az1'}})
    assert same.status_int == 200


def test_aggregate_with_hosts_not_deleted(api: Any, aggregate: Any) -> None:
    response = api.call('DELETE', f'{PATH}/{aggregate.id}')
    assert response.status_int == 400
    assert message(response) == (
        f'Cannot remove host from aggregate {aggregate.id}. Reason: Host aggregate is not empty.'
    )
    assert api.inventory.get_aggregate(aggregate.id) == aggregate


@pytest.mark.parametrize('action', ['add_host', 'remove_host'])
@pytest.mark.parametrize(
    ('content', 'field'),
    [
        ({}, 'host'),
        ({'host': 'a b'}, 'host'),
        ({'host': '../../evil\n\x1b[31m'}, 'host'),
        ({'host': 'h' * 256}, 'host'),
        ({'host': ''}, 'host'),
        ({'host': 5}, 'host'),
        ({'host': 'host3', 'more': 1}, 'more'),
        ('host3', 'host3'),
    ],
)
def test_bad_host_refused_naming_field(
    api: Any, aggregate: Any, action: str, content: Any, field: str
) -> None:
    response = api.post(f'{PATH}/{aggregate.id}/action', {action: content})
    assert response.status_int == 400
    assert field in message(response)
    assert api.inventory.get_aggregate(aggregate.id) == aggregate


@pytest.mark.parametrize(
    'metadata',
    [{'a/b': 'c'}, {'': 'c'}, {'k' * 256: 'c'}, {'a': 1}, {'a': 'v' * 256}, {'a': '\0'}, [], None],
)
def test_bad_metadata_is_refused(api: Any, aggregate: Any, metadata: Any) -> None:
    response = api.post(f'{PATH}/{aggregate.id}/action', {'set_metadata': {'metadata': metadata}})
    assert response.status_int == 400
    assert message(response).startswith('Invalid input for field/attribute ')
    assert api.inventory.get_aggregate(aggregate.id).metadata == {}


def test_nova_aggregates_read_only(rebuild: Any, database: Any, aggregate: Any) -> None:
    api = rebuild(inventory.Inventory(database, writable=False))
    path = f'{PATH}/{aggregate.id}'
    writes = [
        api.post(PATH, {'aggregate': {'name': 'new'}}),
        api.call('PUT', path, {'aggregate': {'name': 'new'}}),
        api.call('DELETE', path),
        api.post(f'{path}/action', {'add_host': {'host': 'host3'}}),
        api.post(f'{path}/action', {'remove_host': {'host': 'host1'}}),
        api.post(f'{path}/action', {'set_metadata': {'metadata': {'a': 'b'}}}),
    ]
    assert [response.status_int for response in writes] == [403] * 6
    assert {next(iter(response.json)) for response in writes} == {'forbidden'}
    assert api.get(path).status_int == 200
    assert api.inventory.list_aggregates() == [aggregate]
