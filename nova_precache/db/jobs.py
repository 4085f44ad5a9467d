# SPDX-License-Identifier: Apache-2.0
"""The jobs, and the claims on hosts under which they run.

Every step is a compare-and-set. A claim's epoch grows with each claim and with
each call under it; a job stores the epoch of its last call. A message with
another epoch (a call from a dead broker's queue, late progress, the result of a
conductor that lost its lease) changes no row.
"""

import collections
import dataclasses
import datetime
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model, states, wire
from nova_precache.db import job_batch
from nova_precache.db.engine import expressions, group_commit, models, session as db_session
from nova_precache.db.job import (
    call,
    claim as job_claim,
    demand,
    finish as job_finish,
    host_limits,
    locking,
    outcome as job_outcome,
    progress,
    share,
)

LOG = logging.getLogger(__name__)

Assignment = call.Assignment
ProgressReport = progress.ProgressReport
Sender = progress.Sender
Terms = call.Terms
Finish = job_finish.Finish
NextJobResult = job_batch.NextJobResult
# Whose jobs one transaction locks.
REPORTS_AT_ONCE = 200


@dataclasses.dataclass(frozen=True)
class MissedCall:
    """A due job whose call was not made, with its number of attempts at that time.

    :ivar delay_seconds: until its next attempt; None ends the job
    """

    job_id: str
    attempts: int
    delay_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Asker:
    """The owner of a request that wants a job; decides which images it may use."""

    request_id: str
    project_id: str | None
    is_admin: bool


@dataclasses.dataclass(frozen=True)
class WantingTask:
    """A task in flight that wants an image on a host."""

    request_id: str
    host: str
    status: str


class Jobs:
    """The jobs and claims in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, lease_seconds: float) -> None:
        self._database = database
        self._lease = datetime.timedelta(seconds=lease_seconds)
        self._known = share.KnownCells()
        self._senders = wire.Senders(LOG)
        self._group = group_commit.Group(
            self._commit, job_batch.Batch.keys, of_all=exception.DatabaseUnavailable
        )

    def claim_hosts(
        self, conductor_id: str, limit: int, avoid_cells: Collection[str] = (), most: int = 1
    ) -> Sequence[job_batch.Claimed]:
        """Lease the hosts of the most urgent waiting jobs, and assign the first job of each.

        Each gets a Glance stream. There may be more: a transaction leases some only, so that
        others get their turn.

        :param limit: maximum of Glance streams over all conductors
        :param avoid_cells: uuids of cells that are not to be called now
        :param most: maximum of hosts to lease now
        """
        wanted = job_claim.ClaimRequest(conductor_id, limit, most, tuple(avoid_cells), self._lease)
        return self._group.submit(job_batch.Batch(claims=[wanted]), lambda done: done.claimed)

    def take_over(self, conductor_id: str) -> Sequence[job_claim.Claim]:
        """Take over claims that other conductors let expire; they still count as claimed.

        There may be more: call it again until none is left.
        """
        return self._database.write(
            lambda session: job_claim.take_over(session, conductor_id, self._lease)
        )

    def renew(self, conductor_id: str) -> Sequence[str]:
        """Extend the leases of this conductor; return the hosts that it still holds."""

        def work(session: orm.Session) -> Sequence[str]:
            job_claim.lock_counter(session)  # as every change of several claims does
            expires = db_session.now(session) + self._lease
            mine = models.Claim.conductor_id == conductor_id
            session.execute(
                db_session.update(models.Claim).where(mine).values(lease_expires_at=expires)
            )
            return session.scalars(sa.select(models.Claim.host).where(mine)).all()

        return self._database.write(work)

    def release(self, conductor_id: str, hosts: Collection[str]) -> int:
        """Release those of the hosts that the conductor still holds; return their number."""

        def work(session: orm.Session) -> int:
            job_claim.lock_counter(session)
            return job_claim.release(session, conductor_id, hosts)

        return self._database.write(work)

    def release_all(self, conductor_id: str) -> None:
        """Release every host of a conductor that stops."""

        def work(session: orm.Session) -> None:
            job_claim.lock_counter(session)
            mine = sa.select(models.Claim.host).where(models.Claim.conductor_id == conductor_id)
            job_claim.release(session, conductor_id, session.scalars(mine).all())

        self._database.write(work)

    def release_stream(self, host: str, epoch: int) -> bool:
        """Release the Glance stream of a host that stays claimed.

        Its next calls hold none either, until it acquires one.

        :param epoch: of its call; return False if that is stale
        """

        def work(session: orm.Session) -> bool:
            job_claim.lock_counter(session)
            return job_claim.release_stream(session, host, epoch)

        return self._database.write(work)

    def acquire_stream(self, host: str, epoch: int, limit: int) -> bool:
        """Give a claimed host a Glance stream within the limit; return whether it holds one.

        :param epoch: of its call; a stale one gets no stream
        :param limit: maximum of streams over all conductors
        """

        def work(session: orm.Session) -> bool:
            job_claim.lock_counter(session)
            return job_claim.acquire_stream(session, host, epoch, limit)

        return self._database.write(work)

    def claims(self, conductor_id: str) -> Sequence[job_claim.Claim]:
        """List the claims that a conductor holds."""
        with self._database.reader() as session:
            return job_claim.of_conductor(session, conductor_id)

    def claimed_hosts(self) -> Sequence[str]:
        """List the hosts claimed by any conductor."""
        with self._database.reader() as session:
            return session.scalars(sa.select(models.Claim.host).where(job_claim.held())).all()

    def assign_again(self, conductor_id: str, assignment: Assignment) -> Assignment | None:
        """Assign a job again, fenced, whose call timed out while its bytes still moved."""
        repeated = job_batch.NextJobRequest(
            conductor_id, assignment.host, repeated=assignment.job_id
        )
        return self._submit_next(repeated).assignment

    def begin(
        self,
        job_id: str,
        epoch: int,
        starts: bool = False,
        cell_uuid: str | None = None,
        agent_id: str | None = None,
    ) -> bool:
        """Begin a call that has reached a compute; return False if it no longer counts.

        :param cell_uuid: cell of the compute; a job of another cell does not begin
        :param starts: the compute has no transfer to join. If the job was begun before, its
            compute has restarted since, which counts as an attempt.
        :param agent_id: of the compute; None from one of an earlier release
        :raises nova_precache.exception.AgentConflict: not the registered agent of the host
        """
        begin = call.Begin(job_id, epoch, starts, cell_uuid, agent_id)
        batch = job_batch.Batch(begins=[begin])
        if self._group.submit(batch, lambda done: job_id in done.begun):
            return True
        if agent_id is not None:
            self._require_registered(job_id, cell_uuid, agent_id)
        return False

    def _require_registered(self, job_id: str, cell_uuid: str | None, agent_id: str) -> None:
        job, agent = models.Job, models.Agent
        query = (
            sa.select(job.host, agent.agent_id)
            .outerjoin(agent, agent.host == job.host)
            .where(job.uuid == job_id)
        )
        if cell_uuid is not None:
            query = query.where(job.cell_uuid == cell_uuid)
        with self._database.reader() as session:
            row = session.execute(query).first()
        if row is not None and row.agent_id != agent_id:
            raise exception.AgentConflict(f'Agent {agent_id} is not registered for host {row.host}')

    def next_job(
        self,
        conductor_id: str,
        host: str,
        ended: job_finish.Finish | None = None,
        goes_on: bool = True,
        slots: job_claim.Slots | None = None,
    ) -> NextJobResult:
        """Record how a call ended, and choose the host's next job.

        The host is released if nothing is due, the worker does not continue, or another host
        comes first. If the outcome may decide what is called next, neither happens: call
        again once the outcome is handled.

        :param slots: those of the conductor; None if the host gives way to no other
        """
        if ended is not None and ended.outcome.status in states.STOPPED:
            recorded = self.finish(ended.job_id, ended.epoch, ended.outcome)
            result = self.next_job(conductor_id, host, goes_on=goes_on, slots=slots)
            return dataclasses.replace(result, recorded=recorded)
        return self._submit_next(
            job_batch.NextJobRequest(conductor_id, host, ended, goes_on, slots=slots)
        )

    def _submit_next(self, request: job_batch.NextJobRequest) -> NextJobResult:
        batch = job_batch.Batch(next_jobs=[request])
        return self._group.submit(batch, lambda done: done.next_jobs[request.host])

    def _commit(self, batches: Sequence[job_batch.Batch]) -> job_batch.BatchResult:
        batch = job_batch.merge(batches)
        return self._database.write(
            lambda session: job_batch.execute_batch(session, batch, self._known),
            may_reword=len(batches) == 1,
        )

    def is_moving(self, job_id: str, within_seconds: float) -> bool:
        """Return whether progress of a job was recorded within ``within_seconds``."""
        with self._database.reader() as session:
            progress_at = session.scalars(
                sa.select(models.Job.progress_at).where(models.Job.uuid == job_id)
            ).first()
            if progress_at is None:
                return False
            age = db_session.now(session) - progress_at
            return age < datetime.timedelta(seconds=within_seconds)

    def image_at_work(self, cell_uuid: str, job_id: str, epoch: int) -> str | None:
        """Return the image of a job on which a compute of the cell works under that epoch."""
        query = sa.select(models.Job.image_id).where(
            models.Job.uuid == job_id, models.Job.epoch == epoch, *_at_work(cell_uuid)
        )
        with self._database.reader() as session:
            return session.scalars(query).first()

    def hosts_at_work(self, cell_uuid: str) -> Sequence[str]:
        """List the hosts of a cell whose computes work on a job."""
        host = models.Job.host
        query = sa.select(host).where(*_at_work(cell_uuid)).distinct().order_by(host)
        with self._database.reader() as session:
            return session.scalars(query).all()

    def record_progress(
        self,
        reports: Collection[ProgressReport],
        accepted: Callable[[Mapping[Sender, int]], None] = lambda transfers: None,
    ) -> int:
        """Write progress reports in chunks; return how many still counted.

        An outcome waits for one chunk at most. A report that the database refuses is skipped,
        and its job is named in the log.

        :param accepted: called with the number of active jobs of which each agent has reported
            that is registered for their host
        """
        with self._database.reader() as session:
            chosen = progress.choose(session, reports)
        active = {each.row_id: each.sender for each in chosen}
        accepted(collections.Counter(active.values()))
        counts = db_session.in_chunks(
            chosen,
            REPORTS_AT_ONCE,
            lambda some: self._database.write(lambda session: progress.record(session, some)),
            lambda one, error: self._refuse(one.report, error),
        )
        return sum(counts)

    def _refuse(self, report: ProgressReport, error: Exception) -> None:
        sender = f'the host of job {report.job_id}'
        self._senders.refused('progress', sender, wire.line(str(error)))

    def host_of(self, job_id: str, cell_uuid: str) -> str | None:
        """Return the host of a job of a cell, None if there is no such job."""
        job = models.Job
        query = sa.select(job.host).where(job.uuid == job_id, job.cell_uuid == cell_uuid)
        with self._database.reader() as session:
            return session.scalars(query).first()

    def finish(self, job_id: str, epoch: int, outcome: model.ImageOutcome) -> job_outcome.Recorded:
        """End a job and all tasks that want it.

        A job that its compute stopped on order ends for the requests that no longer want it.
        If others want it, it waits for another call, which is no attempt.
        """
        if outcome.status not in states.STOPPED:
            batch = job_batch.Batch(finishes=[Finish(job_id, epoch, outcome)])
            return self._group.submit(
                batch, lambda done: done.recorded.get(job_id, job_outcome.STALE)
            )
        return self._of_current(job_id, epoch, lambda s, job: job_finish.leave(s, job, outcome))

    def others_wait(self, job_id: str, epoch: int, avoid_cells: Collection[str] = ()) -> bool:
        """Return whether another host would be claimed if the slot of a call were free.

        :param job_id: the job that was called, under ``epoch``; its host is still claimed
        """
        job, claim = models.Job, models.Claim
        slot = sa.select(claim.host).join(job, job.host == claim.host).where(job.uuid == job_id)
        with self._database.reader() as session:
            if session.scalars(slot.where(job_claim.holds_stream())).first() is None:
                return False
            limits = host_limits.load(session, {job_id: epoch})
            search = share.Search(1, avoid_cells, job_claim.budget(session).by_cell)
            return bool(share.most_urgent(session, search, limits, self._known))

    def postpone_due(self, host: str, why: model.ImageOutcome, delay_seconds: float) -> int:
        """Postpone the due jobs of a host that are assigned to no call; return their number.

        This does not count as an attempt.
        """
        job = models.Job
        due = job_claim.due(expressions.database_now(), model.TASK_WAITING)

        def work(session: orm.Session) -> int:
            waiting = session.scalars(sa.select(job.uuid).where(job.host == host, due)).all()
            locked = locking.lock(session, waiting)
            delays = {
                each: delay_seconds
                for each in locked.values()
                if each.is_due and each.status in model.TASK_WAITING and each.epoch is None
            }
            job_outcome.schedule_retry(session, delays, why)
            return len(delays)

        return self._database.write(work)

    def retry(
        self, job_id: str, epoch: int, outcome: model.ImageOutcome, delay_seconds: float
    ) -> job_outcome.Recorded:
        """Schedule a job's next attempt, unless it was to stop; it holds no slot meanwhile."""
        return self._of_current(
            job_id, epoch, lambda s, job: job_finish.retry(s, job, outcome, delay_seconds)
        )

    def _of_current(
        self,
        job_id: str,
        epoch: int,
        step: Callable[[orm.Session, locking.Locked], job_outcome.Recorded],
    ) -> job_outcome.Recorded:
        """Run a step on a locked job, if its call under ``epoch`` still counts."""

        def work(session: orm.Session) -> job_outcome.Recorded:
            job = locking.lock(session, [job_id]).get(job_id)
            if job is None or not job.is_current(epoch):
                return job_outcome.STALE
            return step(session, job)

        return self._database.write(work)

    def wanting(self, hosts: Collection[str], image_id: str) -> WantingTask | None:
        """Return the oldest task in flight for an image on any of the hosts."""
        job, task = models.Job, models.Task
        query = (
            sa.select(task.request_id, task.host, task.status)
            .join(job, job.uuid == task.job_uuid)
            .where(job.host.in_(list(hosts)), job.status.in_(model.TASK_IN_FLIGHT))
            .where(job.image_id == image_id, task.status.in_(model.TASK_IN_FLIGHT))
            .order_by(task.id)
        )
        with self._database.reader() as session:
            row = session.execute(query).first()
        return None if row is None else WantingTask(*row)

    def terms(self, job_id: str) -> Terms:
        """Return the terms of a job that is about to be called."""
        with self._database.reader() as session:
            return call.terms(session, [job_id])[job_id]

    def measured_rates(self, hosts: Collection[str]) -> Mapping[str, float]:
        """Map hosts to the bytes per second at which they cached images recently.

        A host to which no byte was moved recently is left out.
        """
        with self._database.reader() as session:
            return progress.measured_rates(session, hosts, db_session.now(session))

    def askers(self, job_id: str) -> Sequence[Asker]:
        """List the requests that still want a job, with their owners."""
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
    ) -> job_outcome.Recorded:
        """End the tasks of some requests and leave the job to the others."""
        chosen = sa.and_(
            models.Task.job_uuid == job_id, models.Task.request_id.in_(list(request_ids))
        )

        def work(session: orm.Session) -> job_outcome.Recorded:
            demand.lock(session, chosen, request_ids)
            return demand.give_up(session, chosen, outcome)

        return self._database.write(work)

    def skip_waiting(
        self, request_id: str, hosts: Collection[str], reason: str
    ) -> job_outcome.Recorded:
        """Skip the tasks on some hosts that no compute has begun; end jobs no longer wanted."""
        chosen = sa.and_(models.Task.request_id == request_id, models.Task.host.in_(list(hosts)))
        waiting = sa.and_(chosen, models.Task.status.in_(model.TASK_WAITING))
        outcome = model.ImageOutcome(model.TaskStatus.SKIPPED, reason)

        def work(session: orm.Session) -> job_outcome.Recorded:
            demand.lock(session, chosen, [request_id])
            return demand.give_up(session, waiting, outcome)

        return self._database.write(work)

    def due_in_cell(
        self, cell_uuid: str, limit: int = 1000, after: str = ''
    ) -> Sequence[Assignment]:
        """List the unclaimed jobs of a cell that are due now, without claiming them.

        :param after: id of the last job of the previous page
        """
        with self._database.reader() as session:
            now = db_session.now(session)
            rows = session.scalars(
                sa.select(models.Job)
                .where(models.Job.cell_uuid == cell_uuid, models.Job.uuid > after)
                .where(job_claim.due(now), job_claim.unclaimed())
                .order_by(models.Job.uuid)
                .limit(limit)
            ).all()
            return [call.as_it_is(row) for row in rows]

    def fail_unclaimed(
        self, missed: Sequence[MissedCall], outcome: model.ImageOutcome
    ) -> Sequence[job_outcome.Recorded]:
        """Count attempts that were not made because the cell is unreachable.

        One call at a time probes such a cell: if only its attempts counted, the outcome of a
        request would take hours. Jobs that others claimed or counted meanwhile stay unchanged.
        """

        def work(session: orm.Session) -> Sequence[job_outcome.Recorded]:
            locked = locking.lock(session, [each.job_id for each in missed])
            counted = [each for each in missed if _may_fail(each, locked.get(each.job_id))]
            delays = {locked[each.job_id]: each.delay_seconds or 0 for each in counted}
            job_outcome.schedule_retry(session, delays, outcome, attempts=1)
            over = {each.job_id: outcome for each in counted if each.delay_seconds is None}
            ended = job_outcome.end(session, over)
            return [ended.get(each.job_id, job_outcome.STALE) for each in missed]

        return self._database.write(work)


def _at_work(cell_uuid: str) -> tuple[sa.ColumnElement[bool], ...]:
    return models.Job.cell_uuid == cell_uuid, models.Job.status.in_(model.TASK_WORKING)


def _may_fail(missed: MissedCall, job: locking.Locked | None) -> bool:
    """Return whether a job is unclaimed, due, and was not attempted meanwhile."""
    if job is None or job.claim_epoch is not None or job.status not in model.TASK_WAITING:
        return False
    return job.is_due and job.attempts == missed.attempts
