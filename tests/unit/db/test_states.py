# SPDX-License-Identifier: Apache-2.0
"""Every arrow of the tables in ``states``, driven through the stores."""

import contextlib
from collections.abc import Iterable
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model, states
from nova_precache.db import jobs
from nova_precache.db.engine import models
from nova_precache.db.request import plan as request_plan
from nova_precache.model import RequestStatus as Request, TaskStatus as Task
from nova_precache.states import Event
from tests.unit.conftest import BROKEN, LONG_AGO, PLANNER, World
from tests.unit.db.conftest import Changes

# The steps of a Driver to the origin of an arrow, and those of its event. A step that is the
# status of a task is what the next of the called computes reports.
OF_REQUESTS = {
    (Event.ACCEPT, None, Request.ACCEPTED): ('', 'accept'),
    (Event.PLAN, Request.ACCEPTED, Request.PLANNED): ('accept', 'plan'),
    (Event.PLAN, Request.PAUSED, Request.PAUSED): ('accept pause', 'plan'),
    (Event.FAIL, Request.ACCEPTED, Request.FAILED): ('accept', 'fail'),
    (Event.FAIL, Request.ACCEPTED, Request.PARTIAL): (
        'accept plan call cached error complete retry',
        'fail',
    ),
    (Event.FAIL, Request.PAUSED, Request.FAILED): ('accept pause', 'fail'),
    (Event.FAIL, Request.PAUSED, Request.PARTIAL): (
        'accept plan call cached error complete retry pause',
        'fail',
    ),
    (Event.ADOPT, Request.PLANNED, Request.PLANNED): ('accept plan as_before', 'adopt'),
    (Event.ADOPT, Request.RUNNING, Request.RUNNING): ('accept plan call begin as_before', 'adopt'),
    (Event.BEGIN, Request.PLANNED, Request.RUNNING): ('accept plan call', 'begin'),
    (Event.PAUSE, Request.ACCEPTED, Request.PAUSED): ('accept', 'pause'),
    (Event.PAUSE, Request.PLANNED, Request.PAUSED): ('accept plan', 'pause'),
    (Event.PAUSE, Request.RUNNING, Request.PAUSED): ('accept plan call begin', 'pause'),
    (Event.RESUME, Request.PAUSED, Request.ACCEPTED): ('accept pause', 'resume'),
    (Event.RESUME, Request.PAUSED, Request.PLANNED): ('accept plan pause', 'resume'),
    (Event.RESUME, Request.PAUSED, Request.RUNNING): ('accept plan call begin pause', 'resume'),
    (Event.CANCEL, Request.ACCEPTED, Request.CANCELLING): ('accept', 'cancel'),
    (Event.CANCEL, Request.PLANNED, Request.CANCELLING): ('accept plan', 'cancel'),
    (Event.CANCEL, Request.RUNNING, Request.CANCELLING): ('accept plan call begin', 'cancel'),
    (Event.CANCEL, Request.PAUSED, Request.CANCELLING): ('accept plan pause', 'cancel'),
    **{
        (Event.COMPLETE, origin, target): (f'{before} {outcomes}', 'complete')
        for origin, before in {
            Request.PLANNED: 'accept plan call',
            Request.RUNNING: 'accept plan call begin',
            Request.PAUSED: 'accept plan call begin pause',
        }.items()
        for target, outcomes in {
            Request.COMPLETED: 'cached existing',
            Request.PARTIAL: 'cached error',
            Request.FAILED: 'error skipped',
            Request.EXPIRED: 'cached expire expired',
        }.items()
    },
    (Event.COMPLETE, Request.CANCELLING, Request.COMPLETED): (
        'accept plan call begin cancel cached cached',
        'complete',
    ),
    (Event.COMPLETE, Request.CANCELLING, Request.CANCELLED): ('accept cancel', 'complete'),
    (Event.RETRY, Request.PARTIAL, Request.ACCEPTED): (
        'accept plan call cached error complete',
        'retry',
    ),
    (Event.RETRY, Request.FAILED, Request.ACCEPTED): ('accept fail', 'retry'),
    (Event.RETRY, Request.CANCELLED, Request.ACCEPTED): ('accept cancel complete', 'retry'),
    (Event.RETRY, Request.EXPIRED, Request.ACCEPTED): ('accept plan expire complete', 'retry'),
}
TO_TASK = {
    Task.QUEUED: 'accept plan call',
    Task.RETRY_WAIT: 'accept plan call begin wait call_again',
    Task.DOWNLOADING: 'accept plan call begin',
    Task.VERIFYING: 'accept plan call begin verifying',
    Task.CONVERTING: 'accept plan call begin converting',
    Task.UNSUPPORTED: 'accept plan call unsupported',
    Task.ERROR: 'accept plan call error',
    Task.SKIPPED: 'accept plan call skipped',
    Task.CANCELLED: 'accept plan call cancel',
    Task.EXPIRED: 'accept plan call expire',
}
OF_TASKS = {
    Event.CALL: 'call_next',
    Event.BEGIN: 'begin',
    Event.WAIT: 'wait',
    Event.CANCEL: 'cancel cancelled',
    Event.EXPIRE: 'expire expired',
}
SHARED = [each for each in states.TASKS.arrows if each.event not in (Event.PLAN, Event.RETRY)]


def _of(event: Event) -> list[states.Arrow[Task]]:
    return [each for each in states.TASKS.arrows if each.event == event]


def _arrows(arrows: Iterable[states.Arrow[Any]]) -> Any:
    names = {f'{each.origin or "new"}-{each.event}-{each.target}': each for each in arrows}
    return pytest.mark.parametrize('arrow', names.values(), ids=names)


class Driver:
    """Drives one request of image i1 by what conductors, computes and users do."""

    def __init__(self, world: World, *hosts: str) -> None:
        self._world = world
        self._hosts = hosts
        self.request: model.CacheRequest | None = None
        self._calls: list[jobs.Assignment] = []
        self._sequence = 0

    def run(self, steps: str) -> None:
        for step in steps.split():
            if step in set(Task):
                self._report(Task(step))
            else:
                getattr(self, step)()

    @property
    def id(self) -> str:
        assert self.request is not None
        return self.request.id

    def accept(self) -> None:
        self.request = self._world.accept(self._hosts, ['i1'])

    def plan(self, *tasks: request_plan.PlannedTask) -> None:
        requests = self._world.requests
        self._lease_plan()
        if tasks:
            requests.add_tasks(self.id, PLANNER, tasks)
        else:
            self._world.plan(requests.get(self.id), self._hosts)
        assert requests.mark_planned(self.id, PLANNER)

    def fail(self) -> None:
        self._lease_plan()
        assert self._world.requests.fail(self.id, PLANNER, 'the aggregate is gone')

    def _lease_plan(self) -> None:
        to_plan = self._world.requests.next_to_plan(PLANNER)
        assert to_plan is not None
        assert to_plan.request.id == self.id

    def as_before(self) -> None:
        """Make the request look as a conductor of an earlier release leaves it."""
        which = models.CacheRequest.id == self.id
        self._world.change(models.CacheRequest, which, is_planned=False)

    def adopt(self) -> None:
        self._world.steering.adopt()

    def pause(self) -> None:
        self._world.steering.pause(self.id)

    def resume(self) -> None:
        self._world.steering.resume(self.id)

    def cancel(self) -> None:
        self._world.steering.cancel(self.id)

    def retry(self) -> None:
        self._world.steering.retry(self.id)

    def expire(self) -> None:
        which = models.CacheRequest.id == self.id
        self._world.change(models.CacheRequest, which, deadline=LONG_AGO)
        self._world.steering.expire()

    def complete(self) -> None:
        assert self._world.requests.complete(self.id)

    def call(self) -> None:
        claimed = self._world.jobs.claim_hosts('c1', limit=9, most=9)
        self._calls = [each.first for each in claimed if each.first is not None]
        assert [each.host for each in self._calls] == list(self._hosts)

    def call_next(self) -> None:
        assert self._world.jobs.next_job('c1', self._calls[0].host).assignment is not None

    def call_again(self) -> None:
        called = self._world.jobs.assign_again('c1', self._calls[0])
        assert called is not None
        self._calls[0] = called

    def release(self) -> None:
        self._world.jobs.release('c1', self._hosts)

    def begin(self) -> None:
        for call in self._calls:
            assert self._world.jobs.begin(call.job_id, call.epoch)

    def wait(self) -> None:
        call = self._calls[0]
        assert self._world.jobs.retry(call.job_id, call.epoch, BROKEN, delay_seconds=0)

    def _report(self, status: Task) -> None:
        call = self._calls[0]
        if status not in model.TASK_WORKING:
            self._world.jobs.finish(call.job_id, call.epoch, model.ImageOutcome(status, 'reported'))
            self._calls = self._calls[1:]
            return
        self._sequence += 1
        progress = model.Progress(status, bytes_done=self._sequence)
        report = jobs.ProgressReport(call.job_id, call.epoch, self._sequence, progress)
        assert self._world.jobs.record_progress([report]) == 1


def _row(world: World, table: type[models.Base], which: sa.ColumnElement[bool]) -> dict[str, Any]:
    columns = sa.select(*table.__table__.columns).where(which)
    with world.database.reader() as reader:
        return dict(reader.execute(columns).mappings().one_or_none() or {'status': None})


@_arrows(states.REQUESTS.arrows)
def test_a_request_takes_the_arrow(
    world: World, changes: Changes, arrow: states.Arrow[Request]
) -> None:
    before, event = OF_REQUESTS[arrow]
    driver = Driver(world, 'h1', 'h2')
    driver.run(before)
    which = sa.true() if driver.request is None else models.CacheRequest.id == driver.id
    old = _row(world, models.CacheRequest, which)

    driver.run(event)

    new = _row(world, models.CacheRequest, which)
    assert (old['status'], new['status']) == (arrow.origin, arrow.target)
    assert old != new
    assert arrow.origin == arrow.target or arrow[1:] in changes.of(models.CacheRequest)


@_arrows(SHARED)
def test_job_and_task_take_arrow(world: World, changes: Changes, arrow: states.Arrow[Task]) -> None:
    driver = Driver(world, 'h1')
    assert arrow.origin is not None
    driver.run(TO_TASK[arrow.origin])
    tables = (models.Job, models.Task)
    old = [_row(world, table, sa.true()) for table in tables]

    driver.run(OF_TASKS.get(arrow.event, arrow.target))

    new = [_row(world, table, sa.true()) for table in tables]
    assert [row['status'] for row in old] == [arrow.origin] * 2
    assert [row['status'] for row in new] == [arrow.target] * 2
    assert all(before != after for before, after in zip(old, new, strict=True))
    assert all(arrow[1:] in changes.of(table) for table in tables)


def test_a_plan_makes_jobs(world: World, changes: Changes) -> None:
    Driver(world, 'h1').run('accept plan')

    assert (None, Task.QUEUED) in changes.of(models.Job)
    assert set(states.JOBS.arrows) - set(SHARED) == {(Event.PLAN, None, Task.QUEUED)}


@_arrows(_of(Event.PLAN))
def test_a_planned_task_takes_the_arrow(
    world: World, changes: Changes, arrow: states.Arrow[Task]
) -> None:
    driver = Driver(world, 'h1')
    is_joined = arrow.target in model.TASK_IN_FLIGHT
    if arrow.origin is not None:
        driver.run('accept plan call error complete release')
    if is_joined and arrow.target != Task.QUEUED:
        Driver(world, 'h1').run(TO_TASK[arrow.target])
    driver.run('accept' if arrow.origin is None else 'retry')
    old = _row(world, models.Task, models.Task.request_id == driver.id)

    known = request_plan.PlannedTask('h1', None, 'i1', arrow.target, 'known')
    driver.plan(*([] if is_joined else [known]))

    new = _row(world, models.Task, models.Task.request_id == driver.id)
    assert (old['status'], new['status']) == (arrow.origin, arrow.target)
    assert old != new
    assert arrow[1:] in changes.of(models.Task)


@_arrows(_of(Event.RETRY))
def test_a_retried_task_takes_the_arrow(
    world: World, changes: Changes, arrow: states.Arrow[Task]
) -> None:
    driver = Driver(world, 'h1')
    assert arrow.origin is not None
    driver.run(TO_TASK[arrow.origin])
    driver.run('complete')

    driver.run('retry')

    (task,) = world.requests.tasks(driver.id)
    assert task.status == arrow.target
    assert arrow[1:] in changes.of(models.Task)


# Actions that a status does not allow, and the way to each status.
TO_REQUEST = {
    origin: before for (_, origin, _), (before, _) in reversed(OF_REQUESTS.items()) if origin
} | {Request.COMPLETED: 'accept plan call cached cached complete'}
ACTIONS = (Event.CANCEL, Event.PAUSE, Event.RESUME, Event.RETRY)


@pytest.mark.parametrize('status', Request)
def test_an_action_without_arrow_changes_nothing(world: World, status: Request) -> None:
    driver = Driver(world, 'h1', 'h2')
    driver.run(TO_REQUEST[status])
    old = _row(world, models.CacheRequest, sa.true())
    assert old['status'] == status

    for event in (each for each in ACTIONS if status not in states.REQUESTS.origins(each)):
        is_repeated = event != Event.RETRY and status in states.REQUESTS.targets(event)
        refused = pytest.raises(exception.StatusConflict, match=status)
        with contextlib.nullcontext() if is_repeated else refused:
            driver.run(event)
        assert _row(world, models.CacheRequest, sa.true()) == old
