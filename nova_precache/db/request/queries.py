# SPDX-License-Identifier: Apache-2.0
"""Queries that list requests and tasks: filters, and the keys to sort by."""

import dataclasses
import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception
from nova_precache.db import pages, rows
from nova_precache.db.engine import models, session as db_session

_REQUEST, _TASK = models.CacheRequest, models.Task
REQUESTS = pages.Listing(
    {name: getattr(_REQUEST, name) for name in ('created_at', 'finished_at', 'priority', 'status')},
    unique=_REQUEST.number,
    marker=_REQUEST.id,
)
_TASK_KEYS = (
    'id',
    'request_id',
    'host',
    'image_id',
    'status',
    'attempts',
    'bytes_done',
    'bytes_total',
    'rate_bytes',
    'next_attempt_at',
    'created_at',
    'started_at',
    'finished_at',
)
TASKS = pages.Listing(
    {name: getattr(_TASK, name) for name in _TASK_KEYS}, unique=_TASK.id, marker=_TASK.id
)


@dataclasses.dataclass(frozen=True)
class AggregateFilter:
    """Matches an aggregate by any of its fields; a field that is None matches none.

    The fields are compared with the values that a request or pin recorded when it was made.
    """

    id: int | None = None
    uuid: str | None = None
    name: str | None = None

    def matches(self, row: type[models.CacheRequest] | type[models.Pin]) -> sa.ColumnElement[bool]:
        columns = {
            row.aggregate_id: self.id,
            row.aggregate_uuid: self.uuid,
            row.aggregate_name: self.name,
        }
        return sa.or_(
            sa.false(), *(column == value for column, value in columns.items() if value is not None)
        )


@dataclasses.dataclass(frozen=True)
class RequestFilter:
    """Conditions on requests; None matches any.

    :ivar since: created at this time or later; UTC
    """

    project_id: str | None = None
    status: str | None = None
    aggregate: AggregateFilter | None = None
    image_id: str | None = None
    since: datetime.datetime | None = None
    pin_id: str | None = None


@dataclasses.dataclass(frozen=True)
class TaskFilter:
    """Conditions on tasks; None matches any."""

    request_id: str | None = None
    project_id: str | None = None
    status: str | None = None
    host: str | None = None
    image_id: str | None = None


def requests(chosen: RequestFilter) -> sa.Select[models.CacheRequest]:
    query = sa.select(_REQUEST)
    for column, value in (
        (_REQUEST.project_id, chosen.project_id),
        (_REQUEST.status, chosen.status),
        (_REQUEST.pin_id, chosen.pin_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if chosen.aggregate is not None:
        query = query.where(chosen.aggregate.matches(_REQUEST))
    if chosen.since is not None:
        query = query.where(_REQUEST.created_at >= chosen.since)
    if chosen.image_id is None:
        return query
    named = models.RequestImage
    return query.where(
        sa.exists().where(named.request_id == _REQUEST.id, named.image_id == chosen.image_id)
    )


def require(session: orm.Session, request_id: str, project_id: str | None) -> None:
    """Check that there is a request; ``project_id`` None matches any project.

    :raises nova_precache.exception.RequestNotFound: unknown, or another project's
    """
    query = sa.select(_REQUEST.id).where(_REQUEST.id == request_id)
    if project_id is not None:
        query = query.where(_REQUEST.project_id == project_id)
    if db_session.run(session, query).first() is None:
        raise exception.RequestNotFound(request_id)


def tasks(chosen: TaskFilter, page: pages.Page) -> sa.Select[*tuple[Any, ...]]:
    """Select the columns ``rows.TASK``."""
    query = sa.select(*rows.TASK)
    equal = {
        _TASK.request_id: chosen.request_id,
        _TASK.status: chosen.status,
        _TASK.host: chosen.host,
        _TASK.image_id: chosen.image_id,
    }
    found = _index(chosen)
    if found is not None and [key.name for key in page.sort] in ([], [_TASK.id.key]):
        index, column = found
        value = sa.literal(equal.pop(column), column.type)
        is_descending = bool(page.sort) and page.sort[0].is_descending
        query = query.where(db_session.led_by(column, value))
        query = query.order_by(column.desc() if is_descending else column.asc())
        query = db_session.by_index(query, _TASK, index)
    for column, asked in equal.items():
        if asked is not None:
            query = query.where(column == asked)
    return query.where(_of_project(chosen))


def _index(chosen: TaskFilter) -> tuple[str, orm.InstrumentedAttribute[str]] | None:
    """Return the index with the fewest tasks in the order of their ids, and its first column."""
    if chosen.host is not None:
        return 'cache_tasks_host_idx', _TASK.host
    if chosen.request_id is not None:
        name = 'request' if chosen.status is None else 'status'
        return f'cache_tasks_{name}_idx', _TASK.request_id
    if chosen.image_id is not None:
        return 'cache_tasks_image_idx', _TASK.image_id
    return None if chosen.status is None else ('cache_tasks_state_idx', _TASK.status)


def visible_tasks(chosen: TaskFilter) -> sa.ColumnElement[bool]:
    """Select the tasks of the request and the project that a filter names."""
    if chosen.request_id is None:
        return _of_project(chosen)
    return sa.and_(_TASK.request_id == chosen.request_id, _of_project(chosen))


def _of_project(chosen: TaskFilter) -> sa.ColumnElement[bool]:
    if chosen.project_id is None:
        return sa.true()
    its = sa.select(_REQUEST.id).where(_REQUEST.project_id == chosen.project_id)
    if chosen.request_id is not None:
        its = its.where(_REQUEST.id == chosen.request_id)
    return _TASK.request_id.in_(its)
