# SPDX-License-Identifier: Apache-2.0
"""Requests that are followed and steered, the contents of caches, and pins.

SQLite can only add columns: rebuilding a table would delete the rows that depend on it.
"""

import hashlib

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0003'
down_revision = '0002'

TIMESTAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def upgrade() -> None:
    _extend_cache_requests()
    _extend_jobs()
    _extend_cache_tasks()
    _extend_announcements()
    _create_cache_request_images()
    _create_cached_images()
    _create_image_names()
    _fill_image_names()
    _create_pins()
    op.bulk_insert(
        sa.table('counters', sa.column('name'), sa.column('value')), [{'name': 'pins', 'value': 0}]
    )


def _extend_cache_requests() -> None:
    for column in (
        sa.Column('hosts', sa.JSON(none_as_null=True), nullable=True),
        sa.Column('description', sa.Text(), nullable=True),
        sa.Column('client_request_id', sa.String(length=255), nullable=True),
        sa.Column('client_key', sa.String(length=64), nullable=True),
        sa.Column('pin_id', sa.String(length=36), nullable=True),
        sa.Column('not_before', TIMESTAMP, nullable=True),
        sa.Column('deadline', TIMESTAMP, nullable=True),
        sa.Column('max_parallel_hosts', sa.Integer(), nullable=True),
        sa.Column('max_failures', sa.Integer(), nullable=True),
        sa.Column('is_planned', sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column('canary_passed', sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column('announced', BIG_ID, server_default='0', nullable=False),
    ):
        op.add_column('cache_requests', column)
    op.create_index('cache_requests_aggregate_idx', 'cache_requests', ['aggregate_id'])
    op.create_index('cache_requests_pin_idx', 'cache_requests', ['pin_id'])
    op.create_index('cache_requests_client_idx', 'cache_requests', ['client_key'], unique=True)
    requests = sa.table('cache_requests', sa.column('status'), sa.column('is_planned'))
    op.execute(
        sa.update(requests).where(requests.c.status != 'accepted').values(is_planned=sa.true())
    )


def _extend_announcements() -> None:
    op.add_column('announcements', sa.Column('host_index', sa.Integer(), nullable=True))
    op.execute(sa.text('UPDATE announcements SET host_index = position WHERE host IS NOT NULL'))
    # New announcements follow all that may still wait to be sent.
    op.execute(sa.text('UPDATE cache_requests SET announced = hosts_total + 2'))


def _extend_jobs() -> None:
    op.add_column('jobs', sa.Column('rate_bytes', sa.BigInteger(), nullable=True))
    op.add_column('jobs', sa.Column('stop_why', sa.String(length=32), nullable=True))
    op.add_column(
        'jobs', sa.Column('stop_keep', sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_index('jobs_stop_idx', 'jobs', ['stop_why'])
    op.create_index('jobs_due_idx', 'jobs', ['status', 'ready', sa.text('priority DESC'), 'id'])
    op.drop_index('jobs_active_idx', 'jobs')


def _extend_cache_tasks() -> None:
    op.add_column('cache_tasks', sa.Column('rate_bytes', sa.BigInteger(), nullable=True))
    op.add_column(
        'cache_tasks', sa.Column('open', sa.Boolean(), server_default=sa.true(), nullable=False)
    )


def _create_cache_request_images() -> None:
    op.create_table(
        'cache_request_images',
        sa.Column('request_id', sa.String(length=36), nullable=False),
        sa.Column('image_id', sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(['request_id'], ['cache_requests.id'], ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('request_id', 'image_id'),
    )
    op.create_index('cache_request_images_image_idx', 'cache_request_images', ['image_id'])
    _fill_cache_request_images()


def _fill_cache_request_images() -> None:
    requests = sa.table(
        'cache_requests', sa.column('id', sa.String()), sa.column('images', sa.JSON())
    )
    rows = [
        {'request_id': request_id, 'image_id': image_id}
        for request_id, images in op.get_bind().execute(sa.select(requests.c.id, requests.c.images))
        for image_id in images
    ]
    named = sa.table('cache_request_images', sa.column('request_id'), sa.column('image_id'))
    op.bulk_insert(named, rows)


def _create_cached_images() -> None:
    op.create_table(
        'cached_images',
        sa.Column('host', sa.String(length=255), nullable=False),
        sa.Column('name', sa.String(length=64), nullable=False),
        sa.Column('size_bytes', sa.BigInteger(), nullable=False),
        sa.Column('disk_bytes', sa.BigInteger(), nullable=False),
        sa.Column('touched_at', TIMESTAMP, nullable=False),
        sa.Column('used_by', sa.Integer(), nullable=True),
        sa.Column('reported_at', TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint('host', 'name'),
    )
    op.create_index('cached_images_name_idx', 'cached_images', ['name'])


def _create_image_names() -> None:
    op.create_table(
        'image_names',
        sa.Column('name', sa.String(length=64), nullable=False),
        sa.Column('image_id', sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint('name'),
    )


def _fill_image_names() -> None:
    asked = sa.table('cache_request_images', sa.column('image_id', sa.String()))
    image_ids = op.get_bind().scalars(sa.select(asked.c.image_id).distinct())
    rows = [
        {
            'name': hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest(),
            'image_id': image_id,
        }
        for image_id in image_ids
    ]
    names = sa.table('image_names', sa.column('name'), sa.column('image_id'))
    op.bulk_insert(names, rows)


def _create_pins() -> None:
    op.create_table(
        'pins',
        sa.Column('id', sa.String(length=36), nullable=False),
        sa.Column('number', BIG_ID, nullable=False),
        sa.Column('status', sa.String(length=32), nullable=False),
        sa.Column('reason', sa.Text(), nullable=True),
        sa.Column('aggregate_id', sa.Integer(), nullable=False),
        sa.Column('aggregate_uuid', sa.String(length=36), nullable=False),
        sa.Column('aggregate_name', sa.String(length=255), nullable=False),
        sa.Column('images', sa.JSON(), nullable=False),
        sa.Column('images_gone', sa.JSON(), nullable=False),
        sa.Column('description', sa.Text(), nullable=True),
        sa.Column('project_id', sa.String(length=255), nullable=True),
        sa.Column('user_id', sa.String(length=255), nullable=True),
        sa.Column('is_admin', sa.Boolean(), nullable=False),
        sa.Column('request_id', sa.String(length=255), nullable=True),
        sa.Column('until', TIMESTAMP, nullable=True),
        sa.Column('created_at', TIMESTAMP, nullable=False),
        sa.Column('checked_at', TIMESTAMP, nullable=True),
        sa.Column('ended_at', TIMESTAMP, nullable=True),
        sa.Column('keeper', sa.String(length=36), nullable=True),
        sa.Column('keeper_lease_until', TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint('id'),
        sa.UniqueConstraint('number'),
    )
    op.create_index('pins_status_idx', 'pins', ['status', 'checked_at'])
    op.create_index('pins_aggregate_idx', 'pins', ['aggregate_id'])
