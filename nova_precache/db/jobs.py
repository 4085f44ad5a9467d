# SPDX-License-Identifier: Apache-2.0
"""Claims on hosts, and the jobs done under them.

Every step is a compare-and-set. A claim's epoch grows with each claim and with
each call under it; a job remembers the epoch of its last call. Whatever carries
another epoch (a call that lay in a dead broker's queue, a late progress, the
result of a conductor that lost its lease) changes no row.

The parallelism limit is the row ``claimed_hosts`` of ``counters``, changed in
the transaction that makes or ends a claim. That row is locked first by each of
them, which makes them take turns on every database.
"""

import dataclasses
import datetime
from collections.abc import Collection, Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import models
from nova_precache.db import session as db_session

CLAIMED_HOSTS = 'claimed_hosts'
COUNTERS = (CLAIMED_HOSTS, 'requests')

_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Claim:
    """A host that this conductor may call until the lease runs out."""

    host: str
    cell_uuid: str
    epoch: int


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A job about to be called, under the epoch that fences the call.

    ``joins`` tells that a compute works on it already, so that the call is no attempt.
    """

    job_id: str
    host: str
    cell_uuid: str
    image_id: str
    epoch: int
    attempts: int
    mismatches: int
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class HostDone:
    """A (request, host) whose last task has become final; the index-th host that did."""

    request_id: str
    host: str
    index: int


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What an outcome changed: nothing when its call no longer counted."""

    current: bool
    requests: tuple[str, ...] = ()
    hosts_done: tuple[HostDone, ...] = ()


STALE = Recorded(current=False)


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """The last progress of a job that came in since the last bulk write."""

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress


@dataclasses.dataclass(frozen=True)
class Asker:
    """Whose request wants a job; decides which images it may have."""

    request_id: str
    project_id: str | None
    is_admin: bool


class Jobs:
    """The jobs and claims in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, lease_seconds: float) -> None:
        self._database = database
        self._lease = datetime.timedelta(seconds=lease_seconds)

    # Claims

    def claim(
        self, conductor_id: str, limit: int, avoid_cells: Collection[str] = ()
    ) -> Claim | None:
        """Lease the host of the most urgent job that waits, if the limit allows.

        :param limit: most hosts claimed at once over all conductors
        :param avoid_cells: uuids of cells that are not to be called now
        """
        return self._database.write(
            lambda session: self._claim(session, conductor_id, limit, avoid_cells)
        )

    def take_over(self, conductor_id: str) -> Claim | None:
        """Take over a claim that another conductor let expire; it goes on counting."""
        return self._database.write(lambda session: self._take_over(session, conductor_id))

    def renew(self, conductor_id: str) -> Sequence[str]:
        """Extend the leases of this conductor; gives the hosts that it still holds."""

        def work(session: orm.Session) -> Sequence[str]:
            expires = db_session.now(session) + self._lease
            mine = models.Claim.conductor_id == conductor_id
            session.execute(
                db_session.update(models.Claim).where(mine).values(lease_expires_at=expires)
            )
            return session.scalars(sa.select(models.Claim.host).where(mine)).all()

        return self._database.write(work)

    def release(self, conductor_id: str, host: str) -> bool:
        """Give a host back; False when another conductor has taken it over."""

        def work(session: orm.Session) -> bool:
            _lock_counter(session)
            released = session.execute(
                db_session.update(models.Claim)
                .where(models.Claim.host == host, models.Claim.conductor_id == conductor_id)
                .values(conductor_id=None, lease_expires_at=None)
            )
            _recount(session)
            return db_session.rowcount(released) == 1

        return self._database.write(work)

    def release_all(self, conductor_id: str) -> None:
        """Give back every host of a conductor that stops."""

        def work(session: orm.Session) -> None:
            _lock_counter(session)
            session.execute(
                db_session.update(models.Claim)
                .where(models.Claim.conductor_id == conductor_id)
                .values(conductor_id=None, lease_expires_at=None)
            )
            _recount(session)

        self._database.write(work)

    def claimed_hosts(self, conductor_id: str | None = None) -> Sequence[str]:
        """Give the hosts that are claimed by one conductor, or by any."""
        query = sa.select(models.Claim.host).where(models.Claim.conductor_id.is_not(None))
        if conductor_id is not None:
            query = query.where(models.Claim.conductor_id == conductor_id)
        with self._database.reader() as session:
            return session.scalars(query).all()

    def _claim(
        self, session: orm.Session, conductor_id: str, limit: int, avoid_cells: Collection[str]
    ) -> Claim | None:
        _lock_counter(session)
        if _recount(session) >= limit:
            return None
        now = db_session.now(session)
        job = session.execute(_next_claimable(now, avoid_cells)).first()
        if job is None:
            return None
        epoch = self._lease_host(session, conductor_id, job.host, job.cell_uuid, now)
        _recount(session)
        return Claim(job.host, job.cell_uuid, epoch)

    def _lease_host(
        self,
        session: orm.Session,
        conductor_id: str,
        host: str,
        cell_uuid: str,
        now: datetime.datetime,
    ) -> int:
        lease = {
            'conductor_id': conductor_id,
            'cell_uuid': cell_uuid,
            'lease_expires_at': now + self._lease,
        }
        epoch = session.scalars(
            sa.select(models.Claim.epoch).where(models.Claim.host == host)
        ).first()
        if epoch is None:
            session.execute(sa.insert(models.Claim).values(host=host, epoch=1, **lease))
            return 1
        session.execute(
            db_session.update(models.Claim)
            .where(models.Claim.host == host)
            .values(epoch=models.Claim.epoch + 1, **lease)
        )
        return epoch + 1

    def _take_over(self, session: orm.Session, conductor_id: str) -> Claim | None:
        _lock_counter(session)
        now = db_session.now(session)
        expired = session.execute(
            sa.select(models.Claim.host, models.Claim.cell_uuid)
            .where(models.Claim.conductor_id != conductor_id, models.Claim.lease_expires_at < now)
            .order_by(models.Claim.lease_expires_at)
            .limit(1)
        ).first()
        if expired is None:
            return None
        epoch = self._lease_host(session, conductor_id, expired.host, expired.cell_uuid, now)
        return Claim(expired.host, expired.cell_uuid, epoch)

    # Jobs under a claim

    def assign(self, conductor_id: str, host: str) -> Assignment | None:
        """Choose the host's next job and fence it with a new epoch.

        A waiting job's attempt is counted here; one that is being worked on is
        called again to join it, which is no attempt. None when nothing is due
        on the host or the claim is lost.
        """
        return self._database.write(lambda session: _assign(session, conductor_id, host, None))

    def assign_again(self, conductor_id: str, assignment: Assignment) -> Assignment | None:
        """Fence a job anew whose call timed out while its bytes were still moving."""
        return self._database.write(
            lambda session: _assign(session, conductor_id, assignment.host, assignment.job_id)
        )

    def begin(self, job_id: str, epoch: int, starts: bool = False) -> bool:
        """Let a compute go on with a call: False when the call no longer counts.

        :param starts: the compute has no transfer to join. For a job that was begun
            before, its compute has restarted meanwhile, which is counted as an attempt.
        """
        return self._database.write(lambda session: _begin(session, job_id, epoch, starts))

    def is_moving(self, job_id: str, within_seconds: float) -> bool:
        """Tell whether progress of a job came in of late."""
        with self._database.reader() as session:
            progress_at = session.scalars(
                sa.select(models.Job.progress_at).where(models.Job.uuid == job_id)
            ).first()
            if progress_at is None:
                return False
            age = db_session.now(session) - progress_at
            return age < datetime.timedelta(seconds=within_seconds)

    def record_progress(self, reports: Collection[ProgressReport]) -> int:
        """Write progress in bulk; gives how many of the reports still counted."""

        def work(session: orm.Session) -> int:
            now = db_session.now(session)
            return sum(_record_progress(session, report, now) for report in reports)

        return self._database.write(work)

    def finish(self, job_id: str, epoch: int, outcome: model.ImageOutcome) -> Recorded:
        """Make a job and all tasks that want it final."""
        return self._database.write(
            lambda session: _finish(session, _current(job_id, epoch), job_id, outcome)
        )

    def retry(
        self, job_id: str, epoch: int, outcome: model.ImageOutcome, delay_seconds: float
    ) -> bool:
        """Have a job wait for its next attempt, holding no slot; False when stale."""
        return self._database.write(
            lambda session: _retry(session, job_id, epoch, outcome, delay_seconds)
        )

    def askers(self, job_id: str) -> Sequence[Asker]:
        """Give the requests that still want a job."""
        query = (
            sa.select(
                models.CacheRequest.id, models.CacheRequest.project_id, models.CacheRequest.is_admin
            )
            .join(models.Task, models.Task.request_id == models.CacheRequest.id)
            .where(models.Task.job_uuid == job_id)
            .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        )
        with self._database.reader() as session:
            return [Asker(*row) for row in session.execute(query)]

    def end_tasks(
        self, job_id: str, request_ids: Collection[str], outcome: model.ImageOutcome
    ) -> Recorded:
        """Make the tasks of some requests final and leave the job to the others."""

        chosen = sa.and_(
            models.Task.job_uuid == job_id, models.Task.request_id.in_(list(request_ids))
        )
        return self._database.write(lambda session: give_up(session, chosen, outcome))

    def skip_waiting(self, request_id: str, hosts: Collection[str], reason: str) -> Recorded:
        """End the tasks of some hosts that no compute has begun, and jobs nobody wants now."""

        chosen = sa.and_(
            models.Task.request_id == request_id,
            models.Task.host.in_(list(hosts)),
            models.Task.status.in_(model.TASK_WAITING),
        )
        outcome = model.ImageOutcome(model.TaskStatus.SKIPPED, reason)
        return self._database.write(lambda session: give_up(session, chosen, outcome))

    def due_in_cell(self, cell_uuid: str) -> Sequence[Assignment]:
        """Give the jobs of a cell that would be called now, without claiming them."""
        with self._database.reader() as session:
            now = db_session.now(session)
            rows = session.scalars(
                sa.select(models.Job)
                .where(models.Job.cell_uuid == cell_uuid, _due(now), _unclaimed())
                .order_by(models.Job.id)
            ).all()
            return [_assignment(row, row.epoch or 0) for row in rows]

    def fail_unclaimed(
        self, job_id: str, outcome: model.ImageOutcome, delay_seconds: float | None
    ) -> Recorded:
        """Count an attempt that was not made because the cell is unreachable.

        :param delay_seconds: None ends the job
        """
        waiting = models.Job.status.in_(model.TASK_WAITING)
        free = sa.and_(models.Job.uuid == job_id, waiting, _unclaimed())

        def work(session: orm.Session) -> Recorded:
            counted = _wait(session, free, job_id, outcome, delay_seconds or 0, attempts=1)
            if not counted or delay_seconds is not None:
                return STALE
            return _finish(session, free, job_id, outcome)

        return self._database.write(work)

    def depth(self) -> int:
        """Count the jobs in flight."""
        with self._database.reader() as session:
            return session.scalars(
                sa.select(sa.func.count())
                .select_from(models.Job)
                .where(models.Job.status.in_(model.TASK_IN_FLIGHT))
            ).one()


def _lock_counter(session: orm.Session) -> None:
    session.execute(
        db_session.update(models.Counter)
        .where(models.Counter.name == CLAIMED_HOSTS)
        .values(value=models.Counter.value)
    )


def _recount(session: orm.Session) -> int:
    """Set the counter from the live claims; the caller holds its row lock."""
    live = session.scalars(
        sa.select(sa.func.count())
        .select_from(models.Claim)
        .where(models.Claim.conductor_id.is_not(None))
    ).one()
    session.execute(
        db_session.update(models.Counter)
        .where(models.Counter.name == CLAIMED_HOSTS)
        .values(value=live)
    )
    return live


def _due(now: datetime.datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        models.Job.ready,
        models.Job.status.in_(model.TASK_IN_FLIGHT),
        sa.or_(models.Job.next_attempt_at.is_(None), models.Job.next_attempt_at <= now),
    )


def _unclaimed() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(
        models.Claim.host == models.Job.host, models.Claim.conductor_id.is_not(None)
    )


def _urgency() -> tuple[sa.ColumnElement[int], ...]:
    """What bytes already move for comes first: it is joined, so that nothing runs beside it."""
    is_moving = sa.case((models.Job.status.in_(model.TASK_WORKING), 0), else_=1)
    return is_moving, models.Job.priority.desc(), models.Job.id.asc()


def _next_claimable(now: datetime.datetime, avoid_cells: Collection[str]) -> sa.Select[str, str]:
    query = sa.select(models.Job.host, models.Job.cell_uuid).where(_due(now), _unclaimed())
    if avoid_cells:
        query = query.where(models.Job.cell_uuid.not_in(list(avoid_cells)))
    return query.order_by(*_urgency()).limit(1)


def _assign(
    session: orm.Session, conductor_id: str, host: str, job_id: str | None
) -> Assignment | None:
    fenced = session.execute(
        db_session.update(models.Claim)
        .where(models.Claim.host == host, models.Claim.conductor_id == conductor_id)
        .values(epoch=models.Claim.epoch + 1)
    )
    if db_session.rowcount(fenced) != 1:
        return None
    epoch = session.scalars(sa.select(models.Claim.epoch).where(models.Claim.host == host)).one()
    query = sa.select(models.Job).where(models.Job.host == host, _due(db_session.now(session)))
    if job_id is not None:
        query = query.where(models.Job.uuid == job_id)
    job = session.scalars(query.order_by(*_urgency()).limit(1)).first()
    if job is None:
        return None
    attempt: dict[str, object] = {}
    if job.status in model.TASK_WAITING and job_id is None:
        attempt = {
            'status': model.TaskStatus.QUEUED,
            'attempts': job.attempts + 1,
            'next_attempt_at': None,
        }
    same = model.TASK_WAITING if job.status in model.TASK_WAITING else model.TASK_WORKING
    assigned = session.execute(
        db_session.update(models.Job)
        .where(models.Job.id == job.id, models.Job.status.in_(same))
        .values(epoch=epoch, progress_sequence=0, **attempt)
    )
    if db_session.rowcount(assigned) != 1:
        return None  # it has ended, or was begun, since it was chosen
    if attempt:
        _mirror(session, job.uuid, **attempt)
    session.refresh(job)
    return _assignment(job, epoch)


def _assignment(job: models.Job, epoch: int) -> Assignment:
    return Assignment(
        job_id=job.uuid,
        host=job.host,
        cell_uuid=job.cell_uuid,
        image_id=job.image_id,
        epoch=epoch,
        attempts=job.attempts,
        mismatches=job.mismatches,
        joins=job.status in model.TASK_WORKING,
    )


def _current(job_id: str, epoch: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        models.Job.uuid == job_id,
        models.Job.epoch == epoch,
        models.Job.status.in_(model.TASK_IN_FLIGHT),
    )


def _begin(session: orm.Session, job_id: str, epoch: int, starts: bool) -> bool:
    now = db_session.now(session)
    held = sa.exists().where(
        models.Claim.host == models.Job.host,
        models.Claim.conductor_id.is_not(None),
        models.Claim.epoch == epoch,
    )
    waiting = models.Job.status.in_(model.TASK_WAITING)
    begun = session.execute(
        db_session.update(models.Job)
        .where(_current(job_id, epoch), held)
        .ordered_values(  # MariaDB assigns from left to right, and sees what it has assigned
            (models.Job.attempts, models.Job.attempts + sa.case((waiting, 0), else_=int(starts))),
            (
                models.Job.status,
                sa.case((waiting, model.TaskStatus.DOWNLOADING), else_=models.Job.status),
            ),
            (models.Job.started_at, sa.func.coalesce(models.Job.started_at, now)),
            (models.Job.progress_at, now),
        )
    )
    if db_session.rowcount(begun) != 1:
        return False
    job = session.execute(
        sa.select(models.Job.status, models.Job.attempts).where(models.Job.uuid == job_id)
    ).one()
    started_at = sa.func.coalesce(models.Task.started_at, now)
    _mirror(session, job_id, status=job.status, attempts=job.attempts, started_at=started_at)
    _start_requests(session, job_id, now)
    return True


def _start_requests(session: orm.Session, job_id: str, now: datetime.datetime) -> None:
    wanting = sa.select(models.Task.request_id).where(
        models.Task.job_uuid == job_id, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id.in_(wanting))
        .where(models.CacheRequest.status == model.RequestStatus.PLANNED)
        .values(status=model.RequestStatus.RUNNING, started_at=now)
    )


def _mirror(session: orm.Session, job_id: str, **values: object) -> None:
    """Show a job's state in the tasks that want it."""
    session.execute(
        db_session.update(models.Task)
        .where(models.Task.job_uuid == job_id)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .values(**values)
    )


def _record_progress(session: orm.Session, report: ProgressReport, now: datetime.datetime) -> bool:
    progress = report.progress
    job = models.Job
    # A word that this release does not know must not make the job look ended.
    known = progress.status in model.TASK_WORKING
    changed = session.execute(
        db_session.update(job)
        .where(_current(report.job_id, report.epoch), job.progress_sequence < report.sequence)
        .where(job.status.in_(model.TASK_WORKING))
        .values(
            status=progress.status if known else job.status,
            progress_sequence=report.sequence,
            progress_at=now,
            bytes_done=_at_least(job.bytes_done, progress.bytes_done),
            bytes_total=sa.func.coalesce(progress.bytes_total, job.bytes_total),
        )
    )
    if db_session.rowcount(changed) != 1:
        return False
    _mirror(
        session,
        report.job_id,
        status=progress.status if known else models.Task.status,
        bytes_done=_at_least(models.Task.bytes_done, progress.bytes_done),
        bytes_total=sa.func.coalesce(progress.bytes_total, models.Task.bytes_total),
    )
    return True


def _at_least(column: orm.InstrumentedAttribute[int], value: int) -> sa.Case[int]:
    return sa.case((column < value, value), else_=column)


def _finish(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
) -> Recorded:
    ended = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            active_key=None,
            bytes_done=_at_least(models.Job.bytes_done, outcome.bytes_done),
            bytes_total=sa.func.coalesce(outcome.bytes_total, models.Job.bytes_total),
            next_attempt_at=None,
            finished_at=db_session.now(session),
        )
    )
    if db_session.rowcount(ended) != 1:
        return STALE
    return _end_tasks(session, models.Task.job_uuid == job_id, outcome)


def _end_tasks(
    session: orm.Session, which: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    in_flight = models.Task.status.in_(model.TASK_IN_FLIGHT)
    wanting = sa.select(models.Task.request_id).where(which, in_flight).distinct()
    requests = tuple(sorted(session.scalars(wanting)))
    _lock_requests(session, requests)
    # Only now: whoever held a request's lock may have ended some of these tasks.
    pairs = sa.select(models.Task.request_id, models.Task.host).where(which, in_flight).distinct()
    touched = sorted((row.request_id, row.host) for row in session.execute(pairs))
    session.execute(
        db_session.update(models.Task)
        .where(which, in_flight)
        .values(
            status=outcome.status,
            reason=outcome.reason,
            bytes_done=_at_least(models.Task.bytes_done, outcome.bytes_done),
            bytes_total=sa.func.coalesce(outcome.bytes_total, models.Task.bytes_total),
            next_attempt_at=None,
            finished_at=db_session.now(session),
        )
    )
    return Recorded(
        current=True,
        requests=requests,
        hosts_done=tuple(
            done for pair in touched if (done := _host_done(session, *pair)) is not None
        ),
    )


def _lock_requests(session: orm.Session, request_ids: Sequence[str]) -> None:
    """Have those who end tasks of one request take turns, so that hosts_done adds up."""
    for request_id in request_ids:
        session.execute(
            db_session.update(models.CacheRequest)
            .where(models.CacheRequest.id == request_id)
            .values(hosts_done=models.CacheRequest.hosts_done)
        )


def _host_done(session: orm.Session, request_id: str, host: str) -> HostDone | None:
    """Count the host as done for the request when nothing of it is in flight.

    Before the plan is complete nobody knows that; whoever completes it counts these hosts.
    """
    still = (
        sa.select(models.Task.id)
        .where(models.Task.request_id == request_id, models.Task.host == host)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .limit(1)
    )
    if session.scalars(still).first() is not None:
        return None
    this = models.CacheRequest.id == request_id
    counted = session.execute(
        db_session.update(models.CacheRequest)
        .where(this, models.CacheRequest.status != model.RequestStatus.ACCEPTED)
        .values(hosts_done=models.CacheRequest.hosts_done + 1)
    )
    if db_session.rowcount(counted) != 1:
        return None
    index = session.scalars(sa.select(models.CacheRequest.hosts_done).where(this)).one()
    return HostDone(request_id, host, index)


def _retry(
    session: orm.Session,
    job_id: str,
    epoch: int,
    outcome: model.ImageOutcome,
    delay_seconds: float,
) -> bool:
    return _wait(session, _current(job_id, epoch), job_id, outcome, delay_seconds)


def _wait(
    session: orm.Session,
    which: sa.ColumnElement[bool],
    job_id: str,
    outcome: model.ImageOutcome,
    delay_seconds: float,
    attempts: int = 0,
) -> bool:
    """Put a job and its tasks into retry_wait; without an epoch no call of it counts."""
    due = db_session.now(session) + datetime.timedelta(seconds=delay_seconds)
    mismatches = 1 if outcome.retry == model.Retry.ONCE else 0
    waits = session.execute(
        db_session.update(models.Job)
        .where(which)
        .values(
            status=model.TaskStatus.RETRY_WAIT,
            reason=outcome.reason,
            epoch=None,
            attempts=models.Job.attempts + attempts,
            mismatches=models.Job.mismatches + mismatches,
            next_attempt_at=due,
        )
    )
    if db_session.rowcount(waits) != 1:
        return False
    _mirror(
        session,
        job_id,
        status=model.TaskStatus.RETRY_WAIT,
        reason=outcome.reason,
        attempts=models.Task.attempts + attempts,
        next_attempt_at=due,
    )
    return True


def give_up(
    session: orm.Session, chosen: sa.ColumnElement[bool], outcome: model.ImageOutcome
) -> Recorded:
    """Make those chosen tasks final that are in flight, and end the jobs nobody wants then."""
    wanted = (
        sa.select(models.Job.active_key)
        .join(models.Task, models.Task.job_uuid == models.Job.uuid)
        .where(chosen, models.Task.status.in_(model.TASK_IN_FLIGHT))
        .distinct()
    )
    keys = sorted(filter(None, session.scalars(wanted)))
    _lock_jobs(session, keys)
    recorded = _end_tasks(session, chosen, outcome)
    _end_unwanted_jobs(session, keys)
    return recorded


def _lock_jobs(session: orm.Session, keys: Sequence[str]) -> None:
    """Keep a plan from joining jobs while it is decided whether they are still wanted.

    By their active keys, as a plan locks them: in another order they might deadlock.
    """
    for chunk in _chunks(keys):
        session.execute(
            db_session.update(models.Job)
            .where(models.Job.active_key.in_(chunk))
            .values(priority=models.Job.priority)
        )


def _end_unwanted_jobs(session: orm.Session, keys: Sequence[str]) -> None:
    """End those waiting jobs that no task in flight wants; the caller holds their row locks."""
    wanted = sa.exists().where(
        models.Task.job_uuid == models.Job.uuid, models.Task.status.in_(model.TASK_IN_FLIGHT)
    )
    for chunk in _chunks(keys):
        session.execute(
            db_session.update(models.Job)
            .where(models.Job.active_key.in_(chunk))
            .where(models.Job.status.in_(model.TASK_WAITING), ~wanted)
            .values(
                status=model.TaskStatus.SKIPPED,
                active_key=None,
                next_attempt_at=None,
                finished_at=db_session.now(session),
            )
        )


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
