# SPDX-License-Identifier: Apache-2.0
"""The facts behind the reasons and rates that are shown, and the cost of loading them."""

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import conf, model
from nova_precache.cells import names
from nova_precache.db import explanations, jobs, nova_calls, pages, requests, services
from nova_precache.db.engine import models, session
from nova_precache.db.job import turns
from nova_precache.wiring import common
from tests.unit.conftest import BROKEN, CACHED, GAP_SECONDS, LEASE_SECONDS, World

SILENT_SECONDS = 15
RULES = explanations.Rules(
    hearing_gap_seconds=GAP_SECONDS,
    claim_lease_seconds=LEASE_SECONDS,
    compute_silent_seconds=SILENT_SECONDS,
    precache_concurrency=lambda: 100,
)
HOUR = datetime.timedelta(hours=1)


def explained(world: World, **rules: Any) -> explanations.Explanations:
    return explanations.Explanations(
        world.database,
        dataclasses.replace(RULES, **rules),
        names.CellNames(world.inventory).cells,
        world.agents.why_down,
    )


def reasons(world: World, request: model.CacheRequest, **rules: Any) -> dict[str, str | None]:
    """Return the reasons of a request's tasks by host, or host and image if it has several."""
    many = len(request.images) > 1
    tasks = explained(world, **rules).tasks(world.requests.tasks(request.id))
    return {f'{t.host} {t.image_id}' if many else t.host: t.reason for t in tasks}


def shown(world: World, request: model.CacheRequest, **rules: Any) -> model.CacheRequest:
    (only,) = explained(world, **rules).requests([world.requests.get(request.id)])
    return only


def report(world: World, host: str, rate: int, done: int = 10) -> None:
    """Record the progress of the transfer on a host."""
    (job,) = (each for each in world.all_jobs() if each.host == host and each.epoch is not None)
    progress = model.Progress('downloading', done, 100, rate)
    assert world.jobs.record_progress(
        [jobs.ProgressReport(job.uuid, job.epoch or 0, job.progress_sequence + 1, progress)]
    )


def silence(world: World, host: str, seconds: float) -> None:
    """Move all signs of a compute into the past."""
    earlier = datetime.timedelta(seconds=seconds)
    with world.database.reader() as reader:
        now = session.now(reader)
    world.change(
        models.Agent, models.Agent.host == host, seen_at=now - earlier, started_at=now - HOUR
    )
    world.change(models.Job, models.Job.host == host, progress_at=now - earlier)


@pytest.fixture
def living(world: World) -> World:
    """The world with living hosts in a cell that is heard."""
    for name in ('h1', 'h2', 'h3'):
        world.living(name)
    world.hears(for_seconds=3600)
    world.change(
        models.Agent,
        sa.true(),
        started_at=datetime.datetime(2020, 1, 1),  # noqa: DTZ001
    )
    return world


def test_unplanned_task_names_postponement(living: World) -> None:
    request = living.accept(['h1'], ['i1'])
    assert living.requests.next_to_plan('planner')
    assert living.plan(request, ['h1'])
    living.requests.postpone_plan(request.id, 'planner', 5, 'Glance does not answer')

    assert reasons(living, request) == {
        'h1': 'its request is not planned yet: Glance does not answer'
    }
    assert shown(living, request).reason == 'not planned yet: Glance does not answer'


def test_window_of_request_named(living: World) -> None:
    with living.database.reader() as reader:
        begins = session.now(reader) + HOUR
    options = model.RequestOptions(not_before=begins)
    request = living.planned(['h1'], ['i1'], options=options)

    why = f'waits for its window, which begins at {begins:%Y-%m-%dT%H:%M:%SZ}'
    assert reasons(living, request) == {'h1': why}
    assert shown(living, request).reason == why


def test_paused_request_named(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.steering.pause(request.id)

    assert reasons(living, request) == {'h1': 'its request is paused'}
    assert shown(living, request).reason == 'it is paused'


def test_shared_job_runs_despite_pause(living: World) -> None:
    paused = living.planned(['h1'], ['i1'])
    living.planned(['h1'], ['i1'])
    living.steering.pause(paused.id)

    assert reasons(living, paused) == {'h1': 'waits for a conductor to call its host'}


def test_cancelled_transfer_is_stopping(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.begun()
    living.steering.cancel(request.id)

    assert reasons(living, request) == {'h1': 'its request is being cancelled'}
    assert shown(living, request).reason == 'waits for running transfers to stop'


def test_canary_progress_counted(living: World) -> None:
    options = model.RequestOptions(canary=2)
    request = living.planned(['h1', 'h2', 'h3'], ['i1'], options=options)
    begun = living.begun()
    living.jobs.finish(begun.job_id, begun.epoch, CACHED)

    assert reasons(living, request)['h3'] == 'waits for the canary hosts: 1 of 2 done'


def test_retry_counts_down(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    begun = living.begun()
    living.jobs.retry(begun.job_id, begun.epoch, BROKEN, 20)
    living.jobs.release('c1', ['h1'])

    soon = rf'retry in (20|1\d) s: {BROKEN.reason}'
    assert re.fullmatch(soon, str(reasons(living, request)['h1']))
    assert re.fullmatch(f'h1: {soon}', str(shown(living, request).reason))


def test_task_waits_for_image_before(living: World) -> None:
    request = living.planned(['h1'], ['i1', 'i2'])
    living.begun()
    report(living, 'h1', 5)

    assert reasons(living, request) == {
        'h1 i1': None,
        'h1 i2': 'waits for another image on the same host',
    }
    assert shown(living, request).reason is None


def test_called_host_not_begun(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    assert living.claim('c1', limit=100)

    assert reasons(living, request) == {'h1': 'its host has been called and has not begun yet'}


def test_down_host_named(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.dead('h1')

    assert reasons(living, request) == {'h1': 'host down: last report at 2001-01-01T00:00:00Z'}


def test_limit_of_request_reached(living: World) -> None:
    options = model.RequestOptions(max_parallel_hosts=1)
    request = living.planned(['h1', 'h2'], ['i1'], options=options)
    living.begun()

    assert reasons(living, request)['h2'] == (
        'waits for a slot of its request: 1 of 1 hosts are at work'
    )


def test_host_without_stream_takes_no_slot(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    call = living.begun()
    living.jobs.release_stream(call.host, call.epoch)

    assert reasons(living, request, precache_concurrency=lambda: 1)['h2'] == (
        'waits for a conductor to call its host'
    )


def test_all_slots_taken(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    living.begun()

    assert reasons(living, request, precache_concurrency=lambda: 1)['h2'] == (
        'waits for a slot: 1 of 1 hosts are at work, 0 hosts before it'
    )


def test_unanswered_call_named(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    begun = living.begun()
    living.jobs.retry(begun.job_id, begun.epoch, BROKEN, 0)
    living.jobs.release('c1', ['h1'])
    with living.database.reader() as reader:
        over_at = session.now(reader) + HOUR
    living.database.write(
        lambda s: s.add(models.StockCall(host='h1', epoch=begun.epoch, over_at=over_at))
    )

    assert reasons(living, request, is_stock=True) == {
        'h1': 'its nova-compute has not answered an earlier call, which may run until '
        f'{over_at:%Y-%m-%dT%H:%M:%SZ}'
    }
    assert nova_calls.StockCalls(living.database).occupied('h1') is not None


def test_stock_compute_needs_no_reports(world: World) -> None:
    world.hears(for_seconds=3600)
    request = world.planned(['h1', 'h2'], ['i1'])
    world.begun()

    assert reasons(world, request, is_stock=True) == {
        'h1': None,
        'h2': 'waits for a conductor to call its host',
    }


def test_silent_cell_named(living: World) -> None:
    far = living.inventory.create_cell('far', 'fake:///far')
    living.living('f1', far)
    request = living.planned(['f1'], ['i1'], cell_uuid=far.uuid)
    living.hears(far.uuid)
    living.pass_time(40)
    living.hears(living.cell.uuid)

    assert str(reasons(living, request)['f1']).startswith('no conductor has heard cell far for 4')


def test_disabled_cell_named(living: World) -> None:
    far = living.inventory.create_cell('far', 'fake:///far')
    living.living('f1', far)
    request = living.planned(['f1'], ['i1'], cell_uuid=far.uuid)
    living.hears(far.uuid)
    living.pass_time(40)
    living.hears(living.cell.uuid)
    off = {far.uuid: dataclasses.replace(far, disabled=True)}
    explain = explanations.Explanations(living.database, RULES, lambda: off, living.agents.why_down)

    (task,) = explain.tasks(living.requests.tasks(request.id))

    assert task.reason == 'cell far is disabled'


def test_unknown_cells_shown_by_id(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.pass_time(40)
    living.claim('another', 100)  # its lease shows that a conductor works

    explain = explanations.Explanations(living.database, RULES, dict, living.agents.why_down)
    (task,) = explain.tasks(living.requests.tasks(request.id))

    cell = living.cell.uuid
    assert str(task.reason).startswith(f'no conductor has heard cell {cell} for 4')


def test_absent_conductors_named(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.pass_time(40)

    for why in (reasons(living, request)['h1'], shown(living, request).reason):
        assert str(why).startswith('no conductor has answered for 4')


@pytest.mark.parametrize(
    ('binary', 'silent'), [(model.Binary.CONDUCTOR, False), (model.Binary.API, True)]
)
def test_reporting_conductor_is_a_sign(living: World, binary: model.Binary, silent: bool) -> None:
    request = living.planned(['h1'], ['i1'])
    living.pass_time(40)
    process = model.ServiceProcess('s1', binary, 'controller', '1')
    services.Services(living.database, 60, 10).report(process, replaces=False)

    assert str(reasons(living, request)['h1']).startswith(
        'no conductor has answered for 4' if silent else 'no conductor has heard cell cell1 for 4'
    )


def test_never_started_conductors_named(world: World) -> None:
    request = world.accept(['h1'], ['i1'])
    assert shown(world, request).reason is None
    with world.database.reader() as reader:
        earlier = session.now(reader) - datetime.timedelta(seconds=40)
    world.change(models.CacheRequest, sa.true(), created_at=earlier)

    assert str(shown(world, request).reason).startswith('no conductor has answered for 4')


def test_killed_host_loses_its_rate(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    for host, rate in (('h1', 5000), ('h2', 7)):
        living.begun()
        report(living, host, rate)
    assert shown(living, request).rate_bytes == 5007
    silence(living, 'h1', SILENT_SECONDS + 5)

    rates = {
        task.host: (task.rate_bytes, task.eta_seconds)
        for task in explained(living).tasks(living.requests.tasks(request.id))
    }

    assert rates == {'h1': (0, None), 'h2': (7, 90 / 7)}
    now = shown(living, request)
    assert (now.rate_bytes, now.eta_seconds) == (7, 180 / 7)
    assert str(reasons(living, request)['h1']).startswith('no sign of the compute for 2')


def test_only_host_killed_explains_request(living: World) -> None:
    request = living.planned(['h1'], ['i1', 'i2'])
    living.begun()
    report(living, 'h1', 5000)
    silence(living, 'h1', 40)

    now = shown(living, request)

    assert (now.rate_bytes, now.eta_seconds) == (0, None)
    assert str(now.reason).startswith('h1: no sign of the compute for 4')
    assert str(reasons(living, request)['h1 i2']).startswith('no sign of the compute for 4')


def test_progress_of_other_image_is_a_sign(living: World) -> None:
    request = living.planned(['h1'], ['i1', 'i2'])
    living.begun()
    silence(living, 'h1', 40)
    report(living, 'h1', 5)

    assert reasons(living, request) == {
        'h1 i1': None,
        'h1 i2': 'waits for another image on the same host',
    }


def test_slow_transfer_keeps_its_rate(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.begun()
    report(living, 'h1', 3)
    earlier = datetime.timedelta(seconds=3 * SILENT_SECONDS)
    with living.database.reader() as reader:
        long_ago = session.now(reader) - earlier
    living.change(models.Job, models.Job.host == 'h1', progress_at=long_ago)

    (task,) = explained(living).tasks(living.requests.tasks(request.id))

    assert (task.rate_bytes, task.reason) == (3, None)
    assert shown(living, request).rate_bytes == 3


def test_rare_writes_of_progress_hide_no_rate(living: World) -> None:
    rare = conf.new(config_files=[])
    rare.set_override('progress_write_interval_seconds', 40, 'conductor')
    request = living.planned(['h1'], ['i1'])
    living.begun()
    report(living, 'h1', 3)
    silence(living, 'h1', 30)

    store = common.explanation_store(rare, living.database, names.CellNames(living.inventory))
    (task,) = store.tasks(living.requests.tasks(request.id))

    assert (task.rate_bytes, task.reason) == (3, None)


def test_restarted_compute_loses_its_rate(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    living.begun()
    report(living, 'h1', 5000)
    silence(living, 'h1', 10)
    living.agents.register(model.Agent('h1', 'agent-h1', living.cell.uuid))

    assert reasons(living, request) == {'h1': 'no progress since its compute registered'}
    assert shown(living, request).rate_bytes == 0


def test_ended_rows_unchanged(living: World) -> None:
    request = living.planned(['h1'], ['i1'])
    begun = living.begun()
    outcome = model.ImageOutcome(model.TaskStatus.ERROR, 'no space')
    living.jobs.finish(begun.job_id, begun.epoch, outcome)
    living.requests.complete(request.id)
    tasks = living.requests.tasks(request.id)

    with counted(living) as queries:
        assert explained(living).tasks(tasks) == tasks
        assert shown(living, request).status == 'failed'
    assert len(queries) <= 2  # of the request itself


def test_queued_tasks_count_in_eta(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1', 'i2'])
    living.begun()
    report(living, 'h1', 10, done=50)

    now = shown(living, request)

    assert {task.bytes_total for task in living.requests.tasks(request.id)} == {100}
    assert now.eta_seconds == (50 + 3 * 100) / 10


@contextlib.contextmanager
def counted(world: World) -> Iterator[list[str]]:
    """Record the statements that the database executes."""
    statements: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith('SELECT'):
            statements.append(statement)

    sa.event.listen(world.database.engine, 'before_cursor_execute', note)
    try:
        yield statements
    finally:
        sa.event.remove(world.database.engine, 'before_cursor_execute', note)


LIMITED = model.RequestOptions(canary=2, max_parallel_hosts=50)


@pytest.mark.parametrize(
    ('tasks', 'options', 'most'),
    [(10, None, 4), (1000, None, 5), (10, LIMITED, 9), (1000, LIMITED, 10)],
)
def test_page_of_tasks_costs_few_queries(
    living: World, tasks: int, options: model.RequestOptions | None, most: int
) -> None:
    hosts = [f'host{number}' for number in range(tasks)]
    request = living.planned(hosts, ['i1'], options=options or model.RequestOptions())
    living.begun()
    living.begun()
    page = living.requests.tasks(request.id)
    living.hears(for_seconds=3600)  # the plan took time

    with counted(living) as queries:
        assert len(explained(living).tasks(page)) == tasks

    assert len(queries) <= most


def test_page_of_requests_costs_few_queries(living: World) -> None:
    for _ in range(20):
        living.planned(['h1', 'h2'], ['i1'], options=model.RequestOptions(canary=1))
    page = living.requests.list()
    living.hears(for_seconds=3600)  # the plans took time

    with counted(living) as queries:
        assert len(explained(living).requests(page)) == 20

    assert len(queries) <= 6


def test_request_read_by_three_queries(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    living.begun()
    report(living, 'h1', 10)

    with counted(living) as queries:
        assert shown(living, request).rate_bytes == 10

    assert len(queries) == 3
    assert sum('FROM cache_requests' in query for query in queries) == 1


def test_rates_at_work_need_no_history(living: World) -> None:
    request = living.planned(['h1'], ['i1', 'i2'])
    living.begun()
    report(living, 'h1', 10)
    page = living.requests.tasks(request.id)

    with counted(living) as queries:
        assert etas(living, request)['h1 i2'] == (90 + 100) / 10

    assert len(page) == 2
    assert not [query for query in queries if 'jobs.finished_at' in query]


def test_far_tasks_cost_no_more(living: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, 'MOST_JOBS', 1)
    for host in ('h1', 'h2', 'h3'):
        cached_before(living, host, seconds=50)
    request = living.planned(['h1', 'h2', 'h3'], ['i1'])
    living.begun()
    page = [task for task in living.requests.tasks(request.id) if task.host == 'h3']

    with counted(living) as queries:
        (far,) = explained(living, precache_concurrency=one_slot).tasks(page)

    assert far.reason == 'waits for a slot: 1 of 1 hosts are at work, more than 1 host before it'
    assert far.eta_seconds is None
    # Signs, request, task; limits, place: no more urgent hosts, no rates, and no bytes before it.
    assert len(queries) == 5


def etas(world: World, request: model.CacheRequest, **rules: Any) -> dict[str, float | None]:
    tasks = explained(world, **rules).tasks(world.requests.tasks(request.id))
    return {f'{task.host} {task.image_id}': task.eta_seconds for task in tasks}


def one_slot() -> int:
    return 1


def test_queued_tasks_have_turn_and_eta(living: World) -> None:
    request = living.planned(['h1', 'h2', 'h3'], ['i1'])
    living.begun()
    report(living, 'h1', 10, done=50)

    assert reasons(living, request, precache_concurrency=one_slot) == {
        'h1': None,
        'h2': 'waits for a slot: 1 of 1 hosts are at work, 0 hosts before it',
        'h3': 'waits for a slot: 1 of 1 hosts are at work, 1 host before it',
    }
    # The rest of h1, then a host after the other, each at the mean of the present rates.
    assert etas(living, request, precache_concurrency=one_slot) == {
        'h1 i1': 5,
        'h2 i1': 5 + 10,
        'h3 i1': 5 + 10 + 10,
    }


def test_later_images_of_host_add_up(living: World) -> None:
    request = living.planned(['h1'], ['i1', 'i2', 'i3'])
    living.begun()
    report(living, 'h1', 10, done=50)

    assert etas(living, request) == {'h1 i1': 5, 'h1 i2': 15, 'h1 i3': 25}


def cached_before(world: World, host: str, seconds: float) -> None:
    """Record that a host has cached an image of 100 bytes in some seconds."""
    before = world.planned([host], ['old'])
    begun = world.begun()
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    world.jobs.release('c1', [host])
    world.requests.complete(before.id)
    (job,) = (each for each in world.all_jobs() if each.uuid == begun.job_id)
    assert job.finished_at is not None
    started = job.finished_at - datetime.timedelta(seconds=seconds)
    world.change(models.Job, models.Job.uuid == begun.job_id, started_at=started)


def test_measured_rate_of_host_counts(living: World) -> None:
    cached_before(living, 'h3', seconds=50)
    request = living.planned(['h1', 'h2', 'h3'], ['i1'])
    living.begun()
    report(living, 'h1', 10, done=50)

    assert etas(living, request, precache_concurrency=one_slot)['h3 i1'] == 5 + 10 + 100 / 2


def test_history_counts_if_none_is_at_work(living: World) -> None:
    cached_before(living, 'h2', seconds=50)
    request = living.planned(['h1', 'h2'], ['i1'])

    assert etas(living, request) == {'h1 i1': 50, 'h2 i1': 50}
    assert shown(living, request, precache_concurrency=lambda: 2).eta_seconds is None


def test_eta_unknown_without_any_rate(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    assert etas(living, request) == {'h1 i1': None, 'h2 i1': None}
    living.begun()
    report(living, 'h1', 5000)
    silence(living, 'h1', SILENT_SECONDS + 5)

    assert etas(living, request, precache_concurrency=one_slot) == {'h1 i1': None, 'h2 i1': None}


def test_limit_of_rate_lengthens_eta(living: World) -> None:
    options = model.RequestOptions(max_rate_bytes=4)
    living.planned(['h1'], ['i1'])
    request = living.planned(['h2'], ['i1'], options=options)
    living.begun()
    report(living, 'h1', 10, done=50)

    assert etas(living, request, precache_concurrency=one_slot) == {'h2 i1': 5 + 25}


def test_waiting_request_has_eta(living: World) -> None:
    living.planned(['h1'], ['i1'])
    request = living.planned(['h2', 'h3'], ['i1'])
    living.begun()
    report(living, 'h1', 10, done=50)

    now = shown(living, request, precache_concurrency=one_slot)

    assert now.rate_bytes == 0
    assert now.reason == 'h2: waits for a slot: 1 of 1 hosts are at work, 0 hosts before it'
    assert now.eta_seconds == 5 + 200 / 10


def two_slots() -> int:
    return 2


def test_few_hosts_get_no_fleet_rate(living: World) -> None:
    request = living.planned(['h1', 'h2'], ['i1'])
    for host in ('h1', 'h2'):
        living.begun()
        report(living, host, 10, done=50)
    alone = living.planned(['h3'], ['i1', 'i2'])

    tasks = etas(living, alone, precache_concurrency=two_slots)
    assert tasks == {'h3 i1': 2.5 + 100 / 10, 'h3 i2': 2.5 + 200 / 10}
    assert shown(living, alone, precache_concurrency=two_slots).eta_seconds == tasks['h3 i2']
    assert shown(living, request, precache_concurrency=two_slots).eta_seconds == 100 / 20


def test_limit_of_hosts_lengthens_eta(living: World) -> None:
    for host in ('h1', 'h2', 'h3'):
        cached_before(living, host, seconds=50)
    one_by_one = model.RequestOptions(max_parallel_hosts=1)
    request = living.planned(['h1', 'h2', 'h3'], ['i1'], options=one_by_one)

    assert shown(living, request).eta_seconds == 300 / 2


@pytest.mark.parametrize(('priority', 'cell_uuid'), [(0, None), (1, 'far')])
def test_hosts_beyond_limit_not_before(living: World, priority: int, cell_uuid: str | None) -> None:
    limited = model.RequestOptions(max_parallel_hosts=1)
    hosts = ['h1', 'h2', 'h3']
    living.planned(hosts, ['i1'], cell_uuid=cell_uuid, options=limited, priority=priority)
    living.begun()
    living.living('h4')
    request = living.planned(['h4'], ['i1'])

    assert reasons(living, request, precache_concurrency=one_slot) == {
        'h4': 'waits for a slot: 1 of 1 hosts are at work, 0 hosts before it'
    }


SCANNED = ('cache_tasks', 'jobs', 'claims', 'agents', 'cached_images')


def scans(world: World, statements: list[tuple[str, Any]]) -> list[str]:
    """Return the steps in which SQLite reads all rows of a table that grows with the fleet."""
    found = []
    with world.database.engine.connect() as connection:
        for statement, values in statements:
            plan = connection.exec_driver_sql(f'EXPLAIN QUERY PLAN {statement}', values)
            found += [row.detail for row in plan if row.detail.startswith('SCAN')]
    return [step for step in found if step.split()[1] in SCANNED]


@contextlib.contextmanager
def executed(world: World) -> Iterator[list[tuple[str, Any]]]:
    """Record the statements that the database executes, with their values."""
    statements: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        if statement.startswith('SELECT'):
            statements.append((statement, values))

    sa.event.listen(world.database.engine, 'before_cursor_execute', note)
    try:
        yield statements
    finally:
        sa.event.remove(world.database.engine, 'before_cursor_execute', note)


@pytest.mark.parametrize('options', [model.RequestOptions(), LIMITED])
@pytest.mark.parametrize('status', [None, 'queued'])
def test_no_page_reads_whole_table(
    living: World, options: model.RequestOptions, status: str | None
) -> None:
    request = living.planned(['h1', 'h2', 'h3'], ['i1', 'i2'], options=options)
    living.begun()
    report(living, 'h1', 10)
    explain = explained(living, precache_concurrency=one_slot)

    with executed(living) as statements:
        explain.tasks(living.requests.tasks(request.id, limit=2, status=status))
        explain.requests([living.requests.get(request.id)])
        explain.requests(living.requests.list())

    assert scans(living, statements) == []


@pytest.mark.parametrize(
    'chosen',
    [
        {'request_id': 'r1'},
        {'request_id': 'r1', 'status': 'queued'},
        {'request_id': 'r1', 'image_id': 'i1'},
        {'host': 'h1'},
        {'status': 'queued'},
        {'image_id': 'i1'},
    ],
)
def test_page_is_read_in_order_of_index(world: World, chosen: dict[str, str]) -> None:
    with executed(world) as statements:
        world.requests.list_tasks(requests.TaskFilter(**chosen), pages.Page(limit=20))

    (read,) = statements
    with world.database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f'EXPLAIN QUERY PLAN {read[0]}', read[1]).all()
    assert [row.detail.split()[0] for row in plan] == ['SEARCH']  # and no sort
