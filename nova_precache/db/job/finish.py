# SPDX-License-Identifier: Apache-2.0
"""Final outcomes of jobs and all tasks that want them, inside a transaction, many at once."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import locking, outcome as job_outcome, stop as job_stop


@dataclasses.dataclass(frozen=True)
class Finish:
    """The arguments of ``Jobs.finish``."""

    job_id: str
    epoch: int
    outcome: model.ImageOutcome


_JOB, _TASK = db_session.table(models.Job), db_session.table(models.Task)


def _final(columns: sa.sql.base.ReadOnlyColumnCollection[str, sa.Column[Any]]) -> dict[str, object]:
    """Build the values of an outcome, for a job and for each task."""
    return {
        'status': sa.bindparam('to_status'),
        'reason': sa.bindparam('to_reason'),
        'rate_bytes': None,
        'next_attempt_at': None,
        'finished_at': db_session.database_now(),
        **job_outcome.sizes(
            columns,
            sa.bindparam('moved', type_=sa.BigInteger()),
            sa.bindparam('total', type_=sa.BigInteger()),
        ),
    }


_END_JOBS = (
    sa.update(_JOB)
    .where(_JOB.c.uuid.in_(db_session.keys()))
    .values(active_key=None, stop_why=None, **_final(_JOB.c))
)
_END_TASKS = (
    sa.update(_TASK)
    .where(
        _TASK.c.job_uuid.in_(db_session.keys()),
        _TASK.c.status.in_(model.TASK_IN_FLIGHT),
    )
    .values(**_final(_TASK.c))
)
_ARE_WANTED = sa.and_(
    _TASK.c.job_uuid.in_(sa.bindparam('jobs', expanding=True)),
    _TASK.c.status.in_(model.TASK_IN_FLIGHT),
)
_WANTING = sa.select(_TASK.c.request_id, _TASK.c.host, _TASK.c.job_uuid).where(_ARE_WANTED)
_REQUESTS = sa.select(_TASK.c.request_id).distinct().where(_ARE_WANTED)


def to_lock(
    session: orm.Session, finishes: Sequence[Finish], locked: Mapping[str, locking.Locked]
) -> Sequence[str]:
    """Return the requests whose locks ``finish`` takes."""
    return _wanting(session, [each for each in finishes if _counts(each, locked)])


def finish(
    session: orm.Session, finishes: Sequence[Finish], locked: Mapping[str, locking.Locked]
) -> Mapping[str, job_outcome.Recorded]:
    """End jobs and all tasks that want them; return results of those whose calls counted.

    A job whose last attempt broke off because it was to stop is stopped instead.
    """
    counting = [each for each in finishes if _counts(each, locked)]
    stopped = [each for each in counting if _was_stopped(each, locked[each.job_id])]
    if not stopped:
        return _end(session, counting)
    _lock_requests(session, counting)  # of both kinds, in one order
    ended = _end(session, [each for each in counting if each not in stopped])
    return {**ended, **{each.job_id: _stop(session, each) for each in stopped}}


def _end(session: orm.Session, finishes: Sequence[Finish]) -> Mapping[str, job_outcome.Recorded]:
    if not finishes:
        return {}
    rows = [(each.job_id, _row(each.outcome)) for each in finishes]
    jobs = {'jobs': [each.job_id for each in finishes]}
    db_session.run_alike(session, _END_JOBS, rows)
    if not _lock_requests(session, finishes):
        return {each.job_id: job_outcome.Recorded(current=True) for each in finishes}
    # Only now: the previous holder of a request's lock may have ended some of these tasks.
    ended = db_session.run(session, _WANTING, jobs).all()
    db_session.run_alike(session, _END_TASKS, rows)
    idle = job_outcome.count_done(session, sorted({(row.request_id, row.host) for row in ended}))
    return _recorded(finishes, ended, idle)


def _stop(session: orm.Session, finish: Finish) -> job_outcome.Recorded:
    return job_stop.stopped(session, locking.current(finish.job_id, finish.epoch), finish.job_id)


def _lock_requests(session: orm.Session, finishes: Sequence[Finish]) -> bool:
    """Lock the requests that want some jobs; return False if there is none."""
    wanting = _wanting(session, finishes)
    if wanting:
        job_outcome.lock_requests(session, wanting)
    return bool(wanting)


def _wanting(session: orm.Session, finishes: Sequence[Finish]) -> Sequence[str]:
    jobs = {'jobs': [each.job_id for each in finishes]}
    return db_session.run(session, _REQUESTS, jobs).scalars().all()


def _recorded(
    finishes: Sequence[Finish], ended: Sequence[sa.Row[*tuple[Any, ...]]], idle: Sequence[str]
) -> Mapping[str, job_outcome.Recorded]:
    requests: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
    for row in ended:
        requests[row.job_uuid].append(row.request_id)
    return {
        each.job_id: job_outcome.Recorded(
            current=True,
            requests=tuple(sorted(requests[each.job_id])),
            idle=tuple(request for request in idle if request in requests[each.job_id]),
        )
        for each in finishes
    }


def _counts(finish: Finish, locked: Mapping[str, locking.Locked]) -> bool:
    job = locked.get(finish.job_id)
    return job is not None and job.is_current(finish.epoch)


def _was_stopped(finish: Finish, job: locking.Locked) -> bool:
    """Return whether the call may have broken off because the job was to stop or to wait."""
    return finish.outcome.retry == model.Retry.BACKOFF and not job.goes_on


def _row(outcome: model.ImageOutcome) -> dict[str, object]:
    return {
        'to_status': str(outcome.status),
        'to_reason': outcome.reason,
        'moved': outcome.bytes_done,
        'total': outcome.bytes_total,
    }
