# SPDX-License-Identifier: Apache-2.0
"""Requests: what was asked for, how far it is, and each task of it."""

import contextlib
import datetime
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TypeVar

from oslo_utils import uuidutils

from nova_precache import exception, model
from nova_precache.api import validation
from nova_precache.api.call import Call, Reply
from nova_precache.api.schemas import requests as schemas
from nova_precache.policies import requests as policies

Item = TypeVar('Item', model.CacheRequest, model.Task)


def index(call: Call) -> Reply:
    """List requests, the newest first."""
    validation.check_query(call.query, schemas.INDEX)
    project_id = _authorize(call, policies.LIST)
    limit, marker = _limit(call), _first(call, 'marker')
    try:
        found = call.services.requests.list(project_id, _first(call, 'status'), limit + 1, marker)
    except exception.RequestNotFound as error:
        raise exception.InvalidInput(
            f'Invalid input for query parameters marker. Value: {marker}. {error}'
        ) from error
    page = [_request_to_json(request) for request in found[:limit]]
    return Reply(body={'requests': page, **_links(call, 'requests', found, limit)})


def show(call: Call) -> Reply:
    project_id = _authorize(call, policies.SHOW)
    return Reply(body={'request': _request_to_json(_load(call, project_id))})


def tasks(call: Call) -> Reply:
    """List the tasks of a request, in the order of its plan."""
    validation.check_query(call.query, schemas.TASKS)
    project_id = _authorize(call, policies.TASKS)
    request = _load(call, project_id)
    limit, marker = _limit(call), _first(call, 'marker')
    after = None if marker is None else int(marker)
    found = call.services.requests.tasks(request.id, limit + 1, after)
    page = [_task_to_json(task) for task in found[:limit]]
    return Reply(body={'tasks': page, **_links(call, 'tasks', found, limit)})


def _authorize(call: Call, rule: str) -> str | None:
    """Apply the rule, and give the project whose requests the caller sees; None is all."""
    if call.context.is_admin:
        # Where the rule asks for the caller's own project, an admin sees only that, too.
        with contextlib.suppress(exception.PolicyNotAuthorized):
            call.authorize(rule)
            return None
    project_id = call.context.project_id
    if project_id is None:
        raise exception.PolicyNotAuthorized(rule)
    call.authorize(rule, {'project_id': project_id})
    return project_id


def _load(call: Call, project_id: str | None) -> model.CacheRequest:
    request_id = call.path['id']
    if not uuidutils.is_uuid_like(request_id):
        raise exception.RequestNotFound(request_id)
    return call.services.requests.get(request_id, project_id)


def _limit(call: Call) -> int:
    asked = _first(call, 'limit')
    most = call.settings.max_limit
    return most if asked is None else min(int(asked), most)


def _first(call: Call, parameter: str) -> str | None:
    values = call.query.get(parameter)
    return values[0] if values else None


def _links(
    call: Call, collection: str, found: Sequence[Item], limit: int
) -> Mapping[str, list[dict[str, str]]]:
    """Link to the next page where one more item than asked for was found."""
    if len(found) <= limit:
        return {}
    kept = {name: values[0] for name, values in call.query.items() if name != 'limit'}
    query = urllib.parse.urlencode({**kept, 'limit': limit, 'marker': found[limit - 1].id})
    path = '/v1/requests'
    if collection == 'tasks':
        path = f'{path}/{call.path["id"]}/tasks'
    return {f'{collection}_links': [{'rel': 'next', 'href': f'{call.base_url}{path}?{query}'}]}


def _request_to_json(request: model.CacheRequest) -> model.Json:
    return {
        'id': request.id,
        'status': request.status,
        'reason': request.reason,
        'aggregate': {
            'id': request.aggregate_id,
            'uuid': request.aggregate_uuid,
            'name': request.aggregate_name,
        },
        'images': list(request.images),
        'priority': request.priority,
        'project_id': request.project_id,
        'user_id': request.user_id,
        'request_id': request.request_id,
        'created_at': _time(request.created_at),
        'planned_at': _time(request.planned_at),
        'started_at': _time(request.started_at),
        'finished_at': _time(request.finished_at),
        'hosts_total': request.hosts_total,
        'hosts_done': request.hosts_done,
        'counts': dict(request.counts),
        'bytes_done': request.bytes_done,
        'bytes_total': request.bytes_total,
    }


def _task_to_json(task: model.Task) -> model.Json:
    return {
        'id': task.id,
        'host': task.host,
        'cell': task.cell_uuid,
        'image_id': task.image_id,
        'status': task.status,
        'reason': task.reason,
        'attempts': task.attempts,
        'bytes_done': task.bytes_done,
        'bytes_total': task.bytes_total,
        'next_attempt_at': _time(task.next_attempt_at),
        'created_at': _time(task.created_at),
        'started_at': _time(task.started_at),
        'finished_at': _time(task.finished_at),
    }


def _time(value: datetime.datetime | None) -> str | None:
    """ISO 8601 in UTC, as the database keeps it."""
    return None if value is None else f'{value.isoformat(timespec="microseconds")}Z'
