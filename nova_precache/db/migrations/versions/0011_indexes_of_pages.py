# SPDX-License-Identifier: Apache-2.0
"""Pages of the tasks of a request are read by an index, and in SQLite those of a job by theirs."""

import sqlalchemy as sa
from alembic import op

revision = '0011'
down_revision = '0010'

# SQLite gathers no statistics unless asked. Without any, it takes a status to be as selective as
# a job, and reads all queued tasks to find the one of a job.
STATISTICS = {'tbl': 'cache_tasks', 'idx': 'cache_tasks_state_idx', 'stat': '1000000 100000 1'}


def upgrade() -> None:
    op.create_index('cache_tasks_request_idx', 'cache_tasks', ['request_id', 'id'])
    # The index on (request_id, host, image_id) serves the foreign key meanwhile.
    op.drop_index('cache_tasks_status_idx', 'cache_tasks')
    op.create_index('cache_tasks_status_idx', 'cache_tasks', ['request_id', 'status', 'id'])
    if op.get_context().dialect.name == 'sqlite':
        op.execute('ANALYZE sqlite_schema')  # which creates the empty table of statistics
        op.bulk_insert(sa.table('sqlite_stat1', *map(sa.column, STATISTICS)), [STATISTICS])
        op.execute('ANALYZE sqlite_schema')  # reads it again
