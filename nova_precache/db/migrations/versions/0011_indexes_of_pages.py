# SPDX-License-Identifier: Apache-2.0
"""A page of the tasks of a request is read in the order of an index."""

from alembic import op

revision = '0011'
down_revision = '0010'


def upgrade() -> None:
    op.create_index('cache_tasks_request_idx', 'cache_tasks', ['request_id', 'id'])
    # The index on (request_id, host, image_id) serves the foreign key meanwhile.
    op.drop_index('cache_tasks_status_idx', 'cache_tasks')
    op.create_index('cache_tasks_status_idx', 'cache_tasks', ['request_id', 'status', 'id'])
