# SPDX-License-Identifier: Apache-2.0
"""The agents: who reports under which host name, and who is alive."""

import dataclasses
import datetime
import logging
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import exception, model, wire
from nova_precache.db import models
from nova_precache.db import session as db_session

LOG = logging.getLogger(__name__)

_REPORTED = (
    'boot_id', 'version', 'driver', 'store_id', 'cache_bytes', 'free_bytes', 'capabilities',
)  # fmt: skip
_AGENT = db_session.table(models.Agent)
_REPORTS: dict[str, object] = {name: sa.bindparam(f'to_{name}') for name in _REPORTED}
# Made once, since there is a report of each host every few seconds.
_REPORT = (
    sa.update(_AGENT)
    .where(
        _AGENT.c.host == sa.bindparam('of_host'),
        _AGENT.c.agent_id == sa.bindparam('of_agent'),
        _AGENT.c.cell_uuid == sa.bindparam('of_cell'),
    )
    .values(seen_at=db_session.database_now(), **_REPORTS)
)


class Agents:
    """The agents in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)
        self._senders = wire.Senders(LOG)

    def register(self, agent: model.Agent) -> None:
        """Let an agent report under its host name.

        A compare-and-set: of two agents that ask at once for a name that is free, one gets it.

        :raises nova_precache.exception.AgentConflict: another agent, still alive, has the name
        """
        try:
            self._database.write(lambda session: self._register(session, agent))
        except db_exception.DBDuplicateEntry as exc:
            raise exception.AgentConflict(
                f'Host {agent.host} was taken by another agent at this moment'
            ) from exc

    def report(self, agents: Collection[model.Agent]) -> None:
        """Write reports in bulk; one whose agent is not the registered one is left out.

        So is one that the database refuses, and its host is named in the log.
        """

        def work(session: orm.Session, some: Sequence[model.Agent]) -> None:
            db_session.run(session, _REPORT, list(map(_report, some)))
            known = _known(session, [agent.host for agent in some])
            lost = {agent.host: agent for agent in some if agent.host not in known}
            for agent in lost.values():
                _add(session, agent)  # an older database was restored

        ordered = sorted(agents, key=lambda each: each.host)  # one order for all
        db_session.in_bulk(
            ordered,
            lambda some: self._database.write(lambda session: work(session, some)),
            self._refuse,
        )

    def _refuse(self, agent: model.Agent, error: Exception) -> None:
        self._senders.refused('a report', f'host {agent.host}', wire.line(str(error)))

    def count(self, cell_uuid: str) -> int:
        """Count the hosts in a cell that have an agent."""
        query = sa.select(sa.func.count()).where(models.Agent.cell_uuid == cell_uuid)
        with self._database.reader() as session:
            return session.scalars(query).one()

    def get(self, hosts: Collection[str]) -> Mapping[str, model.Agent]:
        """Map host names to their agents; a host that never had one is left out."""
        found: dict[str, model.Agent] = {}
        with self._database.reader() as session:
            for names in db_session.chunks(sorted(hosts)):
                query = sa.select(models.Agent).where(models.Agent.host.in_(names))
                found.update((row.host, _agent(row)) for row in session.scalars(query))
        return found

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map those of the hosts that are down to the reason, by the database's clock."""
        seen: dict[str, tuple[datetime.datetime, datetime.datetime]] = {}
        now = db_session.database_now().label('now')
        with self._database.reader() as session:
            for names in db_session.chunks(sorted(hosts)):
                query = sa.select(models.Agent.host, models.Agent.seen_at, now)
                rows = session.execute(query.where(models.Agent.host.in_(names)))
                seen.update((row.host, (row.seen_at, row.now)) for row in rows)
        reasons = ((host, self.why_down(*seen.get(host, (None, None)))) for host in hosts)
        return {host: reason for host, reason in reasons if reason is not None}

    def look(self, hosts: Collection[str]) -> Mapping[str, model.Host]:
        """Map hosts to how they are; one that never had an agent is left out."""
        agents = self.get(hosts)
        with self._database.reader() as session:
            now = db_session.now(session)
        return {host: self._host(agent, now) for host, agent in agents.items()}

    def why_down(
        self, seen_at: datetime.datetime | None, now: datetime.datetime | None
    ) -> str | None:
        """Say why a host is down that reported last at that time, by the database's clock."""
        if seen_at is None or now is None:
            return 'host down: it has never reported'
        if now - seen_at > self._down:
            return f'host down: last report at {seen_at:%Y-%m-%dT%H:%M:%SZ}'
        return None

    def list(self) -> Sequence[model.Agent]:
        """Give every agent, by host name."""
        with self._database.reader() as session:
            query = sa.select(models.Agent).order_by(models.Agent.host)
            return [_agent(row) for row in session.scalars(query)]

    def list_page(
        self,
        limit: int | None = None,
        marker: str | None = None,
        status: model.HostStatus | None = None,
        cell_uuid: str | None = None,
    ) -> Sequence[model.Host]:
        """Give hosts with an agent by name, those after the host that marker names.

        :param status: only those that are so, by the database's clock; none is unknown
        """
        if status == model.HostStatus.UNKNOWN:
            return []
        with self._database.reader() as session:
            now = db_session.now(session)
            query = sa.select(models.Agent).order_by(models.Agent.host).limit(limit)
            if marker is not None:
                query = query.where(models.Agent.host > marker)
            if status is not None:
                reports = models.Agent.seen_at >= now - self._down
                query = query.where(reports if status == model.HostStatus.UP else sa.not_(reports))
            if cell_uuid is not None:
                query = query.where(models.Agent.cell_uuid == cell_uuid)
            return [self._host(_agent(row), now) for row in session.scalars(query)]

    def _host(self, agent: model.Agent, now: datetime.datetime) -> model.Host:
        reason = self.why_down(agent.seen_at, now)
        if reason is None:
            return model.Host(agent)
        return model.Host(agent, model.HostStatus.DOWN, reason)

    def _register(self, session: orm.Session, agent: model.Agent) -> None:
        now = db_session.now(session)
        free = sa.or_(
            models.Agent.agent_id == agent.agent_id, models.Agent.seen_at < now - self._down
        )
        if _update(session, agent, free, agent_id=agent.agent_id, started_at=now):
            return
        other = session.get(models.Agent, agent.host)
        if other is not None:
            raise exception.AgentConflict(
                f'Host {agent.host} has an agent with another id that reported at '
                f'{other.seen_at} UTC; two hosts may not have one name'
            )
        _add(session, agent)


def _known(session: orm.Session, hosts: Sequence[str]) -> set[str]:
    agent, known = models.Agent, set[str]()
    for names in db_session.chunks(hosts):
        known.update(session.scalars(sa.select(agent.host).where(agent.host.in_(names))))
    return known


def _report(agent: model.Agent) -> dict[str, object]:
    return {
        'of_host': agent.host,
        'of_agent': agent.agent_id,
        'of_cell': agent.cell_uuid,
        **{f'to_{name}': value for name, value in _reported(agent).items()},
    }


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


def _reported(agent: model.Agent) -> dict[str, object]:
    values = {name: getattr(agent, name) for name in _REPORTED}
    return {**values, 'capabilities': dict(agent.capabilities)}


def _agent(row: models.Agent) -> model.Agent:
    names = [field.name for field in dataclasses.fields(model.Agent)]
    return model.Agent(**{name: getattr(row, name) for name in names})
