# SPDX-License-Identifier: Apache-2.0
"""A claimed host may release its Glance stream; each holds one at first."""

import sqlalchemy as sa
from alembic import op

revision = '0013'
down_revision = '0012'


def upgrade() -> None:
    op.add_column('claims', sa.Column('stream_released_by', sa.String(36), nullable=True))
