# SPDX-License-Identifier: Apache-2.0
"""Aggregates: list, show, create, update, delete, and the actions on one.

Status codes are Nova's: 200 where 201 or 204 would be expected.
"""

import datetime

from nova_precache import exception, model
from nova_precache.api import microversion, validation
from nova_precache.api.call import Call, Reply
from nova_precache.api.schemas import aggregates as schemas
from nova_precache.policies import aggregates as policies

_UUID_SINCE = microversion.Version(2, 41)


def index(call: Call) -> Reply:
    call.authorize(policies.INDEX)
    found = call.services.inventory.list_aggregates()
    return Reply(body={'aggregates': [_to_json(aggregate, call.version) for aggregate in found]})


def show(call: Call) -> Reply:
    call.authorize(policies.SHOW)
    return _reply(call, call.services.inventory.get_aggregate(to_id(call)))


def create(call: Call) -> Reply:
    validation.check_body(call.body, schemas.CREATE)
    call.authorize(policies.CREATE)
    asked = call.body['aggregate']
    zone = (asked.get('availability_zone') or '').strip() or None
    aggregate = call.services.inventory.create_aggregate(asked['name'].strip(), zone)
    body = _to_json(aggregate, call.version)
    del body['hosts'], body['metadata']
    return Reply(body={'aggregate': body})


def update(call: Call) -> Reply:
    validation.check_body(call.body, schemas.UPDATE)
    call.authorize(policies.UPDATE)
    aggregate_id = to_id(call)
    changes = dict(call.body['aggregate'])
    if 'name' in changes:
        changes['name'] = changes['name'].strip()
    return _reply(call, call.services.inventory.update_aggregate(aggregate_id, **changes))


def delete(call: Call) -> Reply:
    call.authorize(policies.DELETE)
    call.services.inventory.delete_aggregate(to_id(call))
    return Reply()


def add_host(call: Call) -> Reply:
    validation.check_body(call.body, schemas.ADD_HOST)
    call.authorize(policies.ADD_HOST)
    aggregate_id, host = to_id(call), call.body['add_host']['host']
    return _reply(call, call.services.inventory.add_host(aggregate_id, host))


def remove_host(call: Call) -> Reply:
    validation.check_body(call.body, schemas.REMOVE_HOST)
    call.authorize(policies.REMOVE_HOST)
    aggregate_id, host = to_id(call), call.body['remove_host']['host']
    try:
        aggregate = call.services.inventory.remove_host(aggregate_id, host)
    except exception.NotFound as error:
        raise exception.NotFound(
            f'Cannot remove host {host} in aggregate {aggregate_id}'
        ) from error
    return _reply(call, aggregate)


def set_metadata(call: Call) -> Reply:
    validation.check_body(call.body, schemas.SET_METADATA)
    call.authorize(policies.SET_METADATA)
    aggregate_id, metadata = to_id(call), call.body['set_metadata']['metadata']
    return _reply(call, call.services.inventory.set_metadata(aggregate_id, metadata))


def to_id(call: Call) -> int:
    """Give the id of the aggregate that the path names."""
    return validation.to_integer(call.path['id'], 'id')


def _reply(call: Call, aggregate: model.Aggregate) -> Reply:
    return Reply(body={'aggregate': _to_json(aggregate, call.version)})


def _to_json(aggregate: model.Aggregate, version: microversion.Version) -> model.Json:
    body = {
        'id': aggregate.id,
        'name': aggregate.name,
        'availability_zone': aggregate.availability_zone,
        'hosts': list(aggregate.hosts),
        'metadata': dict(aggregate.metadata),
        'created_at': _time(aggregate.created_at),
        'updated_at': _time(aggregate.updated_at),
        'deleted': False,
        'deleted_at': None,
    }
    if version >= _UUID_SINCE:
        body['uuid'] = aggregate.uuid
    return body


def _time(value: datetime.datetime | None) -> str | None:
    """Nova's oldest format of a time: UTC, and not saying so."""
    return None if value is None else value.strftime('%Y-%m-%dT%H:%M:%S.%f')
