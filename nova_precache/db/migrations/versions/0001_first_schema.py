# SPDX-License-Identifier: Apache-2.0
"""The first schema: requests, tasks, jobs, claims, agents, and the inventory of a standalone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0001'
down_revision = None

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def upgrade() -> None:
    _create_agents()
    _create_cache_requests()
    _create_claims()
    _create_counters()
    _create_jobs()
    _create_cache_tasks()
    _create_aggregates()
    _create_cell_mappings()
    _create_aggregate_hosts()
    _create_aggregate_metadata()
    _create_host_mappings()
    op.bulk_insert(
        sa.table('counters', sa.column('name'), sa.column('value')),
        [{'name': 'claimed_hosts', 'value': 0}, {'name': 'requests', 'value': 0}],
    )


def _create_agents() -> None:
    op.create_table(
        'agents',
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('agent_id', sa.String(length=36), nullable=False),
        sa.Column('cell_uuid', sa.String(length=36), nullable=False),
        sa.Column('boot_id', sa.String(length=64), nullable=True),
        sa.Column('version', sa.String(length=64), nullable=True),
        sa.Column('driver', sa.String(length=255), nullable=True),
        sa.Column('store_id', sa.String(length=64), nullable=True),
        sa.Column('cache_bytes', sa.BigInteger(), nullable=True),
        sa.Column('free_bytes', sa.BigInteger(), nullable=True),
        sa.Column('capabilities', sa.JSON(), nullable=False),
        sa.Column('started_at', TIMESTAMP, nullable=False),
        sa.Column('seen_at', TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint('host'),
    )


def _create_cache_requests() -> None:
    op.create_table(
        'cache_requests',
        sa.Column('id', sa.String(length=36), nullable=False),
        sa.Column('number', BIG_ID, nullable=False),
        sa.Column('status', sa.String(length=32), nullable=False),
        sa.Column('reason', sa.Text(), nullable=True),
        sa.Column('aggregate_id', sa.Integer(), nullable=False),
        sa.Column('aggregate_uuid', sa.String(length=36), nullable=False),
        sa.Column('aggregate_name', sa.String(length=255), nullable=False),
        sa.Column('images', sa.JSON(), nullable=False),
        sa.Column('options', sa.JSON(), nullable=False),
        sa.Column('priority', sa.Integer(), nullable=False),
        sa.Column('project_id', sa.String(length=255), nullable=True),
        sa.Column('user_id', sa.String(length=255), nullable=True),
        sa.Column('is_admin', sa.Boolean(), nullable=False),
        sa.Column('request_id', sa.String(length=255), nullable=True),
        sa.Column('hosts_total', sa.Integer(), nullable=False),
        sa.Column('hosts_done', sa.Integer(), nullable=False),
        sa.Column('planner', sa.String(length=36), nullable=True),
        sa.Column('planner_lease_until', TIMESTAMP, nullable=True),
        sa.Column('created_at', TIMESTAMP, nullable=False),
        sa.Column('planned_at', TIMESTAMP, nullable=True),
        sa.Column('started_at', TIMESTAMP, nullable=True),
        sa.Column('finished_at', TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('number'),
    )
    op.create_index('cache_requests_created_idx', 'cache_requests', ['created_at'], unique=False)
    op.create_index(
        'cache_requests_project_idx', 'cache_requests', ['project_id', 'status'], unique=False
    )
    op.create_index('cache_requests_status_idx', 'cache_requests', ['status'], unique=False)


def _create_claims() -> None:
    op.create_table(
        'claims',
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('cell_uuid', sa.String(length=36), nullable=False),
        sa.Column('conductor_id', sa.String(length=36), nullable=True),
        sa.Column('epoch', BIG_ID, nullable=False),
        sa.Column('lease_expires_at', TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint('host'),
    )
    op.create_index('ix_claims_conductor_id', 'claims', ['conductor_id'], unique=False)


def _create_counters() -> None:
    op.create_table(
        'counters',
        sa.Column('name', sa.String(length=64), nullable=False),
        sa.Column('value', BIG_ID, nullable=False),
        sa.PrimaryKeyConstraint('name'),
    )


def _create_jobs() -> None:
    op.create_table(
        'jobs',
        sa.Column('id', BIG_ID, autoincrement=True, nullable=False),
        sa.Column('uuid', sa.String(length=36), nullable=False),
        sa.Column('active_key', sa.String(length=300), nullable=True),
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('cell_uuid', sa.String(length=36), nullable=False),
        sa.Column('image_id', sa.String(length=36), nullable=False),
        sa.Column('status', sa.String(length=32), nullable=False),
        sa.Column('reason', sa.Text(), nullable=True),
        sa.Column('priority', sa.Integer(), nullable=False),
        sa.Column('ready', sa.Boolean(), nullable=False),
        sa.Column('epoch', BIG_ID, nullable=True),
        sa.Column('attempts', sa.Integer(), nullable=False),
        sa.Column('mismatches', sa.Integer(), nullable=False),
        sa.Column('bytes_done', sa.BigInteger(), nullable=False),
        sa.Column('bytes_total', sa.BigInteger(), nullable=True),
        sa.Column('progress_sequence', BIG_ID, nullable=False),
        sa.Column('progress_at', TIMESTAMP, nullable=True),
        sa.Column('next_attempt_at', TIMESTAMP, nullable=True),
        sa.Column('created_at', TIMESTAMP, nullable=False),
        sa.Column('started_at', TIMESTAMP, nullable=True),
        sa.Column('finished_at', TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('active_key'),
        sa.UniqueConstraint('uuid'),
    )
    op.create_index('jobs_active_idx', 'jobs', ['status', 'priority', 'id'], unique=False)
    op.create_index('jobs_host_idx', 'jobs', ['host', 'status'], unique=False)


def _create_cache_tasks() -> None:
    op.create_table(
        'cache_tasks',
        sa.Column('id', BIG_ID, autoincrement=True, nullable=False),
        sa.Column('request_id', sa.String(length=36), nullable=False),
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('cell_uuid', sa.String(length=36), nullable=True),
        sa.Column('image_id', sa.String(length=36), nullable=False),
        sa.Column('job_uuid', sa.String(length=36), nullable=True),
        sa.Column('status', sa.String(length=32), nullable=False),
        sa.Column('reason', sa.Text(), nullable=True),
        sa.Column('attempts', sa.Integer(), nullable=False),
        sa.Column('bytes_done', sa.BigInteger(), nullable=False),
        sa.Column('bytes_total', sa.BigInteger(), nullable=True),
        sa.Column('next_attempt_at', TIMESTAMP, nullable=True),
        sa.Column('created_at', TIMESTAMP, nullable=False),
        sa.Column('started_at', TIMESTAMP, nullable=True),
        sa.Column('finished_at', TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(['request_id'], ['cache_requests.id'], ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('request_id', 'host', 'image_id', name='cache_tasks_once'),
    )
    op.create_index('cache_tasks_job_idx', 'cache_tasks', ['job_uuid'], unique=False)
    op.create_index('cache_tasks_status_idx', 'cache_tasks', ['request_id', 'status'], unique=False)


def _create_aggregates() -> None:
    op.create_table(
        'aggregates',
        sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
        sa.Column('uuid', sa.String(length=36), nullable=True),
        sa.Column('name', sa.String(length=255), nullable=True),
        sa.Column('created_at', sa.DateTime(), nullable=True),
        sa.Column('updated_at', sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('name', name='uniq_aggregate0name'),
    )
    op.create_index('aggregate_uuid_idx', 'aggregates', ['uuid'], unique=False)


def _create_cell_mappings() -> None:
    op.create_table(
        'cell_mappings',
        sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
        sa.Column('uuid', sa.String(length=36), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=True),
        sa.Column('transport_url', sa.Text(), nullable=True),
        sa.Column('database_connection', sa.Text(), nullable=True),
        sa.Column('disabled', sa.Boolean(), nullable=True),
        sa.Column('created_at', sa.DateTime(), nullable=True),
        sa.Column('updated_at', sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('uuid', name='uniq_cell_mappings0uuid'),
    )


def _create_aggregate_hosts() -> None:
    op.create_table(
        'aggregate_hosts',
        sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
        sa.Column('host', sa.String(length=255), nullable=True),
        sa.Column('aggregate_id', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.DateTime(), nullable=True),
        sa.Column('updated_at', sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ['aggregate_id'],
            ['aggregates.id'],
        ),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('host', 'aggregate_id', name='uniq_aggregate_hosts0host0aggregate_id'),
    )


def _create_aggregate_metadata() -> None:
    op.create_table(
        'aggregate_metadata',
        sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
        sa.Column('key', sa.String(length=255), nullable=False),
        sa.Column('value', sa.String(length=255), nullable=False),
        sa.Column('aggregate_id', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.DateTime(), nullable=True),
        sa.Column('updated_at', sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ['aggregate_id'],
            ['aggregates.id'],
        ),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('aggregate_id', 'key', name='uniq_aggregate_metadata0aggregate_id0key'),
    )
    op.create_index('aggregate_metadata_key_idx', 'aggregate_metadata', ['key'], unique=False)


def _create_host_mappings() -> None:
    op.create_table(
        'host_mappings',
        sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
        sa.Column('cell_id', sa.Integer(), nullable=False),
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('created_at', sa.DateTime(), nullable=True),
        sa.Column('updated_at', sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ['cell_id'],
            ['cell_mappings.id'],
        ),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('host', name='uniq_host_mappings0host'),
    )
    op.create_index('host_idx', 'host_mappings', ['host'], unique=False)
