# SPDX-License-Identifier: Apache-2.0
"""Serialises requests and tasks for /v1, as ``schemas.requests`` describes them.

The parts that they share with pins and estimates are public, too.
"""

import math
from collections.abc import Mapping

from nova_precache import model
from nova_precache.api import times


def request_to_json(request: model.CacheRequest) -> model.Json:
    """Serialise a request, without its tasks."""
    options = request.options
    return {
        'id': request.id,
        'status': request.status,
        'reason': request.reason,
        'aggregate': None if request.aggregate_id is None else aggregate_to_json(request),
        'hosts': None if request.hosts is None else list(request.hosts),
        'images': list(request.images),
        'priority': request.priority,
        'options': {
            'max_parallel_hosts': options.max_parallel_hosts,
            'max_rate_bytes': options.max_rate_bytes,
            'not_before': times.to_text(options.not_before),
            'deadline': times.to_text(options.deadline),
            'wait_for_down_hosts': options.wait_for_down_hosts,
            'canary': options.canary,
            'max_failures': options.max_failures,
        },
        'description': request.description,
        'client_request_id': request.client_request_id,
        'pin_id': request.pin_id,
        'project_id': request.project_id,
        'user_id': request.user_id,
        'request_id': request.request_id,
        'created_at': times.to_text(request.created_at),
        'planned_at': times.to_text(request.planned_at),
        'started_at': times.to_text(request.started_at),
        'finished_at': times.to_text(request.finished_at),
        'hosts_total': request.hosts_total,
        'hosts_done': request.hosts_done,
        'counts': dict(request.counts),
        'bytes_done': request.bytes_done,
        'bytes_total': request.bytes_total,
        'rate_bytes': request.rate_bytes,
        'eta_seconds': round_up(request.eta_seconds),
    }


def task_to_json(task: model.Task, cells: Mapping[str, str]) -> model.Json:
    """Serialise a task of a request.

    :param cells: the names of cells by uuid
    """
    return {
        'id': task.id,
        'request_id': task.request_id,
        'host': task.host,
        'cell': task.cell_uuid,
        'cell_name': cells.get(task.cell_uuid or ''),
        'image_id': task.image_id,
        'status': task.status,
        'reason': task.reason,
        'attempts': task.attempts,
        'bytes_done': task.bytes_done,
        'bytes_total': task.bytes_total,
        'rate_bytes': task.rate_bytes,
        'eta_seconds': round_up(task.eta_seconds),
        'next_attempt_at': times.to_text(task.next_attempt_at),
        'created_at': times.to_text(task.created_at),
        'started_at': times.to_text(task.started_at),
        'finished_at': times.to_text(task.finished_at),
    }


def aggregate_to_json(owner: model.CacheRequest | model.Pin) -> model.Json:
    """Serialise the aggregate as the request or pin recorded it."""
    return {
        'id': owner.aggregate_id,
        'uuid': owner.aggregate_uuid,
        'name': owner.aggregate_name,
    }


def round_up(value: float | None) -> int | None:
    """Return the next integer; None stays None."""
    return None if value is None else math.ceil(value)
