# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait for a host are due when it reports again, and not before."""

import pytest

from nova_precache import model
from nova_precache.db import host_recovery
from tests.unit.conftest import BROKEN, DOWN_SECONDS, World


@pytest.fixture
def returned(world: World) -> host_recovery.AgentHostRecovery:
    return host_recovery.AgentHostRecovery(world.database, DOWN_SECONDS)


def _waits(world: World, host: str) -> model.CacheRequest:
    """Make a request wait for a host that is down, with its recorded reason."""
    world.living(host)
    request = world.planned([host], ['i1'])
    assigned = world.begun()
    world.dead(host)
    reason = world.agents.down([host])[host]
    waits = model.ImageOutcome(model.TaskStatus.ERROR, reason, model.Retry.LATER)
    world.jobs.retry(assigned.job_id, assigned.epoch, waits, delay_seconds=600)
    world.jobs.release('c1', [host])
    return request


def test_reporting_host_makes_job_due(
    world: World, returned: host_recovery.AgentHostRecovery
) -> None:
    request = _waits(world, 'h1')
    assert returned.hasten() == 0
    assert world.claim('c1', limit=5) is None

    world.living('h1')

    assert returned.hasten() == 1
    task, job = world.tasks(request)['h1', 'i1'], world.all_jobs()[0]
    assert (task.status, task.next_attempt_at) == ('retry_wait', job.next_attempt_at)
    claim = world.claim('c1', limit=5)
    assert claim is not None
    assert claim.host == 'h1'
    assert returned.hasten() == 0


def test_job_of_stopped_host_waits(world: World, returned: host_recovery.AgentHostRecovery) -> None:
    _waits(world, 'h1')
    world.stopped('h1')

    assert returned.hasten() == 0

    world.living('h1')
    assert returned.hasten() == 1


def test_job_with_other_wait_reason_waits(
    world: World, returned: host_recovery.AgentHostRecovery
) -> None:
    world.living('h1')
    world.planned(['h1'], ['i1'])
    assigned = world.begun()
    world.jobs.retry(assigned.job_id, assigned.epoch, BROKEN, delay_seconds=600)

    assert returned.hasten() == 0


def test_recovery_makes_only_host_jobs_due(
    world: World, returned: host_recovery.AgentHostRecovery
) -> None:
    for host in ('h1', 'h2'):
        _waits(world, host)

    world.living('h2')

    assert returned.hasten() == 1
    claim = world.claim('c1', limit=5)
    assert claim is not None
    assert claim.host == 'h2'
