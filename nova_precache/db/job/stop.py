# SPDX-License-Identifier: Apache-2.0
"""Orders to computes, inside a transaction.

They stop jobs, change the options of running transfers, and remove partial files.
"""

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import call, demand


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
class ChangeOrder:
    """A job at work whose compute does not have the current options."""

    job_id: str
    host: str
    cell_uuid: str
    epoch: int
    change: model.OptionChange


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


def change_orders(session: orm.Session) -> list[ChangeOrder]:
    job = models.Job
    query = (
        sa.select(job.uuid, job.host, job.cell_uuid, job.epoch, job.changes)
        .where(job.status.in_(model.TASK_WORKING), job.changes > job.changes_sent)
        .where(job.epoch.is_not(None), job.stop_why.is_(None))
        .order_by(job.id)
    )
    rows = session.execute(query).all()
    # Only now: options that change in between are sent again, under a higher number.
    agreed = call.terms(session, [row.uuid for row in rows]) if rows else {}
    return [
        ChangeOrder(
            row.uuid,
            row.host,
            row.cell_uuid,
            row.epoch or 0,
            model.OptionChange(
                row.changes, agreed[row.uuid].max_rate_bytes, agreed[row.uuid].deadline_seconds
            ),
        )
        for row in rows
    ]


def note_change(session: orm.Session, job_id: str, number: int) -> None:
    """Record that a compute has the options up to a change; the caller holds the job's lock."""
    session.execute(
        db_session.update(models.Job)
        .where(models.Job.uuid == job_id, models.Job.changes_sent < number)
        .values(changes_sent=number)
    )


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
