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

from nova_precache.db.engine import texts

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
    """A request to cache images.

    Without an aggregate, ``aggregate_id`` is 0 and its uuid and name are empty: SQLite cannot
    drop NOT NULL in a table that rows of other tables depend on. ``client_key`` is a hash of
    the client's own id and its project, which no collation confuses with another.
    ``is_planned``: its plan is complete. ``not_before`` is empty once it has passed.
    ``announced`` counts the positions given to announcements.
    """

    __tablename__ = 'cache_requests'
    __table_args__ = (
        sa.Index('cache_requests_status_idx', 'status'),
        sa.Index('cache_requests_project_idx', 'project_id', 'status'),
        sa.Index('cache_requests_created_idx', 'created_at'),
        sa.Index('cache_requests_aggregate_idx', 'aggregate_id'),
        sa.Index('cache_requests_pin_idx', 'pin_id'),
        sa.Index('cache_requests_client_idx', 'client_key', unique=True),
    )

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    number: Mapped[int] = mapped_column(BigId, unique=True)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(texts.Reason)
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
    global_request_id: Mapped[str | None] = mapped_column(sa.String(255))
    hosts_total: Mapped[int] = mapped_column(sa.Integer, default=0)
    hosts_done: Mapped[int] = mapped_column(sa.Integer, default=0)
    hosts: Mapped[list[str] | None] = mapped_column(sa.JSON(none_as_null=True))
    description: Mapped[str | None] = mapped_column(sa.Text)
    client_request_id: Mapped[str | None] = mapped_column(sa.String(255))
    client_key: Mapped[str | None] = mapped_column(sa.String(64))
    pin_id: Mapped[str | None] = mapped_column(Uuid)
    not_before: Mapped[datetime.datetime | None]
    deadline: Mapped[datetime.datetime | None]
    max_parallel_hosts: Mapped[int | None] = mapped_column(sa.Integer)
    max_failures: Mapped[int | None] = mapped_column(sa.Integer)
    is_planned: Mapped[bool] = mapped_column(sa.Boolean, default=False, server_default=sa.false())
    canary_passed: Mapped[bool] = mapped_column(sa.Boolean, default=True, server_default=sa.true())
    announced: Mapped[int] = mapped_column(BigId, default=0, server_default='0')
    planner: Mapped[str | None] = mapped_column(Uuid)
    planner_lease_until: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    planned_at: Mapped[datetime.datetime | None]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class RequestImage(Base):
    """An image that a request names, to find requests by image."""

    __tablename__ = 'cache_request_images'
    __table_args__ = (sa.Index('cache_request_images_image_idx', 'image_id'),)

    request_id: Mapped[str] = mapped_column(
        Uuid, sa.ForeignKey('cache_requests.id', ondelete='CASCADE'), primary_key=True
    )
    image_id: Mapped[str] = mapped_column(Uuid, primary_key=True)


class Job(Base):
    """The work on one (host, image).

    ``active_key`` makes it unique while active. It may be claimed while it is ``ready``: a
    task in flight of a complete plan wants it and is ``open``. ``stop_why`` is the reason why
    a compute is to stop it; for an ended job, it orders the removal of its partial file.
    ``changes`` counts the changes of its rate and deadline during its calls; its compute has
    those up to ``changes_sent``.
    """

    __tablename__ = 'jobs'
    __table_args__ = (
        sa.Index('jobs_host_idx', 'host', 'status'),
        sa.Index('jobs_stop_idx', 'stop_why'),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    uuid: Mapped[str] = mapped_column(Uuid, unique=True)
    active_key: Mapped[str | None] = mapped_column(sa.String(300), unique=True)
    host: Mapped[str] = mapped_column(Host)
    cell_uuid: Mapped[str] = mapped_column(Uuid)
    image_id: Mapped[str] = mapped_column(Uuid)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(texts.Reason)
    priority: Mapped[int] = mapped_column(sa.Integer, default=0)
    ready: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    epoch: Mapped[int | None] = mapped_column(BigId)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=0)
    mismatches: Mapped[int] = mapped_column(sa.Integer, default=0)
    bytes_done: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_total: Mapped[int | None] = mapped_column(Bytes)
    rate_bytes: Mapped[int | None] = mapped_column(Bytes)
    stop_why: Mapped[str | None] = mapped_column(Status)
    stop_keep: Mapped[bool] = mapped_column(sa.Boolean, default=False, server_default=sa.false())
    changes: Mapped[int] = mapped_column(sa.Integer, default=0, server_default='0')
    changes_sent: Mapped[int] = mapped_column(sa.Integer, default=0, server_default='0')
    progress_sequence: Mapped[int] = mapped_column(BigId, default=0)
    progress_at: Mapped[datetime.datetime | None]
    next_attempt_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


# In claim order, so that the next job is found without a scan: of all, and of each cell, where
# jobs that are not due are passed over in the index.
sa.Index('jobs_due_idx', Job.status, Job.ready, Job.priority.desc(), Job.id)
sa.Index(
    'jobs_share_idx',
    Job.ready,
    Job.cell_uuid,
    Job.priority.desc(),
    Job.id,
    Job.next_attempt_at,
)


class Task(Base):
    """One (request, host, image): a snapshot of names, and its outcome.

    ``open``: its request lets it run now, since it is not paused, its window has begun, and
    its canary has passed or the host belongs to the canary.
    """

    __tablename__ = 'cache_tasks'
    __table_args__ = (
        sa.UniqueConstraint('request_id', 'host', 'image_id', name='cache_tasks_once'),
        sa.Index('cache_tasks_status_idx', 'request_id', 'status', 'id'),
        sa.Index('cache_tasks_request_idx', 'request_id', 'id'),
        sa.Index('cache_tasks_job_idx', 'job_uuid'),
        sa.Index('cache_tasks_host_idx', 'host', 'id'),
        sa.Index('cache_tasks_image_idx', 'image_id', 'id'),
        sa.Index('cache_tasks_state_idx', 'status', 'id'),
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
    reason: Mapped[str | None] = mapped_column(texts.Reason)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=0)
    bytes_done: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_total: Mapped[int | None] = mapped_column(Bytes)
    rate_bytes: Mapped[int | None] = mapped_column(Bytes)
    open: Mapped[bool] = mapped_column(sa.Boolean, default=True, server_default=sa.true())
    next_attempt_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class TaskCount(Base):
    """The tasks of a request in one status that is not at work; see ``db.task_counts``.

    The sums of bytes are those that are shown: an unknown size counts as the bytes done.
    """

    __tablename__ = 'task_counts'

    request_id: Mapped[str] = mapped_column(
        Uuid, sa.ForeignKey('cache_requests.id', ondelete='CASCADE'), primary_key=True
    )
    status: Mapped[str] = mapped_column(Status, primary_key=True)
    tasks: Mapped[int] = mapped_column(Bytes)
    bytes_done: Mapped[int] = mapped_column(Bytes)
    bytes_total: Mapped[int] = mapped_column(Bytes)


class Announcement(Base):
    """A notification that is still to be sent; see :mod:`nova_precache.db.outbox`."""

    __tablename__ = 'announcements'

    request_id: Mapped[str] = mapped_column(
        Uuid, sa.ForeignKey('cache_requests.id', ondelete='CASCADE'), primary_key=True
    )
    position: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    phase: Mapped[str] = mapped_column(Status)
    host: Mapped[str | None] = mapped_column(Host)
    host_index: Mapped[int | None] = mapped_column(sa.Integer)
    taken_until: Mapped[datetime.datetime | None]


class Claim(Base):
    """A conductor's lease on a host. The row stays, so that its epoch only grows.

    It holds a Glance stream unless ``stream_released_by`` is its conductor.
    """

    __tablename__ = 'claims'

    host: Mapped[str] = mapped_column(Host, primary_key=True)
    cell_uuid: Mapped[str] = mapped_column(Uuid)
    conductor_id: Mapped[str | None] = mapped_column(Uuid, index=True)
    epoch: Mapped[int] = mapped_column(BigId)
    lease_expires_at: Mapped[datetime.datetime | None]
    stream_released_by: Mapped[str | None] = mapped_column(Uuid)


class StockCall(Base):
    """The one call that was sent to a nova-compute and is not answered yet.

    ``epoch`` is that of its job; after ``over_at`` the call counts as ended.
    """

    __tablename__ = 'stock_calls'

    host: Mapped[str] = mapped_column(Host, primary_key=True)
    epoch: Mapped[int] = mapped_column(sa.BigInteger)
    over_at: Mapped[datetime.datetime]


class Counter(Base):
    """The number of claimed hosts, locked by each claim, the last number handed out, or a time."""

    __tablename__ = 'counters'

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigId)


class Agent(Base):
    """A compute's agent, as last reported."""

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
    stopped_at: Mapped[datetime.datetime | None]


class Service(Base):
    """A process of a conductor or an API, as last reported."""

    __tablename__ = 'services'
    __table_args__ = (sa.Index('services_host_idx', 'binary', 'host'),)

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    binary: Mapped[str] = mapped_column(sa.String(64))
    host: Mapped[str] = mapped_column(Host)
    version: Mapped[str] = mapped_column(sa.String(64))
    started_at: Mapped[datetime.datetime]
    seen_at: Mapped[datetime.datetime]
    stopped_at: Mapped[datetime.datetime | None]


class Hearing(Base):
    """The time in which a cell could be heard; see :mod:`nova_precache.db.hearing`."""

    __tablename__ = 'hearings'

    cell_uuid: Mapped[str] = mapped_column(Uuid, primary_key=True)
    since: Mapped[datetime.datetime]
    until: Mapped[datetime.datetime]


class CachedImage(Base):
    """A file in the cache of a host, as its compute last reported it."""

    __tablename__ = 'cached_images'
    __table_args__ = (sa.Index('cached_images_name_idx', 'name'),)

    host: Mapped[str] = mapped_column(Host, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(Bytes)
    disk_bytes: Mapped[int] = mapped_column(Bytes)
    touched_at: Mapped[datetime.datetime]
    used_by: Mapped[int | None] = mapped_column(sa.Integer)
    reported_at: Mapped[datetime.datetime]


class ImageName(Base):
    """The image of a file in a cache, whose name is a hash of the image's id."""

    __tablename__ = 'image_names'

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    image_id: Mapped[str] = mapped_column(Uuid)


class Pin(Base):
    """Images that are kept cached on the hosts of an aggregate."""

    __tablename__ = 'pins'
    __table_args__ = (
        sa.Index('pins_status_idx', 'status', 'checked_at'),
        sa.Index('pins_aggregate_idx', 'aggregate_id'),
    )

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    number: Mapped[int] = mapped_column(BigId, unique=True)
    status: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(texts.Reason)
    aggregate_id: Mapped[int] = mapped_column(sa.Integer)
    aggregate_uuid: Mapped[str] = mapped_column(Uuid)
    aggregate_name: Mapped[str] = mapped_column(sa.String(255))
    images: Mapped[list[str]] = mapped_column(sa.JSON)
    images_gone: Mapped[dict[str, str]] = mapped_column(texts.Reasons)
    description: Mapped[str | None] = mapped_column(sa.Text)
    project_id: Mapped[str | None] = mapped_column(sa.String(255))
    user_id: Mapped[str | None] = mapped_column(sa.String(255))
    is_admin: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    request_id: Mapped[str | None] = mapped_column(sa.String(255))
    until: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    checked_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime | None]
    keeper: Mapped[str | None] = mapped_column(Uuid)
    keeper_lease_until: Mapped[datetime.datetime | None]
