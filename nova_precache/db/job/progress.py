# SPDX-License-Identifier: Apache-2.0
"""Progress of calls, inside a transaction, and the rates at which hosts cached before."""

import collections
import dataclasses
import datetime
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import expressions, models, row_list, session as db_session
from nova_precache.db.job import locking, outcome as job_outcome

_RECENT_DAYS = 30
_RECENT_JOBS = 5


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """The latest progress of a job since the last bulk write.

    :ivar cell_uuid: the cell that reported it; a job of another cell is left unchanged
    :ivar agent_id: the agent that reported it; None from an agent of an earlier release
    """

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress
    cell_uuid: str | None = None
    agent_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Sender:
    """A host whose registered agent reports the progress of its jobs."""

    cell_uuid: str
    host: str


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A report about an active job by its agent.

    :ivar row_id: of the job
    """

    report: ProgressReport
    sender: Sender
    row_id: int
    active_key: str


_AGENT, _JOB, _TASK = (db_session.table(each) for each in (models.Agent, models.Job, models.Task))
_ACTIVE = (
    sa.select(
        _JOB.c.uuid, _JOB.c.id, _JOB.c.active_key, _JOB.c.cell_uuid, _JOB.c.host, _AGENT.c.agent_id
    )
    .outerjoin(_AGENT, _AGENT.c.host == _JOB.c.host)
    .where(expressions.among(_JOB.c.uuid, expressions.keys()), _JOB.c.active_key.is_not(None))
)
_LOCKED = sa.select(_JOB.c.id).where(expressions.among(_JOB.c.active_key, expressions.keys()))
_REPORTED = row_list.RowList(
    'reported',
    {
        'job': sa.BigInteger(),
        'epoch': sa.BigInteger(),
        'sequence': sa.BigInteger(),
        'status': _JOB.c.status.type,
        'moved': sa.BigInteger(),
        'total': sa.BigInteger(),
        'rate': sa.BigInteger(),
    },
)
_IT = _REPORTED.c
# A report counts by the state of its job before it.
_COUNTS = (
    _JOB.c.id == _IT.job,
    _JOB.c.epoch == _IT.epoch,
    _JOB.c.status.in_(model.TASK_WORKING),
    _JOB.c.progress_sequence < _IT.sequence,
)


def _progress(columns: sa.sql.base.ReadOnlyColumnCollection[str, sa.Column[Any]]) -> dict[str, Any]:
    """Build the values of a progress report, for a job and for each task."""
    return {
        'status': sa.func.coalesce(_IT.status, columns.status),
        'rate_bytes': _IT.rate,
        **job_outcome.sizes(columns, _IT.moved, _IT.total),
    }


_SHOW_IN_TASKS = (
    sa.update(_TASK)
    .where(*_COUNTS, _TASK.c.job_uuid == _JOB.c.uuid, _TASK.c.status.in_(model.TASK_IN_FLIGHT))
    .values(**_progress(_TASK.c))
)
_RECORD = (
    sa.update(_JOB)
    .where(*_COUNTS)
    .values(
        progress_sequence=_IT.sequence,
        progress_at=expressions.database_now(),
        **_progress(_JOB.c),
    )
)


def choose(session: orm.Session, reports: Collection[ProgressReport]) -> Sequence[Chosen]:
    """Choose the reports about active jobs by their own agents, in the order of :func:`record`.

    An agent must be registered now, not when the report is written: if another takes the host
    in between, it ends the calls of the former one, except those that are being stopped.

    The order is the reverse of that of locks: a transaction that waits for jobs of one chunk
    then holds those of the next chunks, and does not wait for these, too.
    """
    active = {
        row.uuid: row
        for keys in db_session.chunks(sorted({report.job_id for report in reports}))
        for row in db_session.run(session, _ACTIVE, {'keys': keys})
    }
    chosen = [
        Chosen(report, Sender(job.cell_uuid, job.host), job.id, job.active_key)
        for report in reports
        if (job := active.get(report.job_id)) is not None
        and report.cell_uuid in (None, job.cell_uuid)
        and report.agent_id in (None, job.agent_id)
    ]
    return sorted(chosen, key=operator.attrgetter('active_key'), reverse=True)


def record(session: orm.Session, reports: Sequence[Chosen]) -> int:
    """Record reports, and show them in the tasks; return how many still counted."""
    keys = sorted({each.active_key for each in reports})
    locking.lock_keys(session, keys)
    # The statements below lock each row that they find, in another order.
    locked = set(db_session.run(session, _LOCKED, {'keys': keys}).scalars())
    counted = 0
    for some in _one_of_each_job([each for each in reports if each.row_id in locked]):
        listed = _REPORTED.values(map(_row, some))
        # First, as the jobs then still show which reports count.
        db_session.run(session, _SHOW_IN_TASKS, listed)
        counted += db_session.rowcount(db_session.run(session, _RECORD, listed))
    return counted


def _one_of_each_job(reports: Sequence[Chosen]) -> Iterable[Sequence[Chosen]]:
    """Split reports, older ones first; several of one job may be of different calls."""
    parts: collections.defaultdict[int, list[Chosen]] = collections.defaultdict(list)
    earlier: collections.Counter[int] = collections.Counter()
    for each in sorted(reports, key=lambda each: each.report.sequence):
        parts[earlier[each.row_id]].append(each)
        earlier[each.row_id] += 1
    return parts.values()


def _row(chosen: Chosen) -> Mapping[str, object]:
    report, progress = chosen.report, chosen.report.progress
    return {
        'job': chosen.row_id,
        'epoch': report.epoch,
        'sequence': report.sequence,
        # A status unknown to this release must not make the job look ended.
        'status': progress.status if progress.status in model.TASK_WORKING else None,
        'moved': progress.bytes_done,
        'total': progress.bytes_total,
        'rate': progress.rate_bytes,
    }


_RECENT = (
    sa.select(
        _JOB.c.host,
        _JOB.c.bytes_done,
        _JOB.c.started_at,
        _JOB.c.finished_at,
        sa.func.row_number().over(partition_by=_JOB.c.host, order_by=_JOB.c.id.desc()).label('age'),
    )
    .where(_JOB.c.host.in_(expressions.keys()), _JOB.c.status == str(model.TaskStatus.CACHED))
    .where(_JOB.c.bytes_done > 0, _JOB.c.attempts == 1, _JOB.c.started_at.is_not(None))
    .where(_JOB.c.finished_at >= sa.bindparam('since', type_=sa.DateTime()))
    .subquery()
)
# The last few jobs of each host that succeeded at the first attempt.
_LAST = sa.select(
    _RECENT.c.host, _RECENT.c.bytes_done, _RECENT.c.started_at, _RECENT.c.finished_at
).where(_RECENT.c.age <= _RECENT_JOBS)


def measured_rates(
    session: orm.Session, hosts: Collection[str], now: datetime.datetime
) -> Mapping[str, float]:
    since = now - datetime.timedelta(days=_RECENT_DAYS)
    moved: collections.Counter[str] = collections.Counter()
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for names in db_session.chunks(sorted(hosts)):
        rows = db_session.run(session, _LAST, {'keys': names, 'since': since})
        for host, bytes_done, started_at, finished_at in rows:
            moved[host] += bytes_done
            seconds[host] += (finished_at - started_at).total_seconds()
    return {host: moved[host] / seconds[host] for host in moved if seconds[host] > 0}
