# SPDX-License-Identifier: Apache-2.0
"""Calls to stock nova-computes: at most one at a time for each host.

A nova-compute does not ask before it begins, and completes a call even after its caller has
given up. So each call is recorded in the database before it is sent. The record blocks
further calls to the host until the call is answered or must be over, across restarts.
"""

import dataclasses
import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import call, locking


@dataclasses.dataclass(frozen=True)
class Begun:
    """The host may be called.

    :ivar bytes_total: size of the image, None if unknown
    """

    bytes_total: int | None


@dataclasses.dataclass(frozen=True)
class Occupied:
    """The host may not be called: an earlier call may still run.

    :ivar seconds: time left until that call counts as over
    :ivar until: that time, in UTC
    """

    seconds: float
    until: datetime.datetime


class StockCalls:
    """The calls in the database; every method is one short transaction."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def begin(
        self, job_id: str, epoch: int, host: str, over_seconds: float
    ) -> Begun | Occupied | None:
        """Begin a job as its compute would, right before the call; None if it no longer counts.

        :param over_seconds: from now; then the call is over even if it is not answered
        """
        return self._database.write(
            lambda session: _begin(session, job_id, epoch, host, over_seconds)
        )

    def answered(self, host: str, epoch: int) -> None:
        """Record that a call is over."""
        sent = models.StockCall
        over = sa.delete(sent).where(sent.host == host, sent.epoch == epoch)
        over = over.execution_options(synchronize_session=False)
        self._database.write(lambda session: session.execute(over))

    def occupied(self, host: str) -> Occupied | None:
        """Return the call that may still run on a host, None if there is none."""
        with self._database.reader() as session:
            return _occupied(session, host)


def _begin(
    session: orm.Session, job_id: str, epoch: int, host: str, over_seconds: float
) -> Begun | Occupied | None:
    locked = locking.lock(session, [job_id])
    occupied = _occupied(session, host)
    if occupied is not None:
        return occupied
    if not call.begin(session, [call.Begin(job_id, epoch, starts=True)], locked):
        return None
    over_at = db_session.now(session) + datetime.timedelta(seconds=over_seconds)
    session.merge(models.StockCall(host=host, epoch=epoch, over_at=over_at))
    job = models.Job
    return Begun(session.scalars(sa.select(job.bytes_total).where(job.uuid == job_id)).one())


def _occupied(session: orm.Session, host: str) -> Occupied | None:
    over_at = session.scalars(
        sa.select(models.StockCall.over_at).where(models.StockCall.host == host)
    ).first()
    now = db_session.now(session)
    if over_at is None or over_at <= now:
        return None
    return Occupied((over_at - now).total_seconds(), over_at)
