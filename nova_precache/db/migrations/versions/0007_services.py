# SPDX-License-Identifier: Apache-2.0
"""The conductors and APIs that report, and when an agent has stopped cleanly."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0007'
down_revision = '0006'

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'services',
        sa.Column('id', sa.String(length=36), nullable=False),
        sa.Column('binary', sa.String(length=64), nullable=False),
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('version', sa.String(length=64), nullable=False),
        sa.Column('started_at', TIMESTAMP, nullable=False),
        sa.Column('seen_at', TIMESTAMP, nullable=False),
        sa.Column('stopped_at', TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint('id'),
    )
    op.create_index('services_host_idx', 'services', ['binary', 'host'])
    op.add_column('agents', sa.Column('stopped_at', TIMESTAMP, nullable=True))
