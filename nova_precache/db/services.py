# SPDX-License-Identifier: Apache-2.0
"""The conductors and APIs that run, one row a process, and with the agents all services.

A process that starts takes the place of one of its host and binary that is down, so that a
restart leaves no second row, and two processes of a host that run are two rows.
"""

import dataclasses
import datetime
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import agents, hearing, standing
from nova_precache.db.engine import expressions, models, session as db_session

# After that many intervals without a report of any process, none is judged by its silence.
GAP_REPORTS = 3
_REASONS = {
    standing.Standing.UP: None,
    standing.Standing.DOWN: '{sign}',
    standing.Standing.UNHEARD: '{sign}, and no service has reported since',
    standing.Standing.SETTLING: '{sign}, and services have just begun to report again',
}
_AGENT_REASONS = {
    standing.Standing.UP: None,
    standing.Standing.DOWN: 'host down: {sign}',
    standing.Standing.UNHEARD: f'{{sign}}, and {agents.UNHEARD}',
    standing.Standing.SETTLING: f'{{sign}}, and {agents.SETTLING}',
}
_STATUSES = {
    standing.Standing.UP: model.HostStatus.UP,
    standing.Standing.DOWN: model.HostStatus.DOWN,
    standing.Standing.UNHEARD: model.HostStatus.UNKNOWN,
    standing.Standing.SETTLING: model.HostStatus.UNKNOWN,
}


class Services:
    """The services in the database; every method is a few short transactions.

    :param down_seconds: silence after which a service counts as down
    :param report_seconds: interval of the reports
    """

    def __init__(
        self, database: db_session.Database, down_seconds: float, report_seconds: float
    ) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)
        self._hearings = hearing.Hearings(database, GAP_REPORTS * report_seconds)

    def report(self, process: model.ServiceProcess, *, replaces: bool) -> bool:
        """Record that a process runs.

        :param replaces: it may take the place of one that is down
        :returns: whether it did
        """
        replaced = self._database.write(lambda session: self._report(session, process, replaces))
        self._hearings.note([hearing.SERVICES])
        return replaced

    def stop(self, process_id: str) -> None:
        """Record that a process has stopped cleanly."""
        row = models.Service
        stopped = db_session.update(row).where(row.id == process_id)
        self._database.write(
            lambda session: session.execute(stopped.values(stopped_at=expressions.database_now()))
        )

    def purge(self, retention_days: int) -> None:
        """Delete the rows of processes that have not reported for longer."""

        def work(session: orm.Session) -> None:
            before = db_session.now(session) - datetime.timedelta(days=retention_days)
            session.execute(sa.delete(models.Service).where(models.Service.seen_at < before))

        self._database.write(work)

    def list_page(
        self,
        limit: int | None = None,
        marker: str | None = None,
        binary: str | None = None,
        host: str | None = None,
        status: model.HostStatus | None = None,
    ) -> Sequence[model.Service]:
        """List services and agents by binary, host and id, after the id ``marker``.

        :param status: only services with this status, by the database's clock
        :raises nova_precache.exception.InvalidMarker: no service has the id ``marker``
        """
        with self._database.reader() as session:
            now = db_session.now(session)
            every = self._every(now, status)
            key = sa.tuple_(every.c.binary, every.c.host, every.c.id)
            order = (every.c.binary, every.c.host, every.c.id)
            query = sa.select(every).order_by(*order).limit(limit)
            if marker is not None:
                query = query.where(key > sa.tuple_(*self._key(session, now, marker)))
            if binary is not None:
                query = query.where(every.c.binary == binary)
            if host is not None:
                query = query.where(every.c.host == host)
            rows = session.execute(query).all()
            heard = hearing.of_cells(session, {row.heard_by for row in rows})
        return [self._service(row, now, heard.get(row.heard_by)) for row in rows]

    def versions(self) -> Collection[str]:
        """Return the releases of all services and agents that are up."""
        with self._database.reader() as session:
            every = self._every(db_session.now(session), model.HostStatus.UP)
            found = session.scalars(sa.select(every.c.version).distinct())
            return {each for each in found if each is not None}

    def _report(self, session: orm.Session, process: model.ServiceProcess, replaces: bool) -> bool:
        row, now = models.Service, db_session.now(session)
        reported = db_session.update(row).where(row.id == process.id).values(seen_at=now)
        if db_session.rowcount(session.execute(reported)) == 0:
            values = dataclasses.asdict(process)
            session.execute(sa.insert(row).values(**values, started_at=now, seen_at=now))
        return replaces and self._replace(session, process, now)

    def _replace(
        self, session: orm.Session, process: model.ServiceProcess, now: datetime.datetime
    ) -> bool:
        """Delete the row of the process whose place this one takes, once that is down.

        It is the last one of the host and the binary that was seen before this one started. A
        process that died before it replaced another leaves that one to its own successor.
        """
        row = models.Service
        started_at = session.scalars(sa.select(row.started_at).where(row.id == process.id)).one()
        down = standing.has_status(row, hearing.SERVICES, model.HostStatus.DOWN, now, self._down)
        earlier = (
            sa.select(row.id, row.started_at, down.label('is_down'))
            .where(row.binary == process.binary, row.host == process.host, row.id != process.id)
            .order_by(row.seen_at.desc(), row.id)
            .limit(1)
        )
        has_replaced = False
        while True:
            found = session.execute(earlier.where(row.seen_at <= started_at)).first()
            if found is None or not found.is_down:
                return has_replaced
            session.execute(sa.delete(row).where(row.id == found.id))
            has_replaced, started_at = True, found.started_at

    def _every(self, now: datetime.datetime, status: model.HostStatus | None) -> sa.Subquery:
        process, agent = models.Service, models.Agent
        # A column, since a bare NULL may have another collation on MariaDB.
        no_cell = sa.func.nullif(process.id, process.id)
        computes = sa.literal(str(model.Binary.COMPUTE), sa.String(64))
        processes = _columns(
            process, process.id, process.binary, no_cell, sa.literal(hearing.SERVICES, models.Uuid)
        )
        of_hosts = _columns(agent, agent.agent_id, computes, agent.cell_uuid, agent.cell_uuid)
        if status is not None:
            processes = processes.where(
                standing.has_status(process, hearing.SERVICES, status, now, self._down)
            )
            of_hosts = of_hosts.where(
                standing.has_status(agent, agent.cell_uuid, status, now, self._down)
            )
        return sa.union_all(processes, of_hosts).subquery()

    def _key(self, session: orm.Session, now: datetime.datetime, marker: str) -> tuple[str, ...]:
        every = self._every(now, None)
        query = sa.select(every.c.binary, every.c.host, every.c.id).where(every.c.id == marker)
        # The last one: a copied disk may have given two hosts the same agent id.
        found = max((tuple(row) for row in session.execute(query)), default=None)
        if found is None:
            raise exception.InvalidMarker(marker)
        return found

    def _service(
        self, row: sa.Row[*tuple[Any, ...]], now: datetime.datetime, heard: hearing.Heard | None
    ) -> model.Service:
        stands = standing.judge(row.seen_at, row.stopped_at, now, heard, self._down)
        reasons = _AGENT_REASONS if row.cell_uuid is not None else _REASONS
        reason = reasons[stands]
        return model.Service(
            id=row.id,
            binary=row.binary,
            host=row.host,
            status=_STATUSES[stands],
            version=row.version,
            started_at=row.started_at,
            seen_at=row.seen_at,
            reason=reason and reason.format(sign=standing.last_sign(row.seen_at, row.stopped_at)),
            cell_uuid=row.cell_uuid,
        )


def _columns(
    row: standing.Row,
    identity: sa.ColumnElement[str] | orm.InstrumentedAttribute[str],
    binary: sa.ColumnElement[str] | orm.InstrumentedAttribute[str],
    cell_uuid: sa.ColumnElement[Any] | orm.InstrumentedAttribute[str],
    heard_by: sa.ColumnElement[str] | orm.InstrumentedAttribute[str],
) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        identity.label('id'),
        binary.label('binary'),
        row.host.label('host'),
        cell_uuid.label('cell_uuid'),
        heard_by.label('heard_by'),
        row.version.label('version'),
        row.started_at.label('started_at'),
        row.seen_at.label('seen_at'),
        standing.stopped_at(row).label('stopped_at'),
    )
