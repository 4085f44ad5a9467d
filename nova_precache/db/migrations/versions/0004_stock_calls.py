# SPDX-License-Identifier: Apache-2.0
"""Calls to computes of Nova, which nothing stops once they are sent."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0004'
down_revision = '0003'

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'stock_calls',
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('epoch', sa.BigInteger(), nullable=False),
        sa.Column('over_at', TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint('host'),
    )
