# SPDX-License-Identifier: Apache-2.0
"""Counters of tasks by request and status.

One statement fills them, for each status that a task has while no compute works on it.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'

STATUSES = (
    'queued',
    'retry_wait',
    'cached',
    'existing',
    'unsupported',
    'error',
    'skipped',
    'cancelled',
    'expired',
)
BYTES = ('bytes_done', 'bytes_total')


def upgrade() -> None:
    op.create_table(
        'task_counts',
        sa.Column('request_id', sa.String(length=36), nullable=False),
        sa.Column('status', sa.String(length=32), nullable=False),
        sa.Column('tasks', sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in BYTES),
        sa.ForeignKeyConstraint(['request_id'], ['cache_requests.id'], ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('request_id', 'status'),
    )
    _fill()
    # The time of the last check, in seconds since 1970.
    op.bulk_insert(
        sa.table('counters', sa.column('name'), sa.column('value')),
        [{'name': 'counts_checked', 'value': 0}],
    )


def _fill() -> None:
    requests = sa.table('cache_requests', sa.column('id'))
    tasks = sa.table('cache_tasks', *map(sa.column, ('request_id', 'status', *BYTES)))
    task = tasks.c
    known = sa.func.coalesce(task.bytes_total, task.bytes_done)
    bytes_total = sa.case((task.bytes_done > known, task.bytes_done), else_=known)

    def of_status(status: str) -> sa.Select[*tuple[Any, ...]]:
        # Compared as a literal: a column of a subquery may have another collation on MariaDB.
        its = sa.and_(task.request_id == requests.c.id, task.status == sa.literal(status))
        return (
            sa.select(
                requests.c.id,
                sa.cast(sa.literal(status), sa.String(32)),
                sa.func.count(task.request_id),
                sa.func.coalesce(sa.func.sum(task.bytes_done), 0),
                sa.func.coalesce(sa.func.sum(bytes_total), 0),
            )
            .select_from(requests)
            .outerjoin(tasks, its)
            .group_by(requests.c.id)
        )

    filled = sa.union_all(*map(of_status, STATUSES))
    names = ('request_id', 'status', 'tasks', *BYTES)
    counts = sa.table('task_counts', *map(sa.column, names))
    op.execute(sa.insert(counts).from_select(names, filled))
