# SPDX-License-Identifier: Apache-2.0
"""Plans, inside a transaction: a request's tasks, each joined to the job that does its work."""

import dataclasses
import datetime
import uuid
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import announcements, models
from nova_precache.db import session as db_session

PLAN_LEASE_SECONDS = 60
# What a task shows of its job.
_MIRRORED = (
    'status',
    'reason',
    'attempts',
    'bytes_done',
    'bytes_total',
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


def take_next(session: orm.Session, conductor_id: str) -> models.CacheRequest | None:
    """Lease the planning of the oldest request that nobody plans, the most urgent first."""
    now = db_session.now(session)
    request = models.CacheRequest
    unheld = sa.or_(
        request.planner.is_(None),
        request.planner == conductor_id,
        request.planner_lease_until < now,
    )
    query = (
        sa.select(request)
        .where(request.status == model.RequestStatus.ACCEPTED, unheld)
        .order_by(request.priority.desc(), request.number)
        .limit(1)
    )
    row = session.scalars(query).first()
    if row is None:
        return None
    taken = session.execute(
        db_session.update(request)
        .where(request.id == row.id, request.status == model.RequestStatus.ACCEPTED, unheld)
        .values(
            planner=conductor_id,
            planner_lease_until=now + datetime.timedelta(seconds=PLAN_LEASE_SECONDS),
        )
    )
    if db_session.rowcount(taken) != 1:
        return None
    return row


def planned_by(request_id: str, conductor_id: str) -> sa.Update:
    """Change a request only while this conductor holds its planning."""
    return (
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .where(models.CacheRequest.planner == conductor_id)
        .where(models.CacheRequest.status == model.RequestStatus.ACCEPTED)
    )


def add_tasks(
    session: orm.Session, request_id: str, conductor_id: str, tasks: Sequence[PlannedTask]
) -> bool:
    """Write one chunk of a plan; False when this conductor holds the planning no more."""
    now = db_session.now(session)
    lease = now + datetime.timedelta(seconds=PLAN_LEASE_SECONDS)
    held = session.execute(planned_by(request_id, conductor_id).values(planner_lease_until=lease))
    if db_session.rowcount(held) != 1:
        return False
    new = _not_yet_planned(session, request_id, tasks)
    priority = session.scalars(
        sa.select(models.CacheRequest.priority).where(models.CacheRequest.id == request_id)
    ).one()
    jobs = _join_jobs(session, [t for t in new if _is_queued(t)], priority, now)
    rows = [_task_row(request_id, task, jobs, now) for task in new]
    if rows:
        session.execute(sa.insert(models.Task), rows)
    return True


def _is_queued(task: PlannedTask) -> bool:
    return task.status == model.TaskStatus.QUEUED


def _active_key(host: str, image_id: str) -> str:
    return f'{host}/{image_id}'


def _not_yet_planned(
    session: orm.Session, request_id: str, tasks: Sequence[PlannedTask]
) -> list[PlannedTask]:
    hosts = {task.host for task in tasks}
    query = sa.select(models.Task.host, models.Task.image_id).where(
        models.Task.request_id == request_id, models.Task.host.in_(hosts)
    )
    known = {(row.host, row.image_id) for row in session.execute(query)}
    return [task for task in tasks if (task.host, task.image_id) not in known]


def _join_jobs(
    session: orm.Session, tasks: Sequence[PlannedTask], priority: int, now: datetime.datetime
) -> dict[str, model.Json]:
    """Map each task's active key to the state of the job that does its work.

    The update comes first: it locks the jobs that are active, so that none of
    them can end between here and the insert of the tasks that join it.
    """
    keys = [_active_key(task.host, task.image_id) for task in tasks]
    session.execute(
        db_session.update(models.Job)
        .where(models.Job.active_key.in_(keys))
        .values(
            priority=sa.case((models.Job.priority < priority, priority), else_=models.Job.priority)
        )
    )
    active = sa.select(models.Job).where(models.Job.active_key.in_(keys))
    jobs = {str(job.active_key): _shown(job) for job in session.scalars(active)}
    rows = [
        _job_row(task, priority, now)
        for task, key in zip(tasks, keys, strict=True)
        if key not in jobs
    ]
    if rows:
        session.execute(sa.insert(models.Job), rows)
    return {**jobs, **{row['active_key']: {'job_uuid': row['uuid']} for row in rows}}


def _shown(job: models.Job) -> model.Json:
    """What a task shows of the job that it joins."""
    return {'job_uuid': job.uuid, **{name: getattr(job, name) for name in _MIRRORED}}


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
        'next_attempt_at': None,
        'created_at': now,
        'started_at': None,
        'finished_at': None if _is_queued(task) else now,
    }
    if _is_queued(task):
        row.update(jobs[_active_key(task.host, task.image_id)])
    return row


def open_jobs(session: orm.Session, request_id: str) -> None:
    """Let the jobs of a complete plan be claimed; the caller holds the request's row lock."""
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .values(planned_at=db_session.now(session))
    )
    start(session, request_id)
    wanted = sa.select(models.Task.job_uuid).where(
        models.Task.request_id == request_id, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    session.execute(
        db_session.update(models.Job).where(models.Job.uuid.in_(wanted)).values(ready=True)
    )
    _start_if_begun(session, request_id)


def start(session: orm.Session, request_id: str) -> None:
    """Count a request's hosts and those with nothing in flight, and have them announced."""
    hosts = _hosts_in_flight(session, request_id)
    done = [host for host, in_flight in hosts.items() if not in_flight]
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .values(hosts_total=len(hosts), hosts_done=len(done))
    )
    announcements.add_start(session, request_id, done)


def _hosts_in_flight(session: orm.Session, request_id: str) -> dict[str, int]:
    """Map the hosts of a request, in the order of the plan, to their tasks in flight."""
    task = models.Task
    in_flight = sa.func.sum(sa.case((task.status.in_(model.TASK_IN_FLIGHT), 1), else_=0))
    query = (
        sa.select(task.host, in_flight)
        .where(task.request_id == request_id)
        .group_by(task.host)
        .order_by(sa.func.min(task.id))
    )
    return {host: int(count or 0) for host, count in session.execute(query)}


def _start_if_begun(session: orm.Session, request_id: str) -> None:
    """Show a request as running from the start when it joined a transfer that runs."""
    begun = sa.exists().where(
        models.Task.request_id == request_id, models.Task.status.in_(model.TASK_WORKING)
    )
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id, begun)
        .values(status=model.RequestStatus.RUNNING, started_at=db_session.now(session))
    )
