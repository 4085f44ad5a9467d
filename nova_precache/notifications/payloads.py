# SPDX-License-Identifier: Apache-2.0
"""The notifications, field by field: Nova's as Nova serialises them, and our own in its form."""

import dataclasses
import datetime
import enum
from collections.abc import Mapping

from nova_precache import context, model

NOVA = 'nova'
OURS = 'image_precache'


class Publisher(enum.StrEnum):
    """The publisher of a notification, without the host, whichever process sends it."""

    API = 'nova-api'
    CONDUCTOR = 'nova-conductor'
    PRECACHE = 'nova-precache-conductor'


@dataclasses.dataclass(frozen=True)
class Notification:
    """A notification, and the context of the request that it is about."""

    event_type: str
    source: Publisher
    payload: model.Json
    requester: context.RequestContext


def whole_request(
    phase: model.Phase, aggregate: model.Aggregate, requester: context.RequestContext
) -> Notification:
    """Build the start or the end of a request: an ``AggregatePayload`` 1.1."""
    payload = _versioned(
        NOVA,
        'AggregatePayload',
        '1.1',
        {
            'id': aggregate.id,
            'uuid': aggregate.uuid,
            'name': aggregate.name,
            'hosts': list(aggregate.hosts),
            'metadata': dict(aggregate.metadata),
        },
    )
    return Notification(_novas_event(phase), Publisher.API, payload, requester)


def host_progress(
    request: model.CacheRequest,
    host: str,
    index: int,
    outcomes: Mapping[str, str],
    requester: context.RequestContext,
) -> Notification:
    """Build the progress of a request by one host: an ``AggregateCachePayload`` 1.0.

    :param index: position of this host among the finished ones, counted from 1
    :param outcomes: image id to final task status
    """
    cached = [image for image, status in outcomes.items() if status in model.TASK_SUCCEEDED]
    payload = _versioned(
        NOVA,
        'AggregateCachePayload',
        '1.0',
        {
            'id': request.aggregate_id,
            'uuid': request.aggregate_uuid,
            'name': request.aggregate_name,
            'host': host,
            'images_cached': cached,
            'images_failed': [image for image in outcomes if image not in cached],
            'index': index,
            'total': request.hosts_total,
        },
    )
    return Notification(_novas_event(model.Phase.PROGRESS), Publisher.CONDUCTOR, payload, requester)


def request_state(
    phase: model.Phase, request: model.CacheRequest, requester: context.RequestContext
) -> Notification:
    """Build the state of a request after one of its phases: a ``RequestPayload`` 1.0."""
    payload = _versioned(
        OURS,
        'RequestPayload',
        '1.0',
        {
            'id': request.id,
            'status': request.status,
            'reason': request.reason,
            'aggregate_id': request.aggregate_id,
            'aggregate_uuid': request.aggregate_uuid,
            'aggregate_name': request.aggregate_name,
            'hosts': None if request.hosts is None else list(request.hosts),
            'images': list(request.images),
            'hosts_total': request.hosts_total,
            'hosts_done': request.hosts_done,
            'counts': dict(request.counts),
            'bytes_done': request.bytes_done,
            'bytes_total': request.bytes_total,
            'priority': request.priority,
            'options': _options(request.options),
            'description': request.description,
            'client_request_id': request.client_request_id,
            'pin_id': request.pin_id,
            'project_id': request.project_id,
            'user_id': request.user_id,
            'created_at': _time(request.created_at),
            'planned_at': _time(request.planned_at),
            'started_at': _time(request.started_at),
            'finished_at': _time(request.finished_at),
        },
    )
    return Notification(f'{OURS}.request.{phase}', Publisher.PRECACHE, payload, requester)


def task_outcome(task: model.Task, requester: context.RequestContext) -> Notification:
    """Build the final outcome of one task: a ``TaskPayload`` 1.0."""
    payload = _versioned(
        OURS,
        'TaskPayload',
        '1.0',
        {
            'request_id': task.request_id,
            'host': task.host,
            'cell_uuid': task.cell_uuid,
            'image_id': task.image_id,
            'status': task.status,
            'reason': task.reason,
            'attempts': task.attempts,
            'bytes_done': task.bytes_done,
            'bytes_total': task.bytes_total,
            'seconds': _seconds(task.started_at, task.finished_at),
            'started_at': _time(task.started_at),
            'finished_at': _time(task.finished_at),
        },
    )
    return Notification(f'{OURS}.task', Publisher.PRECACHE, payload, requester)


def _options(options: model.RequestOptions) -> model.Json:
    data = {
        **dataclasses.asdict(options),
        'not_before': _time(options.not_before),
        'deadline': _time(options.deadline),
    }
    return _versioned(OURS, 'RequestOptionsPayload', '1.0', data)


def _novas_event(phase: model.Phase) -> str:
    return f'aggregate.cache_images.{phase}'


def _time(at: datetime.datetime | None) -> str | None:
    """Format a time in UTC as Nova's notifications do."""
    return None if at is None else at.strftime('%Y-%m-%dT%H:%M:%SZ')


def _seconds(start: datetime.datetime | None, end: datetime.datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return max(0.0, round((end - start).total_seconds(), 3))


def _versioned(namespace: str, name: str, version: str, data: model.Json) -> model.Json:
    return {
        'nova_object.name': name,
        'nova_object.namespace': namespace,
        'nova_object.version': version,
        'nova_object.data': data,
    }
