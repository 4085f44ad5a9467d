# SPDX-License-Identifier: Apache-2.0
"""Actions on accepted requests: by users, by their windows and by their conditions.

Each action is one transaction that leaves tasks and jobs in their new state. Conductors find
their work in the database; any of them may do it.
"""

import datetime
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model, states
from nova_precache.db import rows
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import (
    demand,
    finish as job_finish,
    locking,
    outcome as job_outcome,
    stop as job_stop,
)
from nova_precache.db.request import actions, rollout

T = TypeVar('T')

StopOrder = job_stop.StopOrder
ChangeOrder = job_stop.ChangeOrder
Discard = job_stop.Discard


class RequestActions:
    """Steers the requests in the database."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def cancel(
        self, request_id: str, keep_partial: bool = False, project_id: str | None = None
    ) -> model.CacheRequest:
        """Cancel a request: end waiting jobs and stop transfers that no other request wants.

        :param keep_partial: keep partial downloads on the hosts, for a later attempt
        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: it has ended
        """
        return self._steer(request_id, project_id, actions.cancel, keep_partial)

    def pause(self, request_id: str, project_id: str | None = None) -> model.CacheRequest:
        """Pause a request: begin nothing, stop transfers only it wants, keep partial downloads.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: it has ended, or is being cancelled
        """
        return self._steer(request_id, project_id, actions.pause)

    def resume(self, request_id: str, project_id: str | None = None) -> model.CacheRequest:
        """Resume a paused request at once.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: it has ended, or is being cancelled
        """
        return self._steer(request_id, project_id, actions.resume)

    def retry(
        self,
        request_id: str,
        not_before: datetime.datetime | None = None,
        deadline: datetime.datetime | None = None,
        project_id: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> model.CacheRequest:
        """Queue the tasks that did not succeed for a new plan, in a new window if one is given.

        :param hosts: only the tasks of these hosts; None: of all
        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: it has not ended, or all of it succeeded
        :raises nova_precache.exception.NothingToRetry: no task of the hosts can be retried
        :raises nova_precache.exception.InvalidField: the request has no such hosts, or ended
            before it was planned
        """
        return self._steer(request_id, project_id, actions.retry, not_before, deadline, hosts)

    def change(
        self, request_id: str, asked: model.RequestChange, project_id: str | None = None
    ) -> model.CacheRequest:
        """Change the priority, limits or deadline of a request, also of its running transfers.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        :raises nova_precache.exception.StatusConflict: it has ended, or is being cancelled
        :raises nova_precache.exception.InvalidField: the deadline contradicts other options
        """
        return self._steer(request_id, project_id, actions.change, asked)

    def adopt(self) -> job_outcome.Recorded:
        """Take over requests that conductors of an earlier release plan while both releases run."""
        row = models.CacheRequest
        adoptable = states.REQUESTS.origins(states.Event.ADOPT)
        query = sa.select(row.id).where(row.status.in_(adoptable), ~row.is_planned)
        return job_outcome.together(
            self._locking(request_id, actions.adopt) for request_id in self._ids(lambda now: query)
        )

    def open_windows(self) -> Sequence[str]:
        """Open the requests whose windows have begun; return their ids."""
        row = models.CacheRequest
        query = sa.select(row.id).where(row.status.in_(states.STEERABLE), row.is_planned)
        return [
            request_id
            for request_id in self._ids(lambda now: query.where(row.not_before <= now))
            if self._locking(request_id, actions.open_window)
        ]

    def expire(self) -> job_outcome.Recorded:
        """Expire requests past their deadline: end waiting jobs, stop transfers only they want."""
        row = models.CacheRequest
        in_flight = sa.exists().where(
            models.Task.request_id == row.id, models.Task.status.in_(model.TASK_IN_FLIGHT)
        )
        query = sa.select(row.id).where(
            row.status.in_(model.REQUEST_ACTIVE), row.is_planned, in_flight
        )
        return job_outcome.together(
            self._locking(request_id, actions.expire)
            for request_id in self._ids(lambda now: query.where(demand.has_passed(now)))
        )

    def check(self, request_ids: Collection[str] | None = None) -> job_outcome.Recorded:
        """Apply canaries and failure limits: open the other hosts, or end the waiting tasks.

        :param request_ids: None checks all requests with such conditions
        """
        query = sa.select(models.CacheRequest).where(rollout.is_guarded())
        if request_ids is not None:
            query = query.where(models.CacheRequest.id.in_(list(request_ids)))
        with self._database.reader() as session:
            due = [row.id for row in session.scalars(query) if rollout.look(session, row)]
        return job_outcome.together(self._locking(request_id, rollout.check) for request_id in due)

    def stop_orders(self) -> Sequence[StopOrder]:
        """List the jobs that computes are to stop, the oldest first."""
        with self._database.reader() as session:
            return job_stop.orders(session)

    def stopped(self, job_id: str, epoch: int | None) -> job_outcome.Recorded:
        """Record that no compute works on a job that was to stop: end it, or hold it if paused."""

        def work(session: orm.Session) -> job_outcome.Recorded:
            job = locking.lock(session, [job_id]).get(job_id)
            if job is None or job.epoch != epoch:
                return job_outcome.STALE
            return job_finish.stop(session, job)

        return self._database.write(work)

    def change_orders(self) -> Sequence[ChangeOrder]:
        """List the jobs whose computes do not have their current options, the oldest first."""
        with self._database.reader() as session:
            return job_stop.change_orders(session)

    def changed(self, order: ChangeOrder) -> None:
        """Record that the compute has the options of an order, or cannot change them."""

        def work(session: orm.Session) -> None:
            job = locking.lock(session, [order.job_id]).get(order.job_id)
            if job is not None and job.epoch == order.epoch:
                job_stop.note_change(session, order.job_id, order.change.number)

        self._database.write(work)

    def discards(self, limit: int) -> Sequence[Discard]:
        """List ended jobs whose partial files are to be removed from their hosts."""
        with self._database.reader() as session:
            return job_stop.discards(session, limit)

    def discarded(self, job_id: str) -> None:
        """Record that nothing is left to remove."""
        self._database.write(
            lambda session: job_stop.forget_discards(session, models.Job.uuid == job_id)
        )

    def _steer(
        self,
        request_id: str,
        project_id: str | None,
        step: Callable[..., None],
        *asked: object,
    ) -> model.CacheRequest:
        """Run a step on a locked request, and return the request."""

        def work(session: orm.Session) -> model.CacheRequest:
            row, keys = actions.lock(session, request_id)
            if row is None or (project_id is not None and row.project_id != project_id):
                raise exception.RequestNotFound(request_id)
            step(session, row, keys, *asked)
            session.flush()
            session.refresh(row)
            return rows.requests(session, [row])[0]

        return self._database.write(work)

    def _locking(
        self, request_id: str, step: Callable[[orm.Session, models.CacheRequest, Sequence[str]], T]
    ) -> T | None:
        """Run a step on a locked request, unless it was purged."""

        def work(session: orm.Session) -> T | None:
            row, keys = actions.lock(session, request_id)
            return None if row is None else step(session, row, keys)

        return self._database.write(work)

    def _ids(self, query: Callable[[datetime.datetime], sa.Select[str]]) -> Sequence[str]:
        with self._database.reader() as session:
            return session.scalars(query(db_session.now(session))).all()
