# SPDX-License-Identifier: Apache-2.0
"""Progress of many jobs is written by few statements, in chunks, under the fence of each job."""

import dataclasses
from typing import Any

import pytest

from nova_precache import model
from nova_precache.db import jobs
from tests import counting, statements
from tests.unit.conftest import BROKEN, CACHED, World

CANCELLED = model.ImageOutcome(model.TaskStatus.CANCELLED)


def _report(call: jobs.Assignment, sequence: int, done: int, **fields: Any) -> jobs.ProgressReport:
    progress = model.Progress(model.TaskStatus.DOWNLOADING, done, 100, 7)
    report = jobs.ProgressReport(call.job_id, call.epoch, sequence, progress)
    return dataclasses.replace(report, **fields)


def _begun(world: World, count: int) -> list[jobs.Assignment]:
    """Begin one job on each of as many hosts; return them in the order of their locks."""
    hosts = [f'h{number}' for number in range(count)]
    for host in hosts:
        world.living(host)
    world.planned(hosts, ['i1'])
    return sorted((world.begun() for _ in range(count)), key=lambda call: call.host)


def _done(world: World) -> list[int]:
    """Return the bytes of all jobs, by host."""
    return [job.bytes_done for job in sorted(world.all_jobs(), key=lambda job: job.host)]


def test_each_report_meets_its_fence(world: World) -> None:
    calls = _begun(world, 10)
    good, unknown, old, other_cell, stranger, own, late, over, waits, shrinks = calls
    world.jobs.record_progress([_report(late, 5, 40), _report(shrinks, 1, 60)])
    world.jobs.finish(over.job_id, over.epoch, CACHED)
    world.jobs.retry(waits.job_id, waits.epoch, BROKEN, 100)
    again = world.jobs.assign_again('c1', old)
    assert again is not None
    polishing = model.Progress('polishing', 30, 100)

    counted = world.jobs.record_progress(
        [
            _report(good, 1, 10, cell_uuid=world.cell.uuid),
            _report(unknown, 1, 30, progress=polishing),
            _report(old, 9, 90),
            _report(other_cell, 1, 90, cell_uuid='another-cell'),
            _report(stranger, 1, 90, agent_id='stranger'),
            _report(own, 1, 50, agent_id=f'agent-{own.host}'),
            _report(late, 5, 90),
            _report(over, 9, 90),
            _report(waits, 9, 90),
            _report(shrinks, 2, 20),
            jobs.ProgressReport('no-such-job', 1, 1, polishing),
        ]
    )

    assert counted == 4
    assert _done(world) == [10, 30, 0, 0, 0, 50, 40, 100, 0, 60]
    [request] = world.requests.list()
    task_bytes = {task.host: task.bytes_done for task in world.tasks(request).values()}
    assert [task_bytes[call.host] for call in calls] == _done(world)
    shown = [world.job(call.job_id).status for call in calls]
    assert shown == [*['downloading'] * 7, 'cached', 'retry_wait', 'downloading']
    assert counting.counters(world.database) == counting.sums(world.database)


def test_job_shown_in_all_tasks(world: World) -> None:
    first = world.planned(['h1'], ['i1'])
    second = world.planned(['h1'], ['i1'])
    call = world.begun()
    third = world.planned(['h1'], ['i1'])
    world.jobs.end_tasks(call.job_id, [second.id], CANCELLED)
    report = _report(call, 1, 40)

    assert world.jobs.record_progress([report]) == 1

    shown = [world.tasks(each)['h1', 'i1'] for each in (first, second, third)]
    assert [(task.status, task.bytes_done, task.rate_bytes) for task in shown] == [
        ('downloading', 40, 7),
        ('cancelled', 0, None),
        ('downloading', 40, 7),
    ]


def test_refused_report_shows_in_no_task(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    calls = [world.begun(), world.begun()]
    world.jobs.record_progress([_report(call, 3, 30) for call in calls])
    newer, repeated = calls

    assert world.jobs.record_progress([_report(newer, 4, 40), _report(repeated, 3, 90)]) == 1

    shown = {host: task.bytes_done for (host, _), task in world.tasks(request).items()}
    assert shown == {newer.host: 40, repeated.host: 30}


def test_newest_of_several_senders_counts(world: World) -> None:
    [call] = _begun(world, 1)
    reports = [
        _report(call, 3, 30, agent_id=f'agent-{call.host}'),
        _report(call, 9, 90, agent_id='stranger'),
        _report(call, 2, 20),
        _report(call, 8, 80, epoch=call.epoch - 1),
    ]

    assert world.jobs.record_progress(reports) == 2

    job = world.job(call.job_id)
    assert (job.bytes_done, job.progress_sequence) == (30, 3)


def test_statements_grow_with_chunks_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, 'REPORTS_AT_ONCE', 4)
    calls = _begun(world, 8)

    with statements.recorded(world.database, 'SELECT', 'UPDATE') as of_one:
        world.jobs.record_progress([_report(calls[0], 1, 10)])
    with statements.recorded(world.database, 'SELECT', 'UPDATE') as of_one_chunk:
        world.jobs.record_progress([_report(call, 2, 20) for call in calls[:4]])
    with statements.recorded(world.database, 'SELECT', 'UPDATE') as of_two_chunks:
        world.jobs.record_progress([_report(call, 3, 30) for call in calls])

    assert len(of_one) == len(of_one_chunk) == 5
    ends = ([each.sql for each in some[-2:]] for some in (of_one, of_one_chunk))
    assert next(ends) == next(ends)  # built once
    assert len(of_two_chunks) == 1 + 2 * 4
    assert _done(world) == [30] * 8


def test_late_reports_lock_nothing(world: World) -> None:
    [call] = _begun(world, 1)
    world.jobs.finish(call.job_id, call.epoch, CACHED)

    with statements.recorded(world.database, 'UPDATE') as updates:
        assert world.jobs.record_progress([_report(call, 1, 10)]) == 0

    assert updates == []


def test_outcome_recorded_between_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, 'REPORTS_AT_ONCE', 2)
    calls = _begun(world, 4)
    last = calls[0]
    ended: list[bool] = []
    write = world.database.write

    def write_and_finish(*args: Any, **kwargs: Any) -> Any:
        result = write(*args, **kwargs)
        if not ended:
            ended.append(False)
            ended.append(bool(world.jobs.finish(last.job_id, last.epoch, CACHED)))
        return result

    monkeypatch.setattr(world.database, 'write', write_and_finish)
    counted = world.jobs.record_progress([_report(call, 1, 50) for call in calls])

    assert (counted, ended) == (3, [False, True])
    assert _done(world) == [100, 50, 50, 50]
    assert world.job(last.job_id).status == 'cached'


def test_chunks_lock_in_reverse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, 'REPORTS_AT_ONCE', 2)
    calls = _begun(world, 4)

    with statements.recorded(world.database, 'UPDATE jobs SET priority') as locks:
        world.jobs.record_progress([_report(call, 1, 50) for call in calls])

    locked = [[value for value in each.values if isinstance(value, str)] for each in locks]
    assert locked == [['h2/i1', 'h3/i1'], ['h0/i1', 'h1/i1']]
