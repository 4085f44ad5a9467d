# SPDX-License-Identifier: Apache-2.0
"""Since when the conductors can hear each cell, so that an outage is not counted as silence."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0006'
down_revision = '0005'

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'hearings',
        sa.Column('cell_uuid', sa.String(length=36), nullable=False),
        sa.Column('since', TIMESTAMP, nullable=False),
        sa.Column('until', TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint('cell_uuid'),
    )
