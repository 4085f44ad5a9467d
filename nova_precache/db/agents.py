# SPDX-License-Identifier: Apache-2.0
"""The agents: which one reports under a host name, and which are alive."""

import dataclasses
import datetime
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import exception, model, wire
from nova_precache.db import hearing, pages, standing
from nova_precache.db.engine import expressions, models, row_list, session as db_session
from nova_precache.db.job import locking, outcome as job_outcome

LOG = logging.getLogger(__name__)

_REPORTED = (
    'boot_id', 'version', 'driver', 'store_id', 'cache_bytes', 'free_bytes', 'capabilities',
)  # fmt: skip
_AGENT = db_session.table(models.Agent)
HOSTS = pages.Listing(
    {
        'host': models.Agent.host,
        'cell': models.Agent.cell_uuid,
        **{
            name: getattr(models.Agent, name)
            for name in ('seen_at', 'version', 'driver', 'cache_bytes', 'free_bytes')
        },
    },
    unique=models.Agent.host,
    marker=models.Agent.host,
)
_ALL = pages.Page()
_REPORTS = row_list.RowList(
    'reports',
    {
        name: _AGENT.c[name].type
        for name in ('host', 'agent_id', 'cell_uuid', 'seen_at', *_REPORTED)
    },
    text_key='host',
)
# An older agent's report has no time: it counts as sent when it is written.
_SENT_AT = sa.func.coalesce(_REPORTS.c.seen_at, expressions.database_now())
_REPORT = (
    sa.update(_AGENT)
    .where(
        _AGENT.c.host == _REPORTS.key,
        _AGENT.c.agent_id == _REPORTS.c.agent_id,
        _AGENT.c.cell_uuid == _REPORTS.c.cell_uuid,
        # A report may arrive after the goodbye.
        sa.not_(standing.is_stopped(models.Agent)),
        # Or after a later one, through another conductor; the database's clock may be put back.
        sa.or_(_AGENT.c.seen_at <= _SENT_AT, _AGENT.c.seen_at > expressions.database_now()),
    )
    .values(seen_at=_SENT_AT, **{name: _REPORTS.c[name] for name in _REPORTED})
)
# Why the state of a silent host is not known.
UNHEARD = 'no conductor is connected to its cell'
SETTLING = 'conductors have just reconnected to its cell'
_TAKEN_OVER = model.ImageOutcome(
    model.TaskStatus.ERROR, 'another agent has registered for the host', model.Retry.LATER
)


class Agents:
    """The agents in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)
        self._senders = wire.Senders(LOG)

    def register(self, agent: model.Agent) -> None:
        """Register an agent under its host name.

        A compare-and-set: of two agents that ask for a free name at once, one gets it.

        :raises nova_precache.exception.AgentConflict: another agent, still alive, has the name
        """
        try:
            self._database.write(lambda session: self._register(session, agent))
        except db_exception.DBDuplicateEntry as exc:
            raise exception.AgentConflict(
                f'Another agent has just registered for host {agent.host}'
            ) from exc

    def report(self, agents: Collection[model.Agent]) -> Sequence[model.Agent]:
        """Write reports in chunks; return the agents that are not registered for their hosts.

        Their reports change nothing: they have to register, as after the restore of an older
        database, or another agent has their name. A late report of an agent that has stopped
        changes nothing, either. A host was seen when its report was sent. A report that the
        database refuses is skipped, and its host is named in the log.
        """

        def work(session: orm.Session, some: Sequence[model.Agent]) -> Sequence[model.Agent]:
            rows = (
                {
                    'host': agent.host,
                    'agent_id': agent.agent_id,
                    'cell_uuid': agent.cell_uuid,
                    'seen_at': agent.seen_at,
                    **_reported(agent),
                }
                for agent in some
            )
            db_session.run(session, _REPORT, _REPORTS.values(rows))
            registered = _registered(session, [agent.host for agent in some])
            return [
                agent
                for agent in some
                if not registered & {_reporter(agent), _reporter(agent, agent.boot_id)}
            ]

        def write(some: Sequence[model.Agent]) -> Sequence[model.Agent]:
            return self._database.write(lambda session: work(session, some))

        ordered = sorted(agents, key=lambda each: each.host)  # one order for all
        strangers = db_session.in_chunks(ordered, db_session.CHUNK_KEYS, write, self._refuse)
        return [agent for some in strangers for agent in some]

    def stop(self, host: str, agent_id: str, cell_uuid: str, boot_id: str | None) -> None:
        """Record that an agent has stopped: until it registers again, its host is down.

        :raises nova_precache.exception.AgentConflict: the agent, as it was started at
            ``boot_id``, is not registered for the host
        """
        agent = models.Agent
        stopped = (
            db_session.update(agent)
            .where(
                agent.host == host,
                agent.agent_id == agent_id,
                agent.cell_uuid == cell_uuid,
                agent.boot_id == boot_id,
            )
            .values(stopped_at=expressions.database_now())
        )
        if not self._database.write(lambda s: db_session.rowcount(s.execute(stopped))):
            raise exception.AgentConflict(f'Agent {agent_id} is not registered for host {host}')

    def _refuse(self, agent: model.Agent, error: Exception) -> None:
        self._senders.refused('a report', f'host {agent.host}', wire.line(str(error)))

    def count(self, cell_uuid: str) -> int:
        """Count the hosts in a cell that have an agent."""
        query = sa.select(sa.func.count()).where(models.Agent.cell_uuid == cell_uuid)
        with self._database.reader() as session:
            return session.scalars(query).one()

    def get(self, hosts: Collection[str]) -> Mapping[str, model.Agent]:
        """Map host names to their agents; a host that never had one is left out."""
        with self._database.reader() as session:
            return _load(session, hosts)

    def sharing(self, store_id: str) -> Sequence[model.Agent]:
        """List the agents whose hosts share a cache, by host name."""
        query = sa.select(models.Agent).where(models.Agent.store_id == store_id)
        with self._database.reader() as session:
            return [_agent(row) for row in session.scalars(query.order_by(models.Agent.host))]

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map the hosts that are down to the reason, by the database's clock."""
        return {
            host: why
            for host, (stands, why) in self._stand(hosts).items()
            if stands is standing.Standing.DOWN
        }

    def settling(self, hosts: Collection[str]) -> Collection[str]:
        """Return the silent hosts that cannot be judged yet.

        Their cells are heard again, but not for long enough yet.
        """
        settling = standing.Standing.SETTLING
        return [host for host, (stands, _) in self._stand(hosts).items() if stands is settling]

    def _stand(self, hosts: Collection[str]) -> Mapping[str, tuple[standing.Standing, str]]:
        """Map hosts to their standing, and to the reason if they are down."""
        agent = models.Agent
        stopped_at = standing.stopped_at(agent).label('stopped_at')
        found: dict[str, sa.Row[*tuple[Any, ...]]] = {}
        with self._database.reader() as session:
            now = db_session.now(session)
            for names in db_session.chunks(sorted(hosts)):
                query = sa.select(agent.host, agent.cell_uuid, agent.seen_at, stopped_at)
                rows = session.execute(query.where(agent.host.in_(names)))
                found.update((row.host, row) for row in rows)
            heard = hearing.of_cells(session, {row.cell_uuid for row in found.values()})
            anywhere = hearing.anywhere(session, now)
        never = standing.judge(None, None, now, anywhere, self._down), standing.why_down(None, None)
        known = {
            host: (
                standing.judge(
                    row.seen_at, row.stopped_at, now, heard.get(row.cell_uuid), self._down
                ),
                standing.why_down(row.seen_at, row.stopped_at),
            )
            for host, row in found.items()
        }
        return {host: known.get(host, never) for host in hosts}

    def look(self, hosts: Collection[str]) -> Mapping[str, model.Host]:
        """Map hosts to their state; a host that never had an agent is left out."""
        with self._database.reader() as session:
            agents = _load(session, hosts)
            shown = self._hosts(agents.values(), hearing.load(session))
        return {host.agent.host: host for host in shown}

    def why_down(
        self,
        seen_at: datetime.datetime | None,
        now: datetime.datetime | None,
        heard: hearing.Heard | None = None,
        stopped_at: datetime.datetime | None = None,
    ) -> str | None:
        """Return why a host with this last report is down, None if it is not.

        :param now: by the database's clock; None counts as a host that never reported
        :param heard: when its cell could be heard; None if conductors do not record that
        :param stopped_at: when its compute has stopped; None if it has started since
        """
        if now is None:
            return standing.why_down(None, None)
        stands = standing.judge(seen_at, stopped_at, now, heard, self._down)
        return standing.why_down(seen_at, stopped_at) if stands is standing.Standing.DOWN else None

    def why_no_call(
        self,
        seen_at: datetime.datetime | None,
        now: datetime.datetime | None,
        heard: hearing.Heard | None = None,
        stopped_at: datetime.datetime | None = None,
    ) -> str | None:
        """Return why a host must not be called, as :meth:`why_down`; None if it may.

        :raises nova_precache.exception.HostOccupied: its compute has just stopped; it may be
            restarting, which costs its jobs no attempt
        """
        why = self.why_down(seen_at, now, heard, stopped_at)
        if why is not None and now is not None and stopped_at is not None:
            left = stopped_at + self._down - now
            if left > datetime.timedelta(0):
                raise exception.HostOccupied(why, left.total_seconds())
        return why

    def list(self) -> Sequence[model.Agent]:
        """List every agent, by host name."""
        with self._database.reader() as session:
            query = sa.select(models.Agent).order_by(models.Agent.host)
            return [_agent(row) for row in session.scalars(query)]

    def list_page(
        self,
        page: pages.Page = _ALL,
        status: model.HostStatus | None = None,
        cell_uuid: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> Sequence[model.Host]:
        """List hosts with an agent, by default by name; a marker is a name.

        :param status: only hosts with this status, by the database's clock
        :param hosts: only these
        :raises nova_precache.exception.InvalidMarker: to sort after it, the host is needed
        """
        row = models.Agent
        with self._database.reader() as session:
            heard = hearing.load(session)
            query = pages.select(session, sa.select(row), HOSTS, page)
            if hosts is not None:
                query = query.where(row.host.in_(list(hosts)))
            if status is not None:
                query = query.where(self._has_status(status, heard.now))
            if cell_uuid is not None:
                query = query.where(row.cell_uuid == cell_uuid)
            return self._hosts([_agent(each) for each in session.scalars(query)], heard)

    def _has_status(
        self, status: model.HostStatus, now: datetime.datetime
    ) -> sa.ColumnElement[bool]:
        agent = models.Agent
        return standing.has_status(agent, agent.cell_uuid, status, now, self._down)

    def _hosts(
        self, agents: Collection[model.Agent], heard: hearing.AllHeard
    ) -> Sequence[model.Host]:
        cells = heard.cells
        return [self._host(agent, heard.now, cells.get(agent.cell_uuid)) for agent in agents]

    def _host(
        self, agent: model.Agent, now: datetime.datetime, heard: hearing.Heard | None
    ) -> model.Host:
        seen_at, stopped_at = agent.seen_at, agent.stopped_at
        match standing.judge(seen_at, stopped_at, now, heard, self._down):
            case standing.Standing.UP:
                return model.Host(agent)
            case standing.Standing.DOWN:
                return model.Host(
                    agent, model.HostStatus.DOWN, standing.why_down(seen_at, stopped_at)
                )
            case standing.Standing.UNHEARD:
                why = UNHEARD
            case standing.Standing.SETTLING:
                why = SETTLING
        reason = f'{standing.last_sign(seen_at, None)}, and {why}'
        return model.Host(agent, model.HostStatus.UNKNOWN, reason)

    def _register(self, session: orm.Session, agent: model.Agent) -> None:
        now = db_session.now(session)
        values = {'agent_id': agent.agent_id, 'started_at': now, 'stopped_at': None}
        if _update(session, agent, models.Agent.agent_id == agent.agent_id, **values):
            return
        is_down = self._has_status(model.HostStatus.DOWN, now)
        if _update(session, agent, is_down, **values):
            _take_over(session, agent.host)
            return
        other = session.get(models.Agent, agent.host)
        if other is not None:
            raise exception.AgentConflict(
                f'Host {agent.host} has an agent with another id that reported at '
                f'{other.seen_at} UTC; host names must be unique'
            )
        _add(session, agent)
        _take_over(session, agent.host)  # from an agent whose row is gone


_Reporter = tuple[str, str, str, str | None]


def _reporter(agent: model.Agent, stopped_boot: str | None = None) -> _Reporter:
    return agent.host, agent.agent_id, agent.cell_uuid, stopped_boot


def _registered(session: orm.Session, hosts: Sequence[str]) -> set[_Reporter]:
    """Return host, id and cell of the registered agents; of a stopped one, also the boot id."""
    row, found = models.Agent, set[_Reporter]()
    boot_id = sa.case((standing.is_stopped(row), row.boot_id), else_=sa.null())
    for names in db_session.chunks(hosts):
        query = sa.select(row.host, row.agent_id, row.cell_uuid, boot_id)
        found.update(tuple(each) for each in session.execute(query.where(row.host.in_(names))))
    return found


def _take_over(session: orm.Session, host: str) -> None:
    """Fence every call of the previous agent: its outcome is of another machine.

    The jobs are called again, which is no attempt. A job that is to stop is left to its stop
    order. All jobs of the host are locked, since any may be called before its lock is granted.
    """
    job = models.Job
    active = sa.select(job.uuid).where(job.host == host, job.status.in_(model.TASK_IN_FLIGHT))
    locked = dict(locking.lock(session, session.scalars(active).all()))
    # Jobs that were planned while these locks were awaited.
    locked.update(locking.lock(session, set(session.scalars(active)) - locked.keys()))
    again = {each: 0.0 for each in locked.values() if each.epoch is not None and each.goes_on}
    job_outcome.schedule_retry(session, again, _TAKEN_OVER, attempts=-1)


def _add(session: orm.Session, agent: model.Agent) -> None:
    now = db_session.now(session)
    session.add(
        models.Agent(
            host=agent.host,
            agent_id=agent.agent_id,
            cell_uuid=agent.cell_uuid,
            started_at=now,
            seen_at=now,
            **_reported(agent),
        )
    )


def _update(
    session: orm.Session,
    agent: model.Agent,
    which: sa.ColumnElement[bool],
    **values: object,
) -> bool:
    updated = session.execute(
        db_session.update(models.Agent)
        .where(models.Agent.host == agent.host, which)
        .values(
            seen_at=db_session.now(session),
            cell_uuid=agent.cell_uuid,
            **_reported(agent),
            **values,
        )
    )
    return db_session.rowcount(updated) == 1


def _load(session: orm.Session, hosts: Collection[str]) -> Mapping[str, model.Agent]:
    found: dict[str, model.Agent] = {}
    for names in db_session.chunks(sorted(hosts)):
        query = sa.select(models.Agent).where(models.Agent.host.in_(names))
        found.update((row.host, _agent(row)) for row in session.scalars(query))
    return found


def _reported(agent: model.Agent) -> dict[str, object]:
    values = {name: getattr(agent, name) for name in _REPORTED}
    return {**values, 'capabilities': dict(agent.capabilities)}


def _agent(row: models.Agent) -> model.Agent:
    names = [field.name for field in dataclasses.fields(model.Agent)]
    agent = model.Agent(**{name: getattr(row, name) for name in names})
    has_started_since = row.stopped_at is not None and row.stopped_at < row.started_at
    return dataclasses.replace(agent, stopped_at=None) if has_started_since else agent
