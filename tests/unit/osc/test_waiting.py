# SPDX-License-Identifier: Apache-2.0
"""Waiting for a request: how often it asks, what it survives, how it ends."""

import json
from collections.abc import Callable

import pytest

from nova_precache.osc import client, showing, waiting
from tests.openstack import OpenStack
from tests.unit.osc.conftest import (
    IMAGE_ID,
    REQUEST_ID,
    Wire,
    client_of,
    fault,
    request,
    task,
)

PATH = f'/v1/requests/{REQUEST_ID}'
RUNNING = (200, {'request': request()})
COMPLETED = (200, {'request': request(status='completed', counts={'cached': 2})})
RESTARTING = fault(503, 'serviceUnavailable', 'starting')


class View:
    """Records what it was asked to show."""

    def __init__(self) -> None:
        self.shown: list[showing.Snapshot] = []
        self.notes: list[str] = []

    def show(self, snapshot: showing.Snapshot) -> None:
        self.shown.append(snapshot)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Watched:
    """A watcher whose pauses take no time and are recorded."""

    def __init__(
        self,
        service: client.ApiClient,
        patience_seconds: float = 60,
        ends_at: float | None = None,
    ) -> None:
        self.view = View()
        self.pauses: list[float] = []
        self.watcher = waiting.RequestWatcher(
            service,
            self.view,
            sleep=self.pauses.append,
            clock=lambda: sum(self.pauses),
            patience_seconds=patience_seconds,
            ends_at=ends_at,
        )

    @property
    def statuses(self) -> list[str]:
        return [snapshot.request['status'] for snapshot in self.view.shown]


@pytest.fixture
def watched(wire: Wire, service: client.ApiClient) -> Watched:
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': [task('c1', 'downloading')]}))
    return Watched(service)


def test_request_shown_until_it_ends(wire: Wire, watched: Watched) -> None:
    wire.answer('GET', PATH, (200, {'request': request(status='paused')}), RUNNING, COMPLETED)

    ended = watched.watcher.watch(REQUEST_ID)

    assert ended['status'] == 'completed'
    assert watched.statuses == ['paused', 'running', 'completed']
    assert [it['host'] for it in watched.view.shown[1].tasks] == ['c1']


def test_polling_slows_while_nothing_changes(wire: Wire, watched: Watched) -> None:
    moved = (200, {'request': request(bytes_done=1)})
    wire.answer('GET', PATH, *[RUNNING] * 6, moved, COMPLETED)

    watched.watcher.watch(REQUEST_ID)

    assert watched.pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 0.5]


def test_counted_seconds_are_no_change(wire: Wire, watched: Watched) -> None:
    later = [
        (200, {'tasks': [task('c1', 'queued', reason=f'no sign of it for {seconds} s')]})
        for seconds in range(4)
    ]
    wire.answer('GET', PATH, *[RUNNING] * 4, COMPLETED)
    wire.answer('GET', f'{PATH}/tasks', *later)

    watched.watcher.watch(REQUEST_ID)

    assert watched.pauses == [0.5, 1.0, 2.0, 4.0]


def test_known_answers_not_sent_again(wire: Wire, watched: Watched) -> None:
    wire.has_etags = True
    moved = (200, {'request': request(bytes_done=1)})
    wire.answer('GET', PATH, RUNNING, RUNNING, moved, COMPLETED)

    watched.watcher.watch(REQUEST_ID)

    shown = watched.view.shown
    assert watched.statuses == ['running', 'running', 'running', 'completed']
    assert [snapshot.request['bytes_done'] for snapshot in shown[:3]] == [157286400, 157286400, 1]
    assert {len(snapshot.tasks) for snapshot in shown} == {1}
    sent = [it.headers.get('If-None-Match') for it in wire.asked if it.path == PATH]
    assert sent[0] is None
    assert sent[1] == sent[2] != sent[3]


def test_service_without_etags_polled(wire: Wire, watched: Watched) -> None:
    wire.answer('GET', PATH, RUNNING, RUNNING, COMPLETED)

    assert watched.watcher.watch(REQUEST_ID)['status'] == 'completed'
    assert [it for it in wire.asked if 'If-None-Match' in it.headers] == []


def test_large_request_polled_less_often(wire: Wire, watched: Watched) -> None:
    states = [
        (200, {'request': request(counts={'downloading': 101}, bytes_done=done)})
        for done in range(3)
    ]
    wire.answer('GET', PATH, *states, COMPLETED)

    watched.watcher.watch(REQUEST_ID)

    assert watched.pauses == [5.0, 5.0, 5.0]


def test_watch_ends_in_time(wire: Wire, service: client.ApiClient) -> None:
    wire.answer('GET', PATH, RUNNING)
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))
    watched = Watched(service, ends_at=4)

    assert watched.watcher.watch(REQUEST_ID)['status'] == 'running'
    assert watched.pauses == [0.5, 1.0, 2.0, 0.5]


def test_last_state_kept_over_outage(wire: Wire, service: client.ApiClient) -> None:
    wire.answer('GET', PATH, RUNNING, RESTARTING)
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))

    ended = Watched(service, ends_at=0.5).watcher.watch(REQUEST_ID)

    assert ended['status'] == 'running'


def test_service_restart_waited_out(wire: Wire, watched: Watched) -> None:
    wire.answer('GET', PATH, RUNNING, RESTARTING, (502, 'bad gateway'), COMPLETED)

    ended = watched.watcher.watch(REQUEST_ID)

    assert ended['status'] == 'completed'
    assert watched.view.notes == [
        'starting; retrying',
        'The image pre-caching service answered 502 Bad Gateway; retrying',
    ]


def test_missing_request_not_polled(wire: Wire, watched: Watched) -> None:
    wire.answer('GET', PATH, RUNNING, fault(404, 'itemNotFound', 'It could not be found.'))

    with pytest.raises(client.ApiError, match='could not be found') as refused:
        watched.watcher.watch(REQUEST_ID)

    assert not isinstance(refused.value, client.ApiUnavailable)
    assert len(wire.queries(PATH)) == 2


def test_waiting_times_out(wire: Wire, service: client.ApiClient) -> None:
    wire.answer('GET', PATH, RESTARTING)

    with pytest.raises(client.ApiUnavailable, match='starting'):
        Watched(service, patience_seconds=0).watcher.watch(REQUEST_ID)


def test_refused_connection_is_unavailable(free_port: Callable[[], int]) -> None:
    url = f'http://127.0.0.1:{free_port()}'
    nobody = client_of(url)

    with pytest.raises(client.ApiUnavailable) as refused:
        nobody.get('requests')

    assert str(refused.value) == f'Unable to establish connection to {url}/v1/requests'


def test_large_request_reads_some_tasks(wire: Wire, watched: Watched) -> None:
    counts = {'cached': 5000, 'queued': 4998, 'downloading': 1, 'converting': 1, 'retry_wait': 0}
    wire.answer('GET', PATH, (200, {'request': request(counts=counts)}), COMPLETED)

    watched.watcher.watch(REQUEST_ID)

    asked = wire.queries(f'{PATH}/tasks')[:3]
    assert [query['status'] for query in asked] == ['downloading', 'converting', 'queued']
    assert {query['limit'] for query in asked} == {'20'}
    assert not watched.view.shown[0].whole


def test_show_wait_exits_0_when_cached(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', PATH, COMPLETED)
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': [task('c1', 'cached')]}))

    said = openstack('precache', 'show', '--wait', REQUEST_ID, '-f', 'value', '-c', 'status')

    assert (said.status, said.out) == (0, 'completed\n')
    assert 'c1: cached' in said.err


def test_show_wait_exits_1_with_failures(wire: Wire, openstack: OpenStack) -> None:
    counts = {'cached': 1, 'error': 1, 'skipped': 1}
    ended = request(status='partial', reason='a canary host failed', counts=counts)
    wire.answer('GET', PATH, (200, {'request': ended}))
    failed = [task('c1', 'error', reason='the disk is full')]
    skipped = [task('c2', 'skipped')]
    wire.answer(
        *('GET', f'{PATH}/tasks'),
        *((200, {'tasks': found}) for found in ([], failed, skipped)),
    )

    said = openstack('precache', 'show', '--wait', REQUEST_ID, '-f', 'json')

    assert said.status == 1
    assert said.out.startswith('{')
    assert said.err.splitlines()[-4:] == [
        f'Request {REQUEST_ID} is partial: a canary host failed',
        'The image is not cached on 2 of 3 hosts:',
        f'  c1 {IMAGE_ID} error: the disk is full',
        f'  c2 {IMAGE_ID} skipped',
    ]


@pytest.mark.parametrize(
    ('images', 'hosts', 'missing', 'said'),
    [
        (1, 4, 1, 'The image is not cached on 1 of 4 hosts'),
        (3, 1, 2, '2 of 3 images are not cached on the host'),
        (3, 4, 8, '8 of 12 copies are not cached (3 images, 4 hosts)'),
    ],
)
def test_missing_copies_are_counted(images: int, hosts: int, missing: int, said: str) -> None:
    counts = {'cached': images * hosts - missing, 'error': missing}
    ended = request(images=['x'] * images, hosts_total=hosts, counts=counts)

    assert waiting.missing_copies(ended, missing) == said


def test_failures_have_image_names(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', PATH, (200, {'request': request(status='failed', counts={'error': 1})}))
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': [task('c1', 'error', reason='full')]}))
    wire.answer('GET', '/v2/images', (200, {'images': [{'id': IMAGE_ID, 'name': 'debian'}]}))

    said = openstack('precache', 'show', '--wait', REQUEST_ID)

    assert said.err.splitlines()[-1] == '  c1 debian error: full'


def test_empty_aggregate_warned_about(wire: Wire, openstack: OpenStack) -> None:
    empty = request(status='completed', counts={}, hosts_total=0)
    wire.answer('POST', '/v1/requests', (202, {'request': request(status='accepted', counts={})}))
    wire.answer('GET', PATH, (200, {'request': empty}))
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))

    said = openstack('precache', 'create', '--wait', '--aggregate', 'edge', IMAGE_ID)

    assert said.status == 0
    assert said.err == 'Aggregate edge has no hosts: nothing was cached.\n'


def test_retries_end_at_timeout(wire: Wire, service: client.ApiClient) -> None:
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))
    wire.answer('GET', PATH, RUNNING, RESTARTING)
    watched = Watched(service, ends_at=2.25)

    assert watched.watcher.watch(REQUEST_ID)['status'] == 'running'
    assert sum(watched.pauses) == pytest.approx(2.25)


def test_timeout_leaves_request_running(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', PATH, RUNNING)
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))

    said = openstack(
        *('precache', 'show', '--wait', '--timeout', '0.001s', REQUEST_ID, '-f', 'json')
    )

    assert said.status == waiting.EXIT_TIMED_OUT
    assert json.loads(said.out)['status'] == 'running'
    assert said.err.splitlines()[-1] == (
        'Not ended within 0.001 s. The request continues to run. '
        f'To follow it: openstack precache show --wait {REQUEST_ID}'
    )


def test_timeout_needs_wait(wire: Wire, openstack: OpenStack) -> None:
    said = openstack('precache', 'retry', '--timeout', '60', REQUEST_ID)

    assert (said.status, said.err, wire.asked) == (1, '--timeout: needs --wait\n', [])


def test_several_requests_waited_for(wire: Wire, openstack: OpenStack) -> None:
    ends = {'a': ('completed', {'cached': 2}), 'b': ('failed', {'error': 2})}
    for name, (status, counts) in ends.items():
        path = f'/v1/requests/{name}'
        running, ended = (
            request(id=name),
            request(id=name, status=status, counts=counts),
        )
        wire.answer('POST', f'{path}/action', (202, {'request': running}))
        wire.answer('GET', path, (200, {'request': ended}))
        wire.answer('GET', f'{path}/tasks', (200, {'tasks': [task('c1', next(iter(counts)))]}))

    said = openstack('precache', 'retry', '--wait', 'a', 'b', '-f', 'json')

    assert said.status == 1
    assert json.loads(said.out) == {'a': 'completed', 'b': 'failed'}
    assert 'Request a:\n' in said.err
    assert 'Request b is failed\n' in said.err


def test_many_failures_are_truncated(wire: Wire, openstack: OpenStack) -> None:
    ended = request(status='failed', counts={'error': 9000})
    wire.answer('GET', PATH, (200, {'request': ended}))
    failed = [task(f'c{number}', 'error') for number in range(60)]
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': failed}))

    said = openstack('precache', 'show', '--wait', REQUEST_ID)

    assert said.err.count(' error') == waiting.LISTED_FAILURES
    assert f'openstack precache task list {REQUEST_ID}' in said.err


def test_request_cancelled_before_plan_fails(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', PATH, (200, {'request': request(status='cancelled', counts={})}))
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))

    said = openstack('precache', 'show', '--wait', REQUEST_ID)

    assert said.status == 1
    assert said.err.splitlines()[-1] == f'Request {REQUEST_ID} is cancelled'


def test_ctrl_c_leaves_request_running(
    wire: Wire, openstack: OpenStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.answer('POST', '/v1/requests', (202, {'request': request()}))
    wire.answer('GET', PATH, RUNNING)
    wire.answer('GET', f'{PATH}/tasks', (200, {'tasks': []}))

    def interrupted(self: object, request_id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.RequestWatcher, 'watch', interrupted)

    said = openstack('precache', 'create', '--wait', '--aggregate', 'edge', IMAGE_ID)

    assert (said.status, said.out) == (130, '')
    assert 'The request continues to run.' in said.err
    assert f'openstack precache show --wait {REQUEST_ID}' in said.err
