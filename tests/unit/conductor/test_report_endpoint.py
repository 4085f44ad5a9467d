# SPDX-License-Identifier: Apache-2.0
"""A conductor reads a host's report by its parts, if it is in time."""

import datetime
from collections.abc import Collection
from typing import Any

import oslo_messaging
import pytest

from nova_precache import context, exception, model
from nova_precache.conductor import manager, pace, report_buffer, report_endpoint, rpcapi
from nova_precache.db import caches, clock, jobs
from tests.unit import odd
from tests.unit.conftest import DOWN_SECONDS, World

CTXT = context.admin_context()
NAME = 'a' * 40
STATE: model.Json = {'host': 'h1', 'agent_id': 'agent-h1', 'version': '1', 'free_bytes': 5}
IMAGES: model.Json = {
    'images': [
        {
            'name': NAME,
            'size_bytes': 7,
            'disk_bytes': 7,
            'touched_at': '2026-01-02T03:04:05Z',
            'used_by': 0,
        }
    ],
    'removed': [],
    'full': True,
    'after': None,
    'until': None,
}


class Conductor:
    """A conductor's endpoint for one cell, and its buffer; its clock is that of the test."""

    def __init__(self, world: World, cell_uuid: str | None = None) -> None:
        self.world = world
        self.monotonic = 0.0
        self.clock = clock.DatabaseClock(world.database, lambda: self.monotonic)
        self.heard: list[str] = []
        self.pace = pace.Pace(lambda: self.monotonic)
        self.reports = report_buffer.ReportBuffer(
            world.agents,
            world.jobs,
            caches.Caches(world.database),
            self._hear,
            note_transfers=self.pace.note,
            clock=lambda: self.monotonic,
        )
        self.endpoint = report_endpoint.ReportEndpoint(
            cell_uuid or world.cell.uuid, self.reports, self.clock, self.pace
        )

    def _hear(self, cells: Collection[str]) -> None:
        self.heard.extend(cells)
        self.world.hearings.note(cells)

    def ping(self, age: float = 0) -> str:
        """Ping as a conductor of the cell does."""
        return self.endpoint.ping(CTXT, sent=self.sent(age=age))

    def sent(self, seconds: float = 0, age: float = 0) -> model.Json:
        """Return a sending time; the answer before it is so many ``seconds`` older."""
        now = self.clock.now() - datetime.timedelta(seconds=age + seconds)
        return {'now': f'{now.isoformat()}Z', 'seconds': seconds}

    def report(self, host: str = 'h1', age: float = 0, **parts: Any) -> model.ReportAnswer:
        parts.setdefault('sent', self.sent(age=age))
        parts.setdefault('agent_id', f'agent-{host}')
        answer = self.endpoint.report(CTXT, host=host, mood='fine', **parts)
        now = datetime.datetime.fromisoformat(answer['now']).replace(tzinfo=None)
        return model.ReportAnswer(now, answer['next_seconds'], answer['is_taken'])

    def write(self) -> None:
        self.reports.write_states()
        self.reports.write_progress()
        self.reports.write_images()

    def names(self, host: str = 'h1') -> list[str]:
        return [each.name for each in caches.Caches(self.world.database).of_host(host)]

    def free_bytes(self, host: str = 'h1') -> int | None:
        return self.world.agents.get([host])[host].free_bytes


@pytest.fixture
def conductor(world: World) -> Conductor:
    world.living('h1')
    return Conductor(world)


def _progress(job_id: str, epoch: int, **changed: Any) -> model.Json:
    told = {'status': 'downloading', 'bytes_done': 40, 'bytes_total': 100, 'rate_bytes': 3}
    return {'job_id': job_id, 'epoch': epoch, 'sequence': 1, 'progress': told, **changed}


def test_one_report_has_all_news(world: World, conductor: Conductor) -> None:
    world.planned(['h1'], ['i1'])
    jobs = [world.begun()]

    answer = conductor.report(
        state={**STATE, 'mood': 'fine'},
        progress=[_progress(each.job_id, each.epoch, mood='fine') for each in jobs],
        images=IMAGES,
    )
    conductor.write()

    assert (answer.is_taken, answer.next_seconds) == (True, 1)
    assert conductor.free_bytes() == 5
    assert [world.job(each.job_id).bytes_done for each in jobs] == [40]
    assert conductor.names() == [NAME]


def test_answer_has_database_time_and_pace(conductor: Conductor) -> None:
    before = conductor.clock.now()
    conductor.monotonic += 7
    conductor.pace.note({jobs.Sender('cell', f'h{number}'): 1 for number in range(2000)})

    answer = conductor.report()

    assert answer.now - before == datetime.timedelta(seconds=7)
    assert answer.next_seconds == pytest.approx(4.4)


def test_transfers_of_report_slow_pace(
    world: World, conductor: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, 'TRANSFER_SECONDS', 2 - pace.MESSAGE_SECONDS)
    world.planned(['h1'], ['i1'])
    job = world.begun()

    assert conductor.report(progress=[_progress(job.job_id, job.epoch)]).next_seconds == 1
    conductor.write()

    assert conductor.report().next_seconds == pytest.approx(4)


@pytest.mark.parametrize(
    'progress',
    [
        [_progress('j1', -1)] * 9990,
        [None] * 9990,
        [_progress(f'j{number}', 1) for number in range(9990)],
    ],
    ids=['odd', 'none', 'made up'],
)
def test_bad_host_slows_no_pace(conductor: Conductor, progress: list[object]) -> None:
    conductor.report(progress=progress)
    conductor.write()

    assert conductor.report().next_seconds == 1


@pytest.mark.parametrize(
    ('host', 'agent_id'), [('h1', 'stranger'), ('h2', 'agent-h2'), ('made-up', 'stranger')]
)
def test_unregistered_agent_slows_no_pace(
    world: World,
    conductor: Conductor,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    agent_id: str,
) -> None:
    monkeypatch.setattr(pace, 'TRANSFER_SECONDS', 5)
    world.planned(['h1'], ['i1'])
    job = world.begun()

    conductor.report(host, agent_id=agent_id, progress=[_progress(job.job_id, job.epoch)])
    conductor.write()

    assert conductor.report().next_seconds == 1


@pytest.mark.parametrize(
    ('seconds', 'age', 'is_taken'), [(0, 0, True), (900, 4, True), (0, 6, False), (900, 150, False)]
)
def test_late_report_dropped_unread(
    world: World, conductor: Conductor, seconds: float, age: float, is_taken: bool
) -> None:
    world.dead('h1')
    sent = conductor.sent(seconds, age)

    answer = conductor.report(sent=sent, state=STATE, images=IMAGES)
    conductor.write()

    assert answer == model.ReportAnswer(conductor.clock.now(), 1, is_taken)
    assert conductor.names() == ([NAME] if is_taken else [])
    assert ('h1' in world.agents.down(['h1'])) != is_taken
    seen_at = world.agents.get(['h1'])['h1'].seen_at
    assert (seen_at == conductor.clock.now() - datetime.timedelta(seconds=age)) == is_taken


def test_kept_inventory_overwrites_no_later_one(world: World, conductor: Conductor) -> None:
    [image] = IMAGES['images']
    newer = {**IMAGES, 'images': [{**image, 'size_bytes': 8}]}
    other = Conductor(world)
    conductor.report(images=IMAGES, age=4)
    other.report(images=newer)

    for each in (other, conductor):  # that was without the database for longer
        each.write()

    [file] = caches.Caches(world.database).of_host('h1')
    assert file.size_bytes == 8


def test_late_report_leaves_cell_unheard(world: World, conductor: Conductor) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    conductor.report(age=6)
    conductor.write()
    assert conductor.heard == []
    conductor.report()
    conductor.write()

    assert conductor.heard == [world.cell.uuid]


def test_ping_marks_reports_heard(world: World, conductor: Conductor) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    assert conductor.endpoint.ping(CTXT) == rpcapi.VERSION
    conductor.write()

    assert conductor.heard == [world.cell.uuid]


@pytest.mark.parametrize(('age', 'is_late'), [(0, False), (4, False), (6, True), (3600, True)])
def test_late_ping_marks_nothing_heard(
    world: World, conductor: Conductor, age: float, is_late: bool
) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    assert conductor.ping(age) == rpcapi.VERSION
    conductor.write()

    assert conductor.heard == ([] if is_late else [world.cell.uuid])


@pytest.mark.parametrize('sent', [7, {}, {'now': '2026-01-02T03:04:05Z', 'seconds': -1}])
def test_ping_of_odd_time_marks_nothing(world: World, conductor: Conductor, sent: object) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    with pytest.raises(oslo_messaging.ExpectedException):
        conductor.endpoint.ping(CTXT, sent=sent)
    conductor.write()

    assert conductor.heard == []


def test_ping_leaves_late_reports_unheard(world: World, conductor: Conductor) -> None:
    for _ in range(3):
        conductor.report(age=6)
        conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)
        conductor.endpoint.ping(CTXT)
        conductor.write()
        conductor.monotonic += 5
    assert conductor.heard == []

    conductor.monotonic += 15
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)
    conductor.endpoint.ping(CTXT)
    conductor.write()

    assert conductor.heard == [world.cell.uuid], 'none has been late for a while'


def test_late_report_of_one_host_hides_no_others(world: World, conductor: Conductor) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    conductor.report(state=STATE)
    for _ in range(100):
        conductor.report('h2', age=3600)
    conductor.write()

    assert (conductor.heard, conductor.reports.late) == ([world.cell.uuid], 100)


@pytest.mark.parametrize(('ping_age', 'is_heard'), [(0, True), (2, True), (4, False)])
def test_old_report_leaves_cell_heard_by_pings(
    world: World, conductor: Conductor, ping_age: float, is_heard: bool
) -> None:
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)

    conductor.ping(ping_age)
    conductor.report('h2', age=3600)
    conductor.write()

    assert conductor.heard == ([world.cell.uuid] if is_heard else [])


def test_old_report_saves_no_dead_host(world: World, conductor: Conductor) -> None:
    world.living('h2')
    world.hears(for_seconds=3600)
    world.dead('h1')
    for _ in range(4):
        world.pass_time(5)
        conductor.monotonic += 5
        conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)
        conductor.report('h2', age=3600)
        conductor.ping()
        conductor.write()

    assert world.agents.down(['h1', 'h2']).keys() == {'h1'}


def test_overload_makes_no_host_down_or_up(world: World, conductor: Conductor) -> None:
    world.living('h2')
    world.hears(for_seconds=3600)
    for host in ('h1', 'h2'):
        world.dead(host)
    assert world.agents.down(['h1', 'h2']).keys() == {'h1', 'h2'}

    for _ in range(4):
        world.pass_time(5)
        conductor.monotonic += 5
        conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)
        conductor.report(state=STATE, age=6)
        conductor.ping(age=6)
        conductor.write()

    assert conductor.heard == []
    assert world.agents.down(['h1', 'h2']) == {}
    assert {each.status for each in world.agents.look(['h1', 'h2']).values()} == {'unknown'}


def test_dead_host_down_again_after_overload(world: World) -> None:
    world.living('h1')
    world.hears(for_seconds=3600)
    world.dead('h1')
    world.pass_time(20)  # all reports were late
    world.hearings.note([world.cell.uuid])
    down_after = []

    for passed in range(10, int(DOWN_SECONDS) + 30, 10):
        world.pass_time(10)
        world.hearings.note([world.cell.uuid])
        if world.agents.down(['h1']):
            down_after.append(passed)

    assert DOWN_SECONDS <= down_after[0] <= DOWN_SECONDS + 10


def test_ping_has_sending_time(world: World, conductor: Conductor) -> None:
    arguments = report_endpoint.ping_arguments(conductor.clock)
    conductor.reports.hear(world.cell.uuid, rpcapi.TOPIC)
    conductor.monotonic += 6

    conductor.endpoint.ping(CTXT, **arguments)
    conductor.write()

    assert conductor.heard == []


def test_ping_without_database_has_no_time(
    conductor: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise exception.DatabaseUnavailable('the database does not answer')

    monkeypatch.setattr(conductor.clock, 'now', away)

    assert report_endpoint.ping_arguments(conductor.clock) == {}


def test_report_from_future_seen_now(world: World, conductor: Conductor) -> None:
    answer = conductor.report(age=-3600, state=STATE)
    conductor.write()

    assert answer.is_taken
    seen_at = world.agents.get(['h1'])['h1'].seen_at
    assert seen_at is not None
    assert seen_at <= conductor.clock.now()


@pytest.mark.parametrize(
    ('field', 'changed'),
    [
        ('host', {'host': '../h'}),
        ('host', {'host': None, 'agent_id': 'a'}),
        ('agent_id', {'agent_id': ''}),
        ('agent_id', {'agent_id': 'x' * 37}),
        ('sent', {'sent': None}),
        ('sent.now', {'sent': {'seconds': 1}}),
        ('sent.now', {'sent': {'now': '2026-01-02T03:04:05', 'seconds': 1}}),
        ('sent.seconds', {'sent': {'now': '2026-01-02T03:04:05Z'}}),
        ('sent.seconds', {'sent': {'now': '2026-01-02T03:04:05Z', 'seconds': -1}}),
        ('sent.seconds', {'sent': {'now': '2026-01-02T03:04:05Z', 'seconds': float('nan')}}),
        ('sent.seconds', {'sent': {'now': '2026-01-02T03:04:05Z', 'seconds': 1e300}}),
    ],
)
def test_odd_sender_or_time_refused(
    world: World, conductor: Conductor, field: str, changed: model.Json
) -> None:
    world.dead('h1')

    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        conductor.report(**{'state': STATE, 'images': IMAGES, **changed})
    conductor.write()

    _, error, _ = answered.value.exc_info
    assert isinstance(error, exception.InvalidInput)
    assert str(error).startswith(f'{field}: ')
    assert (conductor.names(), conductor.free_bytes()) == ([], None)


@pytest.mark.parametrize(
    ('part', 'value'),
    [
        *(('state', {**STATE, name: odd_values[0]}) for name, odd_values in odd.STATE.items()),
        ('state', [STATE]),
        ('progress', None),
        ('progress', {'job_id': 'j1'}),
        ('progress', [None, {'job_id': 7}]),
        ('progress', [_progress('j1', 1, progress={'status': 'cached', 'bytes_done': 1})]),
        ('progress', [_progress('j1', -1)]),
        ('progress', [_progress('j1', 1, sequence='1')]),
        ('progress', [{}] * 10_001),
        ('images', [IMAGES]),
        ('images', {**IMAGES, 'full': 1}),
        ('images', {**IMAGES, 'images': [{}]}),
        ('images', {**IMAGES, 'removed': 'all'}),
    ],
)
def test_odd_part_costs_only_itself(
    world: World,
    conductor: Conductor,
    part: str,
    value: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.planned(['h1'], ['i1'])
    job = world.begun()
    good = {'state': STATE, 'progress': [_progress(job.job_id, job.epoch)], 'images': IMAGES}

    for _ in range(2):
        assert conductor.report(**{**good, part: value}).is_taken
    conductor.write()

    found = {
        'state': conductor.free_bytes() == 5,
        'progress': world.job(job.job_id).bytes_done == 40,
        'images': conductor.names() == [NAME],
    }
    assert found == {name: name != part for name in good}
    refused = [each for each in caplog.messages if each.startswith('Refused ')]
    assert len(refused) == 1
    assert "host 'h1'" in refused[0]


def test_odd_transfer_spares_others(world: World, conductor: Conductor) -> None:
    world.planned(['h1'], ['i1'])
    job = world.begun()

    conductor.report(progress=[{'job_id': 7}, _progress(job.job_id, job.epoch)])
    conductor.write()

    assert world.job(job.job_id).bytes_done == 40


def test_state_of_another_host_refused(world: World, conductor: Conductor) -> None:
    world.living('h2')
    world.dead('h1')

    conductor.report('h2', state=STATE)
    conductor.report(agent_id='other', state=STATE)
    conductor.write()

    assert conductor.free_bytes() is None
    assert 'h1' in world.agents.down(['h1'])


def test_another_agent_or_cell_changes_nothing(world: World, conductor: Conductor) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    world.planned(['h1'], ['i1'])
    job = world.begun()
    world.dead('h1')
    told = {'progress': [_progress(job.job_id, job.epoch)], 'images': IMAGES}
    stranger = {**STATE, 'agent_id': 'stranger'}
    theirs = Conductor(world, other.uuid)

    conductor.report(agent_id='stranger', state=stranger, **told)
    theirs.report(state=STATE, **told)
    for each in (conductor, theirs):
        each.write()

    assert (conductor.names(), conductor.free_bytes()) == ([], None)
    assert world.job(job.job_id).bytes_done == 0
    assert 'h1' in world.agents.down(['h1'])


def test_registration_says_reports_are_served(world: World, conductor: Conductor) -> None:
    def endpoint(serves: bool) -> manager.CellEndpoint:
        return manager.CellEndpoint(
            world.cell.uuid,
            world.inventory,
            world.agents,
            world.jobs,
            conductor.reports,
            lambda: None,
            first_answer=(
                (lambda: report_endpoint.first_answer(conductor.clock, conductor.pace))
                if serves
                else None
            ),
        )

    first = model.ReportAnswer(conductor.clock.now(), 1).to_wire()
    assert endpoint(True).register(CTXT, STATE) == {'reports': first}
    assert endpoint(False).register(CTXT, STATE) == {'reports': None}
