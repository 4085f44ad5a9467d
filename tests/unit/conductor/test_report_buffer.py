# SPDX-License-Identifier: Apache-2.0
"""Reports are buffered and written in bulk, the newest of each."""

import contextlib
import dataclasses
import datetime
import threading
from collections.abc import Iterable

import pytest

from nova_precache import exception, model
from nova_precache.conductor import report_buffer, rpcapi
from nova_precache.db import caches, jobs
from nova_precache.db.engine import models, session as db_session
from tests.clock import Clock
from tests.unit.conftest import LONG_AGO, World
from tools.waiting import TIMEOUT_SECONDS


@pytest.fixture
def reports(world: World) -> report_buffer.ReportBuffer:
    return report_buffer.ReportBuffer(world.agents, world.jobs, caches.Caches(world.database))


def _report(assigned: jobs.Assignment, sequence: int, done: int) -> jobs.ProgressReport:
    progress = model.Progress(model.TaskStatus.DOWNLOADING, done, 100)
    return jobs.ProgressReport(assigned.job_id, assigned.epoch, sequence, progress)


def _agent(world: World, host: str, agent_id: str, free_bytes: int) -> model.Agent:
    return model.Agent(host, agent_id, world.cell.uuid, free_bytes=free_bytes)


def test_report_displaces_none_of_other_cell(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    world.living('h1')
    foreign = model.Agent('h1', 'agent-h1', 'another-cell', free_bytes=1)

    reports.add_state(_agent(world, 'h1', 'agent-h1', 5))
    reports.add_state(foreign)
    reports.write_states()

    assert world.agents.get(['h1'])['h1'].free_bytes == 5


def test_flooding_cell_costs_other_cell_nothing(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_buffer, 'MAX_STATES', 3)
    refused: list[model.Agent] = []
    reports._refuse = refused.extend
    world.living('h1')

    for number in range(50):
        reports.add_state(model.Agent(f'h{number}', 'made-up', 'another-cell'))
    reports.add_state(_agent(world, 'h1', 'agent-h1', 5))
    assert (reports.sizes(), reports.dropped) == ({'state': 4, 'progress': 0, 'images': 0}, 47)
    reports.write_states()

    assert world.agents.get(['h1'])['h1'].free_bytes == 5
    assert len(refused) == 3
    assert reports.sizes()['state'] == 0


def test_unrecorded_reports_leave_cell_unheard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    reports = report_buffer.ReportBuffer(
        world.agents, world.jobs, caches.Caches(world.database), note_heard=heard.extend
    )
    monkeypatch.setattr(world.agents, 'report', _fail)

    reports.add_state(_agent(world, 'h1', 'agent-h1', 5))
    with pytest.raises(ValueError, match='damaged'):
        reports.write_states()

    assert heard == []


def _away(*arguments: object) -> None:
    raise exception.DatabaseUnavailable('the database does not answer')


def test_progress_written_once_database_is_back(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    begun = [world.begun(), world.begun()]
    for each in begun:
        reports.add_progress(_report(each, 1, 10))
    with monkeypatch.context() as patched:
        patched.setattr(world.jobs, 'record_progress', _away)
        with pytest.raises(exception.DatabaseUnavailable):
            reports.write_progress()
    reports.add_progress(_report(begun[0], 2, 20))

    reports.write_progress()

    assert [world.job(each.job_id).bytes_done for each in begun] == [20, 10]
    assert reports.sizes()['progress'] == 0


def test_inventory_written_once_database_is_back(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.living('h1')
    file = model.CachedImage('h1', 'a' * 40, None, 1, 1, LONG_AGO)
    reports.add_images('agent-h1', caches.Report('h1', [file], full=True))
    for name in ('get', 'record'):
        with monkeypatch.context() as patched:
            patched.setattr(world.agents if name == 'get' else reports._caches, name, _away)
            with pytest.raises(exception.DatabaseUnavailable):
                reports.write_images()
    larger = dataclasses.replace(file, size_bytes=2)
    reports.add_images('agent-h1', caches.Report('h1', [larger]))

    reports.write_images()

    [found] = caches.Caches(world.database).of_host('h1')
    assert (found.size_bytes, reports.sizes()['images']) == (2, 0)


def test_inventory_without_time_sent_when_it_arrives(world: World) -> None:
    now = LONG_AGO
    ours, other = (
        report_buffer.ReportBuffer(
            world.agents,
            world.jobs,
            caches.Caches(world.database),
            database_now=lambda: now,
        )
        for _ in range(2)
    )
    world.living('h1')
    file = model.CachedImage('h1', 'a' * 40, None, 1, 1, LONG_AGO)
    ours.add_images('agent-h1', caches.Report('h1', [file], full=True))
    ours.write_images()

    ours.add_images('agent-h1', caches.Report('h1', [], removed=[file.name]))
    now += datetime.timedelta(seconds=1)
    cached_again = dataclasses.replace(file, size_bytes=2)
    other.add_images('agent-h1', caches.Report('h1', [cached_again]))
    for each in (other, ours):  # that was without the database for longer
        each.write_images()

    assert [each.size_bytes for each in caches.Caches(world.database).of_host('h1')] == [2]


def test_long_outage_fills_no_memory(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_buffer, 'MAX_IMAGES', 20)
    monkeypatch.setattr(report_buffer, 'MAX_PROGRESS', 20)
    monkeypatch.setattr(world.jobs, 'record_progress', _away)
    monkeypatch.setattr(world.agents, 'get', _away)
    world.planned(['h1'], ['i1'])
    begun = world.begun()

    for number in range(100):
        call = dataclasses.replace(begun, job_id=f'j{number}')
        reports.add_progress(_report(call, 1, 10))
        file = model.CachedImage('h1', 'a' * 40, None, 1, 1, LONG_AGO)
        with contextlib.suppress(exception.DatabaseUnavailable):
            reports.add_images('agent-h1', caches.Report('h1', [file]))
        for write in (reports.write_progress, reports.write_images):
            with contextlib.suppress(exception.DatabaseUnavailable):
                write()

    assert reports.sizes() == {'state': 0, 'progress': 20, 'images': 20}
    assert reports.dropped == 80 + 90


def test_progress_of_one_cell_displaces_no_other(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_buffer, 'MAX_PROGRESS', 5)
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    for number in range(100):
        made_up = dataclasses.replace(_report(begun, 1, 10), job_id=f'j{number}', cell_uuid='other')
        reports.add_progress(made_up)

    reports.add_progress(_report(begun, 1, 50))
    reports.write_progress()

    assert world.job(begun.job_id).bytes_done == 50
    assert reports.dropped == 95


def test_transfers_noted_at_each_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    reports = report_buffer.ReportBuffer(
        world.agents,
        world.jobs,
        caches.Caches(world.database),
        note_transfers=lambda transfers: noted.append(sum(transfers.values())),
    )
    world.planned(['h1'], ['i1'])
    reports.add_progress(_report(world.begun(), 1, 50))

    with monkeypatch.context() as patched:
        patched.setattr(world.jobs, 'record_progress', _away)
        with pytest.raises(exception.DatabaseUnavailable):
            reports.write_progress()
    assert noted == []
    reports.write_progress()
    reports.write_progress()

    assert noted == [1, 0]


def _fail(agents: object) -> None:
    raise ValueError('the table is damaged')


def test_nothing_written_before_interval(world: World, reports: report_buffer.ReportBuffer) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    world.living('h1')
    world.dead('h1')

    reports.add_progress(_report(begun, 1, 50))
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))

    assert world.job(begun.job_id).bytes_done == 0
    assert 'h1' in world.agents.down(['h1'])


def test_newest_of_several_reports_written(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    for sequence, done in ((1, 10), (3, 30), (2, 20)):
        reports.add_progress(_report(begun, sequence, done))

    reports.write_progress()

    job = world.job(begun.job_id)
    assert (job.bytes_done, job.progress_sequence) == (30, 3)


def test_newer_epoch_beats_higher_sequence(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    world.planned(['h1'], ['i1'])
    old = world.begun()
    new = world.jobs.assign_again('c1', old)
    assert new is not None
    reports.add_progress(_report(new, 1, 60))
    reports.add_progress(_report(old, 500, 50))

    reports.write_progress()

    assert world.job(old.job_id).bytes_done == 60


def test_reports_of_many_jobs_batched(world: World, reports: report_buffer.ReportBuffer) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    for done in (10, 20):
        reports.add_progress(_report(world.begun(), 1, done))

    reports.write_progress()

    assert [job.bytes_done for job in world.all_jobs()] == [10, 20]


def test_newest_state_of_each_agent_written(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    for host in ('h1', 'h2'):
        world.living(host)
        world.dead(host)
        for free_bytes in (1, 2):
            reports.add_state(_agent(world, host, f'agent-{host}', free_bytes))

    reports.write_states()

    assert world.agents.down(['h1', 'h2']) == {}
    assert [agent.free_bytes for agent in world.agents.list()] == [2, 2]


def test_second_agent_does_not_silence_first(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    world.living('h1')
    world.dead('h1')
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))
    reports.add_state(_agent(world, 'h1', 'impostor', 2))

    reports.write_states()

    assert world.agents.down(['h1']) == {}
    assert world.agents.get(['h1'])['h1'].free_bytes == 1


def test_unregistered_agents_refused_but_cells_heard(
    world: World,
) -> None:
    heard: list[str] = []
    refused: list[model.Agent] = []
    reports = report_buffer.ReportBuffer(
        world.agents, world.jobs, caches.Caches(world.database), heard.extend, refused.extend
    )
    world.living('h1')
    stranger, lost = _agent(world, 'h1', 'stranger', 2), _agent(world, 'h2', 'agent-h2', 2)
    for agent in (_agent(world, 'h1', 'agent-h1', 1), stranger, lost):
        reports.add_state(agent)
    for cell in (world.cell.uuid, 'cell-2'):
        for topic in rpcapi.CELL_TOPICS:
            reports.hear(cell, topic)

    reports.write_states()

    assert refused == [stranger, lost]
    assert sorted(heard) == sorted([world.cell.uuid, 'cell-2'])


def test_cell_heard_only_on_all_topics(world: World) -> None:
    heard: list[str] = []
    now = 0.0
    reports = report_buffer.ReportBuffer(
        world.agents,
        world.jobs,
        caches.Caches(world.database),
        heard.extend,
        heard_seconds=15,
        clock=lambda: now,
    )

    reports.hear('cell', rpcapi.TOPIC)
    reports.write_states()
    assert heard == [], 'its reports may wait behind a backlog'
    now = 10
    reports.hear('cell', rpcapi.REPORTS_TOPIC)
    reports.write_states()
    assert heard == ['cell']
    now = 20
    reports.hear('cell', rpcapi.REPORTS_TOPIC)
    reports.write_states()
    assert heard == ['cell'], 'questions have not been heard for 20 s'


def test_cell_unheard_at_once_without_messages(world: World) -> None:
    heard: list[str] = []
    reports = report_buffer.ReportBuffer(
        world.agents, world.jobs, caches.Caches(world.database), heard.extend
    )
    for topic in rpcapi.CELL_TOPICS:
        reports.hear('cell', topic)
    reports.write_states()

    reports.write_states()  # the broker was lost in between, and with it the hosts

    assert heard == ['cell']


@pytest.mark.parametrize(
    ('ages', 'free_bytes'),
    [
        ([1, 3], 1),
        ([3, 1], 1),
        ([None, 3], -1),  # an older agent's counts as sent when it is written
        ([3, None], -1),
        ([2, 5, 1, 4, 3], 1),
    ],
)
def test_older_state_displaces_no_newer(
    world: World,
    reports: report_buffer.ReportBuffer,
    ages: list[int | None],
    free_bytes: int,
) -> None:
    world.living('h1')
    world.dead('h1')
    with world.database.reader() as session:
        now = db_session.now(session)

    for age in ages:
        agent = _agent(world, 'h1', 'agent-h1', -1 if age is None else age)
        sent_at = None if age is None else now - datetime.timedelta(seconds=age)
        reports.add_state(dataclasses.replace(agent, seen_at=sent_at))
    reports.write_states()

    assert world.agents.get(['h1'])['h1'].free_bytes == free_bytes
    assert world.agents.down(['h1']) == {}


def test_late_reports_logged_seldom(world: World, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(0.0)
    reports = report_buffer.ReportBuffer(
        world.agents, world.jobs, caches.Caches(world.database), clock=clock
    )

    for clock.now in (0, 5, 10, report_buffer.LATE_SECONDS - 1, report_buffer.LATE_SECONDS):
        reports.drop('cell-1')

    assert reports.late == 5
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith('Reports of cell cell-1 wait longer than 5 s')


def _sent(world: World, reports: report_buffer.ReportBuffer, host: str, age: float) -> None:
    """Write the report of a host that was sent this many seconds ago, and has that as its size."""
    with world.database.reader() as session:
        sent_at = db_session.now(session) - datetime.timedelta(seconds=age)
    agent = _agent(world, host, f'agent-{host}', int(age))
    reports.add_state(dataclasses.replace(agent, seen_at=sent_at))
    reports.write_states()


def _seen(world: World, host: str, age: float) -> None:
    with world.database.reader() as session:
        seen_at = db_session.now(session) - datetime.timedelta(seconds=age)
    world.change(models.Agent, models.Agent.host == host, seen_at=seen_at)


def test_host_seen_when_report_was_sent(world: World, reports: report_buffer.ReportBuffer) -> None:
    for host, age in (('h1', 5), ('h2', 3600)):
        world.living(host)
        world.dead(host)
        _sent(world, reports, host, age)

    assert [agent.free_bytes for agent in world.agents.list()] == [5, 3600]
    assert list(world.agents.down(['h1', 'h2'])) == ['h2']


@pytest.mark.parametrize(
    ('seen_ago', 'free_bytes'),
    [
        (2, None),  # a later report was written, through another conductor
        (8, 5),
        (-3600, 5),  # the clock of the database was put back
    ],
)
def test_older_report_overwrites_no_later_one(
    world: World, reports: report_buffer.ReportBuffer, seen_ago: float, free_bytes: int | None
) -> None:
    world.living('h1')
    _seen(world, 'h1', seen_ago)

    _sent(world, reports, 'h1', 5)

    assert world.agents.get(['h1'])['h1'].free_bytes == free_bytes


def test_written_reports_not_rewritten(world: World, reports: report_buffer.ReportBuffer) -> None:
    world.living('h1')
    reports.add_state(_agent(world, 'h1', 'agent-h1', 1))
    reports.write_states()
    world.dead('h1')

    reports.write_states()

    assert 'h1' in world.agents.down(['h1'])


def _told(host: str, *names: str, full: bool = True) -> caches.Report:
    images = [model.CachedImage(host, name, None, 1, 1, LONG_AGO) for name in names]
    return caches.Report(host, images, full=full)


def _names(world: World, host: str) -> list[str]:
    return [each.name for each in caches.Caches(world.database).of_host(host)]


def test_cached_images_written_together(world: World, reports: report_buffer.ReportBuffer) -> None:
    for host in ('h1', 'h2'):
        world.living(host)
        reports.add_images(f'agent-{host}', _told(host, 'a'))
    reports.add_images('agent-h1', _told('h1', 'b', full=False))
    assert _names(world, 'h1') == []

    reports.write_images()

    assert (_names(world, 'h1'), _names(world, 'h2')) == (['a', 'b'], ['a'])


def test_only_registered_agent_reports_cache(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    world.living('h1')
    reports.add_images('agent-h1', _told('h1', 'a'))
    reports.add_images('impostor', _told('h1', 'b'))
    reports.add_images('agent-h9', _told('h9', 'c'))

    reports.write_images()

    assert (_names(world, 'h1'), _names(world, 'h9')) == (['a'], [])


def test_each_report_written_once(world: World, reports: report_buffer.ReportBuffer) -> None:
    world.living('h1')
    reports.add_images('agent-h1', _told('h1', 'a'))
    reports.write_images()
    caches.Caches(world.database).record([caches.Report('h1', [], full=True)])

    reports.write_images()

    assert _names(world, 'h1') == []


def test_full_buffer_written_at_once(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_buffer, 'MAX_IMAGES', 5)  # each report counts, too
    world.living('h1')
    reports.add_images('agent-h1', _told('h1', 'a', 'b'))
    assert _names(world, 'h1') == []

    reports.add_images('agent-h1', _told('h1', 'c', full=False))

    assert _names(world, 'h1') == ['a', 'b', 'c']


def test_later_report_follows_running_write(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.living('h1')
    record = caches.Caches.record
    writing, may_write = threading.Event(), threading.Event()
    written: list[list[str]] = []

    def write_slowly(store: caches.Caches, told: Iterable[caches.Report]) -> None:
        some = list(told)
        writing.set()
        assert may_write.wait(TIMEOUT_SECONDS)
        written.append([image.name for report in some for image in report.images])
        record(store, some)

    monkeypatch.setattr(caches.Caches, 'record', write_slowly)
    reports.add_images('agent-h1', _told('h1', 'a'))
    first = threading.Thread(target=reports.write_images)
    first.start()
    assert writing.wait(TIMEOUT_SECONDS)
    reports.add_images('agent-h1', _told('h1', 'b'))
    second = threading.Thread(target=reports.write_images)
    second.start()
    may_write.set()
    for thread in (first, second):
        thread.join(TIMEOUT_SECONDS)

    assert written == [['a'], ['b']]
    assert _names(world, 'h1') == ['b']


def test_full_buffer_waits_for_no_write(
    world: World, reports: report_buffer.ReportBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_buffer, 'MAX_IMAGES', 1)
    world.living('h1')
    record = caches.Caches.record
    writing, may_write = threading.Event(), threading.Event()

    def write_slowly(store: caches.Caches, told: Iterable[caches.Report]) -> None:
        writing.set()
        assert may_write.wait(TIMEOUT_SECONDS)
        record(store, told)

    monkeypatch.setattr(caches.Caches, 'record', write_slowly)
    adding = [
        threading.Thread(
            target=reports.add_images, args=('agent-h1', _told('h1', name, full=False))
        )
        for name in 'ab'
    ]
    adding[0].start()
    assert writing.wait(TIMEOUT_SECONDS)
    adding[1].start()
    adding[1].join(TIMEOUT_SECONDS)
    is_late = adding[1].is_alive()
    may_write.set()
    for thread in adding:
        thread.join(TIMEOUT_SECONDS)

    assert not is_late, 'it waited for the write'
    reports.write_images()
    assert _names(world, 'h1') == ['a', 'b']
