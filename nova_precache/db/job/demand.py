# SPDX-License-Identifier: Apache-2.0
"""What requests want of the jobs that they share, inside a transaction.

A task in flight wants its job unless its request is being cancelled or its deadline has
passed. A transaction that changes what is wanted, or whether it may run now, locks the jobs
by their active keys, as a plan does, and reconciles them.
"""

import dataclasses
import datetime
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import locking, outcome as job_outcome

CANCELLED = model.ImageOutcome(model.TaskStatus.CANCELLED, 'the request was cancelled')
_NOBODY = model.ImageOutcome(model.TaskStatus.SKIPPED)
EXPIRED = model.ImageOutcome(model.TaskStatus.EXPIRED, 'the deadline of the request passed')


UNWANTED = frozenset({model.StopWhy.CANCELLED, model.StopWhy.DEADLINE})
# The ``stop_why`` of an ended job whose partial file is to be removed.
DISCARD = 'discard'


class Verdict(enum.StrEnum):
    """The decision on an active job."""

    GO = 'go'  # it may be called
    HOLD = 'hold'  # an incomplete plan wants it: a running transfer continues
    PAUSE = 'pause'
    STOP = 'stop'
    END = 'end'


@dataclasses.dataclass(frozen=True)
class View:
    """An active job, and the combined demand of its tasks in flight.

    :ivar priority: of the job; ``wanted_priority`` is the highest of the requests that want it
    :ivar may_run: a task of a complete plan wants it, and is open
    :ivar unwanted: at least one of its tasks no longer wants it
    """

    id: int
    uuid: str
    is_working: bool
    is_called: bool
    was_begun: bool
    is_ready: bool
    stop_why: str | None
    priority: int
    wanted_priority: int | None
    wanted: bool
    open: bool
    may_run: bool
    unwanted: bool
    is_cancelled: bool
    is_expired: bool

    @property
    def verdict(self) -> Verdict:
        if self.may_run:
            return Verdict.GO
        if self.open:
            return Verdict.HOLD
        if self.wanted:
            return Verdict.PAUSE
        return Verdict.STOP if self.is_working else Verdict.END


@dataclasses.dataclass(frozen=True)
class Leave:
    """How an unwanted job ends, and whether its partial file is kept.

    :ivar outcome: of a job with no cancelled or expired task
    """

    outcome: model.ImageOutcome = _NOBODY
    keep_partial: bool = False


def has_passed(now: datetime.datetime) -> sa.ColumnElement[bool]:
    """Select requests whose deadline has passed."""
    deadline = models.CacheRequest.deadline
    return sa.and_(deadline.is_not(None), deadline <= now)


def is_cancelling() -> sa.ColumnElement[bool]:
    return models.CacheRequest.status == model.RequestStatus.CANCELLING


def wants(now: datetime.datetime | expressions.database_now) -> sa.ColumnElement[bool]:
    """Select requests that want the jobs of their tasks in flight."""
    deadline = models.CacheRequest.deadline
    return sa.and_(~is_cancelling(), sa.or_(deadline.is_(None), deadline > now))


def active_keys(session: orm.Session, chosen: sa.ColumnElement[bool]) -> list[str]:
    """Return the sorted keys of the jobs of the chosen tasks that are in flight."""
    query = (
        sa.select(models.Job.active_key)
        .join(models.Task, models.Task.job_uuid == models.Job.uuid)
        .where(chosen, models.Task.status.in_(model.TASK_IN_FLIGHT))
        .distinct()
    )
    return sorted(filter(None, session.scalars(query)))


def lock(
    session: orm.Session, chosen: sa.ColumnElement[bool], request_ids: Collection[str]
) -> Sequence[str]:
    """Lock the active jobs of the chosen tasks in flight, and requests; return the jobs' keys.

    The jobs are locked first, as where an outcome ends tasks. Jobs that a plan joined before
    the requests were locked are locked after them.

    :param request_ids: all requests of the chosen tasks
    """
    keys = active_keys(session, chosen)
    locking.lock_keys(session, keys)
    job_outcome.lock_requests(session, request_ids)
    current = active_keys(session, chosen)
    locking.lock_keys(session, set(current) - set(keys))
    return current


def give_up(
    session: orm.Session, chosen: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> job_outcome.Recorded:
    """End the chosen tasks that are in flight, and reconcile their jobs.

    The caller holds the locks of these jobs and of the requests.
    """
    keys = active_keys(session, chosen)
    recorded = job_outcome.end_tasks(session, chosen, outcome)
    return job_outcome.together([recorded, reconcile(session, keys)])


def reconcile(
    session: orm.Session, keys: Sequence[str], leave: Leave | None = None
) -> job_outcome.Recorded:
    """Ready, hold, stop or end active jobs as wanted, and follow priorities and options.

    The caller holds their locks.
    """
    now = db_session.now(session)
    recorded = [job_outcome.Recorded(current=True)]
    for chunk in db_session.chunks(keys):
        views = _look(session, chunk, now)
        by_verdict = {verdict: [v for v in views if v.verdict == verdict] for verdict in Verdict}
        # Only a transfer that is to stop keeps its tasks until its outcome is known.
        left = [view.uuid for view in views if view.unwanted and view.verdict != Verdict.STOP]
        if left:
            recorded.append(end_unwanting(session, left, now))
        _apply(session, by_verdict, leave or Leave())
    return job_outcome.together(recorded)


def end_unwanting(
    session: orm.Session, job_ids: Sequence[str], now: datetime.datetime
) -> job_outcome.Recorded:
    """End the tasks that no longer want these jobs, as cancelled or expired."""
    these = models.Task.job_uuid.in_(job_ids)
    return job_outcome.together(
        job_outcome.end_tasks(
            session,
            sa.and_(these, models.Task.request_id.in_(sa.select(models.CacheRequest.id).where(of))),
            outcome,
        )
        for of, outcome in ((is_cancelling(), CANCELLED), (has_passed(now), EXPIRED))
    )


def _look(session: orm.Session, keys: Sequence[str], now: datetime.datetime) -> list[View]:
    job, task, request = models.Job, models.Task, models.CacheRequest
    in_flight = task.id.is_not(None)
    wanting = sa.and_(in_flight, wants(now))
    flags = (
        wanting,
        sa.and_(wanting, task.open),
        sa.and_(wanting, task.open, request.is_planned),
        sa.and_(in_flight, ~wanting),
        sa.and_(in_flight, is_cancelling()),
        sa.and_(in_flight, has_passed(now)),
    )
    columns = (
        job.id,
        job.uuid,
        job.status,
        job.epoch,
        job.started_at,
        job.ready,
        job.stop_why,
        job.priority,
    )
    query = (
        sa.select(
            *columns,
            sa.func.max(sa.case((wanting, request.priority))),
            *(sa.func.max(sa.case((flag, 1), else_=0)) for flag in flags),
        )
        .outerjoin(task, sa.and_(task.job_uuid == job.uuid, task.status.in_(model.TASK_IN_FLIGHT)))
        .outerjoin(request, request.id == task.request_id)
        .where(job.active_key.in_(keys))
        .group_by(*columns)
    )
    return [_view(*row) for row in session.execute(query)]


def _view(
    job_id: int,
    uuid: str,
    status: str,
    epoch: int | None,
    started_at: datetime.datetime | None,
    ready: bool,
    stop_why: str | None,
    priority: int,
    wanted_priority: int | None,
    *flags: int,
) -> View:
    is_working = status in model.TASK_WORKING
    return View(
        job_id,
        uuid,
        is_working,
        is_working or epoch is not None,
        started_at is not None,
        ready,
        stop_why,
        priority,
        wanted_priority,
        *map(bool, flags),
    )


def _apply(session: orm.Session, views: Mapping[Verdict, Sequence[View]], leave: Leave) -> None:
    go = [view for view in views[Verdict.GO] if not view.is_ready or view.stop_why is not None]
    _change(session, go, ready=True, stop_why=None, stop_keep=False)
    hold = [view for view in views[Verdict.HOLD] if view.is_ready or view.stop_why is not None]
    pause = views[Verdict.PAUSE]
    _change(
        session,
        [*hold, *(view for view in pause if not view.is_called)],
        ready=False,
        stop_why=None,
        stop_keep=False,
    )
    called = [view for view in pause if view.is_called]
    _change(session, called, ready=False, stop_why=model.StopWhy.PAUSED, stop_keep=True)
    _stop(session, [view for view in views[Verdict.STOP] if view.stop_why not in UNWANTED], leave)
    _end(session, views[Verdict.END], leave)
    _follow(session, [*views[Verdict.GO], *views[Verdict.HOLD], *pause])


def _follow(session: orm.Session, views: Sequence[View]) -> None:
    """Copy the priority of requests to their jobs, and make changed options due at computes."""
    by_priority: dict[int, list[View]] = {}
    for view in views:
        if view.wanted_priority is not None and view.wanted_priority != view.priority:
            by_priority.setdefault(view.wanted_priority, []).append(view)
    for priority, some in by_priority.items():
        _change(session, some, priority=priority)
    called = [view for view in views if view.is_called and view.verdict != Verdict.PAUSE]
    _change(session, called, changes=models.Job.changes + 1)


def _stop(session: orm.Session, views: Sequence[View], leave: Leave) -> None:
    """Order computes to stop these jobs."""
    late = [view for view in views if view.is_expired and not view.is_cancelled]
    _change(session, late, ready=False, stop_why=model.StopWhy.DEADLINE, stop_keep=True)
    rest = [view for view in views if not view.is_expired or view.is_cancelled]
    keep = leave.keep_partial
    _change(session, rest, ready=False, stop_why=model.StopWhy.CANCELLED, stop_keep=keep)


def _end(session: orm.Session, views: Sequence[View], leave: Leave) -> None:
    """End waiting jobs; a cancelled one that was begun may have left a partial file."""
    removed, kept = dict[str, model.ImageOutcome](), dict[str, model.ImageOutcome]()
    for view in views:
        if view.is_cancelled:
            is_removed = view.was_begun and not leave.keep_partial
            (removed if is_removed else kept)[view.uuid] = CANCELLED
        else:
            kept[view.uuid] = EXPIRED if view.is_expired else leave.outcome
    job_outcome.end_jobs(session, removed, DISCARD)
    job_outcome.end_jobs(session, kept)


def _change(session: orm.Session, views: Iterable[View], **values: object) -> None:
    ids = [view.id for view in views]
    if ids:
        session.execute(db_session.update(models.Job).where(models.Job.id.in_(ids)).values(values))
