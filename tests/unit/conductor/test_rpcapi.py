# SPDX-License-Identifier: Apache-2.0
"""How the API tells conductors of work: once, and without waiting for a silent broker."""

import threading
from typing import Any

import pytest

from nova_precache import context, exception
from nova_precache.conductor import rpcapi

CTXT = context.admin_context()
WAIT_SECONDS = 20


class Broker:
    """A transport, and its only client, whose broker takes casts when it is told to."""

    def __init__(self) -> None:
        self.casts = 0
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.done = threading.Semaphore(0)

    def client(self, topic: str, version_cap: str | None, retries: int) -> 'Broker':
        assert (topic, retries) == (rpcapi.API_TOPIC, 0)
        return self

    def cast(self, ctxt: context.RequestContext, method: str, version: str) -> None:
        self.casts += 1
        try:
            assert self.answers.wait(WAIT_SECONDS)
            if self.error is not None:
                raise self.error
        finally:
            self.done.release()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def api(broker: Any, monkeypatch: pytest.MonkeyPatch) -> rpcapi.ConductorAPI:
    monkeypatch.setattr(rpcapi, 'WAKE_SECONDS', WAIT_SECONDS)
    return rpcapi.ConductorAPI(broker)


def test_each_request_is_told_of(api: rpcapi.ConductorAPI, broker: Broker) -> None:
    for _ in range(2):
        api.work_available(CTXT)

    assert broker.casts == 2


def test_a_broker_that_takes_nothing_is_told_to_whoever_asks(
    api: rpcapi.ConductorAPI, broker: Broker
) -> None:
    broker.error = exception.CellUnreachable('no route to host')

    with pytest.raises(exception.CellUnreachable, match='no route to host'):
        api.work_available(CTXT)


def test_a_silent_broker_is_not_waited_for_and_gets_one_cast_at_a_time(
    api: rpcapi.ConductorAPI, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpcapi, 'WAKE_SECONDS', 0.01)
    broker.answers.clear()

    for _ in range(3):
        with pytest.raises(exception.CellUnreachable, match='no answer from the broker'):
            api.work_available(CTXT)

    assert broker.casts == 1
    broker.answers.set()
    assert broker.done.acquire(timeout=WAIT_SECONDS)
