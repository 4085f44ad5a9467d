# SPDX-License-Identifier: Apache-2.0
"""What is kept of a host that is gone for good: whether it is needed, and how it is forgotten.

The row of its claims stays: should a host of this name ever come, their epochs go on from
there, and a call that still waits in some queue is not taken for a new one.
"""

import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception
from nova_precache.db import hearing
from nova_precache.db.engine import models, session as db_session


class Departures:
    """Hosts that leave; every method is one short transaction.

    :param down_seconds: how long an agent has been silent that counts as down
    """

    def __init__(self, database: db_session.Database, down_seconds: float) -> None:
        self._database = database
        self._down = datetime.timedelta(seconds=down_seconds)

    def jobs_on_host(self, host: str) -> int:
        """Count the images that a host is still to cache."""
        return self._count(models.Job.host == host)

    def jobs_in_cell(self, cell_uuid: str) -> int:
        """Count the images that hosts of a cell are still to cache, once for each host."""
        return self._count(models.Job.cell_uuid == cell_uuid)

    def forget(self, host: str) -> None:
        """Delete the agent of a host and what it told of its cache.

        :raises nova_precache.exception.InUse: the agent is not down after all
        """
        self._database.write(lambda session: self._forget(session, host))

    def _count(self, which: sa.ColumnElement[bool]) -> int:
        active = models.Job.active_key.is_not(None)
        query = sa.select(sa.func.count()).select_from(models.Job).where(which, active)
        with self._database.reader() as session:
            return session.scalars(query).one()

    def _forget(self, session: orm.Session, host: str) -> None:
        now = db_session.now(session)
        is_down = sa.and_(
            models.Agent.seen_at < now - self._down,
            hearing.may_judge(models.Agent.cell_uuid, now, self._down),
        )
        session.execute(sa.delete(models.Agent).where(models.Agent.host == host, is_down))
        if session.get(models.Agent, host) is not None:
            raise exception.InUse(
                f'Host {host} has just reported, or cannot be heard: it is not known to be gone.'
            )
        session.execute(sa.delete(models.CachedImage).where(models.CachedImage.host == host))
