# SPDX-License-Identifier: Apache-2.0
"""Aggregates: list, show, create, update, delete, and the actions on one.

Status codes are Nova's: 200 where 201 or 204 would be expected.
"""

import contextlib
import datetime
from collections.abc import Iterator

import microversion_parse

from nova_precache import exception, model
from nova_precache.api import validation
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import aggregates as schemas
from nova_precache.policies import aggregates as policies

_UUID_SINCE = microversion_parse.Version(2, 41)


def index(req: Request) -> Reply:
    req.authorize(policies.INDEX)
    found = req.services.inventory.list_aggregates()
    return Reply(body={'aggregates': [_to_json(aggregate, req.version) for aggregate in found]})


def show(req: Request) -> Reply:
    req.authorize(policies.SHOW)
    with resolve_aggregate_id(req) as aggregate_id:
        return _reply(req, req.services.inventory.get_aggregate(aggregate_id))


def create(req: Request) -> Reply:
    validation.check_body(req.body, schemas.CREATE)
    req.authorize(policies.CREATE)
    asked = req.body['aggregate']
    zone = (asked.get('availability_zone') or '').strip() or None
    aggregate = req.services.inventory.create_aggregate(asked['name'].strip(), zone)
    body = _to_json(aggregate, req.version)
    del body['hosts'], body['metadata']
    return Reply(body={'aggregate': body})


def update(req: Request) -> Reply:
    validation.check_body(req.body, schemas.UPDATE)
    req.authorize(policies.UPDATE)
    changes = dict(req.body['aggregate'])
    if 'name' in changes:
        changes['name'] = changes['name'].strip()
    with resolve_aggregate_id(req) as aggregate_id:
        return _reply(req, req.services.inventory.update_aggregate(aggregate_id, **changes))


def delete(req: Request) -> Reply:
    req.authorize(policies.DELETE)
    with resolve_aggregate_id(req) as aggregate_id:
        req.services.inventory.delete_aggregate(aggregate_id)
    return Reply()


def add_host(req: Request) -> Reply:
    validation.check_body(req.body, schemas.ADD_HOST)
    req.authorize(policies.ADD_HOST)
    host = req.body['add_host']['host']
    with resolve_aggregate_id(req) as aggregate_id:
        return _reply(req, req.services.inventory.add_host(aggregate_id, host))


def remove_host(req: Request) -> Reply:
    validation.check_body(req.body, schemas.REMOVE_HOST)
    req.authorize(policies.REMOVE_HOST)
    host = req.body['remove_host']['host']
    try:
        with resolve_aggregate_id(req) as aggregate_id:
            return _reply(req, req.services.inventory.remove_host(aggregate_id, host))
    except exception.NotFound as error:
        raise exception.NotFound(
            f'Cannot remove host {host} in aggregate {req.path["id"]}'
        ) from error


def set_metadata(req: Request) -> Reply:
    validation.check_body(req.body, schemas.SET_METADATA)
    req.authorize(policies.SET_METADATA)
    metadata = req.body['set_metadata']['metadata']
    with resolve_aggregate_id(req) as aggregate_id:
        return _reply(req, req.services.inventory.set_metadata(aggregate_id, metadata))


@contextlib.contextmanager
def resolve_aggregate_id(req: Request) -> Iterator[int]:
    """Yield the id that the path names; a not-found error quotes it as the caller wrote it."""
    asked = req.path['id']
    aggregate_id = validation.to_integer(asked, 'id')
    if '_' in asked:  # Python reads 1_0 as ten, no database does
        raise exception.AggregateNotFound(asked)
    try:
        yield aggregate_id
    except exception.AggregateNotFound as error:
        raise exception.AggregateNotFound(asked) from error


def _reply(req: Request, aggregate: model.Aggregate) -> Reply:
    return Reply(body={'aggregate': _to_json(aggregate, req.version)})


def _to_json(aggregate: model.Aggregate, version: microversion_parse.Version) -> model.Json:
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
    """Format a time as Nova's oldest API does: UTC, without a zone."""
    return None if value is None else value.strftime('%Y-%m-%dT%H:%M:%S.%f')
