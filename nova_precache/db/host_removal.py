# SPDX-License-Identifier: Apache-2.0
"""Removal of a host that is gone for good: count its active jobs, delete its records.

Its claim row stays: if a host of this name appears later, epochs continue from there, and a
call that still waits in a queue is not taken for a new one.
"""

import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import standing
from nova_precache.db.engine import models, session as db_session


class Departures:
    """Hosts to be removed; every method is one short transaction.

    :param down_seconds: silence after which an agent counts as down
    """

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)

    def jobs_on_host(self, host: str) -> int:
        """Count the active jobs on a host."""
        return self._count(models.Job.host == host)

    def jobs_in_cell(self, cell_uuid: str) -> int:
        """Count the active jobs in a cell, one for each host and image."""
        return self._count(models.Job.cell_uuid == cell_uuid)

    def forget(self, host: str) -> None:
        """Delete the agent of a host and its cache inventory.

        :raises nova_precache.exception.InUse: the agent is not known to be down
        """
        self._database.write(lambda session: self._forget(session, host))

    def _count(self, which: sa.ColumnElement[bool]) -> int:
        active = models.Job.active_key.is_not(None)
        query = sa.select(sa.func.count()).select_from(models.Job).where(which, active)
        with self._database.reader() as session:
            return session.scalars(query).one()

    def _forget(self, session: orm.Session, host: str) -> None:
        now, agent = db_session.now(session), models.Agent
        is_down = standing.has_status(
            agent, agent.cell_uuid, model.HostStatus.DOWN, now, self._down
        )
        session.execute(sa.delete(agent).where(agent.host == host, is_down))
        if session.get(models.Agent, host) is not None:
            raise exception.InUse(
                f'Host {host} has reported recently, or its cell is not connected: it may '
                'still be running.'
            )
        session.execute(sa.delete(models.CachedImage).where(models.CachedImage.host == host))
