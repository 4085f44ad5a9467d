# SPDX-License-Identifier: Apache-2.0
"""Aggregates: list, show, create, update, delete, and the actions on one.

Status codes are Nova's: 200 where 201 or 204 would be expected.
"""

import contextlib
import datetime
from collections.abc import Iterator

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
    with named(call) as aggregate_id:
        return _reply(call, call.services.inventory.get_aggregate(aggregate_id))


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
    changes = dict(call.body['aggregate'])
    if 'name' in changes:
        changes['name'] = changes['name'].strip()
    with named(call) as aggregate_id:
        return _reply(call, call.services.inventory.update_aggregate(aggregate_id, **changes))


def delete(call: Call) -> Reply:
    call.authorize(policies.DELETE)
    with named(call) as aggregate_id:
        call.services.inventory.delete_aggregate(aggregate_id)
    return Reply()


def add_host(call: Call) -> Reply:
    validation.check_body(call.body, schemas.ADD_HOST)
    call.authorize(policies.ADD_HOST)
    host = call.body['add_host']['host']
    with named(call) as aggregate_id:
        return _reply(call, call.services.inventory.add_host(aggregate_id, host))


def remove_host(call: Call) -> Reply:
    validation.check_body(call.body, schemas.REMOVE_HOST)
    call.authorize(policies.REMOVE_HOST)
    host = call.body['remove_host']['host']
    try:
        with named(call) as aggregate_id:
            return _reply(call, call.services.inventory.remove_host(aggregate_id, host))
    except exception.NotFound as error:
        raise exception.NotFound(
            f'Cannot remove host {host} in aggregate {call.path["id"]}'
        ) from error


def set_metadata(call: Call) -> Reply:
    validation.check_body(call.body, schemas.SET_METADATA)
    call.authorize(policies.SET_METADATA)
    metadata = call.body['set_metadata']['metadata']
    with named(call) as aggregate_id:
        return _reply(call, call.services.inventory.set_metadata(aggregate_id, metadata))


@contextlib.contextmanager
def named(call: Call) -> Iterator[int]:
    """Give the id that the path names; who is told that there is none reads it as it was."""
    asked = call.path['id']
    aggregate_id = validation.to_integer(asked, 'id')
    if '_' in asked:  # 1_0 is ten for Python, and for no database
        raise exception.AggregateNotFound(asked)
    try:
        yield aggregate_id
    except exception.AggregateNotFound as error:
        raise exception.AggregateNotFound(asked) from error


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
