# SPDX-License-Identifier: Apache-2.0
"""Progress of calls, inside a transaction, and the rates at which hosts cached before."""

import collections
import dataclasses
import datetime
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import model
from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import outcome as job_outcome

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


def record(session: orm.Session, report: ProgressReport, now: datetime.datetime) -> bool:
    progress = report.progress
    values = {
        'job': report.job_id,
        'of_epoch': report.epoch,
        'of_cell': report.cell_uuid,
        'of_agent': report.agent_id,
        'to_sequence': report.sequence,
        'to_time': now,
        # A status unknown to this release must not make the job look ended.
        'to_status': str(progress.status) if progress.status in model.TASK_WORKING else None,
        'moved': progress.bytes_done,
        'total': progress.bytes_total,
        'rate': progress.rate_bytes,
    }
    if db_session.rowcount(db_session.run(session, _PROGRESS, values)) != 1:
        return False
    db_session.run(session, _SHOW_PROGRESS, values)
    return True


_AGENT, _JOB, _TASK = (db_session.table(each) for each in (models.Agent, models.Job, models.Task))
_OF_AGENT = sa.bindparam('of_agent', type_=sa.String())


def _progress(columns: sa.sql.base.ReadOnlyColumnCollection[str, sa.Column[Any]]) -> dict[str, Any]:
    """Build the values of a progress report, for a job and for each task."""
    return {
        'status': sa.func.coalesce(sa.bindparam('to_status', type_=sa.String()), columns.status),
        'rate_bytes': sa.bindparam('rate', type_=sa.BigInteger()),
        **job_outcome.sizes(columns),
    }


# Built once: each transfer reports progress every second.
_PROGRESS = (
    sa.update(_JOB)
    .where(
        _JOB.c.uuid == sa.bindparam('job'),
        _JOB.c.epoch == sa.bindparam('of_epoch'),
        _JOB.c.status.in_(model.TASK_WORKING),
        _JOB.c.progress_sequence < sa.bindparam('to_sequence'),
        # None if no cell reported it.
        _JOB.c.cell_uuid
        == sa.func.coalesce(sa.bindparam('of_cell', type_=sa.String()), _JOB.c.cell_uuid),
        sa.or_(
            _OF_AGENT.is_(None),
            sa.exists().where(_AGENT.c.host == _JOB.c.host, _AGENT.c.agent_id == _OF_AGENT),
        ),
    )
    .values(
        progress_sequence=sa.bindparam('to_sequence'),
        progress_at=sa.bindparam('to_time'),
        **_progress(_JOB.c),
    )
)
_SHOW_PROGRESS = (
    sa.update(_TASK)
    .where(_TASK.c.job_uuid == sa.bindparam('job'), _TASK.c.status.in_(model.TASK_IN_FLIGHT))
    .values(**_progress(_TASK.c))
)


_RECENT = (
    sa.select(
        _JOB.c.host,
        _JOB.c.bytes_done,
        _JOB.c.started_at,
        _JOB.c.finished_at,
        sa.func.row_number().over(partition_by=_JOB.c.host, order_by=_JOB.c.id.desc()).label('age'),
    )
    .where(_JOB.c.host.in_(db_session.keys()), _JOB.c.status == str(model.TaskStatus.CACHED))
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
