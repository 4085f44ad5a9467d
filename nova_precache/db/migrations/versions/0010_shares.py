# SPDX-License-Identifier: Apache-2.0
"""Slots are shared between cells: the next jobs of each are found without a scan."""

import sqlalchemy as sa
from alembic import op

revision = '0010'
down_revision = '0009'


def upgrade() -> None:
    op.create_index(
        'jobs_share_idx',
        'jobs',
        ['ready', 'cell_uuid', sa.text('priority DESC'), 'id', 'next_attempt_at'],
    )
