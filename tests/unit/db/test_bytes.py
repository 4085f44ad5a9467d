# SPDX-License-Identifier: Apache-2.0
"""The bytes of jobs, tasks and requests: they only grow, and no total is below its parts."""

import random
from collections.abc import Sequence

import pytest

from nova_precache import model
from nova_precache.db import jobs
from tests.unit.conftest import BROKEN, PLANNER, World

EXISTING = model.ImageOutcome(model.TaskStatus.EXISTING, bytes_total=0)
STEPS = 30


def _report(
    world: World, call: jobs.Assignment, sequence: int, done: int, total: int | None
) -> None:
    progress = model.Progress(model.TaskStatus.DOWNLOADING, done, total)
    world.jobs.record_progress([jobs.ProgressReport(call.job_id, call.epoch, sequence, progress)])


def _again(world: World, call: jobs.Assignment) -> jobs.Assignment:
    """Fail an attempt, and make the next one."""
    world.jobs.retry(call.job_id, call.epoch, BROKEN, delay_seconds=0)
    assigned = world.assign('c1', call.host)
    assert assigned is not None
    assert world.jobs.begin(assigned.job_id, assigned.epoch, True)
    return assigned


def test_found_image_keeps_moved_bytes(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    call = world.begun()
    _report(world, call, 1, 100, 100)
    call = _again(world, call)

    world.jobs.finish(call.job_id, call.epoch, EXISTING)

    [task] = world.requests.tasks(request.id)
    shown = world.requests.get(request.id)
    assert (task.status, task.bytes_done, task.bytes_total) == ('existing', 100, 100)
    assert (shown.bytes_done, shown.bytes_total) == (100, 100)


def test_cached_image_moves_no_bytes(world: World) -> None:
    request = world.planned(['h1'], ['i1'])
    call = world.begun()

    world.jobs.finish(call.job_id, call.epoch, EXISTING)

    [task] = world.requests.tasks(request.id)
    assert (task.bytes_done, task.bytes_total) == (0, 0)


def test_bytes_of_unknown_size_summed(world: World) -> None:
    request = world.planned(['h1', 'h2'], ['i1'])
    call = world.begun()
    world.change(jobs.models.Task, jobs.models.Task.host == 'h1', bytes_total=None)

    _report(world, call, 1, 70, None)

    shown = world.requests.get(request.id)
    assert (shown.bytes_done, shown.bytes_total) == (70, 170)


@pytest.mark.parametrize('seed', range(12))
def test_bytes_only_grow_up_to_total(world: World, seed: int) -> None:
    any_of = random.Random(seed)
    requests = [world.planned(['h1'], ['i1'])]
    call = world.begun()
    seen: dict[str, int] = {}
    for sequence in range(1, STEPS):
        done, total = any_of.choice((0, 1, 50, 100, 2**40)), any_of.choice((None, 0, 50, 100))
        match any_of.choice(('report', 'report', 'retry', 'join', 'late', 'leave')):
            case 'report':
                _report(world, call, sequence, done, total)
            case 'retry':
                call = _again(world, call)
            case 'join':
                requests.append(_joining(world))
            case 'late':
                _report(world, call, 0, done, total)
            case 'leave' if len(requests) > 1:
                left = any_of.choice(requests)
                outcome = model.ImageOutcome(
                    model.TaskStatus.SKIPPED, 'left', bytes_done=done, bytes_total=total
                )
                if len(_wanting(world, requests)) > 1:
                    world.jobs.end_tasks(call.job_id, [left.id], outcome)
        _check(world, requests, seen)
    done, total = any_of.choice((0, 100)), any_of.choice((None, 0, 100))
    word = any_of.choice((model.TaskStatus.EXISTING, model.TaskStatus.CACHED))

    ended = model.ImageOutcome(word, bytes_done=done, bytes_total=total)
    assert world.jobs.finish(call.job_id, call.epoch, ended)

    _check(world, requests, seen)


def _joining(world: World) -> model.CacheRequest:
    """Make another request that wants the image."""
    request = world.accept(['h1'], ['i1'])
    taken = world.requests.next_to_plan(PLANNER)
    assert taken is not None
    assert world.plan(request, ['h1'])
    assert world.requests.mark_planned(request.id, PLANNER)
    return request


def _wanting(world: World, requests: Sequence[model.CacheRequest]) -> list[str]:
    tasks = [task for each in requests for task in world.requests.tasks(each.id)]
    return [task.request_id for task in tasks if task.status in model.TASK_IN_FLIGHT]


def _check(world: World, requests: Sequence[model.CacheRequest], seen: dict[str, int]) -> None:
    [job] = world.all_jobs()
    rows = {'job': (job.bytes_done, job.bytes_total)}
    for request in requests:
        [task] = world.requests.tasks(request.id)
        rows[request.id] = task.bytes_done, task.bytes_total
        shown = world.requests.get(request.id)
        assert (shown.bytes_done, shown.bytes_total) == rows[request.id]
    for name, (done, total) in rows.items():
        assert total is not None
        assert seen.get(name, 0) <= done <= total, (name, rows)
        seen[name] = done
