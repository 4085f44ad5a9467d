# SPDX-License-Identifier: Apache-2.0
"""Which cells the conductors can hear, and since when: the measure of a host's silence.

A host may be silent because it is down, or because its cell's broker, every conductor or this
database was away. So conductors record for each cell that messages arrive, every few seconds
and by the database's clock. After a gap the cell's time starts again, and none of its hosts
counts as down before it has been silent for long enough since then.

A cell without a row is served only by conductors of an earlier release: there the last report
of a host decides alone.
"""

import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache.db.engine import expressions, models, session as db_session

# Stands for a cell: whether the reports of conductors and APIs can be written.
SERVICES = 'services'


@dataclasses.dataclass(frozen=True)
class Heard:
    """The time in which a cell could be heard, by the database's clock.

    :ivar until: the next record is due by then; after it the cell counts as not heard
    """

    since: datetime.datetime
    until: datetime.datetime

    def is_heard(self, now: datetime.datetime) -> bool:
        return self.until >= now

    def may_judge(self, now: datetime.datetime, down: datetime.timedelta) -> bool:
        """Return whether a living host would have been heard; the same as ``may_judge`` below."""
        return self.is_heard(now) and now - self.since > down


_OF_CELLS = sa.select(models.Hearing.cell_uuid, models.Hearing.since, models.Hearing.until).where(
    models.Hearing.cell_uuid != SERVICES
)
# The row without a cell is the clock's.
_NOW = expressions.database_now()
_CLOCK_AND_CELLS = sa.select(
    sa.null().label('cell_uuid'), _NOW.label('since'), _NOW.label('until')
).union_all(_OF_CELLS)
_UNHEARD = sa.select(models.Hearing.cell_uuid).where(
    models.Hearing.cell_uuid != SERVICES, models.Hearing.until < expressions.database_now()
)


@dataclasses.dataclass(frozen=True)
class AllHeard:
    """When each cell with a record could be heard, and the database's time of the query."""

    now: datetime.datetime
    cells: Mapping[str, Heard]


class Hearings:
    """Records of the cells that conductors hear; every method is one short transaction.

    :param gap_seconds: time after a record at which a cell counts as not heard
    """

    def __init__(self, database: db_session.Database, gap_seconds: float = 0) -> None:
        self._database = database
        self._gap = datetime.timedelta(seconds=gap_seconds)

    def note(self, cell_uuids: Collection[str]) -> None:
        """Record that messages of these cells arrive."""
        self._write(lambda session: _note(session, sorted(cell_uuids), self._gap))

    def begin(self, cell_uuids: Collection[str]) -> None:
        """Record cells that are about to be served for the first time.

        From now on, none of their hosts counts as down before it could be heard for long enough.
        """
        self._write(lambda session: _add(session, sorted(cell_uuids), db_session.now(session)))

    def load(self) -> AllHeard:
        """Load the records of all cells."""
        with self._database.reader() as session:
            return load(session)

    def _write(self, work: Callable[[orm.Session], None]) -> None:
        try:
            self._database.write(work)
        except db_exception.DBDuplicateEntry:
            self._database.write(work)  # another conductor was first


def _note(session: orm.Session, cell_uuids: Sequence[str], gap: datetime.timedelta) -> None:
    now, row = db_session.now(session), models.Hearing
    _add(session, cell_uuids, now)
    session.execute(
        db_session.update(row)
        .where(row.cell_uuid.in_(cell_uuids))
        # In the order of the columns: on MariaDB the first one still sees the old ``until``.
        .values(since=sa.case((row.until < now, now), else_=row.since), until=now + gap)
    )


def _add(session: orm.Session, cell_uuids: Sequence[str], now: datetime.datetime) -> None:
    known = of_cells(session, cell_uuids)
    for cell_uuid in cell_uuids:
        if cell_uuid not in known:
            session.add(models.Hearing(cell_uuid=cell_uuid, since=now, until=now))
    session.flush()


def of_cells(session: orm.Session, cell_uuids: Collection[str]) -> Mapping[str, Heard]:
    """Map cells to when they could be heard; one without a row is left out."""
    row = models.Hearing
    query = sa.select(row.cell_uuid, row.since, row.until).where(row.cell_uuid.in_(cell_uuids))
    return {uuid: Heard(since, until) for uuid, since, until in session.execute(query)}


def load(session: orm.Session) -> AllHeard:
    """Load the records of all cells, and the database's time."""
    rows = db_session.run(session, _CLOCK_AND_CELLS).all()
    cells = {uuid: Heard(since, until) for uuid, since, until in rows if uuid is not None}
    return AllHeard(next(row.since for row in rows if row.cell_uuid is None), cells)


def every(session: orm.Session) -> Mapping[str, Heard]:
    """Map all cells with a row to when they could be heard."""
    return {uuid: Heard(since, until) for uuid, since, until in db_session.run(session, _OF_CELLS)}


def unheard(session: orm.Session) -> frozenset[str]:
    """Return the cells that are not heard now; one without a row may be."""
    return frozenset(db_session.run(session, _UNHEARD).scalars())


def anywhere(session: orm.Session, now: datetime.datetime) -> Heard | None:
    """Return when all heard cells could be heard, for a host without a row."""
    return latest(every(session).values(), now)


def latest(cells: Collection[Heard], now: datetime.datetime) -> Heard | None:
    """Return when all heard cells could be heard.

    If no cell is heard now, use the one with the latest ``since``; None if no cell has a row.
    """
    heard = [each for each in cells if each.is_heard(now)]
    return max(heard or cells, key=lambda each: each.since, default=None)


def may_judge(
    cell_uuid: orm.InstrumentedAttribute[str] | str,
    now: datetime.datetime,
    down: datetime.timedelta,
) -> sa.ColumnElement[bool]:
    """Select rows whose silence may be judged: as in ``Heard``, or their cell has no row."""
    row = models.Hearing
    could_not_hear = sa.or_(row.until < now, row.since >= now - down)
    return ~sa.exists().where(row.cell_uuid == cell_uuid, could_not_hear)
