# SPDX-License-Identifier: Apache-2.0
"""Agents that are not registered for the hosts they report for are asked to register again."""

import pytest

from nova_precache import context, exception, model
from nova_precache.cells import breaker
from nova_precache.conductor import unknown_hosts
from tests.service import wait_until

LOST = model.Agent('h1', 'agent-1', 'cell-1')
OTHER = model.Agent('h2', 'agent-2', 'cell-1')


class Compute:
    """Every compute; errors are used up from the front."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.asked: list[tuple[str, str]] = []

    def register_again(self, ctxt: context.RequestContext, host: str, agent_id: str) -> None:
        self.asked.append((host, agent_id))
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def compute() -> Compute:
    return Compute()


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def refused(compute: Compute, now: list[float]) -> unknown_hosts.UnknownHosts:
    breakers = breaker.CellBreakers(10.0, lambda: now[0])
    return unknown_hosts.UnknownHosts(lambda cell_uuid: compute, breakers, lambda: now[0])


def test_unknown_report_asks_agent_logs_once(
    compute: Compute,
    refused: unknown_hosts.UnknownHosts,
    now: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def are_asked() -> bool:
        now[0] += 10
        refused.refuse([LOST, OTHER])
        return min(map(compute.asked.count, [('h1', 'agent-1'), ('h2', 'agent-2')])) >= 2

    wait_until(are_asked, 'both are asked again')

    assert caplog.messages == [
        'Agent agent-1 is not registered for host h1',
        'Agent agent-2 is not registered for host h2',
    ]


@pytest.mark.parametrize(
    'error', [exception.VersionUnsupported('the pin is 1.2'), exception.CellUnreachable('no route')]
)
def test_unaskable_agent_asked_later(
    compute: Compute, refused: unknown_hosts.UnknownHosts, now: list[float], error: Exception
) -> None:
    compute.errors = [error]

    def is_asked_again() -> bool:
        now[0] += 60
        refused.refuse([LOST])
        return len(compute.asked) > 1

    wait_until(is_asked_again, 'it is asked again')


def test_unknown_hosts_per_cell_bounded(
    compute: Compute,
    refused: unknown_hosts.UnknownHosts,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unknown_hosts, 'MOST_AT_ONCE', 7)
    flood = [model.Agent(f'h{number}', 'agent', 'cell-2') for number in range(500)]

    refused.refuse([LOST, *flood])
    wait_until(lambda: len(compute.asked) == 8, 'those of both cells are asked')

    assert (LOST.host, LOST.agent_id) in compute.asked
    assert len(caplog.messages) == 8


def test_agents_distinguished_by_cell(
    compute: Compute, refused: unknown_hosts.UnknownHosts
) -> None:
    refused.refuse([LOST, model.Agent(LOST.host, LOST.agent_id, 'cell-2')])

    wait_until(lambda: len(compute.asked) == 2, 'both are asked')
