# SPDX-License-Identifier: Apache-2.0
"""Rollout conditions of a request: a canary or too many failures decide on waiting tasks."""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, states
from nova_precache.db import rows
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, outcome as job_outcome
from nova_precache.db.request import gating

_FAILED = (model.TaskStatus.ERROR, model.TaskStatus.UNSUPPORTED)


@dataclasses.dataclass(frozen=True)
class Finding:
    """The consequence of how tasks ended.

    :ivar reason: why waiting tasks end; None if the canary has passed
    :ivar spared: hosts whose tasks continue
    """

    reason: str | None
    spared: Sequence[str] = ()


def is_guarded() -> sa.ColumnElement[bool]:
    """Select planned, active requests with a pending canary or a limit of failures."""
    row = models.CacheRequest
    return sa.and_(
        row.is_planned,
        row.status.in_(states.STEERABLE),
        sa.or_(~row.canary_passed, row.max_failures.is_not(None)),
    )


def look(session: orm.Session, row: models.CacheRequest) -> Finding | None:
    """Return the action that is due now, usually None."""
    finding = _too_many_failures(session, row) or _canary(session, row)
    if finding is None or finding.reason is None:
        return finding
    waiting = sa.select(models.Task.id).where(_ends(row.id, finding)).limit(1)
    return finding if session.scalars(waiting).first() is not None else None


def check(
    session: orm.Session, row: models.CacheRequest, keys: Sequence[str]
) -> job_outcome.Recorded:
    """Look again and act; the caller holds the locks of the request and its jobs."""
    may_act = row.is_planned and row.status in states.STEERABLE
    finding = look(session, row) if may_act else None
    if finding is None:
        return job_outcome.Recorded(current=True)
    if finding.reason is not None:
        outcome = model.ImageOutcome(model.TaskStatus.CANCELLED, finding.reason)
        return demand.give_up(session, _ends(row.id, finding), outcome)
    row.canary_passed = True
    session.flush()
    gating.open_tasks(session, row, db_session.now(session))
    return demand.reconcile(session, keys)


def _ends(request_id: str, finding: Finding) -> sa.ColumnElement[bool]:
    task = models.Task
    ends = sa.and_(task.request_id == request_id, task.status.in_(model.TASK_WAITING))
    return sa.and_(ends, task.host.not_in(finding.spared)) if finding.spared else ends


def _too_many_failures(session: orm.Session, row: models.CacheRequest) -> Finding | None:
    if row.max_failures is None:
        return None
    failed = count_failures(rows.counts(session, row.id))
    if failed <= row.max_failures:
        return None
    asked = row.options.get('max_failures', row.max_failures)
    earlier = row.max_failures - asked  # of hosts that the last retry left out
    return Finding(f'{failed - earlier} tasks failed, max_failures is {asked}')


def count_failures(counts: Mapping[str, int]) -> int:
    return sum(counts.get(status, 0) for status in _FAILED)


def _canary(session: orm.Session, row: models.CacheRequest) -> Finding | None:
    if row.canary_passed:
        return None
    hosts = gating.canary_hosts(session, row)
    task = models.Task
    query = (
        sa.select(task.host, task.status, task.reason)
        .where(task.request_id == row.id, task.host.in_(hosts))
        .where(task.status.not_in(model.TASK_SUCCEEDED))
        .order_by(task.id)
    )
    unfinished = session.execute(query).all()
    if not unfinished:
        return Finding(reason=None)
    for host, status, reason in unfinished:
        if status not in model.TASK_IN_FLIGHT:
            return Finding(f'canary host {host}: {reason or status}', hosts)
    return None
