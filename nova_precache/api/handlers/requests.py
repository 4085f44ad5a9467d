# SPDX-License-Identifier: Apache-2.0
"""Creates, lists, shows and steers requests, and lists their tasks."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from oslo_utils import timeutils, uuidutils

from nova_precache import exception, model
from nova_precache.api import paging, parsing, serializers, times, validation, visibility
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import requests as schemas
from nova_precache.db import pages, requests
from nova_precache.policies import requests as policies

LOG = logging.getLogger(__name__)

PATH = '/v1/requests'


def create(req: Request) -> Reply:
    """Accept a request, or return the one accepted earlier with the same client_request_id."""
    validation.check_document(req.body, schemas.CREATE)
    req.authorize(policies.CREATE, {'project_id': req.context.project_id})
    body = req.body['request']
    # Look for it first: a body that was valid then may be invalid now.
    request = _accepted(req, body.get('client_request_id')) or _accept_new(req, body)
    return Reply(
        status=202,
        body={'request': _shown(req, request)},
        headers={'Location': url(req, request)},
    )


def _accepted(req: Request, client_request_id: str | None) -> model.CacheRequest | None:
    if client_request_id is None:
        return None
    return req.services.requests.accepted(req.context.project_id, client_request_id)


def _accept_new(req: Request, body: Mapping[str, Any]) -> model.CacheRequest:
    asked = parsing.read(req, body)
    return accept(
        req,
        aggregate=asked.aggregate,
        hosts=asked.named_hosts,
        images=tuple(image.id for image in asked.images),
        options=asked.options,
        priority=int(body.get('priority') or 0),
        description=body.get('description'),
        client_request_id=body.get('client_request_id'),
    )


def index(req: Request) -> Reply:
    """List requests, the newest first unless the query says otherwise."""
    page = paging.read(req, schemas.INDEX, schemas.SORT_KEYS, _default_sort(req))
    project_id = visibility.project(req, policies.LIST)
    chosen = _filter(req, project_id)
    with req.services.snapshot():
        found = req.services.requests.list(chosen, page=page)
        explained = req.services.explanations.requests(found)
    return Reply(
        body=paging.page(
            req,
            PATH,
            'requests',
            explained,
            serializers.request_to_json,
            lambda request: request.id,
        )
    )


def show(req: Request) -> Reply:
    project_id = visibility.authorize(req, policies.SHOW)
    with req.services.snapshot():
        request = req.services.requests.get(_id(req), project_id)
        return Reply(body={'request': _shown(req, request)})


def tasks(req: Request) -> Reply:
    """List the tasks of a request, in the order of its plan unless the query says otherwise."""
    page = paging.read(req, schemas.TASKS, schemas.SORT_TASKS)
    project_id = visibility.authorize(req, policies.TASKS)
    request_id = _id(req)
    chosen = requests.TaskFilter(request_id, project_id)
    return _tasks(req, f'{PATH}/{request_id}/tasks', page, chosen, of_known=True)


def all_tasks(req: Request) -> Reply:
    """List the tasks of all requests, the newest first unless the query says otherwise."""
    newest = [model.SortKey('id', is_descending=True)]
    page = paging.read(req, schemas.ALL_TASKS, schemas.SORT_TASKS, newest)
    project_id = visibility.project(req, policies.ALL_TASKS)
    chosen = requests.TaskFilter(_uuid(req, 'request'), project_id)
    return _tasks(req, '/v1/tasks', page, chosen, of_known=False)


def _tasks(
    req: Request, path: str, page: pages.Page, whose: requests.TaskFilter, *, of_known: bool
) -> Reply:
    chosen = dataclasses.replace(
        whose,
        status=paging.first(req, 'status'),
        host=paging.first(req, 'host'),
        image_id=_uuid(req, 'image'),
    )
    marker = None if page.marker is None else int(page.marker)
    page = dataclasses.replace(page, marker=marker)
    cells = req.services.cell_names.load()
    with req.services.snapshot():
        found = req.services.requests.list_tasks(chosen, page, of_known=of_known)
        explained = req.services.explanations.tasks(found)
    return Reply(
        body=paging.page(
            req,
            path,
            'tasks',
            explained,
            lambda task: serializers.task_to_json(task, cells),
            lambda task: task.id,
        )
    )


def change(req: Request) -> Reply:
    """Change the priority, the limits and the deadline of a request that has not ended."""
    validation.check_document(req.body, schemas.CHANGE)
    project_id = visibility.authorize(req, policies.CHANGE)
    asked = parsing.change(req, req.body['request'])
    request = req.services.actions.change(_id(req), asked, project_id=project_id)
    changes = ', '.join(f'{name} = {value}' for name, value in sorted(asked.items()))
    LOG.info('Request %s: changed to %s', request.id, changes)
    _wake(req, request)
    return Reply(body={'request': _shown(req, request)})


def cancel(req: Request) -> Reply:
    """End the waiting tasks, and stop running transfers that no other request wants."""
    validation.check_document(req.body, schemas.CANCEL)
    project_id = visibility.authorize(req, policies.CANCEL)
    asked: Mapping[str, Any] = req.body['cancel'] or {}
    parsing.refuse_by_nova(req, asked, 'keep_partial')
    keep_partial = bool(asked.get('keep_partial'))
    return _accepted_action(
        req, req.services.actions.cancel(_id(req), keep_partial, project_id=project_id)
    )


def pause(req: Request) -> Reply:
    validation.check_document(req.body, schemas.PAUSE)
    project_id = visibility.authorize(req, policies.PAUSE)
    return _accepted_action(req, req.services.actions.pause(_id(req), project_id=project_id))


def resume(req: Request) -> Reply:
    validation.check_document(req.body, schemas.RESUME)
    project_id = visibility.authorize(req, policies.RESUME)
    return _accepted_action(req, req.services.actions.resume(_id(req), project_id=project_id))


def retry(req: Request) -> Reply:
    """Retry the tasks that did not succeed, in another window if one is given."""
    validation.check_document(req.body, schemas.RETRY)
    project_id = visibility.authorize(req, policies.RETRY)
    window = _window(req, project_id)
    parsing.refuse_unsupported(req)
    request = req.services.actions.retry(
        _id(req),
        not_before=window.not_before,
        deadline=window.deadline,
        project_id=project_id,
        hosts=(req.body['retry'] or {}).get('hosts'),
    )
    return _accepted_action(req, request)


def accept(req: Request, **what: Any) -> model.CacheRequest:
    """Save a request of the caller, and wake the conductors."""
    request = req.services.requests.accept(
        requests.NewRequest(
            project_id=req.context.project_id,
            user_id=req.context.user_id,
            is_admin=bool(req.context.is_admin),
            request_id=req.context.request_id,
            global_request_id=req.context.global_request_id,
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
    _wake(req, request)
    return request


def url(req: Request, request: model.CacheRequest) -> str:
    """Return the URL of a request."""
    return f'{req.base_url}{PATH}/{request.id}'


def _accepted_action(req: Request, request: model.CacheRequest) -> Reply:
    LOG.info('Request %s is %s', request.id, request.status)
    _wake(req, request)
    return Reply(status=202, body={'request': _shown(req, request)})


def _shown(req: Request, request: model.CacheRequest) -> model.Json:
    (explained,) = req.services.explanations.requests([request])
    return serializers.request_to_json(explained)


def _wake(req: Request, request: model.CacheRequest) -> None:
    """Wake the conductors; a failure is harmless, since they also poll."""
    try:
        req.services.wake()
    except Exception:
        LOG.warning(
            'Request %s: no conductor could be notified; one will find it at its next poll',
            request.id,
            exc_info=True,
        )


def _id(req: Request) -> str:
    request_id = req.path['id']
    if not uuidutils.is_uuid_like(request_id):
        raise exception.RequestNotFound(request_id)
    return request_id


def _window(req: Request, project_id: str | None) -> parsing.Window:
    """Read the window of a retry; the request keeps its own deadline unless it has passed."""
    asked: Mapping[str, Any] = req.body['retry'] or {}
    window = parsing.window(asked)
    deadline = req.services.requests.outline(_id(req), project_id).options.deadline
    if window.not_before is None or window.deadline is not None or deadline is None:
        return window
    if timeutils.utcnow() < deadline <= window.not_before:
        raise exception.InvalidField(
            'not_before', asked['not_before'], f'The deadline is {times.to_text(deadline)}.'
        )
    return window


def _default_sort(req: Request) -> Sequence[model.SortKey]:
    """Return the order without the parameter ``sort``, which excludes the older two."""
    key, direction = paging.first(req, 'sort_key'), paging.first(req, 'sort_dir')
    if 'sort' in req.query and (key or direction):
        raise exception.InvalidField(
            'sort',
            paging.first(req, 'sort'),
            'It excludes sort_key and sort_dir.',
            'query parameters',
        )
    return [model.SortKey(key or 'created_at', is_descending=direction != 'asc')]


def _filter(req: Request, project_id: str | None) -> requests.RequestFilter:
    aggregate, since = paging.first(req, 'aggregate'), paging.first(req, 'since')
    return requests.RequestFilter(
        project_id=project_id,
        status=paging.first(req, 'status'),
        aggregate=None if aggregate is None else parsing.aggregate_filter(req, aggregate),
        image_id=_uuid(req, 'image'),
        since=None if since is None else times.from_text(since),
        pin_id=_uuid(req, 'pin'),
    )


def _uuid(req: Request, parameter: str) -> str | None:
    asked = paging.first(req, parameter)
    return None if asked is None else parsing.canonical(asked)
