# SPDX-License-Identifier: Apache-2.0
"""Options change while a transfer runs, and tasks are listed over all requests."""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'

INDEXES = {'host': 'host', 'image': 'image_id', 'state': 'status'}


def upgrade() -> None:
    for name in ('changes', 'changes_sent'):
        op.add_column('jobs', sa.Column(name, sa.Integer(), nullable=False, server_default='0'))
    for name, column in INDEXES.items():
        op.create_index(f'cache_tasks_{name}_idx', 'cache_tasks', [column, 'id'])
