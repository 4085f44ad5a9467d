# SPDX-License-Identifier: Apache-2.0
"""Adds to requests and tasks that are shown why they do not move, their rates and their ETAs.

The facts are loaded when they are read, for all rows of a page together; ``request.waiting``
decides what they mean. A rate is stored as it was last reported, so that of a silent compute
is not shown. What is read grows with the page and with the hosts at work, not with the tasks
of a request.
"""

import collections
import dataclasses
import datetime
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model, pace
from nova_precache.db import hearing, rows, standing
from nova_precache.db.engine import expressions, models, session as db_session
from nova_precache.db.job import claim as job_claim, host_limits, progress, turns
from nova_precache.db.request import gating, waiting

_When = datetime.datetime | None
# One that was shown, or the columns of ``_REQUESTS``.
_Request = model.CacheRequest | sa.Row[*tuple[Any, ...]]
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
        """Return the tasks with their current reasons, rates and ETAs, in the same order."""
        in_flight = [task for task in tasks if task.status in model.TASK_IN_FLIGHT]
        if not in_flight:
            return tasks
        with self._database.reader() as session:
            page = _Page(session, self._rules)
            page.load_requests(sorted({task.request_id for task in in_flight}))
            known = page.with_turns(self._facts(page, page.of_tasks(in_flight)))
            known = page.with_bytes_before(known)
        return [
            _explained(page.service, task, known[task.id]) if task.id in known else task
            for task in tasks
        ]

    def requests(self, requests: Sequence[model.CacheRequest]) -> Sequence[model.CacheRequest]:
        """Return the requests with their current reasons, rates and ETAs, in the same order."""
        active = [each for each in requests if each.status in model.REQUEST_ACTIVE]
        if not active:
            return requests
        with self._database.reader() as session:
            moving = sorted(each.id for each in active if each.rate_bytes)
            page = _Page(session, self._rules, moving)
            page.add_requests([(each, each.options) for each in active])
            rates = page.current_rates({each.id: each.rate_bytes for each in requests})
            still = [
                each.id for each in requests if each.id in page.requests and not rates[each.id]
            ]
            known = page.with_turns(self._facts(page, page.first_tasks(still)))
        first = {facts.task.request_id: facts for facts in known.values()}
        return [
            _explained_request(page, each, rates[each.id], first.get(each.id))
            if each.id in page.requests
            else each
            for each in requests
        ]

    def _facts(self, page: '_Page', loaded: Sequence['_Loaded']) -> Mapping[int, waiting.TaskFacts]:
        problems = self._cell_problems(page, {each.task.cell_uuid for each in loaded})
        hosts: dict[tuple[str, str | None], waiting.HostFacts] = {}  # shared by their tasks
        found = {}
        for each in loaded:
            key = each.task.host, each.task.cell_uuid
            if key not in hosts:
                hosts[key] = self._of_host(page, each, problems)
            request = page.requests[each.task.request_id]
            found[each.task.id] = waiting.TaskFacts(
                each.task, request, hosts[key], _of_job(each.row)
            )
        return found

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

    def _of_host(
        self, page: '_Page', loaded: '_Loaded', problems: Mapping[str | None, str]
    ) -> waiting.HostFacts:
        row, now, at_work = loaded.row, page.service.now, page.at_work.get(loaded.task.host)
        host = waiting.HostFacts(
            name=loaded.task.host,
            cell_problem=problems.get(loaded.task.cell_uuid),
            is_claimed=row.claimed_by is not None,
            is_at_work=at_work is not None,
            unanswered_until=row.over_at,
        )
        if self._rules.is_stock:
            return host
        heard = page.heard.get(row.agent_cell) if row.agent_cell else page.anywhere
        return dataclasses.replace(
            host,
            seen_at=_last_sign(row, at_work),
            registered_at=row.registered_at,
            down=self._why_down(row.seen_at, now, heard, row.stopped_at),
        )


def _of_job(row: sa.Row[*tuple[Any, ...]]) -> waiting.JobFacts:
    return waiting.JobFacts(
        is_ready=bool(row.ready),
        is_called=row.epoch is not None and row.claimed_by is not None,
        stop_why=row.stop_why,
        progress_at=row.progress_at,
    )


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
        expected_seconds=waiting.expected_seconds(service, facts),
    )


def _explained_request(
    page: '_Page', request: model.CacheRequest, rate: int, first: waiting.TaskFacts | None
) -> model.CacheRequest:
    """Explain a request by the first of its tasks in flight, if none moves."""
    facts = page.requests[request.id]
    expected = None
    if first is not None and page.fleet_rate and first.host.rate_bytes:
        seconds = waiting.seconds_until_called(page.service, first)
        # Few hosts do not get the rate of all.
        hosts = max(1, request.hosts_total - request.hosts_done)
        if facts.max_parallel_hosts is not None:
            hosts = min(hosts, facts.max_parallel_hosts)
        rate_bytes = min(page.fleet_rate, hosts * first.host.rate_bytes)
        expected = None if seconds is None else seconds + request.bytes_to_come / rate_bytes
    return dataclasses.replace(
        request,
        reason=waiting.request_reason(page.service, facts, first),
        rate_bytes=rate,
        expected_seconds=expected,
    )


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A task, and the columns of ``_JOINED`` for it."""

    task: model.Task
    row: sa.Row[*tuple[Any, ...]]


_TASK, _JOB, _REQUEST, _CLAIM = models.Task, models.Job, models.CacheRequest, models.Claim
_KEYS = expressions.keys()
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
    .where(_TASK.id.in_(_KEYS))
)
_HEARING = models.Hearing
# Of all conductors: a claim that is not held keeps its row.
_CONDUCTORS = sa.select(
    sa.null().label('cell_uuid'),
    sa.null().label('request_id'),
    expressions.database_now().label('at'),
    sa.func.max(_CLAIM.lease_expires_at).label('until'),
    sa.func.count(sa.case((job_claim.holds_stream(), 1))).label('number'),
    sa.select(sa.func.max(models.Service.seen_at))
    .where(models.Service.binary == model.Binary.CONDUCTOR)
    .scalar_subquery()
    .label('reported_at'),
).where(job_claim.held())
_CELLS = sa.select(
    _HEARING.cell_uuid, sa.null(), _HEARING.since, _HEARING.until, sa.literal(0), sa.null()
).where(_HEARING.cell_uuid != hearing.SERVICES)
# By one statement what a page has in common: a row of all conductors, and one of each cell.
_SIGNS = _CONDUCTORS.union_all(_CELLS)
_REQUESTS = sa.select(
    _REQUEST.id,
    _REQUEST.status,
    _REQUEST.created_at,
    _REQUEST.is_planned,
    _REQUEST.reason,
    _REQUEST.canary_passed,
    _REQUEST.images,
    _REQUEST.options,
).where(_REQUEST.id.in_(_KEYS))
_CALLED = sa.select(_JOB.host, _JOB.status, _JOB.progress_at, _JOB.rate_bytes).where(
    _JOB.host.in_(_KEYS),
    expressions.one_of(_JOB.status, model.TASK_IN_FLIGHT),
    _JOB.epoch.is_not(None),
)


def _first_in(status: str) -> sa.ColumnElement[int]:
    """Select the first task of a request in a status, by one look into an index."""
    is_its = expressions.led_by(_TASK.request_id, _REQUEST.id)
    its = sa.select(_TASK.id).where(is_its, _TASK.status == status).correlate(_REQUEST)
    first = its.order_by(_TASK.request_id, _TASK.id).limit(1)
    return expressions.by_index(first, _TASK, 'cache_tasks_status_idx').scalar_subquery()


_WORKING, _WAITING = sorted(model.TASK_WORKING), sorted(model.TASK_WAITING)
_FIRST = sa.select(*map(_first_in, _WORKING), *map(_first_in, _WAITING)).where(
    _REQUEST.id.in_(_KEYS)
)
_CANARIES_AT_ONCE = 20
_TASKS = _JOINED.with_only_columns(
    *rows.TASK, *(column for column in _JOINED.selected_columns if column.key != _TASK.id.key)
)
_SILENT_SINCE = expressions.seconds_ago(sa.bindparam('silent_seconds', type_=sa.Float()))


def _stale_in(status: str) -> sa.Select[*tuple[Any, ...]]:
    """Select the rates that silent or restarted computes reported, if any, by request.

    Of one status: beside old statistics, MariaDB reads all tasks of a request for several.
    """
    return (
        sa.select(
            sa.null(),
            _TASK.request_id,
            sa.null(),
            sa.null(),
            sa.func.sum(_TASK.rate_bytes),
            sa.null(),
        )
        .join(_JOB, _JOB.uuid == _TASK.job_uuid)
        .join(models.Agent, models.Agent.host == _TASK.host)
        .where(_TASK.request_id.in_(_KEYS), _TASK.status == status)
        .where(_TASK.rate_bytes > 0, turns.is_stale(_SILENT_SINCE))
        .group_by(_TASK.request_id)
    )


# And rows of the requests with such rates.
_SIGNS_AND_STALE = _CONDUCTORS.union_all(_CELLS, *map(_stale_in, _WORKING))


class _Page:
    """What the requests of a page have in common, loaded in one transaction.

    :ivar requests: request id to its facts
    :ivar heard: cell uuid to when it could be heard
    :ivar anywhere: the same, for a host without an agent
    :ivar at_work: host to the last progress of the image for which it is called
    :ivar fleet_rate: of all hosts at work together, or as expected; loaded for waiting tasks
    """

    def __init__(self, session: orm.Session, rules: Rules, moving: Sequence[str] = ()) -> None:
        """Load what the requests have in common.

        :param moving: the ids of those with a rate, which may be stale
        """
        self._session = session
        self._gap = datetime.timedelta(seconds=rules.hearing_gap_seconds)
        given = {'keys': moving, 'silent_seconds': rules.compute_silent_seconds}
        signs = db_session.run(session, *((_SIGNS_AND_STALE, given) if moving else (_SIGNS,))).all()
        self.heard = {
            row.cell_uuid: hearing.Heard(row.at, row.until)
            for row in signs
            if row.cell_uuid is not None
        }
        self._stale: collections.Counter[str] = collections.Counter()
        for row in signs:
            if row.request_id is not None:
                self._stale[row.request_id] += int(row.number)
        now, leased_until, streams, reported_at = next(
            row[2:] for row in signs if row.cell_uuid is None and row.request_id is None
        )
        self.anywhere = hearing.latest(self.heard.values(), now)
        lease = datetime.timedelta(seconds=rules.claim_lease_seconds)
        seen_at = [self.heard_at(each) for each in self.heard.values()]
        if leased_until is not None:
            seen_at.append(leased_until - lease)
        if reported_at is not None:
            seen_at.append(reported_at)
        self.service = waiting.ServiceFacts(
            now=now,
            conductor_seen_at=max(seen_at, default=None),
            conductor_silent=self._gap,
            compute_silent=datetime.timedelta(seconds=rules.compute_silent_seconds),
            streams=int(streams),  # a decimal, beside the sums of rates
            precache_concurrency=rules.precache_concurrency(),
        )
        self.at_work: dict[str, sa.Row[*tuple[Any, ...]]] = {}
        self.fleet_rate = 0.0
        self.requests: dict[str, waiting.RequestFacts] = {}

    def heard_at(self, heard: hearing.Heard) -> datetime.datetime:
        """Return when a cell was heard last: the time of the last record."""
        return max(heard.since, heard.until - self._gap)

    def load_requests(self, ids: Sequence[str]) -> None:
        """Load the requests of tasks."""
        found = self._run(_REQUESTS, ids)
        self.add_requests([(row, rows.options(row.options)) for row in found])

    def add_requests(self, found: Sequence[tuple[_Request, model.RequestOptions]]) -> None:
        """Add requests that are loaded already, and load what keeps their hosts waiting."""
        canaries = self._canaries(
            {
                each.id: gating.select_canary(each.id, options.canary, len(each.images))
                for each, options in found
                if options.canary and each.is_planned and not each.canary_passed
            }
        )
        for each, options in found:
            limit = options.max_parallel_hosts
            self.requests[each.id] = waiting.RequestFacts(
                status=each.status,
                created_at=each.created_at or self.service.now,
                is_planned=each.is_planned,
                reason=each.reason,
                not_before=options.not_before,
                canary=canaries.get(each.id),
                waits_for_down_hosts=options.wait_for_down_hosts,
                max_parallel_hosts=limit,
                busy_hosts=() if limit is None else self._limits.busy_hosts(each.id),
                max_rate_bytes=options.max_rate_bytes,
            )

    @functools.cached_property
    def _limits(self) -> host_limits.HostLimits:
        return host_limits.load(self._session)

    def _canaries(self, canaries: Mapping[str, sa.Select[str]]) -> Mapping[str, tuple[int, int]]:
        """Map requests to the number of canary hosts that are done, and of all.

        :param canaries: request id to the query of its hosts
        """
        found: dict[str, tuple[int, int]] = {}
        for some in db_session.chunks(sorted(canaries.items()), _CANARIES_AT_ONCE):
            query = sa.union_all(*(_count_canary(*each) for each in some))
            found.update((row.id, (row.done, row.hosts)) for row in self._session.execute(query))
        return found

    def of_tasks(self, tasks: Sequence[model.Task]) -> list[_Loaded]:
        """Load the facts about tasks of these requests, and about their hosts."""
        by_id = {task.id: task for task in tasks if task.request_id in self.requests}
        return self._loaded(_Loaded(by_id[row.id], row) for row in self._run(_JOINED, list(by_id)))

    def first_tasks(self, requests: Sequence[str]) -> list[_Loaded]:
        """Load a task in flight of each request, one that a compute works on if there is one."""
        ids = []
        for row in self._run(_FIRST, requests):
            working = [task_id for task_id in row[: len(_WORKING)] if task_id is not None]
            queued = [task_id for task_id in row[len(_WORKING) :] if task_id is not None]
            ids += sorted(working or queued)[:1]
        return self._loaded(_Loaded(rows.task(row), row) for row in self._run(_TASKS, ids))

    def _loaded(self, tasks: Iterable[_Loaded]) -> list[_Loaded]:
        loaded = list(tasks)
        claimed = {each.task.host for each in loaded if each.row.claimed_by is not None}
        self.at_work.update((row.host, row) for row in self._run(_CALLED, sorted(claimed)))
        return loaded

    def current_rates(self, stored: Mapping[str, int]) -> Mapping[str, int]:
        """Return the rates of requests without those that silent or restarted computes reported.

        :param stored: request id to the sum of the rates of its tasks
        """
        return {each: max(0, rate - self._stale[each]) for each, rate in stored.items()}

    def with_turns(self, known: Mapping[int, waiting.TaskFacts]) -> Mapping[int, waiting.TaskFacts]:
        """Add to tasks that wait for their host when it is its turn, and at which rate."""
        coming = {
            task_id: facts
            for task_id, facts in known.items()
            if waiting.is_coming(self.service, facts)
        }
        if not coming:
            return known
        places = self._places(coming.values())
        # Far from the head of the queue, no time is known.
        beyond = {name for name, place in places.items() if place.is_beyond}
        hosts = sorted({facts.host.name for facts in coming.values()} - beyond)
        working = turns.at_work(self._session, self._silent_since) if hosts else {}
        everywhere = turns.together(working.values())
        if everywhere.transfers:  # only what is needed beside their rates
            hosts = [name for name in hosts if not self._rate_now(name)]
        measured = progress.measured_rates(self._session, hosts, self.service.now)
        self.fleet_rate = everywhere.rate_bytes
        others = pace.typical(measured.values())
        if everywhere.transfers:
            others = everywhere.rate_bytes / everywhere.transfers
        elif others is not None:
            self.fleet_rate = others * self.service.precache_concurrency
        added: dict[tuple[str, str | None, str], waiting.HostFacts] = {}
        for facts in coming.values():
            name, task = facts.host.name, facts.task
            key = name, task.cell_uuid, task.request_id
            if key in added:
                continue
            place, in_cell = places.get(name), working.get(task.cell_uuid or '', everywhere)
            rate = self._rate_now(name) or measured.get(name)
            added[key] = dataclasses.replace(
                facts.host,
                turn=None if place is None else self._turn(place, in_cell),
                rate_bytes=pace.expected(rate, others, facts.request.max_rate_bytes),
            )
        return {
            task_id: facts
            if task_id not in coming
            else dataclasses.replace(
                facts, host=added[facts.host.name, facts.task.cell_uuid, facts.task.request_id]
            )
            for task_id, facts in known.items()
        }

    def with_bytes_before(
        self, known: Mapping[int, waiting.TaskFacts]
    ) -> Mapping[int, waiting.TaskFacts]:
        """Add to tasks whose ETA is known what their hosts receive before."""
        awaited = [
            task_id
            for task_id, facts in known.items()
            if facts.host.rate_bytes
            and waiting.seconds_until_called(self.service, facts) is not None
        ]
        found = turns.bytes_before(self._session, awaited) if awaited else {}
        return {
            task_id: facts
            if task_id not in found
            else dataclasses.replace(
                facts, job=dataclasses.replace(facts.job, bytes_before=found[task_id])
            )
            for task_id, facts in known.items()
        }

    def _places(self, coming: Collection[waiting.TaskFacts]) -> Mapping[str, turns.Place]:
        by_cell: dict[str, set[str]] = {}
        for facts in coming:
            if waiting.waits_for_slot(self.service, facts) and facts.task.cell_uuid is not None:
                by_cell.setdefault(facts.task.cell_uuid, set()).add(facts.host.name)
        if not by_cell:
            return {}
        full = self._limits.saturated()
        return turns.places(self._session, self.service.now, by_cell, full)

    def _turn(self, place: turns.Place, working: turns.AtWork) -> waiting.Turn:
        """Estimate when it is a host's turn: the next slot is free once one transfer has ended."""
        rate = working.rate_bytes or self.fleet_rate
        seconds = None
        if rate and not place.is_beyond:
            next_end = working.bytes_to_come / max(1, working.transfers)
            seconds = (next_end + place.bytes_before) / rate
        return waiting.Turn(place.hosts_before, place.is_beyond, seconds)

    def _rate_now(self, host: str) -> int:
        row = self.at_work.get(host)
        return 0 if row is None or row.status not in model.TASK_WORKING else row.rate_bytes or 0

    @property
    def _silent_since(self) -> datetime.datetime:
        return self.service.now - self.service.compute_silent

    def _run(
        self, statement: sa.Select[*tuple[Any, ...]], keys: Sequence[Any], **given: Any
    ) -> list[sa.Row[*tuple[Any, ...]]]:
        return [
            row
            for chunk in db_session.chunks(keys)
            for row in db_session.run(self._session, statement, {**given, 'keys': chunk})
        ]


def _count_canary(request_id: str, hosts: sa.Select[str]) -> sa.Select[*tuple[Any, ...]]:
    canary = hosts.subquery()
    works = (
        sa.exists()
        .where(_TASK.request_id == request_id, _TASK.host == canary.c.host)
        .where(_TASK.job_uuid.is_not(None), _TASK.status.in_(model.TASK_IN_FLIGHT))
    )
    done = sa.func.sum(sa.case((works, 0), else_=1))
    counted = sa.func.count(canary.c.host).label('hosts')
    return sa.select(sa.literal(request_id).label('id'), done.label('done'), counted)
