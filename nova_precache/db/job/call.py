# SPDX-License-Identifier: Apache-2.0
"""Calls of jobs, inside a transaction, many at once: assigned with their terms, then begun.

The epoch of an assignment fences its call: it begins only while that epoch is the last one.
"""

import dataclasses
import datetime
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, states
from nova_precache.db import hearing, rows as db_rows, standing, task_counts
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim, demand, host_limits, locking


@dataclasses.dataclass(frozen=True)
class Terms:
    """The combined terms of all tasks that want a job.

    :ivar max_rate_bytes: per second; None if a task sets no limit
    :ivar deadline_seconds: from now; None if a task sets none
    :ivar waits_for_host: while the host is down, the job waits for it
    :ivar request_id: of the API call that first asked for the job, as ``global_request_id``
    :ivar asked_by: the requests, for the log; the first few of many
    """

    max_rate_bytes: int | None = None
    deadline_seconds: float | None = None
    waits_for_host: bool = False
    request_id: str | None = None
    global_request_id: str | None = None
    asked_by: str | None = None


_NO_TERMS = Terms()


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A job about to be called, under the epoch that fences the call.

    :ivar joins: a compute works on the job already, so that the call is no attempt
    :ivar terms: at the time of assignment
    :ivar seen_at: last report of the host, by the clock of ``assigned_at``; None if it has none
    :ivar heard: when its cell could be heard; None if conductors do not record that
    :ivar stopped_at: when the compute of the host has stopped; None if it has started since
    """

    job_id: str
    host: str
    cell_uuid: str
    image_id: str
    epoch: int
    attempts: int
    mismatches: int
    joins: bool = False
    terms: Terms = _NO_TERMS
    seen_at: datetime.datetime | None = None
    assigned_at: datetime.datetime | None = None
    heard: hearing.Heard | None = None
    stopped_at: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class DueJob:
    """A job that may be called: its id, and the key by which it is locked.

    :ivar is_repeated: its call is repeated, which is no attempt
    :ivar joins: a compute works on it already
    """

    job_id: str
    active_key: str
    is_repeated: bool = False
    priority: int = 0
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class Begin:
    """The arguments of ``Jobs.begin``; ``cell_uuid`` is None if a conductor begins the job."""

    job_id: str
    epoch: int
    starts: bool = False
    cell_uuid: str | None = None
    agent_id: str | None = None


_JOB, _TASK, _CLAIM, _REQUEST = (
    db_session.table(each) for each in (models.Job, models.Task, models.Claim, models.CacheRequest)
)
_TURN = sa.func.row_number().over(partition_by=models.Job.host, order_by=job_claim.urgency())
_DUE = (
    sa.select(
        models.Job.uuid,
        models.Job.host,
        models.Job.active_key,
        models.Job.status,
        models.Job.priority,
        _TURN.label('turn'),
    )
    .where(
        models.Job.host.in_(sa.bindparam('hosts', expanding=True)),
        models.Job.uuid.not_in(sa.bindparam('ended', expanding=True)),
        # Phrased so that no index matches: with several hosts SQLite would take the index with
        # ``ready`` and scan all waiting jobs.
        job_claim.due(expressions.database_now(), ready=models.Job.ready.is_not(False)),
    )
    .subquery()
)
_FIRST = (
    sa.select(_DUE.c.host, _DUE.c.uuid, _DUE.c.active_key, _DUE.c.status, _DUE.c.priority)
    .where(_DUE.c.turn <= sa.bindparam('most', type_=sa.Integer()))
    .order_by(_DUE.c.turn)
)
_ALL_JOBS = 2**31 - 1
# Of its host, which this transaction has just fenced.
_EPOCH = sa.select(_CLAIM.c.epoch).where(_CLAIM.c.host == _JOB.c.host).scalar_subquery()
_CALL = (
    sa.update(_JOB)
    .where(locking.THE_JOBS)
    # The terms of a call are read in its transaction, with all changes so far.
    .values(epoch=_EPOCH, progress_sequence=0, changes_sent=_JOB.c.changes)
)
_QUEUED: dict[str, object] = {
    'status': str(model.TaskStatus.QUEUED),
    'attempts': sa.bindparam('to_attempts'),
    'next_attempt_at': None,
}
_ATTEMPT = _CALL.values(**_QUEUED)
_ATTEMPT_TASKS = sa.update(_TASK).where(locking.THEIR_TASKS).values(**_QUEUED)
_SEEN = (
    sa.select(
        models.Agent.host,
        models.Agent.seen_at,
        standing.stopped_at(models.Agent).label('stopped_at'),
        expressions.database_now().label('now'),
        models.Hearing.since,
        models.Hearing.until,
    )
    .outerjoin(models.Hearing, models.Hearing.cell_uuid == models.Agent.cell_uuid)
    .where(models.Agent.host.in_(sa.bindparam('hosts', expanding=True)))
)
# An outer join, so that servers begin with the tasks; else they read all those of the requests. A
# request that does not want its job is left out.
_WANTING = (
    sa.select(
        models.Task.job_uuid,
        models.CacheRequest.id,
        models.CacheRequest.options,
        models.CacheRequest.deadline,
        models.CacheRequest.number,
        models.CacheRequest.request_id,
        models.CacheRequest.global_request_id,
        expressions.database_now().label('now'),
    )
    .outerjoin(
        models.CacheRequest,
        sa.and_(
            models.CacheRequest.id == models.Task.request_id,
            demand.wants(expressions.database_now()),
        ),
    )
    .where(
        models.Task.job_uuid.in_(sa.bindparam('jobs', expanding=True)),
        models.Task.status.in_(model.TASK_IN_FLIGHT),
    )
)
_BEGIN_JOBS = (
    sa.update(_JOB)
    .where(locking.THE_JOBS)
    .values(
        status=sa.bindparam('to_status'),
        attempts=sa.bindparam('to_attempts'),
        started_at=sa.func.coalesce(_JOB.c.started_at, expressions.database_now()),
        progress_at=expressions.database_now(),
    )
)
_BEGIN_TASKS = (
    sa.update(_TASK)
    .where(locking.THEIR_TASKS)
    .values(
        status=sa.bindparam('to_status'),
        attempts=sa.bindparam('to_attempts'),
        started_at=sa.func.coalesce(_TASK.c.started_at, expressions.database_now()),
    )
)
_NOT_STARTED = (
    sa.select(_REQUEST.c.id)
    .distinct()
    .join(_TASK, _TASK.c.request_id == _REQUEST.c.id)
    .where(
        _TASK.c.job_uuid.in_(sa.bindparam('jobs', expanding=True)),
        _TASK.c.status.in_(model.TASK_IN_FLIGHT),
        _REQUEST.c.status.in_(states.REQUESTS.origins(states.Event.BEGIN)),
    )
)
_START_REQUESTS = (
    sa.update(_REQUEST)
    .where(
        _REQUEST.c.id.in_(sa.bindparam('requests', expanding=True)),
        _REQUEST.c.status.in_(states.REQUESTS.origins(states.Event.BEGIN)),
    )
    .values(status=str(model.RequestStatus.RUNNING), started_at=expressions.database_now())
)


def choose(
    session: orm.Session,
    hosts: Sequence[str],
    ended: Collection[str],
    repeated: Mapping[str, str],
    limits: host_limits.HostLimits,
    until_saturated: bool = False,
) -> Mapping[str, DueJob]:
    """Map hosts with due jobs to the most urgent job that limits let run.

    :param hosts: earlier ones take what a limit leaves first
    :param ended: jobs that are about to end
    :param repeated: host to the one job that is to be called there again
    :param until_saturated: stop once a limit is used up: other hosts may then come first
    """
    if not hosts:
        return {}
    most = _ALL_JOBS if limits or repeated else 1
    given = {'hosts': sorted(hosts), 'ended': list(ended), 'most': most}
    rows = db_session.run(session, _FIRST, given).all()
    wanted_by = host_limits.wanted_by(session, [row.uuid for row in rows]) if limits else {}
    turns = {host: turn for turn, host in enumerate(hosts)}
    chosen: dict[str, DueJob] = {}
    saturated = limits.count_saturated()
    for row in sorted(rows, key=lambda row: turns[row.host]):
        is_repeated = repeated.get(row.host) == row.uuid
        if row.host in chosen or (row.host in repeated and not is_repeated):
            continue
        if not limits or limits.take(row.host, wanted_by.get(row.uuid, {})):
            joins = row.status in model.TASK_WORKING
            chosen[row.host] = DueJob(row.uuid, row.active_key, is_repeated, row.priority, joins)
            if until_saturated and limits.count_saturated() > saturated:
                break
    return chosen


def assign(
    session: orm.Session,
    chosen: Mapping[str, DueJob],
    epochs: Mapping[str, int],
    locked: Mapping[str, locking.Locked],
) -> dict[str, Assignment]:
    """Assign the chosen jobs of hosts, fenced; leave out those that are no longer due."""
    made, again, attempts, requeued = [], [], [], []
    for each in chosen.values():
        job = locked.get(each.job_id)
        if job is None or not job.is_due:
            continue
        assigned = _assignment(job, epochs[job.host], each.is_repeated)
        made.append(assigned)
        if assigned.attempts == job.attempts:
            again.append((job.job_id, dict[str, object]()))
        else:
            attempts.append((job.job_id, {'to_attempts': assigned.attempts}))
            if job.status != model.TaskStatus.QUEUED:
                requeued.append(job.job_id)
    task_counts.note_moves(session, requeued, model.TaskStatus.QUEUED)
    db_session.run_alike(session, _CALL, again)
    db_session.run_alike(session, _ATTEMPT, attempts)
    db_session.run_alike(session, _ATTEMPT_TASKS, attempts)
    return {each.host: each for each in _complete(session, made)}


def _assignment(job: locking.Locked, epoch: int, is_repeated: bool) -> Assignment:
    joins = job.status in model.TASK_WORKING
    return Assignment(
        job_id=job.job_id,
        host=job.host,
        cell_uuid=job.cell_uuid,
        image_id=job.image_id,
        epoch=epoch,
        attempts=job.attempts if joins or is_repeated else job.attempts + 1,
        mismatches=job.mismatches,
        joins=joins,
    )


def as_it_is(job: models.Job) -> Assignment:
    """Build an assignment of an unclaimed job, under its last epoch."""
    return Assignment(
        job_id=job.uuid,
        host=job.host,
        cell_uuid=job.cell_uuid,
        image_id=job.image_id,
        epoch=job.epoch or 0,
        attempts=job.attempts,
        mismatches=job.mismatches,
        joins=job.status in model.TASK_WORKING,
    )


def _complete(session: orm.Session, made: Sequence[Assignment]) -> list[Assignment]:
    """Add the terms of the calls, and when hosts reported and their cells could be heard."""
    if not made:
        return []
    agreed = terms(session, [each.job_id for each in made])
    rows = db_session.run(session, _SEEN, {'hosts': [each.host for each in made]})
    seen = {row.host: _seen(row) for row in rows}
    never: dict[str, Any] = {}
    if any(each.host not in seen for each in made):
        now = db_session.now(session)
        never = {'assigned_at': now, 'heard': hearing.anywhere(session, now)}
    return [
        dataclasses.replace(each, terms=agreed[each.job_id], **seen.get(each.host, never))
        for each in made
    ]


def _seen(row: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    heard = None if row.until is None else hearing.Heard(row.since, row.until)
    return {
        'seen_at': row.seen_at,
        'assigned_at': row.now,
        'heard': heard,
        'stopped_at': row.stopped_at,
    }


def terms(session: orm.Session, job_ids: Collection[str]) -> Mapping[str, Terms]:
    """Map jobs to their terms."""
    wanting: dict[str, list[sa.Row[*tuple[Any, ...]]]] = {job_id: [] for job_id in job_ids}
    for row in db_session.run(session, _WANTING, {'jobs': list(wanting)}):
        if row.id is not None:
            wanting[row.job_uuid].append(row)
    return {job_id: _agreed(rows) for job_id, rows in wanting.items()}


def _agreed(rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> Terms:
    if not rows:
        return Terms(deadline_seconds=0)  # the last deadline has just passed
    options = [db_rows.options(row.options) for row in rows]
    rates = [each.max_rate_bytes for each in options if each.max_rate_bytes is not None]
    rows = sorted(rows, key=operator.attrgetter('number'))
    first = rows[0]
    left = [(row.deadline - row.now).total_seconds() for row in rows if row.deadline is not None]
    return Terms(
        max_rate_bytes=max(rates) if rates and len(rates) == len(rows) else None,
        deadline_seconds=max(left) if left and len(left) == len(rows) else None,
        waits_for_host=any(each.wait_for_down_hosts for each in options),
        request_id=first.request_id,
        global_request_id=first.global_request_id,
        asked_by=model.first_of([row.id for row in rows]),
    )


def to_start(
    session: orm.Session, begins: Sequence[Begin], locked: Mapping[str, locking.Locked]
) -> Sequence[str]:
    """Return the requests whose first calls these are."""
    jobs = [each.job_id for each in begins if _counts(each, locked)]
    if not jobs:
        return []
    return sorted(db_session.run(session, _NOT_STARTED, {'jobs': jobs}).scalars())


def begin(
    session: orm.Session,
    begins: Sequence[Begin],
    locked: Mapping[str, locking.Locked],
    starting: Sequence[str] | None = None,
) -> set[str]:
    """Begin the calls that still count; return their jobs.

    :param starting: the requests ``to_start``, if they had to be locked before
    """
    rows = [
        (each.job_id, _begun(each, locked[each.job_id])) for each in begins if _counts(each, locked)
    ]
    if not rows:
        return set()
    starting = to_start(session, begins, locked) if starting is None else starting
    task_counts.note_moves(session, [job_id for job_id, _ in rows], model.TaskStatus.DOWNLOADING)
    db_session.run_alike(session, _BEGIN_JOBS, rows)
    db_session.run_alike(session, _BEGIN_TASKS, rows)
    if starting:
        db_session.run(session, _START_REQUESTS, {'requests': list(starting)})
    return {job_id for job_id, _ in rows}


def _counts(begin: Begin, locked: Mapping[str, locking.Locked]) -> bool:
    """Return whether a call counts: its job is not to stop, and its caller holds the host.

    It must also have reached the agent that is registered for the host.
    """
    job = locked.get(begin.job_id)
    if job is None or not job.is_current(begin.epoch):
        return False
    if begin.cell_uuid not in (None, job.cell_uuid) or begin.agent_id not in (None, job.agent_id):
        return False
    return job.claim_epoch == begin.epoch and job.goes_on


def _begun(begin: Begin, job: locking.Locked) -> dict[str, Any]:
    if job.status in states.JOBS.origins(states.Event.BEGIN):
        status, attempts = str(model.TaskStatus.DOWNLOADING), job.attempts
    else:
        status, attempts = job.status, job.attempts + int(begin.starts)
    return {'to_status': status, 'to_attempts': attempts}
