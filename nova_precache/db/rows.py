# SPDX-License-Identifier: Apache-2.0
"""Model objects from rows."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from oslo_utils import timeutils
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import task_counts
from nova_precache.db.engine import models

_TIMES = ('not_before', 'deadline')


_Row = models.CacheRequest | sa.Row[*tuple[Any, ...]]
_REQUEST = models.CacheRequest
# Columns, not objects: reads are frequent, and need no state.
REQUEST = (
    _REQUEST.id,
    _REQUEST.status,
    _REQUEST.aggregate_id,
    _REQUEST.aggregate_uuid,
    _REQUEST.aggregate_name,
    _REQUEST.images,
    _REQUEST.project_id,
    _REQUEST.user_id,
    _REQUEST.request_id,
    _REQUEST.priority,
    _REQUEST.reason,
    _REQUEST.created_at,
    _REQUEST.planned_at,
    _REQUEST.started_at,
    _REQUEST.finished_at,
    _REQUEST.hosts_total,
    _REQUEST.hosts_done,
    _REQUEST.hosts,
    _REQUEST.options,
    _REQUEST.description,
    _REQUEST.client_request_id,
    _REQUEST.pin_id,
    _REQUEST.global_request_id,
    _REQUEST.is_planned,
    _REQUEST.canary_passed,
)
TASK = tuple(
    getattr(models.Task, field.name)
    for field in dataclasses.fields(model.Task)
    if hasattr(models.Task, field.name)
)


def requests(session: orm.Session, rows: Sequence[_Row]) -> list[model.CacheRequest]:
    """Return requests with their totals, by one query for all."""
    by_request = task_counts.load(session, [row.id for row in rows])
    return [request(row, by_request.get(row.id, {})) for row in rows]


def counts(session: orm.Session, request_id: str) -> dict[str, int]:
    """Map each status to the number of a request's tasks."""
    by_status = task_counts.load(session, [request_id]).get(request_id, {})
    return {status: total.tasks for status, total in by_status.items()}


def request(row: _Row, by_status: Mapping[str, task_counts.Total]) -> model.CacheRequest:
    """Build a request from an object, or from a row with the columns ``REQUEST``."""
    totals = by_status.values()
    return model.CacheRequest(
        id=row.id,
        status=row.status,
        aggregate_id=row.aggregate_id or None,
        aggregate_uuid=row.aggregate_uuid or None,
        aggregate_name=row.aggregate_name or None,
        images=tuple(row.images),
        project_id=row.project_id,
        user_id=row.user_id,
        request_id=row.request_id,
        priority=row.priority,
        reason=row.reason,
        created_at=row.created_at,
        planned_at=row.planned_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        hosts_total=row.hosts_total,
        hosts_done=row.hosts_done,
        counts={status: total.tasks for status, total in sorted(by_status.items())},
        bytes_done=sum(total.bytes_done for total in totals),
        bytes_total=sum(total.bytes_total for total in totals),
        rate_bytes=sum(
            total.rate_bytes for status, total in by_status.items() if status in model.TASK_WORKING
        ),
        bytes_to_come=sum(
            total.bytes_total - total.bytes_done
            for status, total in by_status.items()
            if status in model.TASK_IN_FLIGHT
        ),
        hosts=None if row.hosts is None else tuple(row.hosts),
        options=options(row.options),
        description=row.description,
        client_request_id=row.client_request_id,
        pin_id=row.pin_id,
        global_request_id=row.global_request_id,
        is_planned=row.is_planned,
        canary_passed=row.canary_passed,
    )


def task(row: sa.Row[*tuple[Any, ...]]) -> model.Task:
    """Build a task from a row that begins with the columns ``TASK``."""
    return model.Task(*row[: len(TASK)])


def options(saved: Mapping[str, Any]) -> model.RequestOptions:
    """Read the options of a request of this or another release; ignore unknown ones."""
    known = {field.name for field in dataclasses.fields(model.RequestOptions)}
    values = {name: value for name, value in saved.items() if name in known}
    for name in _TIMES:
        if values.get(name) is not None:
            values[name] = datetime.datetime.fromisoformat(values[name])
    return model.RequestOptions(**values)


def options_to_save(asked: model.RequestOptions) -> model.Json:
    values = dataclasses.asdict(asked)
    for name in _TIMES:
        if values[name] is not None:
            values[name] = values[name].isoformat()
    return values


def in_utc(asked: model.RequestOptions) -> model.RequestOptions:
    """Return the options with times in UTC without a time zone, as the database stores them."""
    return dataclasses.replace(
        asked, not_before=_in_utc(asked.not_before), deadline=_in_utc(asked.deadline)
    )


def _in_utc(time: datetime.datetime | None) -> datetime.datetime | None:
    return None if time is None else timeutils.normalize_time(time)
