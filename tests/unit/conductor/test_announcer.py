# SPDX-License-Identifier: Apache-2.0
"""Pending notifications of conductors: who sends them, and in which order."""

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.conductor import announcer
from nova_precache.db import outbox, requests
from nova_precache.db.engine import models
from nova_precache.notifications import emitter, payloads
from tests.unit.conductor.conftest import Announcements, Parts
from tests.unit.conftest import CACHED, LONG_AGO, PLANNER
from tools.waiting import TIMEOUT_SECONDS

PROGRESS = 'aggregate.cache_images.progress'
OURS = 'image_precache.'


class Killed(BaseException):
    """Ends a conductor in the middle of its work."""


class Broker(emitter.RecordingEmitter):
    """Runs a callback each time that a notification is sent."""

    def __init__(self, then: Callable[[payloads.Notification], None]) -> None:
        super().__init__()
        self._then = then

    def emit(self, notification: payloads.Notification) -> None:
        self._then(notification)
        super().emit(notification)


def _announcer(
    parts: Parts, broker: emitter.Emitter, sends_ours: bool = False
) -> announcer.Announcer:
    return announcer.Announcer(
        outbox.Announcements(parts.world.database),
        parts.world.requests,
        parts.world.inventory,
        broker,
        poll_seconds=0.05,
        sends_ours=sends_ours,
    )


def _events(broker: emitter.RecordingEmitter) -> list[str]:
    """Return the last words of the event types sent."""
    return [each.event_type.rpartition('.')[2] for each in broker.emitted]


def _all_taken_long_ago(parts: Parts) -> None:
    """Expire the leases of all announcements that were taken."""
    taken = models.Announcement.taken_until.is_not(None)
    parts.world.change(models.Announcement, taken, taken_until=LONG_AGO)


def _done(parts: Parts, *hosts: str) -> model.CacheRequest:
    """Return an ended request without any announcement yet."""
    request = parts.world.planned(hosts, ['i1'])
    for _ in hosts:
        begun = parts.world.begun()
        parts.world.jobs.finish(begun.job_id, begun.epoch, CACHED)
        parts.world.jobs.release('c1', [begun.host])
    assert parts.world.requests.complete(request.id)
    return request


def test_unannounced_ends_sent_by_other_conductor(parts: Parts) -> None:
    _done(parts, 'h1', 'h2')

    parts.announcer.announce()

    assert parts.announced.events() == ['start', 'progress', 'progress', 'end']
    assert [(data['host'], data['index']) for data in parts.announced.data('progress')] == [
        ('h1', 1),
        ('h2', 2),
    ]


def test_everything_is_announced_once(parts: Parts) -> None:
    request = _done(parts, 'h1')
    parts.announcer.announce()
    before = list(parts.announced.emitted)

    parts.announcer.announce()

    assert parts.announced.emitted == before
    assert parts.world.to_announce(request) == []


def test_notification_names_requester_without_token(parts: Parts) -> None:
    parts.world.planned(
        ['h1'], ['i1'], project_id='p1', user_id='u1', request_id='req-1', is_admin=True
    )

    parts.announcer.announce()

    assert len(parts.announced.emitted) == 2
    for notification in parts.announced.emitted:
        asker = notification.requester
        assert (asker.project_id, asker.user_id, asker.request_id) == ('p1', 'u1', 'req-1')
        assert asker.is_admin
        assert asker.auth_token is None


def test_one_conductor_sends_at_a_time(parts: Parts) -> None:
    request = _done(parts, 'h1')
    other = Announcements()
    broker = Broker(lambda notification: _announcer(parts, other).announce())

    _announcer(parts, broker).announce()

    assert _events(broker) == ['start', 'progress', 'end']
    assert other.events() == []
    assert parts.world.to_announce(request) == []


def test_dead_sender_is_replaced(parts: Parts) -> None:
    def die(notification: payloads.Notification) -> None:
        if notification.event_type == PROGRESS:
            raise Killed

    request = _done(parts, 'h1')
    with pytest.raises(Killed):
        _announcer(parts, Broker(die)).announce()
    parts.announcer.announce()
    assert parts.announced.events() == []
    assert parts.world.to_announce(request) == ['h1', 'end']

    _all_taken_long_ago(parts)
    parts.announcer.announce()

    assert parts.announced.events() == ['progress', 'end']


def test_failing_announcement_does_not_block_others(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, fine = sorted((_done(parts, 'h1'), _done(parts, 'h1')), key=lambda each: each.id)
    parts.world.change(
        models.Announcement, models.Announcement.request_id == stuck.id, phase='new word'
    )

    parts.announcer.announce()

    assert parts.announced.events() == ['start', 'progress', 'end']
    assert parts.world.to_announce(fine) == []
    assert parts.world.to_announce(stuck) == ['new word', 'h1', 'new word']
    assert f'Request {stuck.id}: notification 0 is not sent yet' in caplog.messages


def test_requests_take_turns(
    parts: Parts,
) -> None:
    _done(parts, 'h1', 'h2', 'h3')
    _done(parts, 'h1')

    parts.announcer.announce()

    events = parts.announced.events()
    assert events[:4] == ['start', 'start', 'progress', 'progress']
    assert 'end' in events[:6]
    assert events[6:] == ['progress', 'end']


def test_without_listeners_nothing_left(parts: Parts) -> None:
    class Silent(emitter.RecordingEmitter):
        is_silent = True

    broker = Silent()
    requests = [_done(parts, 'h1', 'h2'), _done(parts, 'h1')]
    commits: list[sa.Connection] = []
    sa.event.listen(parts.world.database.engine, 'commit', commits.append)

    _announcer(parts, broker).announce()

    assert [parts.world.to_announce(request) for request in requests] == [[], []]
    assert broker.emitted == []
    assert len(commits) == 1


def test_failure_logged_and_retried(
    parts: Parts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError('the database is away')])
    take = outbox.Announcements.take

    def fail_once(due: outbox.Announcements, after: str) -> outbox.DueAnnouncement | None:
        for error in failures:
            raise error
        return take(due, after)

    monkeypatch.setattr(outbox.Announcements, 'take', fail_once)
    broker = emitter.RecordingEmitter()
    request = _done(parts, 'h1')
    running = _announcer(parts, broker)
    running.start()
    try:
        parts.world.wait(lambda: parts.world.to_announce(request) == [])
    finally:
        running.stop()

    assert _events(broker) == ['start', 'progress', 'end']
    assert 'Sending notifications failed; retrying' in caplog.messages


def test_blocked_broker_does_not_delay_stop(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, 'STOP_SECONDS', 0.1)
    reached, released = threading.Event(), threading.Event()

    def block(notification: payloads.Notification) -> None:
        reached.set()
        assert released.wait(TIMEOUT_SECONDS)

    request = _done(parts, 'h1')
    broker = Broker(block)
    running = _announcer(parts, broker)
    running.start()
    assert reached.wait(TIMEOUT_SECONDS)

    running.stop()

    assert broker.emitted == []
    released.set()
    parts.world.wait(lambda: parts.world.to_announce(request) == ['h1', 'end'])
    monkeypatch.setattr(announcer, 'STOP_SECONDS', TIMEOUT_SECONDS)
    running.stop()


def test_deleted_request_not_announced(parts: Parts) -> None:
    request = _done(parts, 'h1')
    parts.world.change(
        models.CacheRequest, models.CacheRequest.id == request.id, finished_at=LONG_AGO
    )

    assert parts.world.requests.purge(retention_days=1) == 1
    parts.announcer.announce()

    assert parts.announced.events() == []


def test_each_row_has_both_notifications(parts: Parts) -> None:
    request = _done(parts, 'h1', 'h2')

    parts.announcer.announce()

    assert [each.event_type for each in parts.announced.emitted] == [
        'aggregate.cache_images.start',
        'image_precache.request.start',
        'aggregate.cache_images.progress',
        'image_precache.task',
        'aggregate.cache_images.progress',
        'image_precache.task',
        'aggregate.cache_images.end',
        'image_precache.request.end',
    ]
    [end] = parts.announced.data('request.end', OURS)
    assert (end['id'], end['status']) == (request.id, 'completed')
    assert (end['counts'], end['bytes_done']) == ({'cached': 2}, 200)


def test_task_outcome_announced_with_reason(parts: Parts) -> None:
    parts.world.planned(['h1'], ['i1', 'i2'])
    lost = model.ImageOutcome('error', 'the image is gone')
    claim = parts.world.claim('c1', limit=100)
    assert claim is not None
    for outcome in (CACHED, lost):
        assigned = parts.world.assign('c1', claim.host)
        assert assigned is not None
        assert parts.world.jobs.begin(assigned.job_id, assigned.epoch)
        parts.world.jobs.finish(assigned.job_id, assigned.epoch, outcome)

    parts.announcer.announce()

    told = parts.announced.data('task', OURS)
    assert [(each['host'], each['image_id'], each['status']) for each in told] == [
        ('h1', 'i1', 'cached'),
        ('h1', 'i2', 'error'),
    ]
    assert [each['reason'] for each in told] == [None, 'the image is gone']
    assert [each['bytes_done'] for each in told] == [100, 0]
    assert all(each['seconds'] >= 0 for each in told)


def test_requeued_task_not_announced(parts: Parts) -> None:
    request = _done(parts, 'h1', 'h2')
    again = sa.and_(models.Task.request_id == request.id, models.Task.host == 'h1')
    parts.world.change(models.Task, again, status='queued')

    parts.announcer.announce()

    assert [each['host'] for each in parts.announced.data('task', OURS)] == ['h2']
    assert [each['host'] for each in parts.announced.data('progress')] == ['h1', 'h2']


def test_unwanted_own_notifications_not_sent(parts: Parts) -> None:
    request = _done(parts, 'h1')
    broker = emitter.RecordingEmitter()

    _announcer(parts, broker, sends_ours=False).announce()

    assert [each.event_type for each in broker.emitted] == [
        'aggregate.cache_images.start',
        'aggregate.cache_images.progress',
        'aggregate.cache_images.end',
    ]
    assert parts.world.to_announce(request) == []


@pytest.mark.parametrize('phase', ['cancel', 'pause', 'resume', 'retry'])
@pytest.mark.parametrize('sends_ours', [True, False])
def test_non_nova_phase_sends_own_only(parts: Parts, phase: str, sends_ours: bool) -> None:
    request = _announcing_only(parts, phase)
    broker = emitter.RecordingEmitter()

    _announcer(parts, broker, sends_ours).announce()

    ours = [f'image_precache.request.{phase}'] if sends_ours else []
    assert [each.event_type for each in broker.emitted] == ours
    assert parts.world.to_announce(request) == []


def _announcing_only(parts: Parts, phase: str) -> model.CacheRequest:
    """Return a request with one phase to announce."""
    request = parts.world.planned(['h1'], ['i1'])
    parts.world.change(models.Announcement, sa.true(), phase=phase)
    return request


def test_request_without_aggregate_sends_own_only(parts: Parts) -> None:
    request = parts.world.requests.accept(requests.NewRequest(images=('i1',), hosts=('h1',)))
    assert parts.world.requests.next_to_plan(PLANNER) is not None
    assert parts.world.plan(request, ['h1'])
    assert parts.world.requests.mark_planned(request.id, PLANNER)
    begun = parts.world.begun()
    parts.world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert parts.world.requests.complete(request.id)

    parts.announcer.announce()

    assert [each.event_type for each in parts.announced.emitted] == [
        'image_precache.request.start',
        'image_precache.task',
        'image_precache.request.end',
    ]
    [start] = parts.announced.data('request.start', OURS)
    assert (start['hosts'], start['aggregate_name']) == (['h1'], None)


def test_nova_index_counts_hosts_not_rows(parts: Parts) -> None:
    _done(parts, 'h1')
    of_host = models.Announcement.host == 'h1'
    parts.world.change(models.Announcement, of_host, host_index=5)

    parts.announcer.announce()

    assert [data['index'] for data in parts.announced.data('progress')] == [5]


def test_older_rows_use_position_as_index(parts: Parts) -> None:
    _done(parts, 'h1')
    of_host = models.Announcement.host == 'h1'
    parts.world.change(models.Announcement, of_host, host_index=None)

    parts.announcer.announce()

    assert [data['index'] for data in parts.announced.data('progress')] == [1]
