# SPDX-License-Identifier: Apache-2.0
"""Compares the counters of tasks with the tasks."""

import collections

import sqlalchemy as sa

from nova_precache import model
from nova_precache.db.engine import models, session as db_session

Counts = dict[str, int]


def counters(database: db_session.Database) -> Counts:
    """Return the counters that are not 0, each by request, status and what it counts."""
    with database.reader() as session:
        rows = session.scalars(sa.select(models.TaskCount)).all()
    return {
        f'{row.request_id} {row.status} {name}': getattr(row, name)
        for row in rows
        for name in ('tasks', 'bytes_done', 'bytes_total')
        if getattr(row, name)
    }


def sums(database: db_session.Database) -> Counts:
    """Return the same of the tasks, for statuses that are not at work."""
    found: collections.Counter[str] = collections.Counter()
    idle = models.Task.status.not_in(model.TASK_WORKING)
    with database.reader() as session:
        rows = session.scalars(sa.select(models.Task).where(idle)).all()
    for row in rows:
        prefix = f'{row.request_id} {row.status}'
        found[f'{prefix} tasks'] += 1
        found[f'{prefix} bytes_done'] += row.bytes_done
        found[f'{prefix} bytes_total'] += max(row.bytes_done, row.bytes_total or 0)
    return {key: value for key, value in found.items() if value}
