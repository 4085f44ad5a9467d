# SPDX-License-Identifier: Apache-2.0
"""Tasks and their bytes by request and status, without a read of each task.

Each (request, status) has a counter, a row of ``task_counts``, that changes in the transaction
that changes the tasks. Tasks at work have none: progress changes them every second, and there
are at most as many as slots, so they are summed when they are read.

The functions here note changes in the session; the transaction writes them last, in one order.
So locks are taken in the order counters, claims, jobs, requests, counters of tasks. A task
changes only under the lock of its job or, without a job, of its request: what is read of it
before a change is what the change replaces.
"""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, session as db_session

LOG = logging.getLogger(__name__)

COUNTED = frozenset(map(str, model.TaskStatus)) - model.TASK_WORKING
# The counter with the time of the last check, in seconds since 1970.
CHECKED = 'counts_checked'
# Requests that ended up to this long before the last check are checked as well.
ENDED = datetime.timedelta(hours=1)
_NOTED = 'task_counts'
_1970 = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - as the database keeps it


@dataclasses.dataclass(frozen=True)
class Total:
    """The tasks of one request in one status, and the sums of their bytes and rates."""

    tasks: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes: int = 0

    def __add__(self, other: 'Total') -> 'Total':
        return Total(
            self.tasks + other.tasks,
            self.bytes_done + other.bytes_done,
            self.bytes_total + other.bytes_total,
            self.rate_bytes + other.rate_bytes,
        )


_TASK, _COUNT = db_session.table(models.Task).c, db_session.table(models.TaskCount).c
_KNOWN = sa.func.coalesce(_TASK.bytes_total, _TASK.bytes_done)
# An unknown size, or one that an earlier release set too low, counts as the bytes done.
_BYTES_TOTAL = sa.case((_TASK.bytes_done > _KNOWN, _TASK.bytes_done), else_=_KNOWN)
# The columns of a task that ``note_task`` takes.
COLUMNS = (
    _TASK.id,
    _TASK.request_id,
    _TASK.status,
    _TASK.bytes_done,
    _BYTES_TOTAL.label('bytes_total'),
)
_COUNTERS = sa.select(*_COUNT, sa.literal(0))
_SUMS = sa.select(
    _TASK.request_id,
    _TASK.status,
    sa.func.count(),
    *(
        sa.func.coalesce(sa.func.sum(column), 0)
        for column in (_TASK.bytes_done, _BYTES_TOTAL, _TASK.rate_bytes)
    ),
).group_by(_TASK.request_id, _TASK.status)
_OF_JOBS = _SUMS.where(
    _TASK.job_uuid.in_(expressions.keys()), _TASK.status.in_(model.TASK_IN_FLIGHT)
)


def totals(which: Any) -> sa.CompoundSelect[*tuple[Any, ...]]:
    """Select the totals of requests: their counters, and the sums of their tasks at work.

    It is one statement, since two would see different states on PostgreSQL.

    :param which: the ids of the requests, as the right side of IN
    """
    # Each status by itself: with IN, servers may read all tasks of one request. And by this index:
    # MariaDB may read the tasks at work of all requests.
    working = (
        expressions.by_index(
            _SUMS.where(_TASK.request_id.in_(which), _TASK.status == str(status)),
            db_session.table(models.Task),
            'cache_tasks_status_idx',
        )
        for status in sorted(model.TASK_WORKING)
    )
    return _COUNTERS.where(_COUNT.request_id.in_(which)).union_all(*working)


_REQUESTS: sa.BindParameter[Any] = sa.bindparam('requests', expanding=True)
_LOAD = totals(_REQUESTS)
_SUMS_OF_ONE = _SUMS.where(_TASK.request_id == sa.bindparam('request'))
# The counters once with -1, and the sums with 1.
_COMPARE = (
    _COUNTERS.add_columns(sa.literal(-1))
    .where(_COUNT.request_id == sa.bindparam('request'))
    .union_all(
        _SUMS_OF_ONE.add_columns(sa.literal(1)).where(_TASK.status.not_in(model.TASK_WORKING))
    )
)
_ADDED = ('tasks', 'bytes_done', 'bytes_total')
_MORE = tuple(f'more_{name}' for name in _ADDED)
_ADD = (
    sa.update(db_session.table(models.TaskCount))
    .where(_COUNT.request_id == sa.bindparam('request'), _COUNT.status == sa.bindparam('of'))
    .values(
        {
            name: _COUNT[name] + sa.bindparam(more, type_=sa.BigInteger())
            for name, more in zip(_ADDED, _MORE, strict=True)
        }
    )
)


_Noted = dict[tuple[str, str], list[int]]


def load(session: orm.Session, request_ids: Collection[str]) -> dict[str, dict[str, Total]]:
    """Map requests to their totals by status, as they are in this transaction."""
    found: dict[str, dict[str, Total]] = {}
    rows = db_session.run(session, _LOAD, {'requests': list(request_ids)}).all()
    noted = [(*key, *values) for key, values in _noted(session).items() if key[0] in request_ids]
    for request_id, status, *values in (*rows, *noted):
        by_status = found.setdefault(request_id, {})
        by_status[status] = by_status.get(status, Total()) + Total(*map(int, values))
    return {
        request_id: {status: total for status, total in by_status.items() if total.tasks > 0}
        for request_id, by_status in found.items()
    }


def count_each(session: orm.Session, request_id: str) -> dict[str, int]:
    """Count the tasks of a request by status, reading each: exact beside an earlier release."""
    rows = db_session.run(session, _SUMS_OF_ONE, {'request': request_id})
    return {status: tasks for _, status, tasks, *_ in rows}


def make(session: orm.Session, request_id: str, statuses: Collection[str] = COUNTED) -> None:
    """Make the counters that a request lacks; the caller holds the request's lock.

    On MariaDB, the foreign key of a new row locks the request, too.
    """
    row = models.TaskCount
    known = session.scalars(sa.select(row.status).where(row.request_id == request_id)).all()
    new = [
        {'request_id': request_id, 'status': status, **dict.fromkeys(_ADDED, 0)}
        for status in sorted(set(statuses) - set(known))
    ]
    if new:
        session.execute(sa.insert(row), new)


def note_planned(session: orm.Session, rows: Iterable[model.Json]) -> None:
    """Note tasks that are about to be written with these values."""
    for row in rows:
        bytes_done = row['bytes_done']
        values = (1, bytes_done, max(bytes_done, row['bytes_total'] or 0))
        _note(session, row['request_id'], row['status'], 1, values)


@contextlib.contextmanager
def changing(session: orm.Session, which: sa.ColumnElement[bool]) -> Iterator[None]:
    """Note how the block changes the chosen tasks: of one job, or all of one request.

    :param which: chooses the same tasks before and after; the block changes them in no way that
        is noted by itself
    """
    chosen = _SUMS.where(which)
    before = db_session.run(session, chosen).all()
    yield
    for sign, rows in ((-1, before), (1, db_session.run(session, chosen).all())):
        for request_id, status, *values in rows:
            _note(session, request_id, status, sign, values)


def note_moves(session: orm.Session, job_ids: Collection[str], status: str) -> None:
    """Note the status that the tasks in flight of jobs are about to get; their bytes stay."""
    if job_ids:
        rows = db_session.run(session, _OF_JOBS, {'keys': list(job_ids)}).all()
        for request_id, old, *values in rows:
            _note(session, request_id, old, -1, values)
            _note(session, request_id, status, 1, values)


def note_task(session: orm.Session, task: sa.Row[*tuple[Any, ...]], sign: int) -> None:
    """Note the ``COLUMNS`` of a task before, with -1, or after a change, with 1."""
    values = (1, task.bytes_done, task.bytes_total)
    _note(session, task.request_id, task.status, sign, values)


def _note(
    session: orm.Session, request_id: str, status: str, sign: int, values: Sequence[int]
) -> None:
    if status in model.TASK_WORKING:
        return
    noted = _noted(session).setdefault((request_id, str(status)), [0, 0, 0])
    for place, value in enumerate(values[: len(noted)]):
        noted[place] += sign * int(value)


def _noted(session: orm.Session) -> _Noted:
    """Return the changes of this transaction by request and status: tasks and both bytes."""
    if _NOTED not in session.info:
        session.info[_NOTED] = {}
        db_session.before_commit(session, _write)
    return session.info[_NOTED]  # type: ignore[no-any-return]


def _write(session: orm.Session) -> None:
    changes = sorted((key, values) for key, values in _noted(session).items() if any(values))
    for request_id, status in [key for key, _ in changes if key[1] not in COUNTED]:
        make(session, request_id, [status])  # of a compute of a later release
    rows = [
        {'request': request_id, 'of': status, **dict(zip(_MORE, values, strict=True))}
        for (request_id, status), values in changes
    ]
    if rows:
        db_session.run(session, _ADD, rows)


class TaskCounts:
    """Checks counters against the tasks: a conductor of an earlier release does not keep them."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database

    def check(self, every_seconds: float) -> int:
        """Correct the counters of the requests that may have changed; count these requests.

        :param every_seconds: do nothing if a conductor began a check more recently
        """
        to_check = self._database.write(lambda session: _to_check(session, every_seconds))
        return sum(self._correct(request_id) for request_id in to_check)

    def _correct(self, request_id: str) -> bool:
        with self._database.reader() as session:
            if not _differences(session, request_id):
                return False  # without any lock
        off = self._database.write(lambda session: _correct(session, request_id))
        if off:
            LOG.warning(
                'Request %s: correcting its counters of tasks by %s', request_id, _shown(off)
            )
        return bool(off)


def _to_check(session: orm.Session, every_seconds: float) -> Sequence[str]:
    """Take the turn to check, and return all requests that are active or ended since."""
    counter, request = models.Counter, models.CacheRequest
    now = int((db_session.now(session) - _1970).total_seconds())
    last = session.scalars(sa.select(counter.value).where(counter.name == CHECKED)).one()
    if 0 <= now - last < every_seconds:
        return ()
    taken = session.execute(
        db_session.update(counter)
        .where(counter.name == CHECKED, counter.value == last)
        .values(value=now)
    )
    if db_session.rowcount(taken) != 1:
        return ()
    since = _1970 + datetime.timedelta(seconds=min(last, now)) - ENDED
    may_differ = sa.or_(request.status.in_(model.REQUEST_ACTIVE), request.finished_at >= since)
    return session.scalars(sa.select(request.id).where(may_differ).order_by(request.number)).all()


def _correct(session: orm.Session, request_id: str) -> _Noted:
    """Correct the counters of a request; return what was added.

    Work goes on meanwhile: each transaction changes counters and tasks alike, so the difference
    in one statement stays the same until another correction, which this lock keeps out.
    """
    request = models.CacheRequest
    session.execute(
        db_session.update(request)
        .where(request.id == request_id)
        .values(hosts_done=request.hosts_done)
    )
    off = _differences(session, request_id)
    if off:
        make(session, request_id, {*COUNTED, *(status for _, status in off)})
    for (_, status), values in off.items():
        _note(session, request_id, status, 1, values)
    return off


def _differences(session: orm.Session, request_id: str) -> _Noted:
    """Return what the counters of a request lack, by one statement."""
    off: _Noted = {}
    for _, status, *values, _, sign in db_session.run(session, _COMPARE, {'request': request_id}):
        known = off.setdefault((request_id, status), [0, 0, 0])
        off[request_id, status] = [
            old + sign * int(value) for old, value in zip(known, values, strict=True)
        ]
    return {key: values for key, values in off.items() if any(values)}


def _shown(off: _Noted) -> str:
    return ', '.join(
        f'{status}: {values[0]:+} tasks, {values[1]:+} of {values[2]:+} bytes'
        for (_, status), values in sorted(off.items())
    )
