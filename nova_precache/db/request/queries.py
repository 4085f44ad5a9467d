# SPDX-License-Identifier: Apache-2.0
"""Queries that list requests and tasks: filters, and the keys to sort by."""

import dataclasses
import datetime
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import pages, rows
from nova_precache.db.engine import expressions, models, session as db_session

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


def requests(
    session: orm.Session, chosen: RequestFilter, page: pages.Page
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Return the rows of a page, with the columns ``rows.REQUEST``.

    :raises nova_precache.exception.InvalidMarker: the filter's project has no such request
    """
    asked = {name: value for name, value in vars(chosen).items() if value is not None}
    aggregate = asked.pop('aggregate', None)
    is_its = None if chosen.project_id is None else _REQUEST.project_id == chosen.project_id
    last = pages.last_values(session, REQUESTS, page, is_its)
    statement = _page_of_requests(frozenset(asked), tuple(page.sort), _nulls(last))
    if aggregate is not None:
        statement = statement.where(aggregate.matches(_REQUEST))
    return db_session.run(session, statement, {**asked, **_values(page, last)}).all()


@functools.lru_cache(maxsize=256)
def _page_of_requests(
    asked: Collection[str], sort: Sequence[model.SortKey], nulls: Sequence[bool] | None
) -> sa.Select[*tuple[Any, ...]]:
    """Build the statement of similar pages once, as ``_page_of_tasks``."""
    named = models.RequestImage
    conditions: Mapping[str, sa.ColumnElement[bool]] = {
        'project_id': _REQUEST.project_id == _parameter('project_id'),
        'status': _REQUEST.status == _parameter('status'),
        'pin_id': _REQUEST.pin_id == _parameter('pin_id'),
        'since': _REQUEST.created_at >= _parameter('since'),
        'image_id': sa.exists().where(
            named.request_id == _REQUEST.id, named.image_id == _parameter('image_id')
        ),
    }
    query = sa.select(*rows.REQUEST).where(*(conditions[name] for name in sorted(asked)))
    return _limited(query, REQUESTS, sort, nulls)


def require(session: orm.Session, chosen: TaskFilter) -> None:
    """Check that there is the request that a filter names.

    :raises nova_precache.exception.RequestNotFound: unknown, or another project's
    """
    query = sa.select(_REQUEST.id).where(_REQUEST.id == chosen.request_id)
    if chosen.project_id is not None:
        query = query.where(_REQUEST.project_id == chosen.project_id)
    if db_session.run(session, query).first() is None:
        raise exception.RequestNotFound(chosen.request_id or '')


def tasks(
    session: orm.Session, chosen: TaskFilter, page: pages.Page
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Return the rows of a page, with the columns ``rows.TASK``.

    :raises nova_precache.exception.InvalidMarker: the filter's request or project has no such task
    """
    asked = {name: value for name, value in vars(chosen).items() if value is not None}
    last = pages.last_values(session, TASKS, page, _visible(chosen))
    statement = _page_of_tasks(frozenset(asked), tuple(page.sort), _nulls(last))
    return db_session.run(session, statement, {**asked, **_values(page, last)}).all()


_LAST, _MOST = 'last_', 'most'
_UNLIMITED = 2**62
_EQUAL = {
    column.key: column for column in (_TASK.request_id, _TASK.status, _TASK.host, _TASK.image_id)
}


@functools.lru_cache(maxsize=256)
def _page_of_tasks(
    asked: Collection[str], sort: Sequence[model.SortKey], nulls: Sequence[bool] | None
) -> sa.Select[*tuple[Any, ...]]:
    """Build the statement of similar pages once: that takes longer than to read one.

    :param asked: the conditions, whose values are parameters
    :param nulls: which values of the last row of the page before are null; None: the first page
    """
    query = sa.select(*rows.TASK)
    equal = [name for name in _EQUAL if name in asked]
    found = _index(asked)
    if found is not None and [key.name for key in sort] in ([], [_TASK.id.key]):
        index, column = found
        equal.remove(column.key)
        is_descending = bool(sort) and sort[0].is_descending
        value = sa.bindparam(column.key, type_=column.type)
        query = query.where(expressions.led_by(column, value))
        query = query.order_by(column.desc() if is_descending else column.asc())
        query = expressions.by_index(query, _TASK, index)
    query = query.where(*(_EQUAL[name] == _parameter(name) for name in equal))
    if 'project_id' in asked:
        request_id = _parameter('request_id') if 'request_id' in asked else None
        query = query.where(_of_project(_parameter('project_id'), request_id))
    return _limited(query, TASKS, sort, nulls)


def _nulls(last: Sequence[Any] | None) -> Sequence[bool] | None:
    return None if last is None else tuple(value is None for value in last)


def _values(page: pages.Page, last: Sequence[Any] | None) -> Mapping[str, Any]:
    """Return the parameters of ``_limited``."""
    values = {f'{_LAST}{place}': value for place, value in enumerate(last or ())}
    return {**values, _MOST: _UNLIMITED if page.limit is None else page.limit}


def _limited(
    query: sa.Select[*tuple[Any, ...]],
    listing: pages.Listing,
    sort: Sequence[model.SortKey],
    nulls: Sequence[bool] | None,
) -> sa.Select[*tuple[Any, ...]]:
    """Add the order and the limits of a page, whose values are parameters."""
    parameters = [
        None if is_null else _parameter(f'{_LAST}{place}')
        for place, is_null in enumerate(nulls or ())
    ]
    limited = query.limit(sa.bindparam(_MOST, type_=sa.BigInteger()))
    return pages.ordered(limited, listing, sort, parameters or None)


def _parameter(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name)


def _index(asked: Collection[str]) -> tuple[str, orm.InstrumentedAttribute[str]] | None:
    """Return the index with the fewest tasks in the order of their ids, and its first column."""
    if 'host' in asked:
        return 'cache_tasks_host_idx', _TASK.host
    if 'request_id' in asked:
        name = 'status' if 'status' in asked else 'request'
        return f'cache_tasks_{name}_idx', _TASK.request_id
    if 'image_id' in asked:
        return 'cache_tasks_image_idx', _TASK.image_id
    return ('cache_tasks_state_idx', _TASK.status) if 'status' in asked else None


def _visible(chosen: TaskFilter) -> sa.ColumnElement[bool]:
    """Select the tasks of the request and the project that a filter names."""
    conditions = []
    if chosen.request_id is not None:
        conditions.append(_TASK.request_id == chosen.request_id)
    if chosen.project_id is not None:
        conditions.append(_of_project(chosen.project_id, chosen.request_id))
    return sa.and_(sa.true(), *conditions)


def _of_project(
    project_id: str | sa.BindParameter[Any], request_id: str | sa.BindParameter[Any] | None
) -> sa.ColumnElement[bool]:
    its = sa.select(_REQUEST.id).where(_REQUEST.project_id == project_id)
    if request_id is not None:
        its = its.where(_REQUEST.id == request_id)
    return _TASK.request_id.in_(its)
