# SPDX-License-Identifier: Apache-2.0
"""A compute is ready if it is registered, a conductor answers, and its disk can be written."""

import dataclasses
import re
import uuid

import pytest

from nova_precache import conf as options, exception, rpc
from nova_precache.compute import health
from nova_precache.virt import fake as fake_driver


class Driver(fake_driver.FakeDriver):
    """Has a disk that a test breaks."""

    problem: str | None = None

    def why_unusable(self) -> str | None:
        return self.problem


@dataclasses.dataclass
class Conductor:
    """Answers, or raises the error."""

    age: float | None = 1.0
    error: Exception | None = None
    asked: int = 0

    def answered_seconds_ago(self) -> float | None:
        return self.age

    def ask(self, seconds: float) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.age = 0.0


@pytest.fixture
def broker() -> rpc.Transport:
    made = rpc.connect(options.new(config_files=[]), f'fake:///{uuid.uuid4().hex}')
    with made.noted():
        pass
    return made


@pytest.fixture
def driver() -> Driver:
    return Driver(options.new(config_files=[]))


def _missing(
    broker: rpc.Transport, driver: Driver, conductor: Conductor, *, is_registered: bool = True
) -> dict[str, str]:
    checks = health.ComputeHealth(lambda: is_registered, broker, conductor, driver, 15)
    found = checks.check()
    assert found.is_ready == (not found.missing)
    return {each.what: each.reason for each in found.missing}


def test_compute_with_everything_is_ready(broker: rpc.Transport, driver: Driver) -> None:
    conductor = Conductor()

    assert _missing(broker, driver, conductor) == {}
    assert conductor.asked == 0


def test_unregistered_compute_is_not_ready(broker: rpc.Transport, driver: Driver) -> None:
    missing = _missing(broker, driver, Conductor(), is_registered=False)

    assert missing == {'registration': 'no conductor has registered this host'}


def test_idle_compute_asks_conductor(broker: rpc.Transport, driver: Driver) -> None:
    conductor = Conductor(age=health.ASK_AFTER_SECONDS + 1)

    assert _missing(broker, driver, conductor) == {}
    assert _missing(broker, driver, conductor) == {}
    assert conductor.asked == 1


@pytest.mark.parametrize(
    ('age', 'since'), [(None, 'so far'), (health.ASK_AFTER_SECONDS + 10, 'for 70 s')]
)
def test_silent_conductor_is_missing(
    broker: rpc.Transport, driver: Driver, age: float | None, since: str
) -> None:
    conductor = Conductor(age, exception.CellUnreachable('timed out'))

    assert _missing(broker, driver, conductor) == {'conductor': f'no answer {since}: timed out'}


def test_broker_outage_is_named(broker: rpc.Transport, driver: Driver) -> None:
    broker.outage.began(exception.CellUnreachable('connection refused'))
    conductor = Conductor(age=None)

    missing = _missing(broker, driver, conductor)

    assert list(missing) == ['broker']
    assert re.fullmatch(r'unavailable for \d+ s: connection refused', missing['broker'])
    assert conductor.asked == 0  # it could not answer


def test_unusable_disk_is_named(broker: rpc.Transport, driver: Driver) -> None:
    driver.problem = '/instances/_base is not writable'

    assert _missing(broker, driver, Conductor()) == {
        'instances_path': '/instances/_base is not writable'
    }
