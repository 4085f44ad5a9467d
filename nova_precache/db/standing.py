# SPDX-License-Identifier: Apache-2.0
"""Whether an agent or another service is up: by its last report, its clean stop, and its silence.

A clean stop counts until the next start. So neither a late report nor a conductor of an earlier
release, which knows nothing of stops, can make a stopped one up, or a started one down.
"""

import datetime
import enum

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db import hearing
from nova_precache.db.engine import models

STOPPED = 'stopped at'  # prefix of the last sign of what has stopped cleanly

Row = type[models.Agent] | type[models.Service]


class Standing(enum.Enum):
    UP = enum.auto()
    DOWN = enum.auto()
    UNHEARD = enum.auto()  # silent, and so are all others that are heard in the same way
    SETTLING = enum.auto()  # silent, but the others have been heard only for a moment


def judge(
    seen_at: datetime.datetime | None,
    stopped_at: datetime.datetime | None,
    now: datetime.datetime,
    heard: hearing.Heard | None,
    down: datetime.timedelta,
) -> Standing:
    """Judge one row by the database's clock; the same as ``has_status`` below.

    :param stopped_at: as selected by :func:`stopped_at`
    """
    if stopped_at is not None:
        return Standing.DOWN
    if seen_at is not None and now - seen_at <= down:
        return Standing.UP
    if heard is None or heard.may_judge(now, down):
        return Standing.DOWN
    return Standing.SETTLING if heard.is_heard(now) else Standing.UNHEARD


def why_down(seen_at: datetime.datetime | None, stopped_at: datetime.datetime | None) -> str:
    """Return why a host is down."""
    if stopped_at is not None:
        return f'host down: stopped at {_time(stopped_at)}'
    if seen_at is None:
        return 'host down: it has never reported'
    return f'host down: last report at {_time(seen_at)}'


def last_sign(seen_at: datetime.datetime | None, stopped_at: datetime.datetime | None) -> str:
    """Describe the last sign of life of what is down."""
    return why_down(seen_at, stopped_at).removeprefix('host down: ')


def stopped_at(row: Row) -> sa.ColumnElement[datetime.datetime | None]:
    """Select the time of the clean stop that no start has followed, else NULL."""
    return sa.case((is_stopped(row), row.stopped_at), else_=sa.null())


def is_up(row: Row, now: datetime.datetime, down: datetime.timedelta) -> sa.ColumnElement[bool]:
    """Select rows that have reported recently and have not stopped."""
    return sa.and_(row.seen_at >= now - down, sa.not_(is_stopped(row)))


def has_status(
    row: Row,
    cell_uuid: orm.InstrumentedAttribute[str] | str,
    status: model.HostStatus,
    now: datetime.datetime,
    down: datetime.timedelta,
) -> sa.ColumnElement[bool]:
    """Select the rows with a status.

    :param cell_uuid: names the record that shows whether the row could be heard
    """
    silent = row.seen_at < now - down
    may_judge = hearing.may_judge(cell_uuid, now, down)
    match status:
        case model.HostStatus.UP:
            return is_up(row, now, down)
        case model.HostStatus.DOWN:
            return sa.or_(is_stopped(row), sa.and_(silent, may_judge))
        case model.HostStatus.UNKNOWN:
            return sa.and_(sa.not_(is_stopped(row)), silent, sa.not_(may_judge))


def is_stopped(row: Row) -> sa.ColumnElement[bool]:
    """Select rows that have stopped and not started since."""
    return sa.and_(row.stopped_at.is_not(None), row.stopped_at >= row.started_at)


def _time(moment: datetime.datetime) -> str:
    return f'{moment:%Y-%m-%dT%H:%M:%SZ}'
