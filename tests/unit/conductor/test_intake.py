# SPDX-License-Identifier: Apache-2.0
"""Reports are gathered and written in bulk, the newest of each."""

import pytest

from nova_precache import model
from nova_precache.conductor import intake
from nova_precache.db import jobs
from tests.unit.conftest import World


@pytest.fixture
def reports(world: World) -> intake.Intake:
    return intake.Intake(world.agents, world.jobs)


def _report(assigned: jobs.Assignment, sequence: int, done: int) -> jobs.ProgressReport:
    progress = model.Progress(model.TaskStatus.DOWNLOADING, done, 100)
    return jobs.ProgressReport(assigned.job_id, assigned.epoch, sequence, progress)


def _agent(world: World, host: str, agent_id: str, free_bytes: int) -> model.Agent:
    return model.Agent(host, agent_id, world.cell.uuid, free_bytes=free_bytes)


def test_nothing_is_written_before_its_time(world: World, reports: intake.Intake) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.living('h1')
    world.dead('h1')

    reports.add_progress(_report(begun, 1, 50))
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))

    assert world.job(begun.job_id).bytes_done == 0
    assert 'h1' in world.agents.down(['h1'])


def test_of_several_reports_the_newest_is_written(world: World, reports: intake.Intake) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    for sequence, done in ((1, 10), (3, 30), (2, 20)):
        reports.add_progress(_report(begun, sequence, done))

    reports.write_progress()

    job = world.job(begun.job_id)
    assert (job.bytes_done, job.progress_sequence) == (30, 3)


def test_a_report_under_a_newer_epoch_is_newer_whatever_its_sequence(
    world: World, reports: intake.Intake
) -> None:
    world.planned(['h1'], ['i1'])
    old = world.begun()
    new = world.jobs.assign_again('c1', old)
    assert new is not None
    reports.add_progress(_report(new, 1, 60))
    reports.add_progress(_report(old, 500, 50))

    reports.write_progress()

    assert world.job(old.job_id).bytes_done == 60


def test_the_reports_of_many_jobs_are_written_together(
    world: World, reports: intake.Intake
) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    for done in (10, 20):
        reports.add_progress(_report(world.begun(), 1, done))

    reports.write_progress()

    assert [job.bytes_done for job in world.all_jobs()] == [10, 20]


def test_the_newest_state_of_each_agent_is_written(world: World, reports: intake.Intake) -> None:
    for host in ('h1', 'h2'):
        world.living(host)
        world.dead(host)
        for free_bytes in (1, 2):
            reports.add_state(_agent(world, host, f'agent-{host}', free_bytes))

    reports.write_states()

    assert world.agents.down(['h1', 'h2']) == {}
    assert [agent.free_bytes for agent in world.agents.list()] == [2, 2]


def test_a_second_agent_of_the_same_name_does_not_silence_the_first(
    world: World, reports: intake.Intake
) -> None:
    world.living('h1')
    world.dead('h1')
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))
    reports.add_state(_agent(world, 'h1', 'impostor', 2))

    reports.write_states()

    assert world.agents.down(['h1']) == {}
    assert world.agents.get(['h1'])['h1'].free_bytes == 1


def test_what_was_written_is_not_written_again(world: World, reports: intake.Intake) -> None:
    world.living('h1')
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))
    reports.write_states()
    world.dead('h1')

    reports.write_states()

    assert 'h1' in world.agents.down(['h1'])
