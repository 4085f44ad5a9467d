# SPDX-License-Identifier: Apache-2.0
"""Requests and their tasks: accept, plan, list and complete them."""

import dataclasses
import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import outbox, pages, rows
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand, outcome as job_outcome
from nova_precache.db.request import (
    actions,
    completion,
    create,
    plan as request_plan,
    queries,
)

_RACES = 5

RequestLimits = create.RequestLimits
NewRequest = create.NewRequest
RequestFilter = queries.RequestFilter
TaskFilter = queries.TaskFilter
NEWEST = pages.Page([model.SortKey('created_at', is_descending=True)], limit=1000)


@dataclasses.dataclass(frozen=True)
class ToPlan:
    """A request whose planning this conductor holds."""

    request: model.CacheRequest
    is_admin: bool


class Requests:
    """The requests in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, limits: RequestLimits) -> None:
        self._database = database
        self._limits = limits

    def accept(self, new: NewRequest) -> model.CacheRequest:
        """Save a request durably.

        If its project has used the ``client_request_id`` before, nothing is saved.

        :returns: the saved request, or the earlier one
        :raises nova_precache.exception.TooMany: a limit of ``[image_cache]`` would be exceeded
        """
        create.check_size(new, self._limits)
        # Made outside the transaction: a retry after a lost commit answer finds the row.
        request_id = str(uuid.uuid4())
        for _ in range(_RACES):
            try:
                return self._database.write(
                    lambda session: create.accept(session, request_id, new, self._limits)
                )
            except db_exception.DBDuplicateEntry:
                continue  # another writer was first with the client's own id, or a file's name
        raise exception.PrecacheError(
            'The request could not be saved: it conflicts with other writers'
        )

    def accepted(self, project_id: str | None, client_request_id: str) -> model.CacheRequest | None:
        """Return the request that a project made under its own id, if any."""
        row = models.CacheRequest
        same = row.client_key == create.client_key(project_id, client_request_id)
        with self._database.reader() as session:
            known = session.scalars(sa.select(row).where(same)).all()
            return next(iter(rows.requests(session, known)), None)

    def get(self, request_id: str, project_id: str | None = None) -> model.CacheRequest:
        """Return a request with its counts; ``project_id`` None matches any project.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        """
        with self._database.reader() as session:
            return rows.requests(session, [_load(session, request_id, project_id)])[0]

    def outline(self, request_id: str, project_id: str | None = None) -> model.CacheRequest:
        """Return a request without its counts; ``project_id`` None matches any project.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        """
        with self._database.reader() as session:
            return rows.request(_load(session, request_id, project_id), {})

    def list(
        self,
        filter: queries.RequestFilter | None = None,  # noqa: A002
        page: pages.Page = NEWEST,
    ) -> Sequence[model.CacheRequest]:
        """List requests, by default the newest first.

        :raises nova_precache.exception.InvalidMarker: unknown, or another project's
        """
        chosen = filter or queries.RequestFilter()
        with self._database.reader() as session:
            return rows.requests(session, queries.requests(session, chosen, page))

    def tasks(
        self,
        request_id: str,
        limit: int = 1000,
        marker: int | None = None,
        status: str | None = None,
        host: str | None = None,
        image_id: str | None = None,
    ) -> Sequence[model.Task]:
        """List the tasks of a request after ``marker``, in the order of the plan."""
        chosen = queries.TaskFilter(request_id, None, status, host, image_id)
        return self.list_tasks(chosen, pages.Page(limit=limit, marker=marker))

    def list_tasks(
        self, chosen: queries.TaskFilter, page: pages.Page, *, of_known: bool = False
    ) -> Sequence[model.Task]:
        """List the tasks of all requests that match.

        :param of_known: there must be the request that the filter names
        :raises nova_precache.exception.InvalidMarker: no visible task has this id
        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        """
        with self._database.reader() as session:
            try:
                found = queries.tasks(session, chosen, page)
            except exception.InvalidMarker:
                if of_known:
                    queries.require(session, chosen)  # the error that explains the other
                raise
            if of_known and not found:
                queries.require(session, chosen)
            return [rows.task(row) for row in found]

    def next_to_plan(self, conductor_id: str) -> ToPlan | None:
        """Lease the planning of the most urgent unplanned request to this conductor."""

        def work(session: orm.Session) -> ToPlan | None:
            row = request_plan.take_next(session, conductor_id)
            if row is None:
                return None
            return ToPlan(rows.requests(session, [row])[0], row.is_admin)

        return self._database.write(work)

    def note_unplanned(self, conductor_id: str, reason: str) -> None:
        """Record why no plan is made now for the requests that this conductor would plan."""
        self._database.write(
            lambda session: request_plan.note_unplanned(session, conductor_id, reason)
        )

    def postpone_plan(
        self, request_id: str, conductor_id: str, seconds: float, reason: str
    ) -> None:
        """Postpone a request's planning, then open to any conductor, and record the reason."""

        def work(session: orm.Session) -> None:
            later = db_session.now(session) + datetime.timedelta(seconds=seconds)
            session.execute(
                request_plan.planned_by(request_id, conductor_id).values(
                    planner=str(uuid.uuid4()), planner_lease_until=later, reason=reason
                )
            )

        self._database.write(work)

    def add_tasks(
        self, request_id: str, conductor_id: str, tasks: Sequence[request_plan.PlannedTask]
    ) -> bool:
        """Write one chunk of a plan; rows that an earlier try wrote stay unchanged.

        :returns: False if another conductor has taken over the planning
        """
        for _ in range(_RACES):
            try:
                return self._database.write(
                    lambda session: request_plan.add_tasks(session, request_id, conductor_id, tasks)
                )
            except db_exception.DBDuplicateEntry:
                continue  # another request's plan made the same job; join it
        raise exception.PrecacheError(f'Request {request_id}: other plans keep creating its jobs')

    def mark_planned(self, request_id: str, conductor_id: str) -> bool:
        """Complete the plan; return False if another conductor has taken it over."""

        def work(session: orm.Session) -> bool:
            actions.lock(session, request_id)
            held = request_plan.planned_by(request_id, conductor_id).values(reason=None)
            if db_session.rowcount(session.execute(held)) != 1:
                return False
            request_plan.close(session, request_id)
            return True

        return self._database.write(work)

    def fail(self, request_id: str, conductor_id: str, reason: str) -> bool:
        """End a request that cannot be planned, and the tasks that earlier tries planned."""
        planned = models.Task.request_id == request_id
        outcome = model.ImageOutcome(model.TaskStatus.ERROR, reason)
        held = request_plan.planned_by(request_id, conductor_id)

        def work(session: orm.Session) -> bool:
            actions.lock(session, request_id)
            if db_session.rowcount(session.execute(held.values(reason=reason))) != 1:
                return False
            demand.give_up(session, planned, outcome)
            request_plan.start(session, request_id)
            session.execute(
                held.values(
                    status=completion.failed_status(rows.counts(session, request_id)),
                    finished_at=db_session.now(session),
                    is_planned=True,
                )
            )
            outbox.add(session, request_id, model.Phase.END)
            return True

        return self._database.write(work)

    def complete(self, request_id: str) -> bool:
        """End the request if none of its tasks is in flight; return whether this call ended it."""
        with self._database.reader() as session:
            if job_outcome.has_work(session, request_id):
                return False  # without a writer's lock
            ended = completion.ended(session, request_id)
        summary = ended.sum_up()
        return self._database.write(
            lambda session: completion.complete(session, request_id, summary)
        )

    def ids_to_complete(self) -> Sequence[str]:
        """List the planned requests without a task in flight."""
        in_flight = (
            sa.select(models.Task.id)
            .where(models.Task.request_id == models.CacheRequest.id)
            .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        )
        query = sa.select(models.CacheRequest.id).where(
            completion.is_completable(), ~in_flight.exists()
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def with_waiting_tasks(self) -> Sequence[model.CacheRequest]:
        """List the planned requests with tasks that no compute has begun, without counts."""
        waiting = (
            sa.select(models.Task.id)
            .where(models.Task.request_id == models.CacheRequest.id)
            .where(models.Task.status.in_(model.TASK_WAITING))
        )
        query = sa.select(models.CacheRequest).where(completion.is_completable(), waiting.exists())
        with self._database.reader() as session:
            return [rows.request(row, {}) for row in session.scalars(query)]

    def waiting_hosts(self, request_id: str) -> Sequence[str]:
        """List the hosts with tasks of the request that no compute has begun."""
        query = (
            sa.select(models.Task.host)
            .where(models.Task.request_id == request_id)
            .where(models.Task.status.in_(model.TASK_WAITING))
            .distinct()
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def planned_hosts(self, request_id: str) -> Sequence[str]:
        """List the hosts that a request was planned for, in the order of the plan."""
        query = (
            sa.select(models.Task.host)
            .where(models.Task.request_id == request_id)
            .group_by(models.Task.host)
            .order_by(sa.func.min(models.Task.id))
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def purge(self, retention_days: int) -> int:
        """Delete requests that ended longer ago, with their tasks and unused jobs.

        Each transaction deletes one request, since it may have many tasks.
        """
        purged = 0
        while self._database.write(lambda session: _purge_oldest(session, retention_days)):
            purged += 1
        self._database.write(lambda session: _purge_left_jobs(session, retention_days))
        return purged


_ONE = sa.select(*rows.REQUEST).where(models.CacheRequest.id == sa.bindparam('request'))


def _load(
    session: orm.Session, request_id: str, project_id: str | None
) -> sa.Row[*tuple[Any, ...]]:
    row = db_session.run(session, _ONE, {'request': request_id}).first()
    if row is None or (project_id is not None and row.project_id != project_id):
        raise exception.RequestNotFound(request_id)
    return row


def _purge_oldest(session: orm.Session, retention_days: int) -> bool:
    before = db_session.now(session) - datetime.timedelta(days=retention_days)
    request_id = session.scalars(
        sa.select(models.CacheRequest.id)
        .where(models.CacheRequest.finished_at < before)
        .order_by(models.CacheRequest.finished_at)
        .limit(1)
    ).first()
    if request_id is None:
        return False
    jobs = session.scalars(
        sa.select(models.Task.job_uuid).where(models.Task.request_id == request_id)
    )
    orphans = sorted({job for job in jobs if job is not None})
    session.execute(  # unless it was retried meanwhile
        sa.delete(models.CacheRequest).where(
            models.CacheRequest.id == request_id, models.CacheRequest.finished_at < before
        )
    )
    for chunk in db_session.chunks(orphans):
        wanted = sa.exists().where(models.Task.job_uuid == models.Job.uuid)
        session.execute(
            sa.delete(models.Job).where(
                models.Job.uuid.in_(chunk), models.Job.active_key.is_(None), ~wanted
            )
        )
    return True


def _purge_left_jobs(session: orm.Session, retention_days: int) -> None:
    """Delete old jobs that no task refers to, as a retry leaves them."""
    before = db_session.now(session) - datetime.timedelta(days=retention_days)
    wanted = sa.exists().where(models.Task.job_uuid == models.Job.uuid)
    session.execute(
        sa.delete(models.Job).where(
            models.Job.active_key.is_(None), models.Job.finished_at < before, ~wanted
        )
    )
