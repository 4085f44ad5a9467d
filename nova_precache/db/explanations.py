# SPDX-License-Identifier: Apache-2.0
"""Adds to requests and tasks that are shown why they do not move, and their current rates.

The facts are loaded when they are read, for all rows of a page together; ``request.waiting``
decides what they mean. A rate is stored as it was last reported, so that of a silent compute
is not shown.
"""

import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import hearing, rows, standing
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import host_limits
from nova_precache.db.request import waiting

_When = datetime.datetime | None
WhyDown = Callable[[_When, _When, hearing.Heard | None, _When], str | None]


@dataclasses.dataclass(frozen=True)
class Rules:
    """The options by which a silence is judged, as on the conductors and computes.

    :ivar hearing_gap_seconds: after each record that a cell is heard, the next one is due by then
    :ivar compute_silent_seconds: a compute that gave no sign for longer does not work
    :ivar precache_concurrency: returns the current value
    :ivar is_stock: stock nova-computes cache the images; they report nothing to this service
    """

    hearing_gap_seconds: float
    claim_lease_seconds: float
    compute_silent_seconds: float
    precache_concurrency: Callable[[], int]
    is_stock: bool = False


class Explanations:
    """Explains the requests and tasks of one page in one read-only transaction.

    :param cells: returns the known cells; called only if one of them is not heard
    :param why_down: returns why a host is down, from its last report, the current time, when its
        cell could be heard, and when its compute stopped
    """

    def __init__(
        self,
        database: db_session.Database,
        rules: Rules,
        cells: Callable[[], Mapping[str, model.Cell]],
        why_down: WhyDown,
    ) -> None:
        self._database = database
        self._rules = rules
        self._cells = cells
        self._why_down = why_down

    def tasks(self, tasks: Sequence[model.Task]) -> Sequence[model.Task]:
        """Return the tasks with their current reasons and rates, in the same order."""
        in_flight = [task for task in tasks if task.status in model.TASK_IN_FLIGHT]
        if not in_flight:
            return tasks
        with self._database.reader() as session:
            page = _Page(session, self._rules, {task.request_id for task in in_flight})
            loaded = page.of_tasks(in_flight)
        known = self._facts(page, loaded)
        return [
            _explained(page.service, task, known[task.id]) if task.id in known else task
            for task in tasks
        ]

    def requests(self, requests: Sequence[model.CacheRequest]) -> Sequence[model.CacheRequest]:
        """Return the requests with their current reasons and rates, in the same order."""
        active = {each.id for each in requests if each.status in model.REQUEST_ACTIVE}
        if not active:
            return requests
        with self._database.reader() as session:
            page = _Page(session, self._rules, active)
            stale = page.stale_rates()
            loaded = page.of_tasks(page.first_tasks())
        first = {facts.task.request_id: facts for facts in self._facts(page, loaded).values()}
        shown = []
        for each in requests:
            if each.id in page.requests:
                rate = max(0, each.rate_bytes - stale.get(each.id, 0))
                stands = None if rate else first.get(each.id)
                why = waiting.request_reason(page.service, page.requests[each.id], stands)
                each = dataclasses.replace(each, reason=why, rate_bytes=rate)
            shown.append(each)
        return shown

    def _facts(self, page: '_Page', loaded: Sequence['_Loaded']) -> Mapping[int, waiting.TaskFacts]:
        problems = self._cell_problems(page, {each.task.cell_uuid for each in loaded})
        return {each.task.id: self._of_task(page, each, problems) for each in loaded}

    def _cell_problems(
        self, page: '_Page', cell_uuids: Collection[str | None]
    ) -> Mapping[str | None, str]:
        now = page.service.now
        unheard = {
            uuid: heard
            for uuid, heard in page.heard.items()
            if uuid in cell_uuids and not heard.is_heard(now)
        }
        if not unheard:
            return {}
        cells = self._cells()
        return {
            uuid: waiting.cell_problem(
                cells[uuid].name if uuid in cells else uuid,
                cells[uuid].disabled_reason if uuid in cells else None,
                page.heard_at(heard),
                now,
            )
            for uuid, heard in unheard.items()
        }

    def _of_task(
        self, page: '_Page', loaded: '_Loaded', problems: Mapping[str | None, str]
    ) -> waiting.TaskFacts:
        row, now, at_work = loaded.row, page.service.now, page.at_work.get(loaded.task.host)
        host = waiting.HostFacts(
            name=loaded.task.host,
            cell_problem=problems.get(loaded.task.cell_uuid),
            is_claimed=row.claimed_by is not None,
            is_at_work=at_work is not None,
            unanswered_until=row.over_at,
        )
        if not self._rules.is_stock:
            heard = page.heard.get(row.agent_cell) if row.agent_cell else page.anywhere
            host = dataclasses.replace(
                host,
                seen_at=_last_sign(row, at_work),
                registered_at=row.registered_at,
                down=self._why_down(row.seen_at, now, heard, row.stopped_at),
            )
        job = waiting.JobFacts(
            is_ready=bool(row.ready),
            is_called=row.epoch is not None and row.claimed_by is not None,
            stop_why=row.stop_why,
            progress_at=row.progress_at,
        )
        return waiting.TaskFacts(loaded.task, page.requests[loaded.task.request_id], host, job)


def _last_sign(
    row: sa.Row[*tuple[Any, ...]], at_work: sa.Row[*tuple[Any, ...]] | None
) -> datetime.datetime | None:
    """Return when an agent reported last, its state or the progress of any image."""
    if row.seen_at is None or at_work is None or at_work.progress_at is None:
        return row.seen_at  # type: ignore[no-any-return]
    return max(row.seen_at, at_work.progress_at)  # type: ignore[no-any-return]


def _explained(
    service: waiting.ServiceFacts, task: model.Task, facts: waiting.TaskFacts
) -> model.Task:
    return dataclasses.replace(
        task,
        reason=waiting.task_reason(service, facts),
        rate_bytes=waiting.rate_bytes(service, facts),
    )


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A task, and the columns of ``_JOINED`` for it."""

    task: model.Task
    row: sa.Row[*tuple[Any, ...]]


_TASK, _JOB, _REQUEST, _CLAIM = models.Task, models.Job, models.CacheRequest, models.Claim
_JOINED = (
    sa.select(
        _TASK.id,
        _JOB.ready,
        _JOB.epoch,
        _JOB.stop_why,
        _JOB.progress_at,
        models.Agent.seen_at,
        models.Agent.started_at.label('registered_at'),
        models.Agent.cell_uuid.label('agent_cell'),
        standing.stopped_at(models.Agent).label('stopped_at'),
        _CLAIM.conductor_id.label('claimed_by'),
        models.StockCall.over_at,
    )
    .outerjoin(_JOB, _JOB.uuid == _TASK.job_uuid)
    .outerjoin(models.Agent, models.Agent.host == _TASK.host)
    .outerjoin(_CLAIM, _CLAIM.host == _TASK.host)
    .outerjoin(models.StockCall, models.StockCall.host == _TASK.host)
)
_SIGNS = sa.select(
    db_session.database_now(),
    sa.func.max(_CLAIM.lease_expires_at),
    sa.func.count(_CLAIM.conductor_id),
    sa.select(sa.func.max(models.Service.seen_at))
    .where(models.Service.binary == model.Binary.CONDUCTOR)
    .scalar_subquery(),
)


class _Page:
    """What the requests of a page have in common, loaded in one transaction.

    :ivar requests: request id to its facts, for those that are still active
    :ivar heard: cell uuid to when it could be heard
    :ivar anywhere: the same, for a host without an agent
    :ivar at_work: host to the last progress of the image for which it is called
    """

    def __init__(self, session: orm.Session, rules: Rules, request_ids: Collection[str]) -> None:
        self._session = session
        self._gap = datetime.timedelta(seconds=rules.hearing_gap_seconds)
        now, leased_until, claimed, reported_at = session.execute(_SIGNS).one()
        self.heard = hearing.every(session)
        self.anywhere = hearing.latest(self.heard.values(), now)
        lease = datetime.timedelta(seconds=rules.claim_lease_seconds)
        signs = [self.heard_at(each) for each in self.heard.values()]
        if leased_until is not None:
            signs.append(leased_until - lease)
        if reported_at is not None:
            signs.append(reported_at)
        self.service = waiting.ServiceFacts(
            now=now,
            conductor_seen_at=max(signs, default=None),
            conductor_silent=self._gap,
            compute_silent=datetime.timedelta(seconds=rules.compute_silent_seconds),
            claimed_hosts=claimed,
            precache_concurrency=rules.precache_concurrency(),
        )
        self.at_work: dict[str, sa.Row[*tuple[Any, ...]]] = {}
        self.requests = self._load_requests(sorted(request_ids))

    def heard_at(self, heard: hearing.Heard) -> datetime.datetime:
        """Return when a cell was heard last: the time of the last record."""
        return max(heard.since, heard.until - self._gap)

    def _load_requests(self, ids: Sequence[str]) -> Mapping[str, waiting.RequestFacts]:
        query = sa.select(
            _REQUEST.id,
            _REQUEST.status,
            _REQUEST.created_at,
            _REQUEST.is_planned,
            _REQUEST.reason,
            _REQUEST.not_before,
            _REQUEST.canary_passed,
            _REQUEST.options,
            _REQUEST.max_parallel_hosts,
        )
        found = self._chunked(query, _REQUEST.id, ids)
        options = {row.id: rows.options(row.options) for row in found}
        canaries = self._canaries(
            {
                row.id: options[row.id].canary or 0
                for row in found
                if row.is_planned and not row.canary_passed
            }
        )
        limited = any(row.max_parallel_hosts is not None for row in found)
        limits = host_limits.load(self._session) if limited else host_limits.NONE
        return {
            row.id: waiting.RequestFacts(
                status=row.status,
                created_at=row.created_at,
                is_planned=row.is_planned,
                reason=row.reason,
                not_before=row.not_before,
                canary=canaries.get(row.id),
                waits_for_down_hosts=options[row.id].wait_for_down_hosts,
                max_parallel_hosts=row.max_parallel_hosts,
                busy_hosts=limits.busy_hosts(row.id),
            )
            for row in found
        }

    def _canaries(self, sizes: Mapping[str, int]) -> Mapping[str, tuple[int, int]]:
        """Map requests to the number of canary hosts that are done, and of all: ``gating``."""
        if not sizes:
            return {}
        left = sa.func.sum(sa.case((_TASK.status.in_(model.TASK_IN_FLIGHT), 1), else_=0))
        hosts = (
            sa.select(_TASK.request_id, sa.func.min(_TASK.id).label('first'), left.label('left'))
            .where(_TASK.request_id.in_(sorted(sizes)), _TASK.job_uuid.is_not(None))
            .group_by(_TASK.request_id, _TASK.host)
            .subquery()
        )
        turn = sa.func.row_number().over(partition_by=hosts.c.request_id, order_by=hosts.c.first)
        ranked = sa.select(hosts.c.request_id, hosts.c.left, turn.label('turn')).subquery()
        first = sa.select(ranked).where(ranked.c.turn <= max(sizes.values()))
        ended: dict[str, list[bool]] = {request_id: [] for request_id in sizes}
        for row in self._session.execute(first):
            if row.turn <= sizes[row.request_id]:
                ended[row.request_id].append(not row.left)
        return {request_id: (sum(each), len(each)) for request_id, each in ended.items()}

    def of_tasks(self, tasks: Sequence[model.Task]) -> list[_Loaded]:
        """Load the facts about tasks of these requests, and about their hosts."""
        by_id = {task.id: task for task in tasks if task.request_id in self.requests}
        found = self._chunked(_JOINED, _TASK.id, list(by_id))
        loaded = [_Loaded(by_id[row.id], row) for row in found]
        claimed = {each.task.host for each in loaded if each.row.claimed_by is not None}
        called = sa.select(_JOB.host, _JOB.progress_at).where(
            _JOB.status.in_(model.TASK_IN_FLIGHT), _JOB.epoch.is_not(None)
        )
        self.at_work.update(
            (row.host, row) for row in self._chunked(called, _JOB.host, sorted(claimed))
        )
        return loaded

    def first_tasks(self) -> list[model.Task]:
        """Return a task in flight of each request, one that a compute works on if there is one."""
        query = sa.select(_TASK.request_id, _TASK.status, sa.func.min(_TASK.id)).where(
            _TASK.status.in_(model.TASK_IN_FLIGHT)
        )
        query = query.group_by(_TASK.request_id, _TASK.status)
        first: dict[str, tuple[bool, int]] = {}
        for request_id, status, task_id in self._chunked(
            query, _TASK.request_id, sorted(self.requests)
        ):
            rank = status not in model.TASK_WORKING, task_id
            first[request_id] = min(rank, first.get(request_id, rank))
        ids = [task_id for _, task_id in first.values()]
        return [rows.task(row) for (row,) in self._chunked(sa.select(_TASK), _TASK.id, ids)]

    def stale_rates(self) -> Mapping[str, int]:
        """Map requests to the sum of the rates that silent or restarted computes reported."""
        silent = self.service.now - self.service.compute_silent
        agent = models.Agent
        is_stale = sa.or_(
            sa.and_(agent.seen_at < silent, _JOB.progress_at < silent),
            agent.started_at > _JOB.progress_at,
        )
        query = (
            sa.select(_TASK.request_id, sa.func.sum(_TASK.rate_bytes))
            .join(_JOB, _JOB.uuid == _TASK.job_uuid)
            .join(agent, agent.host == _TASK.host)
            .where(_TASK.status.in_(model.TASK_WORKING), _TASK.rate_bytes > 0, is_stale)
            .group_by(_TASK.request_id)
        )
        found = self._chunked(query, _TASK.request_id, sorted(self.requests))
        return {request_id: int(rate) for request_id, rate in found}

    def _chunked(
        self, query: sa.Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
    ) -> list[sa.Row[*tuple[Any, ...]]]:
        return [
            row
            for chunk in db_session.chunks(keys)
            for row in self._session.execute(query.where(column.in_(chunk)))
        ]
