# SPDX-License-Identifier: Apache-2.0
"""Requests: accepted within limits, planned once, by any conductor, listed, ended, purged."""

import dataclasses
import datetime
import hashlib
import threading
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, failures, model
from nova_precache.db import jobs as db_jobs, pages, requests
from nova_precache.db.engine import models
from nova_precache.db.request import completion, plan as request_plan, queries
from tests.unit.conftest import BROKEN, CACHED, LIMITS, LONG_AGO, PLANNER, World
from tools.waiting import TIMEOUT_SECONDS

EAST = datetime.timezone(datetime.timedelta(hours=2))
FOREVER = datetime.datetime(9999, 1, 1)  # noqa: DTZ001 - as the database keeps it


def _newest(**fields: Any) -> pages.Page:
    return dataclasses.replace(requests.NEWEST, **fields)


def _expire_planning(world: World, request: model.CacheRequest) -> None:
    this = models.CacheRequest.id == request.id
    world.change(models.CacheRequest, this, planner_lease_until=LONG_AGO)


def _finish_all(world: World, *outcomes: model.ImageOutcome) -> None:
    """End each job of the plan with one of the outcomes, in order."""
    for outcome in outcomes:
        assigned = world.begun()
        assert world.jobs.finish(assigned.job_id, assigned.epoch, outcome).current
        world.jobs.release('c1', [assigned.host])


# Acceptance


def test_accepted_request_stored_completely(world: World) -> None:
    accepted = world.accept(
        ['h1'],
        ['i1', 'i2'],
        project_id='p1',
        user_id='u1',
        request_id='req-1',
        priority=3,
    )

    kept = world.requests.get(accepted.id)
    assert kept == accepted
    assert (kept.status, kept.images, kept.priority) == ('accepted', ('i1', 'i2'), 3)
    assert (kept.project_id, kept.user_id, kept.request_id) == ('p1', 'u1', 'req-1')
    assert (kept.aggregate_id, kept.aggregate_uuid, kept.aggregate_name) == (1, 'uuid-1', 'edge')
    assert kept.created_at is not None
    assert (kept.counts, kept.bytes_done, kept.bytes_total) == ({}, 0, 0)


def test_too_many_images_error_names_option(world: World) -> None:
    with pytest.raises(exception.TooMany, match='4 asked, max_images_per_request is 3'):
        world.accept(['h1'], ['i1', 'i2', 'i3', 'i4'])

    assert world.requests.list() == []


def test_too_many_tasks_error_names_option(world: World) -> None:
    hosts = [f'h{number}' for number in range(2501)]

    with pytest.raises(exception.TooMany, match='5002 asked, max_tasks_per_request is 5000'):
        world.accept(hosts, ['i1', 'i2'])

    assert world.requests.list() == []


@pytest.mark.parametrize('project', ['p1', None])
def test_project_over_request_quota_refused(world: World, project: str | None) -> None:
    limits = dataclasses.replace(LIMITS, max_active_requests_per_project=1)
    world.requests = requests.Requests(world.database, limits)
    world.accept(['h1'], ['i1'], project_id=project)

    with pytest.raises(exception.TooMany, match='2 asked, max_active_requests_per_project is 1'):
        world.accept(['h1'], ['i1'], project_id=project)

    assert len(world.requests.list()) == 1
    assert world.accept(['h1'], ['i1'], project_id='another')


def test_ended_request_frees_quota(world: World) -> None:
    limits = dataclasses.replace(LIMITS, max_active_requests_per_project=1)
    world.requests = requests.Requests(world.database, limits)
    ended = world.planned([], ['i1'], project_id='p1')
    assert world.requests.complete(ended.id)

    assert world.accept(['h1'], ['i1'], project_id='p1')


def test_unknown_request_not_found(world: World) -> None:
    with pytest.raises(exception.RequestNotFound):
        world.requests.get('none')


def test_request_of_other_project_not_found(world: World) -> None:
    request = world.accept(['h1'], ['i1'], project_id='p1')

    assert world.requests.get(request.id, 'p1') == request
    with pytest.raises(exception.RequestNotFound):
        world.requests.get(request.id, 'p2')


def test_request_keeps_its_settings(world: World) -> None:
    options = model.RequestOptions(
        max_parallel_hosts=3,
        max_rate_bytes=5,
        not_before=datetime.datetime(2030, 1, 1, 12, tzinfo=EAST),
        deadline=datetime.datetime(2030, 1, 2),  # noqa: DTZ001 - UTC without a zone
        wait_for_down_hosts=True,
        canary=1,
        max_failures=0,
    )
    asked = {'description': 'rollout', 'client_request_id': 'mine', 'pin_id': 'pin-1'}

    accepted = world.accept(['h1'], ['i1'], options=options, **asked)

    kept = world.requests.get(accepted.id)
    assert kept == accepted == world.requests.outline(accepted.id)
    in_utc = datetime.datetime(2030, 1, 1, 10)  # noqa: DTZ001 - as the database keeps it
    assert kept.options == dataclasses.replace(options, not_before=in_utc)
    assert (kept.description, kept.client_request_id) == ('rollout', 'mine')
    assert (kept.pin_id, kept.hosts) == ('pin-1', None)


def test_request_accepts_named_hosts(world: World) -> None:
    named = requests.NewRequest(images=('i1',), hosts=('h2', 'h1'))

    kept = world.requests.get(world.requests.accept(named).id)

    assert kept.hosts == ('h2', 'h1')
    assert (kept.aggregate_id, kept.aggregate_uuid, kept.aggregate_name) == (None, None, None)
    with pytest.raises(exception.TooMany, match='max_tasks_per_request'):
        world.requests.accept(dataclasses.replace(named, hosts=('h',) * 5001))


def test_client_id_identifies_request_per_project(world: World) -> None:
    first = world.accept(['h1'], ['i1'], client_request_id='mine', project_id='p1')

    again = world.accept(['h1'], ['i2'], client_request_id='mine', project_id='p1')
    others = [
        world.accept(['h1'], ['i1'], client_request_id='mine', project_id='p2'),
        world.accept(['h1'], ['i1'], client_request_id='MINE', project_id='p1'),
        world.accept(['h1'], ['i1'], client_request_id='mine'),
        world.accept(['h1'], ['i1'], project_id='p1'),
    ]

    assert again == first
    assert len({first.id, *(other.id for other in others)}) == 5


def test_concurrent_repeated_request_saved_once(world: World) -> None:
    together = threading.Barrier(6)

    def ask(number: int) -> str:
        together.wait(TIMEOUT_SECONDS)
        return world.accept(['h1'], ['i1'], client_request_id='mine').id

    with futures.ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1
    assert len(world.requests.list()) == 1


def test_image_file_names_stored(world: World) -> None:
    for _ in range(2):
        world.accept(['h1'], ['i1', 'i2'])

    with world.database.reader() as reader:
        names = {row.name: row.image_id for row in reader.scalars(sa.select(models.ImageName))}
    assert names == {
        hashlib.sha1(image.encode(), usedforsecurity=False).hexdigest(): image
        for image in ('i1', 'i2')
    }


# Planning


def test_request_planned_by_one_conductor(world: World) -> None:
    request = world.accept(['h1'], ['i1'], is_admin=True)

    taken = world.requests.next_to_plan('c1')

    assert taken == requests.ToPlan(request, is_admin=True)
    assert world.requests.next_to_plan('c2') is None


def test_request_of_dead_planner_replanned(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan('c1')
    _expire_planning(world, request)

    taken = world.requests.next_to_plan('c2')

    assert taken is not None
    assert taken.request.id == request.id
    assert not world.requests.add_tasks(
        request.id, 'c1', [request_plan.PlannedTask('h1', world.cell.uuid, 'i1')]
    )
    assert not world.requests.mark_planned(request.id, 'c1')
    assert not world.requests.fail(request.id, 'c1', 'too late')
    assert world.requests.get(request.id).status == 'accepted'
    assert world.tasks(request) == {}


def test_working_planner_keeps_lease(world: World) -> None:
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    _expire_planning(world, request)

    assert world.plan(request, ['h1'])

    assert world.requests.next_to_plan('c2') is None


def test_most_urgent_request_planned_first(world: World) -> None:
    asked = [world.accept(['h1'], ['i1'], priority=priority) for priority in (0, 5, 5)]

    order = [world.requests.next_to_plan(f'c{number}') for number in range(3)]

    assert [taken and taken.request.id for taken in order] == [
        asked[1].id,
        asked[2].id,
        asked[0].id,
    ]


def test_postponed_request_planned_later(
    world: World,
) -> None:
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan('c1')

    world.requests.postpone_plan(request.id, 'c1', seconds=100, reason='no answer')

    assert world.requests.next_to_plan('c1') is None
    assert world.requests.next_to_plan('c2') is None
    _expire_planning(world, request)
    assert world.requests.next_to_plan('c2') is not None


def test_replanning_adds_only_missing_tasks(world: World) -> None:
    request = world.accept(['h1', 'h2', 'h3'], ['i1', 'i2'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1'])
    world.plan(request, ['h2'], images=['i1'])
    before = world.tasks(request)

    world.plan(request, ['h1', 'h2', 'h3'])

    tasks = world.tasks(request)
    assert set(tasks) == {(h, i) for h in ('h1', 'h2', 'h3') for i in ('i1', 'i2')}
    assert {key: tasks[key] for key in before} == before
    assert len(world.all_jobs()) == 6


def test_no_job_claimed_before_plan_completes(world: World) -> None:
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1'])
    assert world.claim('c1', limit=5) is None

    world.plan(request, ['h2'])
    assert world.requests.mark_planned(request.id, PLANNER)

    assert world.claim('c1', limit=5) is not None


def test_planned_request_counts_its_hosts(world: World) -> None:
    request = world.accept(['h2', 'h1'], ['i1', 'i2'])
    assert world.requests.next_to_plan(PLANNER)
    task = request_plan.PlannedTask('h2', None, 'i1', 'skipped', 'host down')
    tasks = [task, dataclasses.replace(task, image_id='i2')]
    world.requests.add_tasks(request.id, PLANNER, tasks)
    world.plan(request, ['h1'])

    assert world.requests.mark_planned(request.id, PLANNER)

    assert world.to_announce(request) == ['start', 'h2']
    planned = world.requests.get(request.id)
    assert (planned.status, planned.hosts_total, planned.hosts_done) == ('planned', 2, 1)
    assert planned.planned_at is not None
    assert planned.counts == {'queued': 2, 'skipped': 2}
    skipped = world.tasks(request)['h2', 'i2']
    assert (skipped.reason, skipped.cell_uuid) == ('host down', None)
    assert skipped.finished_at is not None


def test_requests_for_same_image_share_job(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])

    world.planned(['h1'], ['i1', 'i2'])

    jobs = [(job.host, job.image_id) for job in world.all_jobs()]
    assert jobs == [('h1', 'i1'), ('h2', 'i1'), ('h1', 'i2')]


def test_ended_job_replaced_not_joined(world: World) -> None:
    world.planned(['h1'], ['i1'])
    _finish_all(world, CACHED)

    second = world.planned(['h1'], ['i1'])

    assert len(world.all_jobs()) == 2
    assert world.statuses(second) == {('h1', 'i1'): 'queued'}


def test_joined_job_takes_higher_priority(world: World) -> None:
    world.planned(['h1'], ['i1'], priority=2)

    world.planned(['h1'], ['i1'], priority=7)
    world.planned(['h1'], ['i1'], priority=1)

    assert [job.priority for job in world.all_jobs()] == [7]


def test_joined_job_opens_with_complete_plan(
    world: World,
) -> None:
    unfinished = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(unfinished, ['h1', 'h2'])
    world.requests.postpone_plan(unfinished.id, PLANNER, seconds=100, reason='no answer')

    world.planned(['h1'], ['i1'])

    assert [(job.host, job.ready) for job in world.all_jobs()] == [('h1', True), ('h2', False)]


def test_host_ending_during_plan_counted_once(
    world: World,
) -> None:
    world.planned(['h1'], ['i1'])
    second = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(second, ['h1'])
    assigned = world.begun()

    world.jobs.finish(assigned.job_id, assigned.epoch, CACHED)
    assert world.to_announce(second) == []
    world.plan(second, ['h2'])
    world.requests.mark_planned(second.id, PLANNER)

    assert world.to_announce(second) == ['start', 'h1']
    assert world.requests.get(second.id).hosts_done == 1


def test_unplannable_request_fails_with_reason(world: World) -> None:
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan('c1')

    assert world.requests.fail(request.id, 'c1', 'the aggregate was deleted')

    failed = world.requests.get(request.id)
    assert (failed.status, failed.reason) == ('failed', 'the aggregate was deleted')
    assert failed.finished_at is not None
    assert world.to_announce(request) == ['start', 'end']


def test_failed_plan_leaves_no_jobs(
    world: World,
) -> None:
    other = world.planned(['h1'], ['i1'])
    request = world.accept(['h1', 'h2'], ['i1'])
    assert world.requests.next_to_plan(PLANNER)
    world.plan(request, ['h1', 'h2'])

    assert world.requests.fail(request.id, PLANNER, 'the aggregate was deleted')

    tasks = world.tasks(request)
    assert {task.status for task in tasks.values()} == {'error'}
    assert {task.reason for task in tasks.values()} == {'the aggregate was deleted'}
    assert world.statuses(other) == {('h1', 'i1'): 'queued'}
    assert [(job.host, job.status) for job in world.all_jobs()] == [
        ('h1', 'queued'),
        ('h2', 'skipped'),
    ]
    failed = world.requests.get(request.id)
    assert (failed.hosts_total, failed.hosts_done) == (2, 2)
    assert world.to_announce(request) == ['start', 'h1', 'h2', 'end']


# The end


@pytest.mark.parametrize(
    ('outcomes', 'status'),
    [
        ((CACHED, CACHED), 'completed'),
        ((CACHED, model.ImageOutcome('existing')), 'completed'),
        ((CACHED, BROKEN), 'partial'),
        ((model.ImageOutcome('skipped'), CACHED), 'partial'),
        ((BROKEN, model.ImageOutcome('unsupported')), 'failed'),
    ],
)
def test_request_status_follows_its_tasks(
    world: World, outcomes: tuple[model.ImageOutcome, ...], status: str
) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    _finish_all(world, *outcomes)
    assert world.requests.ids_to_complete() == [request.id]

    assert world.requests.complete(request.id)

    ended = world.requests.get(request.id)
    assert ended.status == status
    assert ended.finished_at is not None
    assert world.requests.ids_to_complete() == []


def test_request_without_tasks_completed(world: World) -> None:
    request = world.planned([], ['i1'])

    assert world.requests.ids_to_complete() == [request.id]
    assert world.requests.complete(request.id)

    assert world.status(request) == 'completed'


def test_request_with_running_work_stays_open(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    _finish_all(world, CACHED)

    assert world.requests.ids_to_complete() == []
    assert not world.requests.complete(request.id)

    assert world.status(request) == 'running'


def test_request_ends_once(world: World) -> None:
    request = world.planned([], ['i1'])

    assert [world.requests.complete(request.id) for _ in range(2)] == [True, False]


def test_unplanned_request_does_not_end(world: World) -> None:
    request = world.accept([], ['i1'])

    assert world.requests.ids_to_complete() == []
    assert not world.requests.complete(request.id)
    assert world.status(request) == 'accepted'


# Views


def test_requests_paged_newest_first(world: World) -> None:
    asked = [world.accept(['h1'], ['i1']).id for _ in range(5)]

    first = [request.id for request in world.requests.list(page=_newest(limit=2))]
    second = [
        request.id for request in world.requests.list(page=_newest(limit=10, marker=first[-1]))
    ]

    assert first + second == asked[::-1]


def test_requests_filtered_by_project_and_status(world: World) -> None:
    done = world.planned([], ['i1'], project_id='p1')
    world.requests.complete(done.id)
    open_ = world.accept(['h1'], ['i1'], project_id='p1')
    other = world.accept(['h1'], ['i1'], project_id='p2')

    def ids(**filters: Any) -> list[str]:
        return [request.id for request in world.requests.list(requests.RequestFilter(**filters))]

    assert ids() == [other.id, open_.id, done.id]
    assert ids(project_id='p1') == [open_.id, done.id]
    assert ids(project_id='p1', status='completed') == [done.id]
    with pytest.raises(exception.InvalidMarker):
        world.requests.list(requests.RequestFilter(project_id='p1'), _newest(marker=other.id))


def test_requests_filtered_by_target(world: World) -> None:
    first = world.accept(['h1'], ['i1', 'i2'], pin_id='pin-1')
    named = world.requests.accept(requests.NewRequest(images=('i2',), hosts=('h1',)))
    assert first.created_at

    def ids(**filters: Any) -> list[str]:
        return [each.id for each in world.requests.list(requests.RequestFilter(**filters))]

    assert ids(image_id='i1') == [first.id]
    assert ids(image_id='i2') == [named.id, first.id]
    assert ids(aggregate=queries.AggregateFilter(id=1)) == [first.id]
    assert ids(pin_id='pin-1') == [first.id]
    assert ids(since=first.created_at) == [named.id, first.id]
    assert ids(since=first.created_at + datetime.timedelta(days=1)) == []


def test_similar_lists_share_one_statement(world: World) -> None:
    executed: list[object] = []
    sa.event.listen(
        world.database.engine, 'before_execute', lambda conn, what, *rest: executed.append(what)
    )

    for project_id in ('p1', 'p2'):
        world.requests.list(requests.RequestFilter(project_id=project_id))

    first, second = (each for each in executed if isinstance(each, sa.Select))
    assert first is second


@pytest.mark.parametrize('sort_key', ['created_at', 'finished_at', 'priority', 'status'])
@pytest.mark.parametrize('descending', [True, False])
def test_requests_paged_by_any_key(world: World, sort_key: str, descending: bool) -> None:
    for priority in (3, 1, 3, 2, 1):
        world.accept(['h1'], ['i1'], priority=priority)
    done = world.planned([], ['i1'], priority=9)
    world.requests.complete(done.id)

    sort = [model.SortKey(sort_key, descending)]

    in_order = world.requests.list(page=pages.Page(sort))
    paged: list[str] = []
    while page := world.requests.list(
        page=pages.Page(sort, limit=2, marker=paged[-1] if paged else None)
    ):
        paged += [request.id for request in page]

    assert paged == [request.id for request in in_order]
    keys = [getattr(request, sort_key) or FOREVER for request in in_order]
    assert keys == sorted(keys, reverse=descending)


def test_tasks_filtered_by_host_image_status(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1', 'i2'])
    _finish_all(world, CACHED)

    def listed(**filters: str) -> list[tuple[str, str]]:
        return [(t.host, t.image_id) for t in world.requests.tasks(request.id, **filters)]  # type: ignore[arg-type]

    assert listed(host='h1') == [('h1', 'i1'), ('h1', 'i2')]
    assert listed(image_id='i2') == [('h1', 'i2'), ('h2', 'i2')]
    assert listed(status='cached') == [('h1', 'i1')]
    assert listed(status='cached', host='h2') == []


def test_request_rate_sums_its_transfers(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    calls = [world.begun(), world.begun()]
    for number, call in enumerate(calls, start=1):
        progress = model.Progress(model.TaskStatus.DOWNLOADING, 20, 100, rate_bytes=10 * number)
        world.jobs.record_progress([db_jobs.ProgressReport(call.job_id, call.epoch, 1, progress)])

    shown = world.requests.get(request.id)
    assert (shown.rate_bytes, shown.eta_seconds) == (30, (300 - 40) / 30)
    assert world.tasks(request)['h2', 'i1'].eta_seconds == 80 / 20
    world.jobs.finish(calls[0].job_id, calls[0].epoch, CACHED)
    assert world.requests.get(request.id).rate_bytes == 20
    assert world.tasks(request)['h1', 'i1'].rate_bytes is None


@pytest.mark.parametrize('marker', [None, 99])
@pytest.mark.parametrize('project_id', [None, 'p2'])
def test_tasks_of_unknown_request_refused(
    world: World, marker: int | None, project_id: str | None
) -> None:
    request = world.planned(['h1'], ['i1'])
    of = requests.TaskFilter('unknown' if project_id is None else request.id, project_id)
    page = pages.Page([model.SortKey('host')], limit=20, marker=marker)

    with pytest.raises(exception.RequestNotFound):
        world.requests.list_tasks(of, page, of_known=True)
    if marker is None:
        assert world.requests.list_tasks(of, page) == []


def test_tasks_paged_in_plan_order(world: World) -> None:
    request = world.planned(['h2', 'h1'], ['i2', 'i1'])

    first = world.requests.tasks(request.id, limit=3)
    second = world.requests.tasks(request.id, limit=3, marker=first[-1].id)

    assert [(task.host, task.image_id) for task in [*first, *second]] == [
        ('h2', 'i2'),
        ('h2', 'i1'),
        ('h1', 'i2'),
        ('h1', 'i1'),
    ]


def test_counts_and_bytes_sum_over_tasks(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    _finish_all(world, CACHED, BROKEN)

    shown = world.requests.get(request.id)

    assert shown.counts == {'cached': 1, 'error': 1, 'queued': 1}
    assert (shown.bytes_done, shown.bytes_total) == (100, 300)
    assert world.requests.list() == [shown]


def test_waiting_hosts_have_not_begun(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    world.begun()

    assert world.requests.waiting_hosts(request.id) == ['h2']
    assert [each.id for each in world.requests.with_waiting_tasks()] == [request.id]


def test_aggregate_unchecked_without_waiting_tasks(world: World) -> None:
    world.planned(['h1'], ['i1'])
    world.begun()
    world.accept(['h2'], ['i1'])

    assert world.requests.with_waiting_tasks() == []


def test_only_old_ended_requests_purged(
    world: World,
) -> None:
    old = world.planned(['h1'], ['i1'])
    _finish_all(world, CACHED)
    new = world.planned(['h2'], ['i1'])
    _finish_all(world, CACHED)
    for request in (old, new):
        world.requests.complete(request.id)
    world.change(models.CacheRequest, models.CacheRequest.id == old.id, finished_at=LONG_AGO)
    world.change(models.Job, models.Job.host == 'h1', finished_at=LONG_AGO)
    waiting = world.planned(['h3'], ['i1'])

    assert world.requests.purge(retention_days=30) == 1

    assert [request.id for request in world.requests.list()] == [waiting.id, new.id]
    assert [job.host for job in world.all_jobs()] == ['h2', 'h3']
    with world.database.reader() as reader:
        assert set(reader.scalars(sa.select(models.Task.host))) == {'h2', 'h3'}


def test_old_jobs_of_retried_tasks_purged(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _finish_all(world, BROKEN)
    world.requests.complete(request.id)
    world.steering.retry(request.id)

    world.requests.purge(retention_days=30)
    assert len(world.all_jobs()) == 1
    world.change(models.Job, models.Job.host == 'h1', finished_at=LONG_AGO)
    world.requests.purge(retention_days=30)

    assert world.all_jobs() == []
    assert world.status(request) == 'accepted'


def test_job_of_younger_request_not_purged(world: World) -> None:
    old = world.planned(['h1'], ['i1'])
    young = world.planned(['h1'], ['i1'])
    _finish_all(world, CACHED)
    for request in (old, young):
        world.requests.complete(request.id)
    world.change(models.CacheRequest, models.CacheRequest.id == old.id, finished_at=LONG_AGO)
    world.change(models.Job, models.Job.host == 'h1', finished_at=LONG_AGO)

    world.requests.purge(retention_days=30)

    assert len(world.all_jobs()) == 1
    assert world.statuses(young) == {('h1', 'i1'): 'cached'}


def test_postponed_request_shows_reason_until_planned(world: World) -> None:
    request = world.accept(['h1'], ['i1'])
    assert world.requests.next_to_plan(PLANNER) is not None
    world.requests.postpone_plan(request.id, PLANNER, seconds=-1, reason='no answer')
    assert world.requests.get(request.id).reason == 'no answer'

    assert world.requests.next_to_plan(PLANNER) is not None
    assert world.requests.mark_planned(request.id, PLANNER)

    assert world.requests.get(request.id).reason is None


# Why it did not succeed


def test_ended_request_sums_up_failures(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3'], ['i1'])
    _finish_all(
        world,
        CACHED,
        model.ImageOutcome('error', 'needs 10 bytes (including 0 reserved), 7 free'),
        model.ImageOutcome('error', 'needs 20 bytes (including 0 reserved), 9 free'),
    )

    assert world.requests.complete(request.id)

    ended = world.requests.get(request.id)
    assert (ended.status, ended.reason) == (
        'partial',
        '2 of 3 copies failed: 2 × not enough disk space',  # noqa: RUF001
    )


def test_completed_request_has_no_reason(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _finish_all(world, CACHED)

    assert world.requests.complete(request.id)

    ended = world.requests.get(request.id)
    assert (ended.status, ended.reason) == ('completed', None)


def test_retry_forgets_earlier_summary(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _finish_all(world, model.ImageOutcome('error', 'unsafe image: x'))
    assert world.requests.complete(request.id)
    assert world.requests.get(request.id).reason == (
        '1 of 1 copies failed: 1 × unsafe image'  # noqa: RUF001
    )

    assert world.steering.retry(request.id).reason is None


@pytest.mark.parametrize(
    ('hosts', 'reason'),
    [(['h1', 'h2'], '2 of 2 copies cancelled'), (None, 'cancelled before it was planned')],
)
def test_cancelled_request_has_reason(world: World, hosts: list[str] | None, reason: str) -> None:
    request = world.accept(['h1'], ['i1']) if hosts is None else world.planned(hosts, ['i1'])
    world.steering.cancel(request.id)

    world.requests.complete(request.id)

    ended = world.requests.get(request.id)
    assert (ended.status, ended.reason) == ('cancelled', reason)


def test_numbers_of_hosts_need_one_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, 'MOST_REASONS', 1)
    request = world.planned([f'h{n}' for n in range(5)], ['i1'])
    _finish_all(
        world,
        *(
            model.ImageOutcome('error', f'needs {n}7 bytes (including 0 reserved), {9 - n} free')
            for n in range(1, 6)
        ),
    )

    assert world.requests.complete(request.id)

    assert world.requests.get(request.id).reason == (
        '5 of 5 copies failed: 5 × not enough disk space'  # noqa: RUF001
    )


def test_many_reasons_need_few_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, 'MOST_REASONS', 2)
    request = world.planned([f'h{n}' for n in range(5)], ['i1'])
    outcomes = [model.ImageOutcome('error', f'unsafe image: {word}') for word in 'abcde']
    _finish_all(world, *outcomes)

    assert world.requests.complete(request.id)

    assert world.requests.get(request.id).reason == (
        '5 of 5 copies failed: 3 × other reasons, 2 × unsafe image'  # noqa: RUF001
    )


def test_summing_up_blocks_no_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    request = world.planned(['h1'], ['i1'])
    _finish_all(world, BROKEN)
    summary = failures.summary

    def sum_up(*given: Any) -> str:
        writer = threading.Thread(target=world.living, args=('h9',), daemon=True)
        writer.start()
        writer.join(TIMEOUT_SECONDS)
        assert not writer.is_alive()
        return summary(*given)

    monkeypatch.setattr(failures, 'summary', sum_up)

    assert world.requests.complete(request.id)


def test_outdated_summary_is_replaced(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    _finish_all(world, model.ImageOutcome('error', 'unsafe image: x'))
    outdated = completion.Summary({'error': 2}, 'outdated')

    assert world.database.write(lambda s: completion.complete(s, request.id, outdated))

    assert world.requests.get(request.id).reason == (
        '1 of 1 copies failed: 1 × unsafe image'  # noqa: RUF001
    )
