# SPDX-License-Identifier: Apache-2.0
"""The inventory's tables, with the names and columns of Nova's API database."""

import datetime

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column


class InventoryBase(orm.DeclarativeBase):
    """Base of the inventory tables; beside Nova, these are Nova's own and are only read."""


class Timestamps:
    """The two columns that all these tables have."""

    created_at: Mapped[datetime.datetime | None] = mapped_column(sa.DateTime)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(sa.DateTime)


class Aggregate(Timestamps, InventoryBase):
    __tablename__ = 'aggregates'
    __table_args__ = (
        sa.UniqueConstraint('name', name='uniq_aggregate0name'),
        sa.Index('aggregate_uuid_idx', 'uuid'),
    )

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    uuid: Mapped[str | None] = mapped_column(sa.String(36))
    name: Mapped[str | None] = mapped_column(sa.String(255))


class AggregateHost(Timestamps, InventoryBase):
    __tablename__ = 'aggregate_hosts'
    __table_args__ = (
        sa.UniqueConstraint('host', 'aggregate_id', name='uniq_aggregate_hosts0host0aggregate_id'),
    )

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    host: Mapped[str | None] = mapped_column(sa.String(255))
    aggregate_id: Mapped[int] = mapped_column(sa.ForeignKey('aggregates.id'))


class AggregateMetadata(Timestamps, InventoryBase):
    __tablename__ = 'aggregate_metadata'
    __table_args__ = (
        sa.UniqueConstraint('aggregate_id', 'key', name='uniq_aggregate_metadata0aggregate_id0key'),
        sa.Index('aggregate_metadata_key_idx', 'key'),
    )

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(sa.String(255))
    value: Mapped[str] = mapped_column(sa.String(255))
    aggregate_id: Mapped[int] = mapped_column(sa.ForeignKey('aggregates.id'))


class CellMapping(Timestamps, InventoryBase):
    __tablename__ = 'cell_mappings'
    __table_args__ = (sa.UniqueConstraint('uuid', name='uniq_cell_mappings0uuid'),)

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    uuid: Mapped[str] = mapped_column(sa.String(36))
    name: Mapped[str | None] = mapped_column(sa.String(255))
    transport_url: Mapped[str | None] = mapped_column(sa.Text)
    database_connection: Mapped[str | None] = mapped_column(sa.Text)
    disabled: Mapped[bool | None] = mapped_column(sa.Boolean, default=False)


class HostMapping(Timestamps, InventoryBase):
    __tablename__ = 'host_mappings'
    __table_args__ = (
        sa.UniqueConstraint('host', name='uniq_host_mappings0host'),
        sa.Index('host_idx', 'host'),
    )

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    cell_id: Mapped[int] = mapped_column(sa.ForeignKey('cell_mappings.id'))
    host: Mapped[str] = mapped_column(sa.String(255))
