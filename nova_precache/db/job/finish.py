# SPDX-License-Identifier: Apache-2.0
"""How calls end, inside a transaction: with a final outcome, a retry, or because of an order.

A call that no longer counts changes nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import task_counts
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, locking, outcome as job_outcome

_PAUSED = model.ImageOutcome(model.TaskStatus.RETRY_WAIT)
_TASK = db_session.table(models.Task)
_NOTE_SIZES = sa.update(_TASK).where(locking.THEIR_TASKS).values(**job_outcome.sizes(_TASK.c))


@dataclasses.dataclass(frozen=True)
class Finish:
    """The arguments of ``Jobs.finish``."""

    job_id: str
    epoch: int
    outcome: model.ImageOutcome


def to_lock(
    session: orm.Session, finishes: Sequence[Finish], locked: Mapping[str, locking.Locked]
) -> Sequence[str]:
    """Return the requests whose locks ``finish`` takes."""
    return job_outcome.wanting(session, [each.job_id for each in _counting(finishes, locked)])


def finish(
    session: orm.Session, finishes: Sequence[Finish], locked: Mapping[str, locking.Locked]
) -> Mapping[str, job_outcome.Recorded]:
    """End jobs and all tasks that want them; return results of those whose calls counted.

    A job whose last attempt broke off because it was to stop is stopped instead.
    """
    counting = _counting(finishes, locked)
    outcomes = {each.job_id: each.outcome for each in counting}
    stopped = [
        locked[each.job_id]
        for each in counting
        if each.outcome.retry == model.Retry.BACKOFF and not locked[each.job_id].goes_on
    ]
    if stopped:  # of both kinds, in one order
        job_outcome.lock_requests(session, job_outcome.wanting(session, outcomes))
    for job in stopped:
        del outcomes[job.job_id]
    ended = job_outcome.end(session, outcomes)
    return {**ended, **{job.job_id: stop(session, job) for job in stopped}}


def _counting(finishes: Sequence[Finish], locked: Mapping[str, locking.Locked]) -> Sequence[Finish]:
    return [
        each
        for each in finishes
        if each.job_id in locked and locked[each.job_id].is_current(each.epoch)
    ]


def retry(
    session: orm.Session, job: locking.Locked, outcome: model.ImageOutcome, delay_seconds: float
) -> job_outcome.Recorded:
    """Schedule the next attempt of a job, unless it was to stop: then it has stopped."""
    if not job.goes_on:
        return stop(session, job)
    counted = 0 if outcome.is_attempt else -1
    job_outcome.schedule_retry(session, {job: delay_seconds}, outcome, counted)
    return job_outcome.Recorded(current=True)


def stop(session: orm.Session, job: locking.Locked) -> job_outcome.Recorded:
    """Record that no compute works on a job that was to stop, or that may not begin now."""
    if job.stop_why == model.StopWhy.PAUSED or (job.stop_why is None and not job.ready):
        job_outcome.schedule_retry(session, {job: 0}, _PAUSED, attempts=-1)
        return job_outcome.Recorded(current=True)
    if job.stop_why not in demand.UNWANTED:
        return job_outcome.STALE
    if job.stop_why == model.StopWhy.DEADLINE:
        return leave(session, job, demand.EXPIRED)
    return leave(session, job, demand.CANCELLED, None if job.stop_keep else demand.DISCARD)


def leave(
    session: orm.Session,
    job: locking.Locked,
    outcome: model.ImageOutcome,
    stop_why: str | None = None,
) -> job_outcome.Recorded:
    """End a job that a compute has stopped; if a task still wants it, schedule another call."""
    moved = {'keys': [job.job_id], 'moved': outcome.bytes_done, 'total': outcome.bytes_total}
    its_tasks = sa.and_(_TASK.c.job_uuid == job.job_id, _TASK.c.status.in_(model.TASK_IN_FLIGHT))
    with task_counts.changing(session, its_tasks):
        db_session.run(session, _NOTE_SIZES, moved)
    recorded = demand.end_unwanting(session, [job.job_id], job.read_at)
    if not job_outcome.wanting(session, [job.job_id]):
        job_outcome.end_jobs(session, {job.job_id: outcome}, stop_why)
        return recorded
    job_outcome.schedule_retry(session, {job: 0}, _PAUSED, attempts=-1)
    keys = demand.active_keys(session, models.Task.job_uuid == job.job_id)
    return job_outcome.together([recorded, demand.reconcile(session, keys)])
