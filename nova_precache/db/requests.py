# SPDX-License-Identifier: Apache-2.0
"""Requests and their tasks: accepted, planned, listed, completed."""

import dataclasses
import datetime
import uuid
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import announcements, models, plans, recording
from nova_precache.db import session as db_session

_RACES = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """Against abuse; each name is that of its option in ``[image_cache]``."""

    max_images_per_request: int
    max_tasks_per_request: int
    max_active_requests_per_project: int


@dataclasses.dataclass(frozen=True)
class NewRequest:
    """What somebody asks for, checked at the door."""

    aggregate: model.Aggregate
    images: tuple[str, ...]
    project_id: str | None = None
    user_id: str | None = None
    is_admin: bool = False
    request_id: str | None = None
    priority: int = 0


@dataclasses.dataclass(frozen=True)
class ToPlan:
    """A request whose planning this conductor holds."""

    request: model.CacheRequest
    is_admin: bool


class Requests:
    """The requests in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    def accept(self, new: NewRequest) -> model.CacheRequest:
        """Save a request; from here on it cannot be lost.

        :raises nova_precache.exception.TooMany: a limit of ``[image_cache]`` would be exceeded
        """
        self._check_size(new)
        # Made here: a commit whose answer was lost is tried again, and found done.
        request_id = str(uuid.uuid4())
        return self._database.write(lambda session: self._accept(session, request_id, new))

    def get(self, request_id: str, project_id: str | None = None) -> model.CacheRequest:
        """Give a request with its counts; ``project_id`` None means any project's.

        :raises nova_precache.exception.RequestNotFound: unknown, or another project's
        """
        with self._database.reader() as session:
            row = _load(session, request_id, project_id)
            return _to_models(session, [row])[0]

    def outline(self, request_id: str) -> model.CacheRequest:
        """Give a request without its counts, which cost a look at each of its tasks.

        :raises nova_precache.exception.RequestNotFound: unknown
        """
        with self._database.reader() as session:
            return _request(_load(session, request_id, None), {})

    def list(
        self,
        project_id: str | None = None,
        status: str | None = None,
        limit: int = 1000,
        marker: str | None = None,
    ) -> Sequence[model.CacheRequest]:
        """Give requests, the newest first, from after ``marker`` on.

        :raises nova_precache.exception.RequestNotFound: the marker is unknown
        """
        query = sa.select(models.CacheRequest).order_by(models.CacheRequest.number.desc())
        if project_id is not None:
            query = query.where(models.CacheRequest.project_id == project_id)
        if status is not None:
            query = query.where(models.CacheRequest.status == status)
        with self._database.reader() as session:
            if marker is not None:
                number = _load(session, marker, project_id).number
                query = query.where(models.CacheRequest.number < number)
            return _to_models(session, session.scalars(query.limit(limit)).all())

    def tasks(
        self, request_id: str, limit: int = 1000, marker: int | None = None
    ) -> Sequence[model.Task]:
        """Give the tasks of a request in the order of the plan, from after ``marker`` on."""
        query = (
            sa.select(models.Task)
            .where(models.Task.request_id == request_id)
            .order_by(models.Task.id)
            .limit(limit)
        )
        if marker is not None:
            query = query.where(models.Task.id > marker)
        with self._database.reader() as session:
            return [_task(row) for row in session.scalars(query)]

    def next_to_plan(self, conductor_id: str) -> ToPlan | None:
        """Take the oldest unplanned request for this conductor, for a while."""

        def work(session: orm.Session) -> ToPlan | None:
            row = plans.take_next(session, conductor_id)
            if row is None:
                return None
            return ToPlan(request=_to_models(session, [row])[0], is_admin=row.is_admin)

        return self._database.write(work)

    def postpone_plan(
        self, request_id: str, conductor_id: str, seconds: float, reason: str
    ) -> None:
        """Leave a request to be planned later, by whichever conductor comes first, and say why."""

        def work(session: orm.Session) -> None:
            later = db_session.now(session) + datetime.timedelta(seconds=seconds)
            session.execute(
                plans.planned_by(request_id, conductor_id).values(
                    planner=str(uuid.uuid4()), planner_lease_until=later, reason=reason
                )
            )

        self._database.write(work)

    def add_tasks(
        self, request_id: str, conductor_id: str, tasks: Sequence[plans.PlannedTask]
    ) -> bool:
        """Write one chunk of a plan; what an earlier try wrote stays as it is.

        :returns: False when another conductor has taken the planning over
        """
        for _ in range(_RACES):
            try:
                return self._database.write(
                    lambda session: plans.add_tasks(session, request_id, conductor_id, tasks)
                )
            except db_exception.DBDuplicateEntry:
                continue  # another request's plan made the same job; join it
        raise exception.PrecacheError(f'Request {request_id}: its jobs keep being made by others')

    def mark_planned(self, request_id: str, conductor_id: str) -> bool:
        """Close the plan; False when another conductor has taken it over."""

        def work(session: orm.Session) -> bool:
            planned = session.execute(
                plans.planned_by(request_id, conductor_id).values(
                    status=model.RequestStatus.PLANNED,
                    reason=None,
                    planner=None,
                    planner_lease_until=None,
                )
            )
            if db_session.rowcount(planned) != 1:
                return False
            plans.open_jobs(session, request_id)
            return True

        return self._database.write(work)

    def fail(self, request_id: str, conductor_id: str, reason: str) -> bool:
        """End a request that cannot be planned, with what an earlier try at it has planned."""
        planned = models.Task.request_id == request_id
        outcome = model.ImageOutcome(model.TaskStatus.ERROR, reason)
        held = plans.planned_by(request_id, conductor_id)

        def work(session: orm.Session) -> bool:
            if db_session.rowcount(session.execute(held.values(reason=reason))) != 1:
                return False
            recording.give_up(session, planned, outcome)
            plans.start(session, request_id)
            session.execute(
                held.values(status=model.RequestStatus.FAILED, finished_at=db_session.now(session))
            )
            announcements.add_end(session, request_id)
            return True

        return self._database.write(work)

    def complete(self, request_id: str) -> bool:
        """End the request if none of its tasks is in flight; True for whoever ended it."""
        return self._database.write(lambda session: _complete(session, request_id))

    def ids_to_complete(self) -> Sequence[str]:
        """Give the planned requests without a task in flight."""
        in_flight = (
            sa.select(models.Task.id)
            .where(models.Task.request_id == models.CacheRequest.id)
            .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        )
        query = sa.select(models.CacheRequest.id).where(
            models.CacheRequest.status.in_(_COMPLETABLE), ~in_flight.exists()
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def with_waiting_tasks(self) -> Sequence[model.CacheRequest]:
        """Give the planned requests with tasks that no compute has begun, without counts."""
        waiting = (
            sa.select(models.Task.id)
            .where(models.Task.request_id == models.CacheRequest.id)
            .where(models.Task.status.in_(model.TASK_WAITING))
        )
        query = sa.select(models.CacheRequest).where(
            models.CacheRequest.status.in_(_COMPLETABLE), waiting.exists()
        )
        with self._database.reader() as session:
            return [_request(row, {}) for row in session.scalars(query)]

    def waiting_hosts(self, request_id: str) -> Sequence[str]:
        """Give the hosts with tasks of the request that no compute has begun."""
        query = (
            sa.select(models.Task.host)
            .where(models.Task.request_id == request_id)
            .where(models.Task.status.in_(model.TASK_WAITING))
            .distinct()
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def planned_hosts(self, request_id: str) -> Sequence[str]:
        """Give the hosts that a request was planned for, in the order of the plan."""
        query = (
            sa.select(models.Task.host)
            .where(models.Task.request_id == request_id)
            .group_by(models.Task.host)
            .order_by(sa.func.min(models.Task.id))
        )
        with self._database.reader() as session:
            return session.scalars(query).all()

    def host_outcomes(self, request_id: str, host: str) -> Mapping[str, str]:
        """Map the images of a (request, host) to the statuses of their tasks."""
        query = (
            sa.select(models.Task.image_id, models.Task.status)
            .where(models.Task.request_id == request_id, models.Task.host == host)
            .order_by(models.Task.id)
        )
        with self._database.reader() as session:
            return {row.image_id: row.status for row in session.execute(query)}

    def purge(self, retention_days: int) -> int:
        """Delete requests that ended longer ago, with their tasks, and the jobs they leave.

        One request a transaction, since one may have many tasks.
        """
        purged = 0
        while self._database.write(lambda session: _purge_oldest(session, retention_days)):
            purged += 1
        return purged

    def _check_size(self, new: NewRequest) -> None:
        images, tasks = len(new.images), len(new.images) * len(new.aggregate.hosts)
        limits = self._limits
        if images > limits.max_images_per_request:
            raise exception.TooMany(
                'images', images, 'max_images_per_request', limits.max_images_per_request
            )
        if tasks > limits.max_tasks_per_request:
            raise exception.TooMany(
                'tasks', tasks, 'max_tasks_per_request', limits.max_tasks_per_request
            )

    def _accept(self, session: orm.Session, request_id: str, new: NewRequest) -> model.CacheRequest:
        saved = session.get(models.CacheRequest, request_id)
        if saved is not None:
            return _to_models(session, [saved])[0]
        number = _next_number(session)
        self._check_active(session, new.project_id)
        row = models.CacheRequest(
            id=request_id,
            number=number,
            status=model.RequestStatus.ACCEPTED,
            aggregate_id=new.aggregate.id,
            aggregate_uuid=new.aggregate.uuid,
            aggregate_name=new.aggregate.name,
            images=list(new.images),
            options={},
            priority=new.priority,
            project_id=new.project_id,
            user_id=new.user_id,
            is_admin=new.is_admin,
            request_id=new.request_id,
            hosts_total=0,
            hosts_done=0,
            created_at=db_session.now(session),
        )
        session.add(row)
        session.flush()
        return _to_models(session, [row])[0]

    def _check_active(self, session: orm.Session, project_id: str | None) -> None:
        active = session.scalars(
            sa.select(sa.func.count())
            .select_from(models.CacheRequest)
            .where(models.CacheRequest.project_id == project_id)
            .where(models.CacheRequest.status.in_(model.REQUEST_ACTIVE))
        ).one()
        limit = self._limits.max_active_requests_per_project
        if active >= limit:
            raise exception.TooMany(
                'unfinished requests', active + 1, 'max_active_requests_per_project', limit
            )


_COMPLETABLE = frozenset(
    {
        model.RequestStatus.PLANNED,
        model.RequestStatus.RUNNING,
        model.RequestStatus.PAUSED,
        model.RequestStatus.CANCELLING,
    }
)


def _next_number(session: orm.Session) -> int:
    """Hand out the next request's number; the row lock makes acceptance take turns."""
    counter = db_session.update(models.Counter).where(models.Counter.name == 'requests')
    session.execute(counter.values(value=models.Counter.value + 1))
    return session.scalars(
        sa.select(models.Counter.value).where(models.Counter.name == 'requests')
    ).one()


def _load(session: orm.Session, request_id: str, project_id: str | None) -> models.CacheRequest:
    row = session.get(models.CacheRequest, request_id)
    if row is None or (project_id is not None and row.project_id != project_id):
        raise exception.RequestNotFound(request_id)
    return row


def _complete(session: orm.Session, request_id: str) -> bool:
    in_flight = (
        sa.select(models.Task.id)
        .where(models.Task.request_id == request_id)
        .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
        .limit(1)
    )
    if session.scalars(in_flight).first() is not None:
        return False  # most often so, and found without counting
    counts = _counts(session, [request_id]).get(request_id, {})
    changed = session.execute(
        db_session.update(models.CacheRequest)
        .where(models.CacheRequest.id == request_id)
        .where(models.CacheRequest.status.in_(_COMPLETABLE))
        .values(status=final_status(counts), finished_at=db_session.now(session))
    )
    if db_session.rowcount(changed) != 1:
        return False
    announcements.add_end(session, request_id)
    return True


def final_status(counts: Mapping[str, int]) -> model.RequestStatus:
    """Say how a request ended, from its final tasks by status.

    Without a task there was nothing to do, which is completed.
    """
    total = sum(counts.values())
    succeeded = sum(n for status, n in counts.items() if status in model.TASK_SUCCEEDED)
    if succeeded == total:
        return model.RequestStatus.COMPLETED
    if succeeded:
        return model.RequestStatus.PARTIAL
    return model.RequestStatus.FAILED


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
    session.execute(sa.delete(models.CacheRequest).where(models.CacheRequest.id == request_id))
    for chunk in db_session.chunks(orphans):
        wanted = sa.exists().where(models.Task.job_uuid == models.Job.uuid)
        session.execute(
            sa.delete(models.Job).where(
                models.Job.uuid.in_(chunk), models.Job.active_key.is_(None), ~wanted
            )
        )
    return True


def _counts(session: orm.Session, request_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    return {
        request_id: {status: total.tasks for status, total in by_status.items()}
        for request_id, by_status in _totals(session, request_ids).items()
    }


@dataclasses.dataclass(frozen=True)
class _Total:
    tasks: int
    bytes_done: int
    bytes_total: int


def _totals(session: orm.Session, request_ids: Iterable[str]) -> dict[str, dict[str, _Total]]:
    task = models.Task
    query = (
        sa.select(
            task.request_id,
            task.status,
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(task.bytes_done), 0),
            sa.func.coalesce(sa.func.sum(task.bytes_total), 0),
        )
        .where(task.request_id.in_(list(request_ids)))
        .group_by(task.request_id, task.status)
    )
    totals: dict[str, dict[str, _Total]] = {}
    for request_id, status, count, done, total in session.execute(query):
        totals.setdefault(request_id, {})[status] = _Total(count, int(done), int(total or 0))
    return totals


def _to_models(
    session: orm.Session, rows: Sequence[models.CacheRequest]
) -> list[model.CacheRequest]:
    totals = _totals(session, [row.id for row in rows])
    return [_request(row, totals.get(row.id, {})) for row in rows]


def _request(row: models.CacheRequest, totals: Mapping[str, _Total]) -> model.CacheRequest:
    return model.CacheRequest(
        id=row.id,
        status=row.status,
        aggregate_id=row.aggregate_id,
        aggregate_uuid=row.aggregate_uuid,
        aggregate_name=row.aggregate_name,
        images=tuple(row.images),
        project_id=row.project_id,
        user_id=row.user_id,
        request_id=row.request_id,
        priority=row.priority,
        reason=row.reason,
        created_at=row.created_at,
        planned_at=row.planned_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        hosts_total=row.hosts_total,
        hosts_done=row.hosts_done,
        counts={status: total.tasks for status, total in sorted(totals.items())},
        bytes_done=sum(total.bytes_done for total in totals.values()),
        bytes_total=sum(total.bytes_total for total in totals.values()),
    )


def _task(row: models.Task) -> model.Task:
    names = [field.name for field in dataclasses.fields(model.Task)]
    return model.Task(**{name: getattr(row, name) for name in names})
