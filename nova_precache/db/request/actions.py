# SPDX-License-Identifier: Apache-2.0
"""Actions on a request, inside a transaction that has locked it and its jobs.

The locks keep the request's row valid until all consequences are written.
"""

import dataclasses
import datetime
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model, states
from nova_precache.db import outbox, rows
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, locking, outcome as job_outcome
from nova_precache.db.request import gating, plan as request_plan


def lock(session: orm.Session, request_id: str) -> tuple[models.CacheRequest | None, Sequence[str]]:
    """Lock a request and its active jobs; return its row and their keys.

    The jobs are locked first, as where an outcome ends tasks. Jobs that a plan joined before
    the request was locked are locked after it.
    """
    chosen = models.Task.request_id == request_id
    keys = demand.active_keys(session, chosen)
    locking.lock_keys(session, keys)
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .values(announced=models.CacheRequest.announced)
    )
    current = demand.active_keys(session, chosen)
    locking.lock_keys(session, set(current) - set(keys))
    return session.get(models.CacheRequest, request_id), current


def cancel(
    session: orm.Session, row: models.CacheRequest, keys: Sequence[str], keep_partial: bool
) -> None:
    if not _changes(row, states.Event.CANCEL, 'cancelled'):
        return
    if not row.is_planned:
        request_plan.start(session, row.id)
    row.status, row.is_planned = model.RequestStatus.CANCELLING, True
    session.flush()
    outbox.add(session, row.id, model.Phase.CANCEL)
    demand.reconcile(session, keys, demand.Leave(demand.CANCELLED, keep_partial))
    unplanned = sa.and_(models.Task.request_id == row.id, models.Task.job_uuid.is_(None))
    job_outcome.end_tasks(session, unplanned, demand.CANCELLED)


def pause(session: orm.Session, row: models.CacheRequest, keys: Sequence[str]) -> None:
    if not _changes(row, states.Event.PAUSE, 'paused'):
        return
    row.status = model.RequestStatus.PAUSED
    session.flush()
    outbox.add(session, row.id, model.Phase.PAUSE)
    gating.close_tasks(session, row.id)
    demand.reconcile(session, keys)


def resume(session: orm.Session, row: models.CacheRequest, keys: Sequence[str]) -> None:
    if not _changes(row, states.Event.RESUME, 'resumed'):
        return
    has_started = row.started_at is not None
    running = model.RequestStatus.RUNNING if has_started else model.RequestStatus.PLANNED
    row.status = running if row.is_planned else model.RequestStatus.ACCEPTED
    session.flush()
    outbox.add(session, row.id, model.Phase.RESUME)
    if row.is_planned:
        _open(session, row, keys, db_session.now(session))
        request_plan.start_if_begun(session, row.id)


def adopt(
    session: orm.Session, row: models.CacheRequest, keys: Sequence[str]
) -> job_outcome.Recorded:
    """Take over a request that a conductor of an earlier release has planned."""
    if row.is_planned or row.status not in states.REQUESTS.origins(states.Event.ADOPT):
        return job_outcome.Recorded(current=True)
    row.is_planned = True
    in_flight = request_plan.hosts_in_flight(session, row.id).values()
    row.hosts_done = row.hosts_total - sum(map(bool, in_flight))
    # Above the numbers which that release assigns to the start, each host and the end.
    row.announced = max(row.announced, row.hosts_total + 2)
    session.flush()
    return demand.reconcile(session, keys)


def open_window(session: orm.Session, row: models.CacheRequest, keys: Sequence[str]) -> bool:
    now = db_session.now(session)
    is_due = row.not_before is not None and row.not_before <= now
    if not is_due or not row.is_planned or row.status not in states.STEERABLE:
        return False
    row.not_before = None
    session.flush()
    if row.status == model.RequestStatus.PAUSED:
        return False
    _open(session, row, keys, now)
    return True


def expire(
    session: orm.Session, row: models.CacheRequest, keys: Sequence[str]
) -> job_outcome.Recorded:
    return demand.reconcile(session, keys)


def retry(
    session: orm.Session,
    row: models.CacheRequest,
    keys: Sequence[str],
    not_before: datetime.datetime | None,
    deadline: datetime.datetime | None,
) -> None:
    may = row.status in states.REQUESTS.origins(states.Event.RETRY)
    if not may or not _queue_anew(session, row):
        raise exception.StatusConflict('Cache request', row.id, row.status, 'retried')
    _set_window(row, not_before, deadline, db_session.now(session))
    row.status, row.reason = model.RequestStatus.ACCEPTED, None
    row.started_at = row.finished_at = None
    row.is_planned, row.planner, row.planner_lease_until = False, None, None
    in_flight = request_plan.hosts_in_flight(session, row.id).values()
    row.hosts_done = row.hosts_total - sum(map(bool, in_flight))
    session.flush()
    outbox.add(session, row.id, model.Phase.RETRY)


def _changes(row: models.CacheRequest, event: states.Event, to: str) -> bool:
    """Return whether an action changes a request; False if an earlier one has done so.

    :raises nova_precache.exception.StatusConflict: its status does not allow the action
    """
    if row.status in states.REQUESTS.targets(event):
        return False
    if row.status not in states.REQUESTS.origins(event):
        raise exception.StatusConflict('Cache request', row.id, row.status, to)
    return True


def _open(
    session: orm.Session, row: models.CacheRequest, keys: Sequence[str], now: datetime.datetime
) -> None:
    """Open the tasks of a request, and make its jobs in retry_wait due now."""
    gating.open_tasks(session, row, now)
    for chunk in db_session.chunks(keys):
        job_outcome.make_due(session, models.Job.active_key.in_(chunk))
    demand.reconcile(session, keys)


def _queue_anew(session: orm.Session, row: models.CacheRequest) -> bool:
    """Queue the tasks that did not succeed; return False if there is nothing to do."""
    retried = states.TASKS.origins(states.Event.RETRY)
    queued = session.execute(
        db_session.update(models.Task)
        .where(models.Task.request_id == row.id, models.Task.status.in_(retried))
        .values(
            status=model.TaskStatus.QUEUED,
            job_uuid=None,
            reason=None,
            attempts=0,
            bytes_done=0,
            rate_bytes=None,
            open=False,
            next_attempt_at=None,
            started_at=None,
            finished_at=None,
        )
    )
    return db_session.rowcount(queued) > 0 or row.planned_at is None


def _set_window(
    row: models.CacheRequest,
    not_before: datetime.datetime | None,
    deadline: datetime.datetime | None,
    now: datetime.datetime,
) -> None:
    """Set the window of the next run; drop times of the old window that have passed."""
    old = rows.options(row.options)
    asked = rows.in_utc(
        dataclasses.replace(
            old,
            not_before=not_before or _to_come(old.not_before, now),
            deadline=deadline or _to_come(old.deadline, now),
        )
    )
    # Without a deadline, the tasks of a host that stays down would never end.
    waits = asked.wait_for_down_hosts and asked.deadline is not None
    row.options = rows.options_to_save(dataclasses.replace(asked, wait_for_down_hosts=waits))
    row.not_before, row.deadline = asked.not_before, asked.deadline


def _to_come(time: datetime.datetime | None, now: datetime.datetime) -> datetime.datetime | None:
    return time if time is not None and time > now else None
