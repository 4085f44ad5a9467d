# SPDX-License-Identifier: Apache-2.0
"""A conductor is ready with its database, the API's broker and the broker of some cell."""

import dataclasses
import uuid
from typing import Any

import pytest

from nova_precache import conf as options, exception, health as process_health, rpc
from nova_precache.conductor import health

SILENT_SECONDS = 15.0


@dataclasses.dataclass
class World:
    """The neighbours of a conductor: a database, and brokers with one clock."""

    now: float = 100.0
    database_error: Exception | None = None
    brokers: dict[str | None, rpc.Transport | None] = dataclasses.field(default_factory=dict)

    def ping(self) -> None:
        if self.database_error is not None:
            raise self.database_error

    def add(self, name: str | None) -> rpc.Transport:
        transport = rpc.connect(options.new(config_files=[]), f'fake:///{uuid.uuid4().hex}')
        transport.outage.clock = lambda: self.now
        self.brokers[name] = transport
        return transport

    def check(self) -> process_health.Finding:
        return health.ConductorHealth(self.ping, lambda: self.brokers, SILENT_SECONDS).check()


@pytest.fixture
def world() -> World:
    made = World()
    for name in (None, 'edge1', 'edge2'):
        with made.add(name).noted():
            pass
    return made


def _missing(found: process_health.Finding) -> dict[str, Any]:
    return {each.what: each.reason for each in found.missing}


def test_conductor_with_everything_is_ready(world: World) -> None:
    world.now += 3

    found = world.check()

    assert found.is_ready
    assert found.missing == []
    assert found.answered_seconds_ago == {
        'broker of the API': 3,
        'broker of cell edge1': 3,
        'broker of cell edge2': 3,
    }


def test_missing_database_is_named(world: World) -> None:
    world.database_error = exception.DatabaseUnavailable('the server has gone away')

    found = world.check()

    assert not found.is_ready
    assert list(_missing(found)) == ['database']
    assert _missing(found)['database'].startswith('The database cannot be reached')


def test_missing_api_broker_is_named(world: World) -> None:
    api = world.brokers[None]
    assert api is not None
    api.outage.began(exception.CellUnreachable('connection refused'))
    world.now += 40

    found = world.check()

    assert not found.is_ready
    assert _missing(found)['broker of the API'] == 'unavailable for 40 s: connection refused'


def test_silent_brokers_are_away(world: World) -> None:
    world.now += SILENT_SECONDS + 1

    assert _missing(world.check())['broker of cell edge1'] == 'no answer for 16 s'


def test_dead_cell_leaves_conductor_ready(world: World) -> None:
    world.add('edge1')

    found = world.check()

    assert found.is_ready
    assert _missing(found) == {'broker of cell edge1': 'not connected yet'}


def test_conductor_without_any_cell_unready(world: World) -> None:
    world.add('edge1')
    world.brokers['edge2'] = None

    found = world.check()

    assert not found.is_ready
    assert _missing(found) == {
        'broker of cell edge1': 'not connected yet',
        'broker of cell edge2': 'it cannot be served; see the log',
    }


def test_deployment_without_cells_is_ready(world: World) -> None:
    del world.brokers['edge1'], world.brokers['edge2']

    assert world.check().is_ready
