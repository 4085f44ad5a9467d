# SPDX-License-Identifier: Apache-2.0
"""When the tasks of a request may run, inside a transaction.

A request may be paused, its window may not have begun, or its canary, the first hosts, may
not have succeeded yet.
"""

import datetime
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, states
from nova_precache.db.engine import expressions, models, session as db_session


def awaits_plan() -> sa.ColumnElement[bool]:
    """Select requests that are still to be planned."""
    return sa.and_(
        ~models.CacheRequest.is_planned,
        models.CacheRequest.status.in_(states.REQUESTS.origins(states.Event.PLAN)),
    )


def opens_at_once(request: models.CacheRequest, now: datetime.datetime) -> bool:
    """Return whether each task of a request may run as soon as it is planned."""
    return request.canary_passed and _lets_work(request, now)


def open_tasks(session: orm.Session, request: models.CacheRequest, now: datetime.datetime) -> None:
    """Open the tasks of a planned request that may run now."""
    if not _lets_work(request, now):
        return
    closed = (
        db_session.update(models.Task)
        .where(models.Task.request_id == request.id, ~models.Task.open)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
    )
    if not request.canary_passed:
        hosts = canary_hosts(session, request)
        closed = closed.where(models.Task.host.in_(hosts))
    session.execute(closed.values(open=True))


def close_tasks(session: orm.Session, request_id: str) -> None:
    session.execute(
        db_session.update(models.Task)
        .where(models.Task.request_id == request_id, models.Task.open)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .values(open=False)
    )


def canary_hosts(session: orm.Session, request: models.CacheRequest) -> Sequence[str]:
    """List the first hosts of the plan, in its order, that have work to do."""
    canary = request.options.get('canary') or 0
    return session.scalars(select_canary(request.id, canary, len(request.images))).all()


def select_canary(request_id: str, canary: int, images: int) -> sa.Select[str]:
    """Select the same hosts; read at most as many tasks as these hosts can have.

    :param canary: number of hosts
    :param images: number of images of the request
    """
    task = models.Task
    query = (
        sa.select(task.host, task.id)
        .where(expressions.led_by(task.request_id, sa.literal(request_id)))
        .where(task.job_uuid.is_not(None))
        .order_by(task.request_id, task.id)
        .limit(canary * images)
    )
    first = expressions.by_index(query, task, 'cache_tasks_request_idx').subquery()
    return (
        sa.select(first.c.host)
        .group_by(first.c.host)
        .order_by(sa.func.min(first.c.id))
        .limit(canary)
    )


def _lets_work(request: models.CacheRequest, now: datetime.datetime) -> bool:
    has_begun = request.not_before is None or request.not_before <= now
    return has_begun and request.status != model.RequestStatus.PAUSED
