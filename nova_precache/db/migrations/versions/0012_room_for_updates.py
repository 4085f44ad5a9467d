# SPDX-License-Identifier: Apache-2.0
"""Rows that change with each report of progress have room for their next version beside them.

Otherwise PostgreSQL writes the new version elsewhere, and an entry for it into each index.
"""

from alembic import op

revision = '0012'
down_revision = '0011'


def upgrade() -> None:
    if op.get_context().dialect.name == 'postgresql':
        # This applies to new pages; full ones get room as their rows move.
        for table in ('jobs', 'cache_tasks'):
            op.execute(f'ALTER TABLE {table} SET (fillfactor = 50)')
