# SPDX-License-Identifier: Apache-2.0
"""Runs migrations on the connection that ``db.engine.schema`` opened."""

from alembic import context

from nova_precache.db.engine import models, schema

context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=models.Base.metadata,
    version_table=schema.VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
