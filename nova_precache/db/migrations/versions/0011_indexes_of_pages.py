# SPDX-License-Identifier: Apache-2.0
"""A page of tasks, and the queue of a cell, are read in the order of an index."""

import sqlalchemy as sa
from alembic import op

revision = '0011'
down_revision = '0008'


def upgrade() -> None:
    op.create_index('cache_tasks_request_idx', 'cache_tasks', ['request_id', 'id'])
    # The index on (request_id, host, image_id) serves the foreign key meanwhile.
    op.drop_index('cache_tasks_status_idx', 'cache_tasks')
    op.create_index('cache_tasks_status_idx', 'cache_tasks', ['request_id', 'status', 'id'])
    op.create_index(
        'jobs_cell_idx', 'jobs', ['cell_uuid', 'status', 'ready', sa.text('priority DESC'), 'id']
    )
