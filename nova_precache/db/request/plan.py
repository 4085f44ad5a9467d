# SPDX-License-Identifier: Apache-2.0
"""Plans, inside a transaction: a request's tasks, each joined to the job that does its work."""

import dataclasses
import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, states
from nova_precache.db import outbox, task_counts
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, locking, outcome as job_outcome, stop as job_stop
from nova_precache.db.request import gating

PLAN_LEASE_SECONDS = 60
# Columns that a task copies from its job.
_MIRRORED = (
    'status',
    'reason',
    'attempts',
    'bytes_done',
    'bytes_total',
    'rate_bytes',
    'next_attempt_at',
    'started_at',
)


@dataclasses.dataclass(frozen=True)
class PlannedTask:
    """One (host, image) of a plan: queued, or with its outcome already known."""

    host: str
    cell_uuid: str | None
    image_id: str
    status: str = model.TaskStatus.QUEUED
    reason: str | None = None
    bytes_total: int | None = None


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """Values that tasks copy from their jobs, by active key.

    :ivar steered: keys of the jobs that were to stop, or whose computes work with the options
        of other requests
    """

    shown: Mapping[str, model.Json]
    steered: Sequence[str] = ()


def take_next(session: orm.Session, conductor_id: str) -> models.CacheRequest | None:
    """Lease the planning of the most urgent, then oldest, request that no other conductor plans."""
    now = db_session.now(session)
    request = models.CacheRequest
    unheld = _unheld(conductor_id, now)
    query = (
        sa.select(request)
        .where(gating.awaits_plan(), unheld)
        .order_by(request.priority.desc(), request.number)
        .limit(1)
    )
    row = session.scalars(query).first()
    if row is None:
        return None
    taken = session.execute(
        db_session.update(request)
        .where(request.id == row.id, gating.awaits_plan(), unheld)
        .values(
            planner=conductor_id,
            planner_lease_until=now + datetime.timedelta(seconds=PLAN_LEASE_SECONDS),
        )
    )
    if db_session.rowcount(taken) != 1:
        return None
    return row


def _unheld(conductor_id: str, now: datetime.datetime) -> sa.ColumnElement[bool]:
    request = models.CacheRequest
    return sa.or_(
        request.planner.is_(None),
        request.planner == conductor_id,
        request.planner_lease_until < now,
    )


def note_unplanned(session: orm.Session, conductor_id: str, reason: str) -> None:
    """Record a reason for every request that this conductor plans, or may plan next."""
    session.execute(
        db_session.update(models.CacheRequest)
        .where(gating.awaits_plan(), _unheld(conductor_id, db_session.now(session)))
        .values(reason=reason)
    )


def planned_by(request_id: str, conductor_id: str) -> sa.Update:
    """Build an UPDATE of a request that applies while this conductor holds its planning."""
    return (
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .where(models.CacheRequest.planner == conductor_id)
        .where(gating.awaits_plan())
    )


def add_tasks(
    session: orm.Session, request_id: str, conductor_id: str, tasks: Sequence[PlannedTask]
) -> bool:
    """Write one chunk of a plan; return False if this conductor has lost the planning."""
    # Jobs are locked first, as where an outcome ends tasks.
    queued = [task for task in tasks if _is_queued(task)]
    locking.lock_keys(session, [_active_key(task.host, task.image_id) for task in queued])
    now = db_session.now(session)
    lease = now + datetime.timedelta(seconds=PLAN_LEASE_SECONDS)
    held = session.execute(planned_by(request_id, conductor_id).values(planner_lease_until=lease))
    if db_session.rowcount(held) != 1:
        return False
    request = session.get_one(models.CacheRequest, request_id)
    known = _known(session, request_id, tasks)
    new = [task for task in tasks if (task.host, task.image_id) not in known]
    anew = [task for task in tasks if _awaits_plan(known.get((task.host, task.image_id)))]
    queued = [task for task in (*new, *anew) if _is_queued(task)]
    jobs = _join_jobs(session, queued, request.priority, now)
    is_open = gating.opens_at_once(request, now)
    rows = {task: _task_row(request_id, task, jobs.shown, now) for task in (*new, *anew)}
    task_counts.make(session, request_id)
    for task in anew:
        task_counts.note_task(session, known[task.host, task.image_id], -1)
    task_counts.note_planned(session, rows.values())
    if new:
        session.execute(sa.insert(models.Task), [{**rows[task], 'open': is_open} for task in new])
    if anew:
        _plan_anew(session, [rows[task] for task in anew])
    if jobs.steered:  # those that were to stop are wanted again
        demand.reconcile(session, jobs.steered)
    return True


def _is_queued(task: PlannedTask) -> bool:
    return task.status == model.TaskStatus.QUEUED


def _active_key(host: str, image_id: str) -> str:
    return f'{host}/{image_id}'


def _known(
    session: orm.Session, request_id: str, tasks: Sequence[PlannedTask]
) -> Mapping[tuple[str, str], sa.Row[*tuple[Any, ...]]]:
    """Map host and image to the tasks that a request has on the hosts of the given ones."""
    row = models.Task
    query = sa.select(row.host, row.image_id, row.job_uuid, *task_counts.COLUMNS).where(
        row.request_id == request_id, row.host.in_({task.host for task in tasks})
    )
    return {(found.host, found.image_id): found for found in session.execute(query)}


def _awaits_plan(known: sa.Row[*tuple[Any, ...]] | None) -> bool:
    """Return whether a retry has queued a task again."""
    planned = states.TASKS.origins(states.Event.PLAN)
    return known is not None and known.job_uuid is None and known.status in planned


def _plan_anew(session: orm.Session, rows: Sequence[model.Json]) -> None:
    """Plan existing tasks again; ``open`` stays as it is."""
    table: sa.Table = models.Task.metadata.tables[models.Task.__tablename__]
    which = ('request_id', 'host', 'image_id')
    kept = {*which, 'created_at'}
    values: dict[str, object] = {
        name: sa.bindparam(f'new_{name}') for name in rows[0] if name not in kept
    }
    session.execute(
        sa.update(table)
        .where(*(table.c[name] == sa.bindparam(f'new_{name}') for name in which))
        .values(values),
        [{f'new_{name}': value for name, value in row.items()} for row in rows],
    )


def _join_jobs(
    session: orm.Session, tasks: Sequence[PlannedTask], priority: int, now: datetime.datetime
) -> _Jobs:
    """Find or create the jobs that do the work of tasks.

    The active jobs are locked first, so that none of them can end before the tasks that
    join it are inserted.
    """
    if not tasks:
        return _Jobs({})
    keys = [_active_key(task.host, task.image_id) for task in tasks]
    locking.lock_keys(session, keys, priority)
    active = session.scalars(sa.select(models.Job).where(models.Job.active_key.in_(keys))).all()
    joined = {
        str(job.active_key): {
            'job_uuid': job.uuid,
            **{name: getattr(job, name) for name in _MIRRORED},
        }
        for job in active
    }
    rows = [
        _job_row(task, priority, now)
        for task, key in zip(tasks, keys, strict=True)
        if key not in joined
    ]
    if rows:
        job_stop.keep_what_is_left(session, [row['active_key'] for row in rows])
        session.execute(sa.insert(models.Job), rows)
    made = {row['active_key']: {'job_uuid': row['uuid']} for row in rows}
    steered = [job for job in active if job.stop_why is not None or job.epoch is not None]
    return _Jobs({**joined, **made}, sorted(str(job.active_key) for job in steered))


def _job_row(task: PlannedTask, priority: int, now: datetime.datetime) -> model.Json:
    return {
        'uuid': str(uuid.uuid4()),
        'active_key': _active_key(task.host, task.image_id),
        'host': task.host,
        'cell_uuid': task.cell_uuid,
        'image_id': task.image_id,
        'status': model.TaskStatus.QUEUED,
        'priority': priority,
        'ready': False,
        'attempts': 0,
        'mismatches': 0,
        'bytes_done': 0,
        'bytes_total': task.bytes_total,
        'reason': task.reason,
        'progress_sequence': 0,
        'created_at': now,
    }


def _task_row(
    request_id: str,
    task: PlannedTask,
    jobs: Mapping[str, model.Json],
    now: datetime.datetime,
) -> model.Json:
    row = {
        'request_id': request_id,
        'host': task.host,
        'cell_uuid': task.cell_uuid,
        'image_id': task.image_id,
        'job_uuid': None,
        'status': task.status,
        'reason': task.reason,
        'attempts': 0,
        'bytes_done': 0,
        'bytes_total': task.bytes_total,
        'rate_bytes': None,
        'next_attempt_at': None,
        'created_at': now,
        'started_at': None,
        'finished_at': None if _is_queued(task) else now,
    }
    if _is_queued(task):
        row.update(jobs[_active_key(task.host, task.image_id)])
    return row


def close(session: orm.Session, request_id: str) -> None:
    """Complete a plan, so that its jobs may be claimed; the caller holds the request's row lock."""
    _skip_what_was_left_out(session, request_id)
    request, now = models.CacheRequest, db_session.now(session)
    accepted = request.status == model.RequestStatus.ACCEPTED
    session.execute(
        db_session.update(request)
        .where(request.id == request_id)
        .values(
            status=sa.case((accepted, model.RequestStatus.PLANNED), else_=request.status),
            is_planned=True,
            planned_at=now,
            planner=None,
            planner_lease_until=None,
        )
    )
    start(session, request_id)
    row = session.get_one(request, request_id)
    gating.open_tasks(session, row, now)
    if row.deadline is None or row.deadline > now:
        _ready_jobs(session, request_id)
    start_if_begun(session, request_id)


def _skip_what_was_left_out(session: orm.Session, request_id: str) -> None:
    """Skip tasks that a retry has queued again but the plan does not name."""
    unplanned = sa.and_(
        models.Task.request_id == request_id,
        models.Task.status == model.TaskStatus.QUEUED,
        models.Task.job_uuid.is_(None),
    )
    outcome = model.ImageOutcome(model.TaskStatus.SKIPPED, 'not in the plan of the retry')
    job_outcome.end_tasks(session, unplanned, outcome)


def _ready_jobs(session: orm.Session, request_id: str) -> None:
    wanted = sa.select(models.Task.job_uuid).where(
        models.Task.request_id == request_id,
        models.Task.status.in_(model.TASK_IN_FLIGHT),
        models.Task.open,
    )
    session.execute(
        db_session.update(models.Job)
        .where(models.Job.status.in_(model.TASK_IN_FLIGHT), ~models.Job.ready)
        .where(models.Job.uuid.in_(wanted))
        .values(ready=True, stop_why=None, stop_keep=False)
    )


def start(session: orm.Session, request_id: str) -> None:
    """Count a request's hosts and done hosts; queue announcements of its start and the latter."""
    hosts = hosts_in_flight(session, request_id)
    done = [host for host, in_flight in hosts.items() if not in_flight]
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .values(hosts_total=len(hosts), hosts_done=len(done))
    )
    outbox.add_start(session, request_id, done)


def hosts_in_flight(session: orm.Session, request_id: str) -> dict[str, int]:
    """Map the hosts of a request, in the order of the plan, to the number of tasks in flight."""
    task = models.Task
    in_flight = sa.func.sum(sa.case((task.status.in_(model.TASK_IN_FLIGHT), 1), else_=0))
    query = (
        sa.select(task.host, in_flight)
        .where(task.request_id == request_id)
        .group_by(task.host)
        .order_by(sa.func.min(task.id))
    )
    return {host: int(count or 0) for host, count in session.execute(query)}


def start_if_begun(session: orm.Session, request_id: str) -> None:
    """Mark a planned request as running if it joined a running transfer."""
    begun = sa.exists().where(
        models.Task.request_id == request_id, models.Task.status.in_(model.TASK_WORKING)
    )
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id, begun)
        .where(models.CacheRequest.status.in_(states.REQUESTS.origins(states.Event.BEGIN)))
        .values(status=model.RequestStatus.RUNNING, started_at=db_session.now(session))
    )
