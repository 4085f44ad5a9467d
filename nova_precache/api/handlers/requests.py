# SPDX-License-Identifier: Apache-2.0
"""Requests: made, followed and steered, with each of their tasks."""

import logging
from collections.abc import Mapping
from typing import Any

from oslo_utils import timeutils, uuidutils

from nova_precache import exception, model
from nova_precache.api import asking, paging, showing, times, validation, visibility
from nova_precache.api.call import Call, Reply
from nova_precache.api.schemas import requests as schemas
from nova_precache.db import requests
from nova_precache.policies import requests as policies

LOG = logging.getLogger(__name__)

PATH = '/v1/requests'


def create(call: Call) -> Reply:
    """Accept a request, or give the one that was accepted with the same client_request_id."""
    validation.check_document(call.body, schemas.CREATE)
    call.authorize(policies.CREATE, {'project_id': call.context.project_id})
    body = call.body['request']
    # Looked for first: what was in order then may not be so any more.
    request = _accepted(call, body.get('client_request_id')) or _accept_new(call, body)
    return Reply(
        status=202,
        body={'request': showing.request_to_json(request)},
        headers={'Location': url(call, request)},
    )


def _accepted(call: Call, client_request_id: str | None) -> model.CacheRequest | None:
    if client_request_id is None:
        return None
    return call.services.requests.accepted(call.context.project_id, client_request_id)


def _accept_new(call: Call, body: Mapping[str, Any]) -> model.CacheRequest:
    asked = asking.read(call, body)
    return accept(
        call,
        aggregate=asked.aggregate,
        hosts=asked.named_hosts,
        images=tuple(image.id for image in asked.images),
        options=asked.options,
        priority=int(body.get('priority') or 0),
        description=body.get('description'),
        client_request_id=body.get('client_request_id'),
    )


def index(call: Call) -> Reply:
    """List requests, the newest first unless the query says otherwise."""
    validation.check_query(call.query, schemas.INDEX)
    project_id = visibility.authorize(call, policies.LIST)
    marker = paging.first(call, 'marker')
    try:
        found = call.services.requests.list(
            _filter(call, project_id),
            sort_key=paging.first(call, 'sort_key') or 'created_at',
            descending=paging.first(call, 'sort_dir') != 'asc',
            limit=paging.limit(call) + 1,
            marker=marker,
        )
    except exception.RequestNotFound as error:
        raise paging.bad_marker(marker, error) from error
    return Reply(
        body=paging.page(
            call, PATH, 'requests', found, showing.request_to_json, lambda request: request.id
        )
    )


def show(call: Call) -> Reply:
    project_id = visibility.authorize(call, policies.SHOW)
    return Reply(body={'request': showing.request_to_json(_load(call, project_id))})


def tasks(call: Call) -> Reply:
    """List the tasks of a request, in the order of its plan."""
    validation.check_query(call.query, schemas.TASKS)
    project_id = visibility.authorize(call, policies.TASKS)
    request = _load(call, project_id)
    marker = paging.first(call, 'marker')
    found = call.services.requests.tasks(
        request.id,
        limit=paging.limit(call) + 1,
        marker=None if marker is None else int(marker),
        status=paging.first(call, 'status'),
        host=paging.first(call, 'host'),
        image_id=_uuid(call, 'image'),
    )
    path = f'{PATH}/{request.id}/tasks'
    return Reply(
        body=paging.page(call, path, 'tasks', found, showing.task_to_json, lambda task: task.id)
    )


def cancel(call: Call) -> Reply:
    """End what waits, and stop what runs and nobody else wants."""
    validation.check_document(call.body, schemas.CANCEL)
    project_id = visibility.authorize(call, policies.CANCEL)
    asked: Mapping[str, Any] = call.body['cancel'] or {}
    asking.refuse_by_nova(call, asked, 'keep_partial')
    keep_partial = bool(asked.get('keep_partial'))
    return _steered(
        call, call.services.steering.cancel(_id(call), keep_partial, project_id=project_id)
    )


def pause(call: Call) -> Reply:
    validation.check_document(call.body, schemas.PAUSE)
    project_id = visibility.authorize(call, policies.PAUSE)
    return _steered(call, call.services.steering.pause(_id(call), project_id=project_id))


def resume(call: Call) -> Reply:
    validation.check_document(call.body, schemas.RESUME)
    project_id = visibility.authorize(call, policies.RESUME)
    return _steered(call, call.services.steering.resume(_id(call), project_id=project_id))


def retry(call: Call) -> Reply:
    """Have what did not succeed be tried again, in another window where one is given."""
    validation.check_document(call.body, schemas.RETRY)
    project_id = visibility.authorize(call, policies.RETRY)
    window = _window(call, project_id)
    asking.refuse_unsupported(call)
    request = call.services.steering.retry(
        _id(call),
        not_before=window.not_before,
        deadline=window.deadline,
        project_id=project_id,
    )
    return _steered(call, request)


def accept(call: Call, **what: Any) -> model.CacheRequest:
    """Save a request of the caller, and tell the conductors."""
    request = call.services.requests.accept(
        requests.NewRequest(
            project_id=call.context.project_id,
            user_id=call.context.user_id,
            is_admin=bool(call.context.is_admin),
            request_id=call.context.request_id,
            global_request_id=call.context.global_request_id,
            **what,
        )
    )
    LOG.info(
        'Request %s: %d images for %s',
        request.id,
        len(request.images),
        f'{len(request.hosts)} hosts'
        if request.hosts is not None
        else f'aggregate {request.aggregate_id}',
    )
    _wake(call, request)
    return request


def url(call: Call, request: model.CacheRequest) -> str:
    """Tell where a request can be watched."""
    return f'{call.base_url}{PATH}/{request.id}'


def _steered(call: Call, request: model.CacheRequest) -> Reply:
    LOG.info('Request %s is %s', request.id, request.status)
    _wake(call, request)
    return Reply(status=202, body={'request': showing.request_to_json(request)})


def _wake(call: Call, request: model.CacheRequest) -> None:
    """Tell the conductors; they look for themselves, so nothing is lost when it fails."""
    try:
        call.services.wake()
    except Exception:
        LOG.warning(
            'Request %s: no conductor could be told; they will find it', request.id, exc_info=True
        )


def _load(call: Call, project_id: str | None) -> model.CacheRequest:
    return call.services.requests.get(_id(call), project_id)


def _id(call: Call) -> str:
    request_id = call.path['id']
    if not uuidutils.is_uuid_like(request_id):
        raise exception.RequestNotFound(request_id)
    return request_id


def _window(call: Call, project_id: str | None) -> asking.Window:
    """Read the window of a retry; the request's own deadline stays, unless it is over."""
    asked: Mapping[str, Any] = call.body['retry'] or {}
    window = asking.window(asked)
    deadline = _load(call, project_id).options.deadline
    if window.not_before is None or window.deadline is not None or deadline is None:
        return window
    if timeutils.utcnow() < deadline <= window.not_before:
        raise validation.refusal(
            'not_before', asked['not_before'], f'The deadline is {times.to_text(deadline)}.'
        )
    return window


def _filter(call: Call, project_id: str | None) -> requests.RequestFilter:
    aggregate, since = paging.first(call, 'aggregate'), paging.first(call, 'since')
    return requests.RequestFilter(
        project_id=project_id,
        status=paging.first(call, 'status'),
        aggregate=None if aggregate is None else asking.aggregate_filter(call, aggregate),
        image_id=_uuid(call, 'image'),
        since=None if since is None else times.from_text(since),
        pin_id=_uuid(call, 'pin'),
    )


def _uuid(call: Call, parameter: str) -> str | None:
    asked = paging.first(call, parameter)
    return None if asked is None else asking.canonical(asked)
