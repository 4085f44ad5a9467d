# SPDX-License-Identifier: Apache-2.0
"""Actions on a request, inside a transaction that has locked it and its jobs.

The locks keep the request's row valid until all consequences are written.
"""

import dataclasses
import datetime
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model, shown, states
from nova_precache.db import outbox, rows, task_counts
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, outcome as job_outcome
from nova_precache.db.request import gating, plan as request_plan, rollout


def lock(session: orm.Session, request_id: str) -> tuple[models.CacheRequest | None, Sequence[str]]:
    """Lock a request and its active jobs; return its row and their keys."""
    keys = demand.lock(session, models.Task.request_id == request_id, [request_id])
    return session.get(models.CacheRequest, request_id), keys


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
    hosts: Collection[str] | None,
) -> None:
    conflict = exception.StatusConflict('Cache request', row.id, row.status, 'retried')
    if row.status not in states.REQUESTS.origins(states.Event.RETRY):
        raise conflict
    if hosts is not None:
        _check_hosts(session, row, hosts)
    if not _queue_anew(session, row, hosts):
        raise conflict if hosts is None else exception.NothingToRetry(row.id, hosts)
    if hosts is not None and not row.canary_passed:
        _release_canary(session, row)
    # Failures that are not retried do not count again: read exactly, since this is saved.
    most = rows.options(row.options).max_failures
    failed = rollout.count_failures(task_counts.count_each(session, row.id))
    row.max_failures = None if most is None else most + failed
    _set_window(row, not_before, deadline, db_session.now(session))
    row.status, row.reason = model.RequestStatus.ACCEPTED, None
    row.started_at = row.finished_at = None
    row.is_planned, row.planner, row.planner_lease_until = False, None, None
    in_flight = request_plan.hosts_in_flight(session, row.id).values()
    row.hosts_done = row.hosts_total - sum(map(bool, in_flight))
    session.flush()
    outbox.add(session, row.id, model.Phase.RETRY)


def change(
    session: orm.Session,
    row: models.CacheRequest,
    keys: Sequence[str],
    asked: model.RequestChange,
) -> None:
    if row.status not in states.STEERABLE:
        raise exception.StatusConflict('Cache request', row.id, row.status, 'changed')
    old = rows.options(row.options)
    options = rows.in_utc(
        dataclasses.replace(
            old,
            max_rate_bytes=asked.get('max_rate_bytes', old.max_rate_bytes),
            max_parallel_hosts=asked.get('max_parallel_hosts', old.max_parallel_hosts),
            deadline=asked.get('deadline', old.deadline),
        )
    )
    if options.deadline != old.deadline:
        _check_deadline(row, options)
    row.priority = asked.get('priority', row.priority)
    row.options = rows.options_to_save(options)
    row.max_parallel_hosts, row.deadline = options.max_parallel_hosts, options.deadline
    session.flush()
    outbox.add(session, row.id, model.Phase.CHANGE)
    demand.reconcile(session, keys)


def _check_deadline(row: models.CacheRequest, options: model.RequestOptions) -> None:
    if options.deadline is None and options.wait_for_down_hosts:
        raise exception.InvalidField(
            'deadline', None, 'A request that waits for hosts that are down needs one.'
        )
    # The column, since the option stays when the window has begun.
    begins = row.not_before
    if options.deadline is not None and begins is not None and options.deadline <= begins:
        raise exception.InvalidField(
            'deadline',
            f'{options.deadline:%Y-%m-%dT%H:%M:%SZ}',
            f'It must be later than the start, {begins:%Y-%m-%dT%H:%M:%SZ}.',
        )


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


def _check_hosts(session: orm.Session, row: models.CacheRequest, hosts: Collection[str]) -> None:
    known = set[str]()
    for chunk in db_session.chunks(sorted(hosts)):
        query = sa.select(models.Task.host).where(
            models.Task.request_id == row.id, models.Task.host.in_(chunk)
        )
        known.update(session.scalars(query.distinct()))
    unknown = [host for host in hosts if host not in known]
    if unknown:
        raise exception.InvalidField(
            'hosts', unknown, f'The request has no task on {shown.some(unknown)}.'
        )
    if row.planned_at is None:  # the planner would plan all of them
        why = 'The request ended before it was planned: all its hosts must be retried.'
        raise exception.InvalidField('hosts', list(hosts), why)


def _queue_anew(
    session: orm.Session, row: models.CacheRequest, hosts: Collection[str] | None
) -> bool:
    """Queue the tasks that did not succeed; return False if there is nothing to do."""
    retried = states.TASKS.origins(states.Event.RETRY)
    which = sa.and_(models.Task.request_id == row.id, models.Task.status.in_(retried))
    with task_counts.changing(session, models.Task.request_id == row.id):
        if hosts is None:
            return _queue(session, which) or row.planned_at is None
        queued = [
            _queue(session, sa.and_(which, models.Task.host.in_(chunk)))
            for chunk in db_session.chunks(sorted(hosts))
        ]
        return any(queued)


def _queue(session: orm.Session, which: sa.ColumnElement[bool]) -> bool:
    queued = session.execute(
        db_session.update(models.Task)
        .where(which)
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
    return db_session.rowcount(queued) > 0


def _release_canary(session: orm.Session, row: models.CacheRequest) -> None:
    """Make the retried hosts the canary: hosts that are left out have no work any longer."""
    session.execute(
        db_session.update(models.Task)
        .where(models.Task.request_id == row.id, models.Task.job_uuid.is_not(None))
        .values(job_uuid=None)
    )


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
