# SPDX-License-Identifier: Apache-2.0
"""Claims and jobs: the limit, the fences, and that every task gets its outcome once."""

import collections
import dataclasses
import datetime
import threading
from collections.abc import Sequence
from concurrent import futures

import pytest

from nova_precache import exception, model
from nova_precache.db import jobs
from nova_precache.db.engine import models, session
from nova_precache.db.job import claim as job_claim, outcome as job_outcome
from tests.unit.conftest import BROKEN, CACHED, LONG_AGO, PLANNER, World
from tools.waiting import TIMEOUT_SECONDS


def _claim(world: World, conductor: str = 'c1', limit: int = 100) -> job_claim.Claim:
    claim = world.claim(conductor, limit)
    assert claim is not None
    return claim


def _assign(world: World, conductor: str = 'c1', host: str = 'h1') -> jobs.Assignment:
    assigned = world.assign(conductor, host)
    assert assigned is not None
    return assigned


def _report(
    assigned: jobs.Assignment, sequence: int, done: int, status: str = 'downloading'
) -> jobs.ProgressReport:
    progress = model.Progress(model.TaskStatus(status), done, 100)
    return jobs.ProgressReport(assigned.job_id, assigned.epoch, sequence, progress)


def _finish(
    world: World, assigned: jobs.Assignment, outcome: model.ImageOutcome = CACHED
) -> job_outcome.Recorded:
    return world.jobs.finish(assigned.job_id, assigned.epoch, outcome)


# Claims


def test_limit_counts_hosts_of_all_conductors(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])

    made = [world.claim(conductor, limit=2) for conductor in ('c1', 'c2', 'c3')]

    assert [claim and claim.host for claim in made] == ['h1', 'h2', None]
    assert world.claimed() == 2


def test_host_with_many_jobs_claimed_once(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    world.planned(['h1'], ['i3'])
    _claim(world)

    assert world.claim('c1', limit=100) is None
    assert world.claim('c2', limit=100) is None


def test_released_host_frees_its_slot(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    assert world.claim('c1', limit=1)
    assigned = _assign(world)
    assert world.jobs.begin(assigned.job_id, assigned.epoch)
    _finish(world, assigned)

    assert world.jobs.release('c1', ['h1'])

    assert world.claimed() == 0
    assert _claim(world, 'c2', limit=1).host == 'h2'


def test_urgent_then_oldest_claimed_first(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    world.planned(['h3'], ['i1'], priority=5)

    assert [_claim(world).host for _ in range(3)] == ['h3', 'h1', 'h2']


def test_host_with_moving_bytes_claimed_first(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    world.planned(['h3'], ['i1'], priority=5)
    world.change(models.Job, models.Job.host == 'h2', status='downloading')

    assert _claim(world).host == 'h2'


def test_avoided_cell_not_claimed(world: World) -> None:
    world.planned(['h1'], ['i1'], cell_uuid='dead')
    world.planned(['h2'], ['i1'], cell_uuid='alive')

    claim = world.claim('c1', limit=5, avoid_cells={'dead'})

    assert claim == job_claim.Claim('h2', 'alive', epoch=1)
    assert world.claim('c1', limit=5, avoid_cells={'dead', 'alive'}) is None


def test_each_claim_raises_epoch(world: World) -> None:
    world.planned(['h1'], ['i1'])
    epochs = []
    for conductor in ('c1', 'c2', 'c1'):
        epochs.append(_claim(world, conductor).epoch)
        world.jobs.release(conductor, ['h1'])

    assert epochs == sorted(set(epochs))


def test_live_claim_not_taken_over(world: World) -> None:
    world.planned(['h1'], ['i1'])
    _claim(world)

    assert world.jobs.take_over('c2') == []


def test_expired_claim_taken_over_with_slot(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    lost = _claim(world)
    world.expire('h1')

    assert world.claim('c2', limit=1) is None
    (taken,) = world.jobs.take_over('c2')

    assert (taken.host, taken.cell_uuid) == ('h1', world.cell.uuid)
    assert taken.epoch > lost.epoch
    assert world.claimed() == 1
    assert world.jobs.take_over('c3') == []


def test_conductor_cannot_use_lost_host(
    world: World,
) -> None:
    world.planned(['h1'], ['i1'])
    _claim(world)
    world.expire('h1')
    assert world.jobs.take_over('c2')

    assert not world.jobs.release('c1', ['h1'])
    assert world.jobs.next_job('c1', 'h1').assignment is None
    assert world.jobs.renew('c1') == []
    assert world.held_by('c2') == ['h1']


def test_conductor_does_not_take_over_itself(world: World) -> None:
    """Its worker still serves the host: two would call it at once."""
    world.planned(['h1'], ['i1'])
    _claim(world)
    world.expire('h1')

    assert world.jobs.take_over('c1') == []
    assert world.jobs.renew('c1') == ['h1']
    assert world.jobs.take_over('c2') == []


def test_lease_measured_by_database_clock(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    _claim(world)
    _claim(world, 'c2')
    for host in ('h1', 'h2'):
        world.expire(host)

    assert world.jobs.renew('c1') == ['h1']

    with world.database.reader() as reader:
        expires = reader.get_one(models.Claim, 'h1').lease_expires_at
        assert expires is not None
        left = expires - session.now(reader)
    assert datetime.timedelta(seconds=20) < left <= datetime.timedelta(seconds=30)
    (taken,) = world.jobs.take_over('c3')
    assert taken.host == 'h2'


def test_stopping_conductor_releases_only_its_hosts(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])
    for conductor in ('c1', 'c2', 'c1'):
        _claim(world, conductor)

    world.jobs.release_all('c1')

    assert world.jobs.claimed_hosts() == ['h2']
    assert world.claimed() == 1


@pytest.mark.parametrize('wrong', [-3, 50])
def test_wrong_counter_repaired_from_claims(world: World, wrong: int) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])
    _claim(world)
    world.change(models.Counter, models.Counter.name == job_claim.CLAIMED_HOSTS, value=wrong)

    assert world.claim('c2', limit=2) is not None
    assert world.claim('c2', limit=2) is None

    assert world.claimed() == 2


# Assignment


def test_host_jobs_ordered_by_urgency_age(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    world.planned(['h1'], ['i3'], priority=9)
    _claim(world)
    order = []
    while (assigned := world.assign('c1', 'h1')) is not None:
        order.append(assigned.image_id)
        _finish(world, assigned)

    assert order == ['i3', 'i1', 'i2']


def test_running_job_comes_before_others(world: World) -> None:
    """Else a host that was taken over would download two images at once."""
    world.planned(['h1'], ['i1'])
    in_work = world.begun()
    world.planned(['h1'], ['i2'], priority=9)
    world.expire('h1')
    assert world.jobs.take_over('c2')

    joined = _assign(world, 'c2')

    assert joined.job_id == in_work.job_id
    assert joined.joins


def test_assignment_counts_attempt_in_tasks(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _claim(world)

    assigned = _assign(world)

    assert (assigned.attempts, assigned.mismatches, assigned.joins) == (1, 0, False)
    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.attempts) == ('queued', 1)


def test_repeated_call_counts_no_attempt(world: World) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()

    again = world.jobs.assign_again('c1', begun)

    assert again is not None
    assert (again.job_id, again.attempts, again.joins) == (begun.job_id, 1, True)
    assert again.epoch > begun.epoch


def test_repeated_call_fences_older_call(world: World) -> None:
    world.planned(['h1'], ['i1'])
    old = world.begun()
    new = world.jobs.assign_again('c1', old)
    assert new is not None

    assert not world.jobs.begin(old.job_id, old.epoch)
    assert not _finish(world, old).current
    assert world.jobs.begin(new.job_id, new.epoch)
    assert _finish(world, new).current


def test_ended_job_not_called_again(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    begun = world.begun()
    _finish(world, begun)

    assert world.jobs.assign_again('c1', begun) is None


def test_unclaimed_host_gets_no_assignment(world: World) -> None:
    world.planned(['h1'], ['i1'])

    assert world.assign('c1', 'h1') is None
    assert world.all_jobs()[0].attempts == 0


# The fence


def test_begun_job_starts_tasks_and_request(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    world.begun()

    assert world.statuses(request) == {('h1', 'i1'): 'downloading', ('h2', 'i1'): 'queued'}
    assert world.tasks(request)['h1', 'i1'].started_at is not None
    started = world.requests.get(request.id)
    assert started.status == 'running'
    assert started.started_at is not None


def test_call_of_released_claim_cannot_begin(world: World) -> None:
    world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)
    world.jobs.release('c1', ['h1'])

    assert not world.jobs.begin(assigned.job_id, assigned.epoch)


def test_call_of_superseded_claim_cannot_begin(world: World) -> None:
    """Not even before its new owner has assigned the job again, or has chosen another one."""
    world.planned(['h1'], ['i1'])
    _claim(world)
    lost = _assign(world)
    world.expire('h1')
    assert world.jobs.take_over('c2')
    assert not world.jobs.begin(lost.job_id, lost.epoch)

    world.planned(['h1'], ['i2'], priority=9)
    assert _assign(world, 'c2').image_id == 'i2'

    assert not world.jobs.begin(lost.job_id, lost.epoch)


def test_stale_call_changes_nothing(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    stale = world.begun()
    world.expire('h1')
    assert world.jobs.take_over('c2')
    current = _assign(world, 'c2')
    before = world.tasks(request)

    assert not world.jobs.begin(stale.job_id, stale.epoch)
    assert world.jobs.record_progress([_report(stale, 9, 50)]) == 0
    assert not world.jobs.retry(stale.job_id, stale.epoch, BROKEN, 0)
    assert _finish(world, stale) == job_outcome.STALE

    assert world.tasks(request) == before
    assert world.jobs.begin(current.job_id, current.epoch)


def test_unknown_job_cannot_begin(world: World) -> None:
    assert not world.jobs.begin('none', 1)


def test_waiting_job_cannot_begin(world: World) -> None:
    world.planned(['h1'], ['i1'])
    assigned = world.begun()
    assert world.jobs.retry(assigned.job_id, assigned.epoch, BROKEN, 0)

    assert not world.jobs.begin(assigned.job_id, assigned.epoch)


def test_second_start_keeps_first_time(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    world.begun()
    for table in (models.Job, models.Task):
        world.change(table, table.host == 'h1', started_at=LONG_AGO)
    world.expire('h1')
    assert world.jobs.take_over('c2')
    again = _assign(world, 'c2')

    assert world.jobs.begin(again.job_id, again.epoch)

    assert world.job(again.job_id).started_at == LONG_AGO
    assert world.tasks(request)['h1', 'i1'].started_at == LONG_AGO


def test_restart_of_compute_counts_attempt(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    again = world.jobs.assign_again('c1', begun)
    assert again is not None

    assert world.jobs.begin(again.job_id, again.epoch, starts=True)

    assert world.job(again.job_id).attempts == 2
    assert world.tasks(request)['h1', 'i1'].attempts == 2


@pytest.mark.parametrize('calls', [1, 2])
def test_start_or_join_counts_one_attempt(world: World, calls: int) -> None:
    world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)
    assert world.jobs.begin(assigned.job_id, assigned.epoch, starts=True)
    for _ in range(calls - 1):
        again = world.jobs.assign_again('c1', assigned)
        assert again is not None
        assert world.jobs.begin(again.job_id, again.epoch, starts=False)

    assert world.job(assigned.job_id).attempts == 1


# Progress


def test_progress_shows_in_tasks_and_request(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()

    assert world.jobs.record_progress([_report(begun, 1, 40, 'verifying')]) == 1

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.bytes_done, task.bytes_total) == ('verifying', 40, 100)
    assert world.requests.get(request.id).bytes_done == 40


def test_progress_only_grows(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.jobs.record_progress([_report(begun, 1, 40)])

    assert world.jobs.record_progress([_report(begun, 2, 30)]) == 1

    assert world.tasks(request)['h1', 'i1'].bytes_done == 40
    assert world.job(begun.job_id).bytes_done == 40


@pytest.mark.parametrize('sequence', [1, 2])
def test_late_or_repeated_progress_changes_nothing(world: World, sequence: int) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.jobs.record_progress([_report(begun, 2, 40, 'converting')])

    assert world.jobs.record_progress([_report(begun, sequence, 90)]) == 0

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.bytes_done) == ('converting', 40)


def test_progress_sequence_restarts_with_new_epoch(world: World) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.jobs.record_progress([_report(begun, 500, 40)])
    again = world.jobs.assign_again('c1', begun)
    assert again is not None

    assert world.jobs.record_progress([_report(again, 1, 50)]) == 1


def test_progress_after_end_changes_nothing(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    _finish(world, begun)

    assert world.jobs.record_progress([_report(begun, 5, 1)]) == 0

    assert world.statuses(request) == {('h1', 'i1'): 'cached'}


def test_unknown_status_leaves_job_running(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    progress = model.Progress('polishing', 60, 100)  # type: ignore[arg-type]
    report = jobs.ProgressReport(begun.job_id, begun.epoch, 1, progress)

    assert world.jobs.record_progress([report]) == 1

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.bytes_done) == ('downloading', 60)
    assert _finish(world, begun).current


def test_bad_report_does_not_block_others(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    first, second = world.begun(), world.begun()
    _finish(world, first)

    assert world.jobs.record_progress([_report(first, 1, 5), _report(second, 1, 7)]) == 1

    assert world.job(second.job_id).bytes_done == 7


def test_recent_progress_means_job_moves(world: World) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    assert world.jobs.is_moving(begun.job_id, within_seconds=30)

    world.change(models.Job, models.Job.uuid == begun.job_id, progress_at=LONG_AGO)
    assert not world.jobs.is_moving(begun.job_id, within_seconds=30)

    world.jobs.record_progress([_report(begun, 1, 0)])
    assert world.jobs.is_moving(begun.job_id, within_seconds=30)


def test_job_not_begun_does_not_move(world: World) -> None:
    world.planned(['h1'], ['i1'])

    assert not world.jobs.is_moving(world.all_jobs()[0].uuid, within_seconds=1e6)
    assert not world.jobs.is_moving('none', within_seconds=1e6)


# Outcomes


def test_all_requests_get_outcome_of_job(world: World) -> None:
    first = world.planned(['h1'], ['i1'])
    second = world.planned(['h1', 'h2'], ['i1'])
    begun = world.begun()

    recorded = _finish(world, begun)

    assert set(recorded.requests) == {first.id, second.id}
    for request in (first, second):
        task = world.tasks(request)['h1', 'i1']
        assert (task.status, task.bytes_done, task.bytes_total) == ('cached', 100, 100)
        assert task.finished_at is not None


def test_late_result_changes_no_row(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    assert _finish(world, begun).current
    before = world.tasks(request)

    assert _finish(world, begun, BROKEN) == job_outcome.STALE
    assert not world.jobs.retry(begun.job_id, begun.epoch, BROKEN, 0)

    assert world.tasks(request) == before


def test_failure_keeps_its_reason(world: World) -> None:
    request = world.planned(['h1'], ['i1'])

    _finish(world, world.begun(), BROKEN)

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.reason) == ('error', 'the line is dead')
    assert world.all_jobs()[0].reason == 'the line is dead'


def test_done_hosts_counted_in_request(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1', 'i2'])
    for done in (['h1'], ['h1', 'h2']):
        claim = _claim(world)
        while (assigned := world.assign('c1', claim.host)) is not None:
            _finish(world, assigned)
        assert world.to_announce(request) == ['start', *done]

    assert world.requests.get(request.id).hosts_done == 2


def test_waiting_job_holds_no_slot(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    begun = world.begun()
    assert world.jobs.retry(begun.job_id, begun.epoch, BROKEN, delay_seconds=100)
    assert world.assign('c1', 'h1') is None
    world.jobs.release('c1', ['h1'])

    made = [world.claim('c2', limit=1), world.claim('c2', limit=100)]

    assert [claim and claim.host for claim in made] == ['h2', None]
    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.reason, task.attempts) == ('retry_wait', 'the line is dead', 1)
    assert task.next_attempt_at is not None


def test_retry_after_wait_counts_attempt(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    mismatch = model.ImageOutcome('error', 'wrong hash', model.Retry.ONCE)
    world.jobs.retry(begun.job_id, begun.epoch, mismatch, delay_seconds=100)
    world.make_due()

    again = _assign(world)

    assert (again.attempts, again.mismatches, again.joins) == (2, 1, False)
    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.attempts, task.next_attempt_at) == ('queued', 2, None)


# Requests that no longer want a job


def test_ended_tasks_keep_shared_transfer(world: World) -> None:
    first = world.planned(['h1'], ['i1'], project_id='p1')
    second = world.planned(['h1'], ['i1'], is_admin=True)
    begun = world.begun()
    asked = {asker.request_id: asker for asker in world.jobs.askers(begun.job_id)}
    assert asked[first.id] == jobs.Asker(first.id, 'p1', is_admin=False)
    assert asked[second.id] == jobs.Asker(second.id, None, is_admin=True)

    world.jobs.end_tasks(begun.job_id, [first.id], BROKEN)

    assert world.to_announce(first) == ['start', 'h1']
    assert world.to_announce(second) == ['start']
    assert world.statuses(first) == {('h1', 'i1'): 'error'}
    assert world.statuses(second) == {('h1', 'i1'): 'downloading'}
    assert [asker.request_id for asker in world.jobs.askers(begun.job_id)] == [second.id]
    assert _finish(world, begun).requests == (second.id,)
    assert world.statuses(first) == {('h1', 'i1'): 'error'}


def test_waiting_job_ends_with_last_task(world: World) -> None:
    request = world.planned(['h1'], ['i1', 'i2'])
    job_id = world.all_jobs()[0].uuid

    world.jobs.end_tasks(job_id, [request.id], BROKEN)

    assert [job.status for job in world.all_jobs()] == ['skipped', 'queued']
    assert world.all_jobs()[0].active_key is None


def test_waiting_tasks_of_departed_hosts_skipped(
    world: World,
) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1', 'i2'])
    begun = world.begun()

    world.jobs.skip_waiting(request.id, {'h1', 'h2'}, 'host left')

    assert world.statuses(request) == {
        ('h1', 'i1'): 'downloading',
        ('h1', 'i2'): 'skipped',
        ('h2', 'i1'): 'skipped',
        ('h2', 'i2'): 'skipped',
        ('h3', 'i1'): 'queued',
        ('h3', 'i2'): 'queued',
    }
    assert world.to_announce(request) == ['start', 'h2']
    assert world.tasks(request)['h2', 'i1'].reason == 'host left'
    _finish(world, begun)
    assert world.to_announce(request) == ['start', 'h2', 'h1']
    assert world.depth() == 2


def test_job_of_other_request_not_skipped(world: World) -> None:
    first = world.planned(['h1', 'h2'], ['i1'])
    second = world.planned(['h1'], ['i1'])

    world.jobs.skip_waiting(first.id, {'h1', 'h2'}, 'host left')

    assert world.statuses(second) == {('h1', 'i1'): 'queued'}
    assert [job.status for job in world.all_jobs()] == ['queued', 'skipped']


def test_call_of_skipped_job_cannot_begin(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)

    world.jobs.skip_waiting(request.id, {'h1'}, 'host left')

    assert not world.jobs.begin(assigned.job_id, assigned.epoch)
    assert _finish(world, assigned) == job_outcome.STALE


def test_thousands_of_departed_hosts_skipped(world: World) -> None:
    hosts = [f'h{number}' for number in range(1200)]
    request = world.planned(hosts, ['i1'])

    world.jobs.skip_waiting(request.id, hosts, 'host left')

    assert len(world.to_announce(request)) == 1 + 1200
    assert world.requests.get(request.id).counts == {'skipped': 1200}
    assert world.depth() == 0


# A cell that is dead


def test_due_jobs_of_cell_unclaimed(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'], cell_uuid='dead')
    world.planned(['h4'], ['i1'], cell_uuid='alive')
    waiting = world.begun()
    world.jobs.retry(waiting.job_id, waiting.epoch, BROKEN, delay_seconds=100)
    world.jobs.release('c1', ['h1'])
    _claim(world)

    assert [job.host for job in world.jobs.due_in_cell('dead')] == ['h3']


def test_missed_attempt_is_counted(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    [job] = world.jobs.due_in_cell(world.cell.uuid)

    world.jobs.fail_unclaimed([jobs.MissedCall(job.job_id, job.attempts, 100)], BROKEN)

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.attempts, task.reason) == ('retry_wait', 1, 'the line is dead')
    assert world.job(job.job_id).attempts == 1
    assert world.claim('c1', limit=5) is None


def test_missed_last_attempt_ends_job(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    [job] = world.jobs.due_in_cell(world.cell.uuid)

    world.jobs.fail_unclaimed([jobs.MissedCall(job.job_id, job.attempts, None)], BROKEN)

    assert world.to_announce(request) == ['start', 'h1']
    assert world.statuses(request) == {('h1', 'i1'): 'error'}


@pytest.mark.parametrize('delay', [None, 100.0])
def test_reclaimed_job_left_to_its_conductor(world: World, delay: float | None) -> None:
    request = world.planned(['h1'], ['i1'])
    [job] = world.jobs.due_in_cell(world.cell.uuid)
    _claim(world)
    assigned = _assign(world)

    assert world.jobs.fail_unclaimed(
        [jobs.MissedCall(job.job_id, job.attempts, delay)], BROKEN
    ) == [job_outcome.STALE]

    assert world.statuses(request) == {('h1', 'i1'): 'queued'}
    assert world.jobs.begin(assigned.job_id, assigned.epoch)


def test_depth_counts_jobs_in_flight(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])
    world.planned(['h1'], ['i1'])
    _finish(world, world.begun())
    waiting = world.begun()
    world.jobs.retry(waiting.job_id, waiting.epoch, BROKEN, 100)

    assert world.depth() == 2


# Many conductors at once


LIMIT = 3


class _Watch:
    """Counts, apart from the database, who works on what at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.busy: collections.Counter[str] = collections.Counter()
        self.most_hosts = 0
        self.most_on_one_host = 0
        self.ended: collections.Counter[str] = collections.Counter()

    def enter(self, host: str) -> None:
        with self.lock:
            self.busy[host] += 1
            self.most_hosts = max(self.most_hosts, sum(self.busy.values()))
            self.most_on_one_host = max(self.most_on_one_host, self.busy[host])

    def leave(self, host: str) -> None:
        with self.lock:
            self.busy[host] -= 1

    def end(self, job_id: str) -> None:
        with self.lock:
            self.ended[job_id] += 1


def _conduct(world: World, conductor: str, watch: _Watch, together: threading.Barrier) -> None:
    """Work as a conductor until nothing is in flight."""
    together.wait(TIMEOUT_SECONDS)
    while world.depth():
        claim = world.claim(conductor, LIMIT)
        if claim is None:
            continue
        while (assigned := world.assign(conductor, claim.host)) is not None:
            watch.enter(claim.host)
            if not world.jobs.begin(assigned.job_id, assigned.epoch):
                pass
            elif assigned.attempts == 1 and assigned.image_id == 'i2':
                world.jobs.retry(assigned.job_id, assigned.epoch, BROKEN, 0)
            elif _finish(world, assigned).current:
                watch.end(assigned.job_id)
            watch.leave(claim.host)


def test_racing_conductors_respect_limit(world: World) -> None:
    hosts = [f'h{number}' for number in range(8)]
    asked: Sequence[model.CacheRequest] = [
        world.planned(hosts, ['i1', 'i2']),
        world.planned(hosts[4:], ['i2', 'i3']),
    ]
    watch, together = _Watch(), threading.Barrier(5)

    with futures.ThreadPoolExecutor(5) as pool:
        names = [f'c{number}' for number in range(5)]
        for each in [pool.submit(_conduct, world, name, watch, together) for name in names]:
            each.result()

    assert watch.most_hosts <= LIMIT
    assert watch.most_on_one_host == 1
    assert watch.ended == collections.Counter(job.uuid for job in world.all_jobs())
    assert len(watch.ended) == 20
    assert world.claimed() == 0
    for request in asked:
        assert set(world.statuses(request).values()) == {'cached'}
        shown = world.requests.get(request.id)
        assert shown.hosts_done == shown.hosts_total
        assert world.requests.complete(request.id)


def test_racing_conductors_take_over_host_once(world: World) -> None:
    hosts = [f'h{number}' for number in range(6)]
    world.planned(hosts, ['i1'])
    for _ in hosts:
        _claim(world, 'dead')
    world.change(models.Claim, models.Claim.conductor_id == 'dead', lease_expires_at=LONG_AGO)
    together = threading.Barrier(4)

    def take_all(conductor: str) -> list[str]:
        together.wait(TIMEOUT_SECONDS)
        return [claim.host for claim in world.jobs.take_over(conductor)]

    with futures.ThreadPoolExecutor(4) as pool:
        each = [pool.submit(take_all, f'c{number}') for number in range(4)]
        taken = [host for future in each for host in future.result()]

    assert sorted(taken) == hosts
    assert world.claimed() == 6


def test_concurrent_plans_share_jobs(world: World) -> None:
    hosts = [f'h{number}' for number in range(50)]
    asked = [world.accept(hosts, ['i1']) for _ in range(2)]
    for number in range(2):
        assert world.requests.next_to_plan(f'p{number}')
        world.change(
            models.CacheRequest, models.CacheRequest.planner == f'p{number}', planner=PLANNER
        )
    together = threading.Barrier(2)

    def plan(request: model.CacheRequest) -> bool:
        together.wait(TIMEOUT_SECONDS)
        return all(world.plan(request, hosts[at : at + 5]) for at in range(0, 50, 5))

    with futures.ThreadPoolExecutor(2) as pool:
        assert all(pool.map(plan, asked))

    assert len(world.all_jobs()) == 50
    for request in asked:
        assert len(world.tasks(request)) == 50


def test_plan_joining_abandoned_jobs_loses_none(world: World) -> None:
    hosts = [f'h{number}' for number in range(20)]
    together = threading.Barrier(2)

    def give_up(request: model.CacheRequest) -> None:
        together.wait(TIMEOUT_SECONDS)
        world.jobs.skip_waiting(request.id, hosts, 'hosts left')

    def join(request: model.CacheRequest) -> bool:
        together.wait(TIMEOUT_SECONDS)
        return world.plan(request, hosts)

    for number in range(8):
        leaving = world.planned(hosts, [f'i{number}'])
        joining = world.accept(hosts, [f'i{number}'])
        assert world.requests.next_to_plan(PLANNER)
        with futures.ThreadPoolExecutor(2) as pool:
            left, joined = pool.submit(give_up, leaving), pool.submit(join, joining)
            left.result()
            assert joined.result()
        assert world.requests.mark_planned(joining.id, PLANNER)

        assert set(world.statuses(leaving).values()) == {'skipped'}
        assert set(world.statuses(joining).values()) == {'queued'}
        wanted = {job.host for job in world.all_jobs() if job.active_key == f'{job.host}/i{number}'}
        assert wanted == set(hosts)


def test_joining_request_shows_running_transfer(world: World) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 5, 10)
    world.jobs.record_progress([jobs.ProgressReport(begun.job_id, begun.epoch, 1, progress)])

    second = world.planned(['h1'], ['i1'])

    task = world.tasks(second)['h1', 'i1']
    assert (task.status, task.bytes_done, task.bytes_total) == ('downloading', 5, 10)
    assert (task.attempts, task.started_at is not None) == (1, True)
    request = world.requests.get(second.id)
    assert (request.status, request.started_at is not None) == ('running', True)


def test_missed_call_counted_once(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    [job] = world.jobs.due_in_cell(world.cell.uuid)
    missed = [jobs.MissedCall(job.job_id, job.attempts, 0)]

    world.jobs.fail_unclaimed(missed, BROKEN)
    world.jobs.fail_unclaimed(missed, BROKEN)

    assert world.tasks(request)['h1', 'i1'].attempts == 1


# The agent that a call has reached


def test_only_registered_agent_begins_jobs(world: World) -> None:
    world.living('h1')
    request = world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)

    with pytest.raises(exception.AgentConflict, match='stranger is not registered'):
        world.jobs.begin(assigned.job_id, assigned.epoch, True, agent_id='stranger')
    assert world.statuses(request) == {('h1', 'i1'): 'queued'}

    assert not world.jobs.begin(assigned.job_id, assigned.epoch - 1, True, agent_id='agent-h1')
    assert world.jobs.begin(assigned.job_id, assigned.epoch, True, agent_id='agent-h1')


def test_unregistered_agent_begins_nothing(world: World) -> None:
    """An older database was restored: it has to register first."""
    world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)

    with pytest.raises(exception.AgentConflict, match='for host h1'):
        world.jobs.begin(assigned.job_id, assigned.epoch, True, agent_id='agent-h1')


def test_older_unnamed_agent_begins_jobs(
    world: World,
) -> None:
    world.living('h1')
    world.planned(['h1'], ['i1'])
    _claim(world)
    assigned = _assign(world)

    assert world.jobs.begin(assigned.job_id, assigned.epoch, True)


def test_progress_of_other_agent_ignored(world: World) -> None:
    world.living('h1')
    world.planned(['h1'], ['i1'])
    begun = world.begun()

    counted = [
        world.jobs.record_progress(
            [dataclasses.replace(_report(begun, 1, done), agent_id=agent_id)]
        )
        for agent_id, done in (('stranger', 90), ('agent-h1', 40))
    ]

    assert counted == [0, 1]
    assert world.job(begun.job_id).bytes_done == 40
