# SPDX-License-Identifier: Apache-2.0
"""Orders to computes, inside a transaction: to stop jobs, and to remove partial files."""

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import demand


@dataclasses.dataclass(frozen=True)
class StopOrder:
    """A job that its compute is to stop."""

    job_id: str
    host: str
    cell_uuid: str
    epoch: int | None
    why: model.StopWhy
    keep_partial: bool


@dataclasses.dataclass(frozen=True)
class Discard:
    """An ended job whose partial file is to be removed from its host."""

    job_id: str
    host: str
    cell_uuid: str
    image_id: str


def orders(session: orm.Session) -> list[StopOrder]:
    job = models.Job
    query = (
        sa.select(job.uuid, job.host, job.cell_uuid, job.epoch, job.stop_why, job.stop_keep)
        .where(job.stop_why.in_(model.StopWhy))
        .where(job.active_key.is_not(None))
        .order_by(job.id)
    )
    return [
        StopOrder(*row[:4], model.StopWhy(str(row[4])), row[5]) for row in session.execute(query)
    ]


def discards(session: orm.Session, limit: int) -> list[Discard]:
    job = models.Job
    query = (
        sa.select(job.uuid, job.host, job.cell_uuid, job.image_id)
        .where(job.stop_why == demand.DISCARD, job.active_key.is_(None))
        .order_by(job.id)
        .limit(limit)
    )
    return [Discard(*row) for row in session.execute(query)]


def keep_what_is_left(session: orm.Session, keys: Sequence[str]) -> None:
    """Keep partial files that were to be removed: new jobs resume them."""
    file = models.Job.host + '/' + models.Job.image_id
    forget_discards(session, file.in_(keys))


def forget_discards(session: orm.Session, which: sa.ColumnElement[bool]) -> None:
    """Drop orders to remove partial files: they are removed, or wanted again."""
    session.execute(
        db_session.update(models.Job)
        .where(models.Job.stop_why == demand.DISCARD, which)
        .values(stop_why=None)
    )
