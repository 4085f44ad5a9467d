# SPDX-License-Identifier: Apache-2.0
"""Requests remember the global id that their caller sent, which Glance is to log."""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'


def upgrade() -> None:
    op.add_column(
        'cache_requests', sa.Column('global_request_id', sa.String(length=255), nullable=True)
    )
