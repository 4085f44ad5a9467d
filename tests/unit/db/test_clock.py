# SPDX-License-Identifier: Apache-2.0
"""The database's clock is read now and then, and follows a monotonic one in between."""

import datetime

import pytest

from nova_precache import exception
from nova_precache.db import clock
from nova_precache.db.engine import session
from tests.unit.conftest import World


class Monotonic:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clock_moves_between_readings(world: World) -> None:
    monotonic = Monotonic()
    database_clock = clock.DatabaseClock(world.database, monotonic)
    first = database_clock.now()

    monotonic.now += 50

    assert database_clock.now() - first == datetime.timedelta(seconds=50)


def test_correction_follows_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    database_clock = clock.DatabaseClock(world.database, Monotonic())
    first = database_clock.now()
    monkeypatch.setattr(session, 'now', lambda s: first - datetime.timedelta(hours=1))

    database_clock.correct()

    assert database_clock.now() == first - datetime.timedelta(hours=1)


def test_clock_survives_database_outage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic = Monotonic()
    database_clock = clock.DatabaseClock(world.database, monotonic)
    first = database_clock.now()

    def fail(s: object) -> datetime.datetime:
        raise exception.DatabaseUnavailable('it is away')

    monkeypatch.setattr(session, 'now', fail)
    monotonic.now += 5
    with pytest.raises(exception.DatabaseUnavailable):
        database_clock.correct()

    assert database_clock.now() - first == datetime.timedelta(seconds=5)
