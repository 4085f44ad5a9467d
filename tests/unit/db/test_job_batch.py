# SPDX-License-Identifier: Apache-2.0
"""Concurrent calls of the job store: done in one transaction, each as if it were alone."""

import datetime
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import model
from nova_precache.db import job_batch, jobs
from nova_precache.db.engine import models
from nova_precache.db.job import (
    call,
    claim as job_claim,
    finish as job_finish,
    outcome as job_outcome,
)
from nova_precache.db.job.call import Begin
from nova_precache.db.job_batch import NextJobRequest
from tests import statements
from tests.unit.conftest import CACHED, World

LEASE = datetime.timedelta(seconds=30)
BROKEN = model.ImageOutcome(model.TaskStatus.ERROR, 'broken')


def _execute(world: World, **members: Sequence[Any]) -> job_batch.BatchResult:
    batch = job_batch.Batch(**members)
    return world.database.write(lambda session: job_batch.execute_batch(session, batch))


def _assigned(world: World, count: int, conductor: str = 'c1') -> list[jobs.Assignment]:
    claimed = world.jobs.claim_hosts(conductor, limit=count, most=count)
    return [each.first for each in claimed if each.first is not None]


def _finish(assignment: jobs.Assignment, outcome: model.ImageOutcome = CACHED) -> job_finish.Finish:
    return job_finish.Finish(assignment.job_id, assignment.epoch, outcome)


def _next_jobs(*ended: jobs.Assignment) -> list[NextJobRequest]:
    return [NextJobRequest('c1', each.host, _finish(each)) for each in ended]


def _hosts(claimed: Sequence[job_batch.Claimed]) -> list[str]:
    return [each.claim.host for each in claimed]


def test_each_job_gets_its_own_outcome(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    one, two, three = _assigned(world, 3)

    done = _execute(
        world,
        finishes=[_finish(one), _finish(two, BROKEN)],
        begins=[Begin(three.job_id, three.epoch)],
    )

    ended = job_outcome.Recorded(current=True, requests=(request.id,))
    assert done.recorded == {one.job_id: ended, two.job_id: ended}
    assert done.begun == {three.job_id}
    assert world.statuses(request) == {
        ('h1', 'i1'): 'cached',
        ('h2', 'i1'): 'error',
        ('h3', 'i1'): 'downloading',
    }
    assert world.tasks(request)['h2', 'i1'].reason == 'broken'
    assert world.to_announce(request) == ['start', 'h1', 'h2']


def test_late_outcome_in_batch_changes_nothing(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    one, two = _assigned(world, 2)
    assert world.jobs.assign_again('c1', two) is not None  # under a newer epoch

    done = _execute(
        world, finishes=[_finish(two), _finish(one)], begins=[Begin(two.job_id, two.epoch)]
    )

    assert done.recorded.keys() == {one.job_id}
    assert not done.begun
    assert world.statuses(request) == {('h1', 'i1'): 'cached', ('h2', 'i1'): 'queued'}


def test_call_on_released_host_cannot_begin(world: World) -> None:
    world.planned(['h1'], ['i1'])
    (one,) = _assigned(world, 1)
    _execute(world, next_jobs=[NextJobRequest('c1', 'h1', goes_on=False)])

    assert not _execute(world, begins=[Begin(one.job_id, one.epoch)]).begun


def test_outcome_reports_request_without_work(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    one, two, three = _assigned(world, 3)

    first = world.jobs.finish(one.job_id, one.epoch, CACHED)
    others = _execute(world, finishes=[_finish(two), _finish(three)]).recorded

    assert first.idle == ()
    assert [each.idle for each in others.values()] == [(request.id,), (request.id,)]


def test_worker_gets_job_or_releases_host(
    world: World,
) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    world.planned(['h2'], ['i1'])
    one, two = _assigned(world, 2)

    done = _execute(world, next_jobs=_next_jobs(one, two))

    first, second = done.next_jobs['h1'], done.next_jobs['h2']
    assert first.assignment is not None
    assert (first.assignment.image_id, first.assignment.attempts) == ('i2', 1)
    assert first.assignment.epoch > one.epoch
    assert (second.assignment, second.is_over) == (None, True)
    assert world.jobs.claimed_hosts() == ['h1']
    assert world.claimed() == 1


def test_next_jobs_belong_to_given_hosts(
    world: World,
) -> None:
    plans: list[str] = []

    @sa.event.listens_for(world.database.engine, 'before_cursor_execute')
    def explain(connection: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        if 'row_number()' in statement:
            cursor.execute(f'EXPLAIN QUERY PLAN {statement}', values)
            plans.extend(row[3] for row in cursor.fetchall() if 'jobs' in row[3])

    world.planned([f'h{number:02}' for number in range(40)], ['i1'])

    assert len(_assigned(world, 40)) == 40
    assert plans == ['SEARCH jobs USING INDEX jobs_host_idx (host=? AND status=?)']


def test_host_claimed_in_new_cell(world: World) -> None:
    other = world.inventory.create_cell('other', 'fake://').uuid
    world.planned(['h1', 'h2'], ['i1'])
    one, two = _assigned(world, 2)
    _execute(world, next_jobs=_next_jobs(one, two))
    world.planned(['h1', 'h2'], ['i2'])
    world.change(models.Job, models.Job.active_key == 'h2/i2', cell_uuid=other)

    claimed = world.jobs.claim_hosts('c1', limit=2, most=2)

    assert {each.claim.host: each.claim.cell_uuid for each in claimed} == {
        'h1': world.cell.uuid,
        'h2': other,
    }
    with world.database.reader() as reader:
        row = reader.get_one(models.Claim, 'h2')
        assert (row.cell_uuid, row.epoch) == (other, claimed[-1].claim.epoch)


def test_outcome_counts_after_host_takeover(
    world: World,
) -> None:
    request = world.planned(['h1'], ['i1', 'i2'])
    (one,) = _assigned(world, 1)
    world.expire('h1')
    assert world.jobs.take_over('c2')

    turned = world.jobs.next_job('c1', 'h1', _finish(one))

    assert turned.recorded.current
    assert turned.assignment is None
    assert world.statuses(request)['h1', 'i2'] == 'queued'
    assert world.held_by('c2') == ['h1']


def test_deciding_outcome_delays_assignment(
    world: World,
) -> None:
    options = model.RequestOptions(max_failures=0)
    world.planned(['h1'], ['i1', 'i2'], options=options)
    (one,) = _assigned(world, 1)

    turned = world.jobs.next_job('c1', 'h1', _finish(one, BROKEN))

    assert (turned.assignment, turned.is_over) == (None, False)
    assert world.held_by('c1') == ['h1']


def test_limit_bounds_concurrent_hosts(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    one, two = _assigned(world, 2)
    options = model.RequestOptions(max_parallel_hosts=1)
    world.planned(['h1', 'h2'], ['i2'], options=options)

    done = _execute(world, next_jobs=_next_jobs(one, two))

    assigned = [done.next_jobs[host].assignment for host in ('h1', 'h2')]
    assert [each and each.image_id for each in assigned] == ['i2', None]


def test_most_urgent_hosts_claimed_at_once(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    world.planned(['h2', 'h3'], ['i1'], priority=5)
    world.planned(['h4'], ['i1'], priority=-5)

    assert _hosts(world.jobs.claim_hosts('c1', limit=3, most=9)) == ['h2', 'h3', 'h1']
    assert world.jobs.claim_hosts('c2', limit=3, most=9) == []
    assert world.claimed() == 3


def test_claimed_host_gets_most_urgent_job(
    world: World,
) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    world.change(models.Job, models.Job.image_id == 'i2', status='downloading')

    (claimed,) = world.jobs.claim_hosts('c1', limit=9, most=9)

    assert claimed.first is not None
    assert (claimed.first.image_id, claimed.first.joins) == ('i2', True)
    assert claimed.first.epoch == claimed.claim.epoch
    assert world.jobs.begin(claimed.first.job_id, claimed.first.epoch)


def test_less_urgent_job_waits_beyond_lookahead(
    world: World,
) -> None:
    for number in range(5):
        world.planned(['h1'], [f'i{number}-{image}' for image in range(3)], priority=5)
    world.planned(['h2'], ['i1'], priority=4)
    world.planned(['h3'], ['i1'])
    world.change(models.Job, models.Job.host == 'h3', status='retry_wait')

    assert _hosts(world.jobs.claim_hosts('c1', limit=1, most=1)) == ['h1']
    assert _hosts(world.jobs.claim_hosts('c1', limit=2, most=2)) == ['h2']


def test_released_host_frees_slot_in_transaction(
    world: World,
) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    (one,) = _assigned(world, 1)

    wanted = job_claim.ClaimRequest('c1', limit=1, most=1, avoid_cells=(), lease=LEASE)
    done = _execute(world, next_jobs=_next_jobs(one), claims=[wanted])

    assert _hosts(done.claimed) == ['h2']
    assert world.claimed() == 1


def test_dead_conductor_leaves_batch_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    request = world.planned(['h1', 'h2'], ['i1', 'i2'])
    one, two = _assigned(world, 2)
    lost = db_exception.DBError('the process was killed')
    release = job_claim.release

    def die(*given: object) -> None:
        raise lost

    monkeypatch.setattr(job_claim, 'release', die)
    members = [
        NextJobRequest('c1', 'h1', _finish(one)),
        NextJobRequest('c1', 'h2', _finish(two), goes_on=False),
    ]
    with pytest.raises(db_exception.DBError, match='killed'):
        _execute(world, next_jobs=members)
    monkeypatch.setattr(job_claim, 'release', release)

    assert set(world.statuses(request).values()) == {'queued'}
    assert world.to_announce(request) == ['start']
    for host in ('h1', 'h2'):
        world.expire(host)
        assert world.jobs.take_over('c2')
        while (again := world.assign('c2', host)) is not None:
            assert world.jobs.finish(again.job_id, again.epoch, CACHED)
    assert set(world.statuses(request).values()) == {'cached'}
    assert world.to_announce(request) == ['start', 'h1', 'h2']


LIMITED = model.RequestOptions(max_parallel_hosts=1)


def test_late_outcome_frees_no_slot(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'], options=LIMITED)
    late = world.begun()
    assert world.jobs.assign_again('c1', late) is not None
    ended = NextJobRequest('c1', late.host, _finish(late))
    wanted = job_claim.ClaimRequest('c1', limit=9, most=9, avoid_cells=(), lease=LEASE)

    assert _execute(world, next_jobs=[ended], claims=[wanted]).claimed == []


def test_call_without_slot_not_repeated(world: World) -> None:
    world.aggregate(['h1', 'h2'])
    world.planned(['h1', 'h2'], ['i1'], options=LIMITED)
    lost = world.begun()
    world.dead('h1')
    world.agents.register(model.Agent('h1', 'another-agent', world.cell.uuid))
    (other,) = world.jobs.claim_hosts('c2', limit=9)
    assert other.first is not None

    assert world.jobs.assign_again('c1', lost) is None

    assert world.jobs.begin(other.first.job_id, other.first.epoch)
    assert sum(job.status == 'downloading' for job in world.all_jobs()) == 1


def test_exhausted_limit_yields_to_next_request(world: World) -> None:
    hosts, others = [f'h{number}' for number in range(4)], [f'm{number}' for number in range(4)]
    world.planned(hosts, ['low'], priority=0)
    world.planned(hosts, ['top'], priority=10, options=LIMITED)
    world.planned(others, ['mid'], priority=5)

    claimed = world.jobs.claim_hosts('c1', limit=5, most=5)

    images = [each.first.image_id for each in claimed if each.first is not None]
    assert images == ['top', 'mid', 'mid', 'mid', 'mid']


def test_full_limits_skip_job_query(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'], options=LIMITED)
    world.begun()

    with statements.recorded(world.database) as asked:
        assert world.jobs.claim_hosts('c1', limit=9, most=9) == []

    assert not [each for each in asked if 'UNION' in each.sql]


class _Id(str):
    """A job id that counts how often it is compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        _Id.compared += 1
        return str.__eq__(self, other)


def test_terms_compare_few_ids(world: World) -> None:
    """With each job compared with each row, claims of many hosts would hold the lock long."""
    world.planned([f'h{number}' for number in range(50)], ['i1'])
    job_ids = [_Id(job.uuid) for job in world.all_jobs()]

    with world.database.reader() as reader:
        agreed = call.terms(reader, job_ids)

    assert len(agreed) == 50
    assert _Id.compared <= 4 * 50


def test_batches_name_all_they_concern(world: World) -> None:
    world.planned(['h1'], ['i1'])
    (one,) = _assigned(world, 1)
    wanted = job_claim.ClaimRequest('c1', limit=1, most=1, avoid_cells=(), lease=LEASE)

    ended = job_batch.Batch(next_jobs=_next_jobs(one))
    begun = job_batch.Batch(begins=[Begin(one.job_id, one.epoch)])
    claims = job_batch.Batch(claims=[wanted])

    assert ended.keys() == {'h1', one.job_id}
    assert begun.keys() == {one.job_id}
    assert claims.keys() & job_batch.merge([claims, begun]).keys()
