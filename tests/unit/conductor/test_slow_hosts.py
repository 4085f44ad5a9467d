# SPDX-License-Identifier: Apache-2.0
"""Hosts that download too slowly: they give the slot back, and lose neither bytes nor attempts."""

import datetime

import pytest

from nova_precache import model
from nova_precache.compute import rpcapi
from nova_precache.db.engine import models
from tests import counting
from tests.unit.conductor.conftest import POLICY, Parts, Step
from tests.unit.conftest import BROKEN

REASON = 'slower than 32.0 KiB/s for 60 s (1.2 KiB/s); 3.4 MiB of 2.0 GiB are kept'
SILENT = 'slower than 32.0 KiB/s for 60 s (0 B/s); 0 B of 2.0 GiB are kept'


def _slow(gained_bytes: int, reason: str = REASON) -> model.ImageOutcome:
    return model.ImageOutcome(
        'error', reason, model.Retry.BACKOFF, bytes_done=70, gained_bytes=gained_bytes
    )


CRAWLS, STALLS = _slow(1000), _slow(0, SILENT)


@pytest.fixture
def parts(parts: Parts) -> Parts:
    for host in ('h1', 'h2'):
        parts.world.living(host)
    return parts


def _job(parts: Parts, host: str, image: str) -> models.Job:
    [job] = [job for job in parts.world.all_jobs() if (job.host, job.image_id) == (host, image)]
    return job


def _wait_seconds(parts: Parts, job: models.Job) -> float:
    """Return the seconds until the next attempt of a job that was just recorded."""
    assert job.next_attempt_at is not None
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return (job.next_attempt_at - now).total_seconds()


def test_slow_host_gives_slot_to_another(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1', 'i2'])
    parts.compute.script('h1', 'i1', parts.compute.answers(CRAWLS))

    assert [parts.serve(), parts.serve()] == ['h1', 'h2']

    assert parts.compute.called() == [('h1', 'i1'), ('h2', 'i1'), ('h2', 'i2')]
    tasks = parts.world.tasks(request)
    slow, other = tasks['h1', 'i1'], tasks['h1', 'i2']
    assert (slow.status, slow.reason, slow.attempts) == ('retry_wait', REASON, 0)
    assert (other.status, other.attempts) == ('retry_wait', 0)
    assert other.reason == (
        'another image on this host is slower than 32.0 KiB/s for 60 s (1.2 KiB/s)'
    )
    for image in ('i1', 'i2'):
        job = _job(parts, 'h1', image)
        assert POLICY.max_delay_seconds - 10 < _wait_seconds(parts, job)
        assert _wait_seconds(parts, job) <= POLICY.max_delay_seconds
    assert parts.world.claim('c1', 100) is None, 'it takes no second turn'
    assert counting.counters(parts.world.database) == counting.sums(parts.world.database)
    assert parts.world.claimed() == 0


def test_slow_host_alone_goes_on_at_once(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1', 'i2'])
    parts.compute.script('h1', 'i1', parts.compute.answers(CRAWLS))

    assert [parts.serve(), parts.serve()] == ['h1', 'h1']

    assert parts.compute.called() == [('h1', 'i1'), ('h1', 'i1'), ('h1', 'i2')]
    assert parts.world.status(request) == 'completed'
    assert parts.world.tasks(request)['h1', 'i1'].attempts == 1


def test_claimed_host_is_not_waiting(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1', 'i2'])
    claimed = parts.world.claim('c2', 100)
    assert claimed is not None
    assert claimed.host == 'h1'
    parts.compute.script('h2', 'i1', parts.compute.answers(CRAWLS))

    assert parts.serve() == 'h2'

    assert _wait_seconds(parts, _job(parts, 'h2', 'i1')) <= 0
    assert parts.world.statuses(request)['h2', 'i2'] == 'queued'


@pytest.mark.parametrize(
    'held_up',
    [{'next_attempt_at': datetime.datetime(9000, 1, 1)}, {'ready': False}],  # noqa: DTZ001
)
def test_job_not_due_is_not_waiting(parts: Parts, held_up: dict[str, object]) -> None:
    parts.world.planned(['h1', 'h2'], ['i1'])
    parts.world.change(models.Job, models.Job.host == 'h2', status='retry_wait', **held_up)
    parts.compute.script('h1', 'i1', parts.compute.answers(CRAWLS))

    assert parts.serve() == 'h1'

    assert _wait_seconds(parts, _job(parts, 'h1', 'i1')) <= 0


def test_host_of_avoided_cell_is_not_waiting(parts: Parts) -> None:
    parts.world.planned(['h1', 'h2'], ['i1'])
    parts.world.change(models.Job, models.Job.host == 'h2', cell_uuid='dead-cell')
    parts.tracker._avoid = lambda: ['dead-cell']
    parts.compute.script('h1', 'i1', parts.compute.answers(CRAWLS))

    assert parts.serve() == 'h1'

    assert _wait_seconds(parts, _job(parts, 'h1', 'i1')) <= 0


def test_host_at_limit_of_its_request_is_not_waiting(parts: Parts) -> None:
    """The slot would not be given to it."""
    one = model.RequestOptions(max_parallel_hosts=1)
    parts.world.living('h3')
    parts.world.planned(['h2', 'h3'], ['i1'], options=one)
    assert parts.world.begun('c2').host == 'h2'
    parts.world.planned(['h1'], ['i2'])
    parts.compute.script('h1', 'i2', parts.compute.answers(CRAWLS))

    assert parts.serve() == 'h1'

    assert _wait_seconds(parts, _job(parts, 'h1', 'i2')) <= 0


def test_slow_host_frees_slot_of_its_request(parts: Parts) -> None:
    one = model.RequestOptions(max_parallel_hosts=1)
    parts.world.planned(['h1', 'h2'], ['i1'], options=one)
    parts.compute.script('h1', 'i1', parts.compute.answers(CRAWLS))

    assert [parts.serve(), parts.serve()] == ['h1', 'h2']

    assert _wait_seconds(parts, _job(parts, 'h1', 'i1')) > 5


def test_growing_bytes_use_no_attempts(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for _ in range(POLICY.max_attempts + 2):
        parts.compute.script('h1', image.id, parts.compute.answers(CRAWLS))
        parts.serve()

    assert parts.world.statuses(request) == {('h1', image.id): 'retry_wait'}
    parts.serve()
    assert parts.world.status(request) == 'completed'
    assert parts.world.tasks(request)['h1', image.id].attempts == 1


def test_growing_bytes_outlast_last_attempt(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1'], [image.id])
    for outcome in (BROKEN, BROKEN, CRAWLS, CRAWLS, BROKEN):
        assert parts.world.statuses(request)['h1', image.id] in ('queued', 'retry_wait')
        parts.compute.script('h1', image.id, parts.compute.answers(outcome))
        parts.serve()
        parts.world.make_due()

    task = parts.world.tasks(request)['h1', image.id]
    assert (task.status, task.reason, task.attempts) == ('error', 'the line is dead', 3)


def test_silence_uses_attempts_and_waits(parts: Parts) -> None:
    image = parts.images.add(b'data')
    request = parts.world.planned(['h1', 'h2'], [image.id])
    parts.compute.script('h1', image.id, parts.compute.answers(STALLS))
    parts.serve()
    assert _wait_seconds(parts, _job(parts, 'h1', image.id)) > POLICY.delay_seconds + 1
    parts.serve()
    for _ in range(POLICY.max_attempts - 1):
        parts.world.make_due()
        parts.compute.script('h1', image.id, parts.compute.answers(STALLS))
        parts.serve()

    task = parts.world.tasks(request)['h1', image.id]
    assert (task.status, task.reason, task.attempts) == ('error', SILENT, POLICY.max_attempts)
    assert parts.world.statuses(request)['h2', image.id] == 'cached'


def test_pause_during_slow_call_waits_without_reason(parts: Parts) -> None:
    request = parts.world.planned(['h1', 'h2'], ['i1'])

    def pauses(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.steering.pause(request.id)
        return CRAWLS

    step: Step = pauses
    parts.compute.script('h1', 'i1', step)
    parts.serve()

    task = parts.world.tasks(request)['h1', 'i1']
    assert (task.status, task.reason, task.attempts) == ('retry_wait', None, 0)


def test_cancel_during_slow_call_ends_task(parts: Parts) -> None:
    request = parts.world.planned(['h1'], ['i1'])

    def cancels(host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        assert parts.world.jobs.begin(call.job_id, call.epoch)
        parts.steering.cancel(request.id)
        return CRAWLS

    parts.compute.script('h1', 'i1', cancels)
    parts.serve()

    assert parts.world.statuses(request) == {('h1', 'i1'): 'cancelled'}


def test_assigned_job_of_slow_host_stays(parts: Parts) -> None:
    """Another conductor has taken over the host, and calls it for the other image."""
    parts.world.planned(['h1'], ['i1', 'i2'])
    first = parts.world.begun('c1')
    parts.world.jobs.release('c1', ['h1'])
    other = _job(parts, 'h1', 'i2')
    parts.world.change(models.Job, models.Job.uuid == other.uuid, epoch=first.epoch + 1)

    assert parts.world.jobs.postpone_due('h1', CRAWLS, 100) == 0

    assert _job(parts, 'h1', 'i2').status == 'queued'
