# SPDX-License-Identifier: Apache-2.0
"""Counts of the service's objects, by the database."""

import datetime

from nova_precache.db import statistics
from nova_precache.db.engine import models
from tests import statements
from tests.unit.conftest import BROKEN, CACHED, DOWN_SECONDS, GAP_SECONDS, World
from tools.waiting import TIMEOUT_SECONDS


def _census(world: World) -> statistics.Statistics:
    return statistics.Statistics(world.database, DOWN_SECONDS)


def test_empty_database_counts_zeros(world: World) -> None:
    assert _census(world).take() == statistics.Count({}, {}, 0, 0, 0, 0, 0, {})


def test_jobs_counted_by_wait_reason(world: World) -> None:
    world.planned(['h1', 'h2', 'h3', 'h4'], ['i1'])
    world.begun()
    tried = world.begun()
    world.jobs.retry(tried.job_id, tried.epoch, BROKEN, 60)
    held = world.all_jobs()[3].uuid
    world.change(models.Job, models.Job.uuid == held, ready=False)

    counted = _census(world).take()

    assert (counted.jobs_working, counted.jobs_retry_wait) == (1, 1)
    assert (counted.jobs_ready, counted.jobs_held) == (1, 1)
    assert counted.claimed_hosts == 2
    assert counted.tasks == {'downloading': 1, 'queued': 2, 'retry_wait': 1}


def test_ended_tasks_count_in_unfinished_request(world: World) -> None:
    over = world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    world.jobs.release('c1', ['h1'])
    assert world.requests.complete(over.id)
    world.planned(['h2', 'h3'], ['i1'])
    begun = world.begun()
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    world.accept(['h1'], ['i1'])

    counted = _census(world).take()

    assert counted.requests == {'accepted': 1, 'running': 1}
    assert counted.tasks == {'cached': 1, 'queued': 1}


def test_hosts_counted_by_cell_and_state(world: World) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    for host in ('h1', 'h2', 'h3'):
        world.living(host)
    world.living('h4', other)
    world.dead('h2')

    assert _census(world).take().hosts == {
        world.cell.uuid: statistics.HostCount(up=2, down=1),
        other.uuid: statistics.HostCount(up=1, down=0),
    }


def test_unheard_cell_counts_silent_hosts_unknown(world: World) -> None:
    for host in ('h1', 'h2'):
        world.living(host)
    world.dead('h2')

    world.hears()

    assert _census(world).take().hosts == {
        world.cell.uuid: statistics.HostCount(up=1, down=0, unknown=1),
    }


def test_statement_count_is_constant(world: World) -> None:
    with statements.recorded(world.database) as few:
        _census(world).take()
    world.planned([f'h{number}' for number in range(50)], ['i1', 'i2'])

    with statements.recorded(world.database) as sent:
        _census(world).take()

    assert len(sent) == len(few)


def test_age_is_of_oldest_ready_job(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])
    assert 0 <= _census(world).take().oldest_ready_seconds < TIMEOUT_SECONDS
    held, ready, _ = [job.uuid for job in world.all_jobs()]
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    for job, hours in ((held, 5), (ready, 2)):
        earlier = now - datetime.timedelta(hours=hours)
        world.change(models.Job, models.Job.uuid == job, created_at=earlier)
    world.change(models.Job, models.Job.uuid == held, ready=False)

    seconds = _census(world).take().oldest_ready_seconds

    assert 2 * 3600 - 1 <= seconds < 2 * 3600 + TIMEOUT_SECONDS


def test_silence_counted_by_cell(world: World) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    world.hears(world.cell.uuid, other.uuid)
    world.pass_time(500)
    world.hears(other.uuid)

    silent = _census(world).take().silent_seconds

    assert silent[world.cell.uuid] >= 500 - GAP_SECONDS
    assert silent[other.uuid] == 0
