# SPDX-License-Identifier: Apache-2.0
"""Two requests that overlap, steered in any order: nothing is lost, and everything adds up."""

import contextlib
import datetime
import random
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.db import jobs
from nova_precache.db.engine import models, session
from nova_precache.db.job import demand
from tests.unit.conftest import BROKEN, CACHED, LONG_AGO, PLANNER, World

HOSTS = ('h1', 'h2', 'h3')
IMAGES = ('i1', 'i2')
STEPS = 50
FAR_AHEAD = datetime.datetime(2100, 1, 1)  # noqa: DTZ001 - as the database keeps it
REFUSED = model.ImageOutcome(model.TaskStatus.ERROR, 'refused')
SLOW = model.ImageOutcome(
    model.TaskStatus.ERROR, 'slower', model.Retry.BACKOFF, bytes_done=20, gained_bytes=5
)
CANCELLED = model.ImageOutcome(model.TaskStatus.CANCELLED, 'told to', bytes_done=30)
EXPIRED = model.ImageOutcome(model.TaskStatus.EXPIRED, 'too late', bytes_done=40)
OUTCOMES = (CACHED, CACHED, CACHED, REFUSED, BROKEN, CANCELLED, EXPIRED)


class Orders:
    """The actions of users, conductors, computes and time, one at a time."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.any = random.Random(seed)
        self.asked: list[model.CacheRequest] = []
        self.retries: dict[str, int] = {}
        self.called: list[jobs.Assignment] = []
        self.steps = (
            *(self.plan, self.call, self.finish) * 3,
            *(self.cancel, self.pause, self.resume, self.retry, self.complete) * 2,
            *(self.fail_to_plan, self.break_down, self.find_stopped, self.check),
            *(self.expire, self.open_windows),
        )

    def take_a_step(self) -> str:
        """Take a random step, and return its name."""
        step = self.accept if len(self.asked) < 2 else self.any.choice(self.steps)
        step()
        return step.__name__

    def accept(self) -> None:
        options = model.RequestOptions(
            max_parallel_hosts=self.any.choice([None, None, 1]),
            not_before=self.any.choice([None, None, FAR_AHEAD]),
            canary=self.any.choice([None, None, 1]),
            max_failures=self.any.choice([None, None, 1]),
        )
        images = IMAGES if not self.asked else IMAGES[: self.any.randint(1, 2)]
        request = self.world.accept(HOSTS, images, options=options)
        self.asked.append(request)
        self.retries[request.id] = 0

    def cancel(self) -> None:
        with contextlib.suppress(exception.StatusConflict):
            self.world.steering.cancel(self._one().id, self.any.choice([True, False]))

    def pause(self) -> None:
        with contextlib.suppress(exception.StatusConflict):
            self.world.steering.pause(self._one().id)

    def resume(self) -> None:
        with contextlib.suppress(exception.StatusConflict):
            self.world.steering.resume(self._one().id)

    def retry(self) -> None:
        request = self._one()
        with contextlib.suppress(exception.StatusConflict):
            self.world.steering.retry(request.id)
            self.retries[request.id] += 1

    def plan(self, ends: bool | None = None) -> None:
        taken = self.world.requests.next_to_plan(PLANNER)
        if taken is None:
            return
        hosts = self._hosts(taken.request)
        assert self.world.plan(taken.request, hosts[: self.any.randint(1, 3)])
        if ends or self.any.choice([True, False]):
            assert self.world.plan(taken.request, hosts)
            assert self.world.requests.mark_planned(taken.request.id, PLANNER)

    def fail_to_plan(self) -> None:
        taken = self.world.requests.next_to_plan(PLANNER)
        if taken is not None and self.any.randint(1, 3) == 1:
            assert self.world.requests.fail(taken.request.id, PLANNER, 'no aggregate')

    def call(self) -> None:
        claim = self.world.claim('c1', limit=2)
        if claim is None:
            return
        assigned = self.world.assign('c1', claim.host)
        if assigned is None:
            self.world.jobs.release('c1', [claim.host])
            return
        self.called.append(assigned)
        if self.any.choice([True, True, False]):
            assert self.world.jobs.begin(assigned.job_id, assigned.epoch)

    def finish(self, outcome: model.ImageOutcome | None = None) -> None:
        if not self.called:
            return
        call = self.called.pop(self.any.randrange(len(self.called)))
        self.world.jobs.begin(call.job_id, call.epoch)
        self.world.jobs.finish(call.job_id, call.epoch, outcome or self.any.choice(OUTCOMES))
        self.world.jobs.release('c1', [call.host])

    def break_down(self) -> None:
        if not self.called:
            return
        call = self.called.pop(self.any.randrange(len(self.called)))
        outcome = self.any.choice([BROKEN, SLOW])
        self.world.jobs.others_wait(call.job_id, call.epoch)
        self.world.jobs.retry(call.job_id, call.epoch, outcome, 100)
        if outcome is SLOW:
            self.world.jobs.postpone_due(call.host, SLOW, 100)
        self.world.jobs.release('c1', [call.host])
        self.world.make_due()

    def find_stopped(self) -> None:
        for order in self.world.steering.stop_orders()[:1]:
            assert self.world.steering.stopped(order.job_id, order.epoch)

    def check(self) -> None:
        self.world.steering.check()

    def complete(self) -> None:
        for request_id in self.world.requests.ids_to_complete():
            assert self.world.requests.complete(request_id)

    def expire(self) -> None:
        row = models.CacheRequest
        late = sa.and_(row.id == self._one().id, row.is_planned)
        active = sa.and_(late, row.status.in_(model.REQUEST_ACTIVE))
        self.world.change(row, active, deadline=LONG_AGO)
        self.world.steering.expire()

    def open_windows(self) -> None:
        not_before = models.CacheRequest.not_before
        self.world.change(models.CacheRequest, not_before.is_not(None), not_before=LONG_AGO)
        self.world.steering.open_windows()

    def wait_for_completion(self) -> None:
        for request in self.asked:
            with contextlib.suppress(exception.StatusConflict):
                self.world.steering.resume(request.id)
        for _ in range(60):
            self.plan(ends=True)
            self.open_windows()
            self.check()
            self.find_stopped()
            self.world.make_due()
            self.call()
            self.finish(CACHED)
            self.complete()
        assert [self.world.status(request) in model.REQUEST_ACTIVE for request in self.asked] == [
            False,
            False,
        ]
        assert self.world.depth() == 0

    # Invariants

    def look(self) -> None:
        self._a_job_is_ready_if_and_only_if_an_open_task_wants_it()
        self._each_task_in_flight_has_an_active_job_that_it_mirrors()
        for asked in self.asked:
            self._totals_and_hosts_add_up(asked)
            self._each_run_is_announced_once(asked)

    def _a_job_is_ready_if_and_only_if_an_open_task_wants_it(self) -> None:
        with self.world.database.reader() as reader:
            now = session.now(reader)
            for job in reader.scalars(
                sa.select(models.Job).where(models.Job.active_key.is_not(None))
            ):
                wanting = reader.execute(
                    sa.select(models.Task.open, models.CacheRequest.is_planned)
                    .join(models.CacheRequest, models.CacheRequest.id == models.Task.request_id)
                    .where(models.Task.job_uuid == job.uuid, demand.wants(now))
                    .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
                ).all()
                assert job.ready == any(all(each) for each in wanting)
                assert not (job.ready and job.stop_why)
                if not wanting:
                    assert job.stop_why in demand.UNWANTED
                if job.stop_why in demand.UNWANTED:
                    assert not wanting
                assert job.status in model.TASK_IN_FLIGHT

    def _each_task_in_flight_has_an_active_job_that_it_mirrors(self) -> None:
        with self.world.database.reader() as reader:
            query = (
                sa.select(models.Task, models.CacheRequest, models.Job)
                .join(models.CacheRequest, models.CacheRequest.id == models.Task.request_id)
                .outerjoin(models.Job, models.Job.uuid == models.Task.job_uuid)
                .where(models.Task.status.in_(model.TASK_IN_FLIGHT))
            )
            for task, request, job in reader.execute(query):
                if job is None:
                    assert not request.is_planned
                    continue
                if request.status == 'cancelling':
                    assert job.stop_why in demand.UNWANTED
                elif request.is_planned:
                    self._is_open_when_its_request_lets_it(task, request)
                assert job.active_key == f'{task.host}/{task.image_id}'
                assert job.status == task.status
                assert job.attempts == task.attempts >= 0

    def _is_open_when_its_request_lets_it(
        self, task: models.Task, request: models.CacheRequest
    ) -> None:
        is_closed = request.status == 'paused' or request.not_before == FAR_AHEAD
        if is_closed:
            assert not task.open
        elif request.canary_passed and request.not_before is None:
            assert task.open

    def _totals_and_hosts_add_up(self, asked: model.CacheRequest) -> None:
        request, tasks = self.world.requests.get(asked.id), self.world.tasks(asked)
        assert sum(request.counts.values()) == len(tasks)
        assert request.bytes_done == sum(task.bytes_done for task in tasks.values())
        hosts = {host for host, _ in tasks}
        busy = {t.host for t in tasks.values() if t.status in model.TASK_IN_FLIGHT}
        if self._is_planned(asked):
            assert (request.hosts_total, request.hosts_done) == (len(hosts), len(hosts - busy))
        if request.status not in model.REQUEST_ACTIVE:
            assert not busy
            assert {t.finished_at is None for t in tasks.values()} <= {False}

    def _each_run_is_announced_once(self, asked: model.CacheRequest) -> None:
        announced = self.world.announced(asked)
        assert [position for position, _, _ in announced] == list(range(len(announced)))
        words = [word for _, word, _ in announced if word in ('start', 'end')]
        request = self.world.requests.get(asked.id)
        ended = request.status not in model.REQUEST_ACTIVE
        runs = self.retries[asked.id]
        assert words.count('end') == runs + ended
        assert words.count('start') == runs + (ended or self._is_planned(asked))
        assert words == ['start', 'end'] * (len(words) // 2) + ['start'] * (len(words) % 2)
        self._check_hosts(request, [row for row in announced if row[2] or row[1] == 'start'])

    def _one(self) -> model.CacheRequest:
        return self.any.choice(self.asked)

    def _hosts(self, request: model.CacheRequest) -> Sequence[str]:
        return HOSTS if request.id == self.asked[0].id else HOSTS[1:]

    def _is_planned(self, request: model.CacheRequest) -> bool:
        with self.world.database.reader() as reader:
            return reader.get_one(models.CacheRequest, request.id).is_planned

    def _check_hosts(
        self, request: model.CacheRequest, rows: Sequence[tuple[int, str, int | None]]
    ) -> None:
        """Check that the hosts of each run appear once, with their indexes in order."""
        run: list[str] = []
        for _, word, index in rows:
            if word == 'start':
                run = []
                continue
            run.append(word)
            assert index == len(run)
            assert len(set(run)) == len(run)
        if self._is_planned(request):
            assert len(run) == request.hosts_done


@pytest.mark.parametrize('seed', range(6))
def test_random_actions_lose_no_task(world: World, seed: int) -> None:
    orders = Orders(world, seed)
    done = []
    try:
        for _ in range(STEPS):
            done.append(orders.take_a_step())
            orders.look()
        orders.wait_for_completion()
        orders.look()
    except Exception as exc:
        exc.add_note(f'after {", ".join(done)}')
        raise
