# SPDX-License-Identifier: Apache-2.0
"""Completion of requests, inside a transaction: once, when no task of theirs is in flight."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import failures, model, states
from nova_precache.db import outbox, rows, task_counts
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import outcome as job_outcome

MOST_REASONS = 10_000  # that differ by more than their numbers; the most frequent ones
REASON_LENGTH = 200
UNPLANNED = 'cancelled before it was planned'

_TASK = db_session.table(models.Task).c
# Each host may have numbers of its own: with the same digit for all, their reasons are one row.
_SHAPE = functools.reduce(
    lambda text, digit: sa.func.replace(text, digit, '0'),
    '123456789',
    sa.func.substr(_TASK.reason, 1, REASON_LENGTH),
)
# A subquery, since PostgreSQL takes the expressions of two clauses for different ones.
_FAILED = (
    sa.select(_TASK.status, _SHAPE.label('reason'))
    .where(_TASK.request_id == sa.bindparam('request'), _TASK.status.not_in(model.TASK_SUCCEEDED))
    .subquery()
)
_REASONS = (
    sa.select(_FAILED.c.status, _FAILED.c.reason, sa.func.count().label('tasks'))
    .group_by(_FAILED.c.status, _FAILED.c.reason)
    .order_by(sa.desc('tasks'))
    .limit(sa.bindparam('most', type_=sa.Integer()))
)


def is_completable() -> sa.ColumnElement[bool]:
    """Select requests that are planned and have not ended."""
    ending = states.REQUESTS.origins(states.Event.COMPLETE)
    return sa.and_(models.CacheRequest.is_planned, models.CacheRequest.status.in_(ending))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Why tasks of a request did not succeed, while these are its tasks by status."""

    counts: Mapping[str, int]
    text: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """The tasks of a request by status, and those that did not succeed by reason."""

    counts: Mapping[str, int]
    reasons: Sequence[tuple[str, str | None, int]]

    def sum_up(self) -> Summary:
        return Summary(self.counts, failures.summary(self.counts, self.reasons))


def ended(session: orm.Session, request_id: str) -> Ended:
    """Load why tasks of a request did not succeed; of many, this takes seconds."""
    counts = task_counts.count_each(session, request_id)
    if not counts.keys() - model.TASK_SUCCEEDED:
        return Ended(counts, ())
    found = session.execute(_REASONS, {'request': request_id, 'most': MOST_REASONS})
    return Ended(counts, [(row.status, row.reason, row.tasks) for row in found])


def complete(session: orm.Session, request_id: str, summary: Summary) -> bool:
    """End a request unless a task is in flight; return whether this call ended it.

    :param summary: from before the transaction, which on SQLite holds up all other writers
    """
    if job_outcome.has_work(session, request_id):
        return False
    this = sa.and_(models.CacheRequest.id == request_id, is_completable())
    query = sa.select(models.CacheRequest.status, models.CacheRequest.planned_at).where(this)
    row = session.execute(query).first()
    if row is None:
        return False
    is_cancelled = row.status == model.RequestStatus.CANCELLING
    # It was retried meanwhile, ended in another way, or its counters are to be corrected.
    if rows.counts(session, request_id) != summary.counts:
        summary = ended(session, request_id).sum_up()
    status = final_status(summary.counts, is_cancelled, row.planned_at is not None)
    changed = session.execute(
        db_session.update(models.CacheRequest)
        .where(this, models.CacheRequest.status == row.status)
        .values(
            status=status,
            reason=_reason(summary, status),
            finished_at=db_session.now(session),
        )
    )
    if db_session.rowcount(changed) != 1:
        return False
    outbox.add(session, request_id, model.Phase.END)
    return True


def _reason(summary: Summary, status: model.RequestStatus) -> str | None:
    """Return why a request did not succeed; None if it did."""
    if status == model.RequestStatus.COMPLETED:
        return None
    return summary.text if summary.counts else UNPLANNED


def final_status(
    counts: Mapping[str, int], is_cancelled: bool = False, was_planned: bool = True
) -> model.RequestStatus:
    """Return the final status of a request, from the number of its final tasks by status.

    A request without tasks had nothing to do and is completed, unless it was cancelled before
    its plan was complete: the tasks it would have had are unknown.
    """
    succeeded = sum(n for status, n in counts.items() if status in model.TASK_SUCCEEDED)
    if succeeded == sum(counts.values()) and (was_planned or not is_cancelled):
        return model.RequestStatus.COMPLETED
    if is_cancelled:
        return model.RequestStatus.CANCELLED
    if counts.get(model.TaskStatus.EXPIRED):
        return model.RequestStatus.EXPIRED
    return model.RequestStatus.PARTIAL if succeeded else model.RequestStatus.FAILED


def failed_status(counts: Mapping[str, int]) -> model.RequestStatus:
    """Return the final status of a request whose planning, first or repeated, failed."""
    succeeded = any(counts.get(status) for status in model.TASK_SUCCEEDED)
    return model.RequestStatus.PARTIAL if succeeded else model.RequestStatus.FAILED
