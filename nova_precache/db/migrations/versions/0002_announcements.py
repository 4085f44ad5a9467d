# SPDX-License-Identifier: Apache-2.0
"""Announcements still to be sent, so that no end is lost with the conductor that saw it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0002'
down_revision = '0001'

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'announcements',
        sa.Column('request_id', sa.String(length=36), nullable=False),
        sa.Column('position', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('phase', sa.String(length=32), nullable=False),
        sa.Column('host', sa.String(length=255), nullable=True),
        sa.Column('taken_until', TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(['request_id'], ['cache_requests.id'], ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('request_id', 'position'),
    )
