# SPDX-License-Identifier: Apache-2.0
"""Cells whose databases have the services of a Nova."""

import datetime
import pathlib
from collections.abc import Collection, Iterator
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.cells import liveness
from tests.clock import Clock
from tests.unit.conftest import DOWN_SECONDS, World
from tools.waiting import TIMEOUT_SECONDS

# As Nova makes it, but without columns that no code here reads.
_SERVICES = sa.Table(
    'services',
    sa.MetaData(),
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('host', sa.String(255)),
    sa.Column('binary', sa.String(255)),
    sa.Column('deleted', sa.Integer, default=0),
    sa.Column('disabled', sa.Boolean, default=False),
    sa.Column('disabled_reason', sa.String(255)),
    sa.Column('forced_down', sa.Boolean, default=False),
    sa.Column('last_seen_up', sa.DateTime),
    sa.Column('created_at', sa.DateTime),
)


class CellDatabase:
    """A cell's database with its services."""

    def __init__(self, path: pathlib.Path) -> None:
        self.url = f'sqlite:///{path}'
        self._engine = sa.create_engine(self.url)
        _SERVICES.create(self._engine)

    def add(self, host: str, seen_seconds_ago: float | None = 1, **more: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        seen = None
        if seen_seconds_ago is not None:
            seen = now - datetime.timedelta(seconds=seen_seconds_ago)
        row = {'host': host, 'binary': 'nova-compute', 'last_seen_up': seen, **more}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_SERVICES).values(row))

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def first(tmp_path: pathlib.Path) -> Iterator[CellDatabase]:
    made = CellDatabase(tmp_path / 'cell1.sqlite')
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alive(world: World, clock: Clock) -> Iterator[liveness.NovaLiveness]:
    made = liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock, wait_patiently)
    yield made
    made.close()


def wait_patiently(asked: Collection[futures.Future[Any]], seconds: float) -> None:
    """Wait for the answers of cells for longer than a busy machine needs."""
    futures.wait(asked, TIMEOUT_SECONDS)


def open_cell(world: World, name: str, url: str, *hosts: str) -> model.Cell:
    """Map a cell with the database of the URL, and hosts to it."""
    cell = world.inventory.create_cell(name, f'fake:///{name}', url)
    for host in hosts:
        world.inventory.map_host(host, cell.uuid)
    return cell
