# SPDX-License-Identifier: Apache-2.0
"""Queries that list requests and tasks: filters, order and pages.

A page continues after the key and the number of the last request of the page before, so
that requests added or ended in between neither hide nor repeat others.
"""

import dataclasses
import datetime
from typing import Any

import sqlalchemy as sa

from nova_precache import exception
from nova_precache.db.engine import models

# Sorts unfinished requests after all finished ones.
_NOT_YET = datetime.datetime(9999, 12, 31)  # noqa: DTZ001 - as the database keeps it
_REQUEST = models.CacheRequest
_SORT_KEYS: dict[str, Any] = {
    'created_at': _REQUEST.created_at,
    'finished_at': sa.func.coalesce(_REQUEST.finished_at, _NOT_YET),
    'priority': _REQUEST.priority,
    'status': _REQUEST.status,
}


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


def requests(
    chosen: RequestFilter, sort_key: str, descending: bool, limit: int, marker: str | None
) -> sa.Select[models.CacheRequest]:
    """Select requests after ``marker``, sorted by a key and then by age.

    :raises nova_precache.exception.InvalidInput: unknown sort key
    """
    if sort_key not in _SORT_KEYS:
        raise exception.InvalidInput(f'sort_key: {sort_key} is not one of {", ".join(_SORT_KEYS)}')
    key, number = _SORT_KEYS[sort_key], _REQUEST.number
    order = (key.desc(), number.desc()) if descending else (key.asc(), number.asc())
    query = _matching(chosen).order_by(*order).limit(limit)
    if marker is None:
        return query
    last = sa.select(key, number).where(_REQUEST.id == marker).subquery().alias('last')
    last_key, last_number = last.c
    further = key < last_key if descending else key > last_key
    beyond = number < last_number if descending else number > last_number
    return query.join(last, sa.true()).where(sa.or_(further, sa.and_(key == last_key, beyond)))


def _matching(chosen: RequestFilter) -> sa.Select[models.CacheRequest]:
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


def tasks(
    request_id: str,
    limit: int,
    marker: int | None,
    status: str | None,
    host: str | None,
    image_id: str | None,
) -> sa.Select[models.Task]:
    """Select the tasks of a request after ``marker``, in the order of the plan."""
    row = models.Task
    query = sa.select(row).where(row.request_id == request_id).order_by(row.id).limit(limit)
    if marker is not None:
        query = query.where(row.id > marker)
    for column, value in ((row.status, status), (row.host, host), (row.image_id, image_id)):
        if value is not None:
            query = query.where(column == value)
    return query
