# SPDX-License-Identifier: Apache-2.0
"""The tables. Statuses are strings, times are UTC by the database's clock.

Nothing here refers to the inventory's tables, which may live in Nova's database.
"""

import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Mapped, mapped_column

Timestamp = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
BigId = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')
Host = sa.String(255)
Uuid = sa.String(36)
Status = sa.String(32)
Bytes = sa.BigInteger


class Base(orm.DeclarativeBase):
    """The tables of this service."""

    type_annotation_map = {datetime.datetime: Timestamp}  # noqa: RUF012


class CacheRequest(Base):
    """What somebody asked for."""

    __tablename__ = 'cache_requests'
    __table_args__ = (
        sa.Index('cache_requests_status_idx', 'status'),
        sa.Index('cache_requests_project_idx', 'project_id', 'status'),
        sa.Index('cache_requests_created_idx', 'created_at'),
    )

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    number: Mapped[int] = mapped_column(BigId, unique=True)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    aggregate_id: Mapped[int] = mapped_column(sa.Integer)
    aggregate_uuid: Mapped[str] = mapped_column(Uuid)
    aggregate_name: Mapped[str] = mapped_column(sa.String(255))
    images: Mapped[list[str]] = mapped_column(sa.JSON)
    options: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    priority: Mapped[int] = mapped_column(sa.Integer, default=0)
    project_id: Mapped[str | None] = mapped_column(sa.String(255))
    user_id: Mapped[str | None] = mapped_column(sa.String(255))
    is_admin: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    request_id: Mapped[str | None] = mapped_column(sa.String(255))
    hosts_total: Mapped[int] = mapped_column(sa.Integer, default=0)
    hosts_done: Mapped[int] = mapped_column(sa.Integer, default=0)
    planner: Mapped[str | None] = mapped_column(Uuid)
    planner_lease_until: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    planned_at: Mapped[datetime.datetime | None]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class Job(Base):
    """The work on one (host, image).

    ``active_key`` makes it unique while active; it may be claimed once it is
    ``ready``, which it is when the plan that made it is complete.
    """

    __tablename__ = 'jobs'
    __table_args__ = (
        sa.Index('jobs_active_idx', 'status', 'priority', 'id'),
        sa.Index('jobs_host_idx', 'host', 'status'),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    uuid: Mapped[str] = mapped_column(Uuid, unique=True)
    active_key: Mapped[str | None] = mapped_column(sa.String(300), unique=True)
    host: Mapped[str] = mapped_column(Host)
    cell_uuid: Mapped[str] = mapped_column(Uuid)
    image_id: Mapped[str] = mapped_column(Uuid)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    priority: Mapped[int] = mapped_column(sa.Integer, default=0)
    ready: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    epoch: Mapped[int | None] = mapped_column(BigId)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=0)
    mismatches: Mapped[int] = mapped_column(sa.Integer, default=0)
    bytes_done: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_total: Mapped[int | None] = mapped_column(Bytes)
    progress_sequence: Mapped[int] = mapped_column(BigId, default=0)
    progress_at: Mapped[datetime.datetime | None]
    next_attempt_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class Task(Base):
    """One (request, host, image): a snapshot of names, and its outcome."""

    __tablename__ = 'cache_tasks'
    __table_args__ = (
        sa.UniqueConstraint('request_id', 'host', 'image_id', name='cache_tasks_once'),
        sa.Index('cache_tasks_status_idx', 'request_id', 'status'),
        sa.Index('cache_tasks_job_idx', 'job_uuid'),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(
        Uuid, sa.ForeignKey('cache_requests.id', ondelete='CASCADE')
    )
    host: Mapped[str] = mapped_column(Host)
    cell_uuid: Mapped[str | None] = mapped_column(Uuid)
    image_id: Mapped[str] = mapped_column(Uuid)
    job_uuid: Mapped[str | None] = mapped_column(Uuid)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=0)
    bytes_done: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_total: Mapped[int | None] = mapped_column(Bytes)
    next_attempt_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class Announcement(Base):
    """A notification that is still to be sent; see :mod:`nova_precache.db.announcements`."""

    __tablename__ = 'announcements'

    request_id: Mapped[str] = mapped_column(
        Uuid, sa.ForeignKey('cache_requests.id', ondelete='CASCADE'), primary_key=True
    )
    position: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    phase: Mapped[str] = mapped_column(Status)
    host: Mapped[str | None] = mapped_column(Host)
    taken_until: Mapped[datetime.datetime | None]


class Claim(Base):
    """A conductor's lease on a host. The row stays, so that its epoch only grows."""

    __tablename__ = 'claims'

    host: Mapped[str] = mapped_column(Host, primary_key=True)
    cell_uuid: Mapped[str] = mapped_column(Uuid)
    conductor_id: Mapped[str | None] = mapped_column(Uuid, index=True)
    epoch: Mapped[int] = mapped_column(BigId)
    lease_expires_at: Mapped[datetime.datetime | None]


class Counter(Base):
    """A number that a claim's transaction compares and sets; also hands out numbers."""

    __tablename__ = 'counters'

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigId)


class Agent(Base):
    """A compute's agent as it last reported itself."""

    __tablename__ = 'agents'

    host: Mapped[str] = mapped_column(Host, primary_key=True)
    agent_id: Mapped[str] = mapped_column(Uuid)
    cell_uuid: Mapped[str] = mapped_column(Uuid)
    boot_id: Mapped[str | None] = mapped_column(sa.String(64))
    version: Mapped[str | None] = mapped_column(sa.String(64))
    driver: Mapped[str | None] = mapped_column(sa.String(255))
    store_id: Mapped[str | None] = mapped_column(sa.String(64))
    cache_bytes: Mapped[int | None] = mapped_column(Bytes)
    free_bytes: Mapped[int | None] = mapped_column(Bytes)
    capabilities: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    started_at: Mapped[datetime.datetime]
    seen_at: Mapped[datetime.datetime]
