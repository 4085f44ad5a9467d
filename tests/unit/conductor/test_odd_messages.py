# SPDX-License-Identifier: Apache-2.0
"""Invalid messages harm only their sender, which is named once and without a traceback."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import oslo_messaging
import pytest

from nova_precache import conf as options, context, exception, model, rpc
from nova_precache.conductor import manager, report_buffer
from nova_precache.db import caches, jobs
from tests.unit import odd
from tests.unit.conductor.test_manager import CTXT, IMAGE, STATE
from tests.unit.conftest import World
from tools.waiting import TIMEOUT_SECONDS

PROGRESS: model.Json = {'status': 'downloading', 'bytes_done': 40, 'bytes_total': 100}


@pytest.fixture
def reports(world: World) -> report_buffer.ReportBuffer:
    return report_buffer.ReportBuffer(world.agents, world.jobs, caches.Caches(world.database))


@pytest.fixture
def endpoint(world: World, reports: report_buffer.ReportBuffer) -> manager.CellEndpoint:
    return _endpoint(world, world.cell.uuid, reports)


def _endpoint(
    world: World, cell_uuid: str, reports: report_buffer.ReportBuffer, **more: Any
) -> manager.CellEndpoint:
    return manager.CellEndpoint(
        cell_uuid, world.inventory, world.agents, world.jobs, reports, lambda: None, **more
    )


def _refusal(call: Callable[..., object], *given: object, **named: object) -> str:
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        call(CTXT, *given, **named)
    _, error, _ = answered.value.exc_info
    assert isinstance(error, exception.InvalidInput)
    return str(error)


def _odd(good: model.Json, table: Any) -> Iterator[tuple[str, model.Json]]:
    for field, values in table.items():
        for value in values:
            yield field, {**good, field: value}


def _assert_quiet(caplog: pytest.LogCaptureFixture, named: int = 1) -> list[str]:
    """Check for no traceback, no raw character, and this many lines that name senders."""
    assert [record for record in caplog.records if record.exc_info] == []
    lines = [each for each in caplog.messages if each.startswith('Refused')]
    assert all(each.isprintable() and len(each) < 500 for each in lines)
    assert len(lines) == named, lines
    return lines


def test_odd_state_loses_no_other_report(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for host in ('h1', 'h2'):
        endpoint.register(CTXT, {**STATE, 'host': host})
        world.dead(host)
    table = {field: values for field, values in odd.STATE.items() if field != 'host'}

    for field, state in _odd(STATE, table):
        assert field in _refusal(endpoint.report_state, state)
        assert field in _refusal(endpoint.register, state)
    endpoint.report_state(CTXT, {**STATE, 'host': 'h2', 'free_bytes': 5})
    reports.write_states()

    assert set(world.agents.down(['h1', 'h2'])) == {'h1'}
    assert world.agents.get(['h2'])['h2'].free_bytes == 5
    assert world.agents.get(['h1'])['h1'].free_bytes == 10
    lines = _assert_quiet(caplog, named=2)  # a report and a registration
    assert all(f"host 'h1' of cell {world.cell.uuid}" in each for each in lines)


def test_invalid_host_name_not_stored(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in odd.HOST:
        assert 'host' in _refusal(endpoint.register, {**STATE, 'host': name})
        assert 'host' in _refusal(endpoint.report_state, {**STATE, 'host': name})
        assert 'host' in _refusal(endpoint.report_images, name, 'agent-1', [IMAGE], [], True)
    for message in odd.NO_OBJECT:
        assert 'state' in _refusal(endpoint.register, message)
        assert 'state' in _refusal(endpoint.report_state, message)
    assert 'state' in _refusal(endpoint.report_state)
    reports.write_states()
    reports.write_images()

    assert world.agents.list() == []
    assert world.inventory.list_host_mappings() == []
    assert [record for record in caplog.records if record.exc_info] == []
    assert all(each.isprintable() and len(each) < 500 for each in caplog.messages)
    evil = [each for each in caplog.messages if 'evil' in each]
    assert len(evil) == 3
    assert all("'../../evil\\n\\x1b[31m'" in each for each in evil)


def test_odd_progress_loses_no_other_report(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    bad, good = world.begun(), world.begun()

    for field, progress in _odd(PROGRESS, odd.PROGRESS):
        call = (bad.job_id, bad.epoch, 1, progress)
        assert field in _refusal(endpoint.report_progress, *call)
    for value in odd.JOB:
        assert 'job_id' in _refusal(endpoint.report_progress, value, 1, 1, PROGRESS)
    for value in odd.NUMBER:
        assert 'epoch' in _refusal(endpoint.report_progress, bad.job_id, value, 1, PROGRESS)
        assert 'sequence' in _refusal(
            endpoint.report_progress, bad.job_id, bad.epoch, value, PROGRESS
        )
    for value in odd.NO_OBJECT:
        assert 'progress' in _refusal(endpoint.report_progress, bad.job_id, bad.epoch, 1, value)
    endpoint.report_progress(CTXT, good.job_id, good.epoch, 1, PROGRESS)
    reports.write_progress()

    assert world.job(good.job_id).bytes_done == 40
    assert world.job(bad.job_id).bytes_done == 0
    assert [record for record in caplog.records if record.exc_info] == []
    lines = [each for each in caplog.messages if each.startswith('Refused progress from host ')]
    assert len(lines) == 1
    assert lines[0].startswith(f'Refused progress from host {bad.host}: progress.status: ')


def test_odd_inventory_loses_no_other_report(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for host in ('h1', 'h2'):
        endpoint.register(CTXT, {**STATE, 'host': host})
    good = ([IMAGE], [], True)

    for field, image in _odd(IMAGE, odd.IMAGE):
        call = ('h1', 'agent-1', [IMAGE, image], [], True)
        assert field in _refusal(endpoint.report_images, *call)
    for value in odd.ID:
        assert 'agent_id' in _refusal(endpoint.report_images, 'h1', value, *good)
    for value in (None, 5, 'text', {'a': 1}, [5], [None], ['a'], [IMAGE] * 10_001):
        assert 'images' in _refusal(endpoint.report_images, 'h1', 'agent-1', value, [], True)
    for value in (None, 5, 'text', {'a': 1}, ['a' * 40] * 10_001):
        assert 'removed' in _refusal(endpoint.report_images, 'h1', 'agent-1', [IMAGE], value, True)
    for value in odd.FLAG:
        assert 'full' in _refusal(endpoint.report_images, 'h1', 'agent-1', [IMAGE], [], value)
    for value in (5, ['a'], 'a\0b', '\ud800', 'x' * 256):
        for name in ('after', 'until'):
            given = {name: value}
            assert name in _refusal(endpoint.report_images, 'h1', 'agent-1', *good, **given)
    endpoint.report_images(CTXT, 'h2', 'agent-1', *good)
    reports.write_images()

    store = caches.Caches(world.database)
    assert [each.name for each in store.of_host('h2')] == [IMAGE['name']]
    assert store.of_host('h1') == []
    [line] = _assert_quiet(caplog)
    assert "an inventory from host 'h1'" in line


def test_odd_begin_begins_nothing(
    world: World, endpoint: manager.CellEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    world.planned(['h1'], ['i1'])
    world.claim('c1', limit=1)
    assigned = world.assign('c1', 'h1')
    assert assigned is not None

    for value in odd.JOB:
        assert 'job_id' in _refusal(endpoint.begin_job, value, assigned.epoch)
    for value in odd.NUMBER:
        assert 'epoch' in _refusal(endpoint.begin_job, assigned.job_id, value)
    for value in odd.FLAG:
        assert 'starts' in _refusal(endpoint.begin_job, assigned.job_id, assigned.epoch, value)

    assert world.job(assigned.job_id).status == model.TaskStatus.QUEUED
    assert [record for record in caplog.records if record.exc_info] == []
    lines = [each for each in caplog.messages if 'from host h1:' in each]
    assert len(lines) == 1


# Over RPC


class _Good(manager.CellEndpoint):
    """Records that the last message has arrived."""

    def work_done(self, ctxt: context.RequestContext, answer: object = None, **_: object) -> str:
        return 'done'


@pytest.fixture
def served(world: World, reports: report_buffer.ReportBuffer) -> Iterator[rpc.Client]:
    """A client of the endpoint of a cell, in memory."""
    transport = rpc.connect(options.new(config_files=[]), f'fake:///{uuid.uuid4().hex}')
    endpoint = _Good(
        world.cell.uuid, world.inventory, world.agents, world.jobs, reports, lambda: None
    )
    server = rpc.Server(transport, 'topic', 'server1', [endpoint])
    server.start()
    yield rpc.Client(transport, 'topic')
    server.stop()


def test_odd_cast_logs_no_traceback(
    world: World,
    served: rpc.Client,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    served.call(CTXT, 'register', '1.0', timeout_seconds=TIMEOUT_SECONDS, state=STATE)
    world.dead('h1')
    casts: list[tuple[str, dict[str, Any]]] = [
        ('report_state', {}),
        ('report_progress', {}),
        ('report_images', {}),
        ('report_state', {'states': [STATE]}),
        ('ping', {'colour': 'blue'}),
        ('target', {}),
        ('_agents', {}),
        ('no_such_method', {}),
        ('report_state', {'state': STATE}),
        *(('report_state', {'state': state}) for _, state in _odd(STATE, odd.STATE)),
        *(
            ('report_progress', {'job_id': 'j', 'epoch': 1, 'sequence': 1, 'progress': each})
            for _, each in _odd(PROGRESS, odd.PROGRESS)
        ),
    ]

    for method, arguments in casts:
        if _is_json(arguments):
            served.cast(CTXT, method, '1.0', **arguments)
    answered = served.call(CTXT, 'work_done', '1.0', timeout_seconds=TIMEOUT_SECONDS)

    assert answered == 'done'
    world.wait(lambda: reports.write_states() is None and world.agents.down(['h1']) == {})
    assert [record for record in caplog.records if record.exc_info] == []


def _is_json(arguments: object) -> bool:
    try:
        return bool(json.dumps(arguments))
    except (TypeError, ValueError):
        return False


def test_refusal_arrives_as_refusal(served: rpc.Client) -> None:
    with pytest.raises(exception.InvalidInput, match=r'state\.host'):
        served.call(CTXT, 'register', '1.0', timeout_seconds=TIMEOUT_SECONDS, state={'host': 'a b'})


# Limits


def test_files_per_host_bounded(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caches, 'MOST_FILES', 30)
    for host in ('h1', 'h2'):
        endpoint.register(CTXT, {**STATE, 'host': host})
    names = [f'{number:040x}' for number in range(100)]
    files = [{**IMAGE, 'name': name} for name in names]

    def kept(host: str) -> list[str]:
        return [each.name for each in caches.Caches(world.database).of_host(host)]

    for start in range(0, 100, 20):
        some = files[start : start + 20]
        endpoint.report_images(CTXT, 'h1', 'agent-1', some, [], False)
        reports.write_images()
    assert kept('h1') == names[:30]

    endpoint.report_images(CTXT, 'h1', 'agent-1', files[-5:], names[:3], False)
    endpoint.report_images(CTXT, 'h2', 'agent-1', files[:5], [], True)
    reports.write_images()
    assert kept('h1') == [*names[3:30], *names[-5:-2]]
    assert kept('h2') == names[:5]

    endpoint.report_images(CTXT, 'h1', 'agent-1', files, [], True)
    reports.write_images()
    assert len(kept('h1')) == 30
    assert caches.Caches(world.database).known_hosts() == {'h1', 'h2'}
    [line] = _assert_quiet(caplog)
    assert line == 'Refused some images from host h1: at most 30 are recorded per host'


def test_hosts_per_cell_bounded(
    world: World, reports: report_buffer.ReportBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = _endpoint(world, world.cell.uuid, reports, max_hosts=2)
    for host in ('h1', 'h2'):
        endpoint.register(CTXT, {**STATE, 'host': host})

    for _ in range(2):
        refused = _refusal(endpoint.register, {**STATE, 'host': 'h3'})
        assert refused == (
            f'Too many hosts in cell {world.cell.uuid}: 3 asked, '
            '[conductor] max_hosts_per_cell is 2'
        )
    endpoint.register(CTXT, {**STATE, 'host': 'h2', 'boot_id': 'boot-2'})

    assert [agent.host for agent in world.agents.list()] == ['h1', 'h2']
    assert set(world.inventory.cell_of_hosts(['h1', 'h2', 'h3'])) == {'h1', 'h2'}
    assert world.agents.get(['h2'])['h2'].boot_id == 'boot-2'
    _assert_quiet(caplog)


# Cells


def test_cell_cannot_touch_jobs_of_another(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    ours = _endpoint(world, world.cell.uuid, reports)
    theirs = _endpoint(world, other.uuid, reports)
    request = world.planned(['h1'], ['i1'])
    world.claim('c1', limit=1)
    job = world.assign('c1', 'h1')
    assert job is not None

    assert not theirs.begin_job(CTXT, job.job_id, job.epoch, True)
    assert world.job(job.job_id).status == model.TaskStatus.QUEUED

    assert ours.begin_job(CTXT, job.job_id, job.epoch, True)
    ours.report_progress(CTXT, job.job_id, job.epoch, 1, PROGRESS)
    theirs.report_progress(CTXT, job.job_id, job.epoch, 2**62, {**PROGRESS, 'bytes_done': 99})
    theirs.report_progress(CTXT, job.job_id, 2**62, 1, {**PROGRESS, 'bytes_done': 98})
    ours.report_progress(CTXT, job.job_id, 2**62, 1, {**PROGRESS, 'bytes_done': 97})
    reports.write_progress()

    row = world.job(job.job_id)
    assert (row.bytes_done, row.progress_sequence) == (40, 1)
    assert world.requests.get(request.id).bytes_done == 40


def test_cell_cannot_report_hosts_of_another(
    world: World, reports: report_buffer.ReportBuffer
) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    ours = _endpoint(world, world.cell.uuid, reports)
    theirs = _endpoint(world, other.uuid, reports)
    ours.register(CTXT, STATE)
    world.dead('h1')

    theirs.report_state(CTXT, {**STATE, 'free_bytes': 7})
    theirs.report_images(CTXT, 'h1', 'agent-1', [IMAGE], [], True)
    reports.write_states()
    reports.write_images()

    agent = world.agents.get(['h1'])['h1']
    assert (agent.cell_uuid, agent.free_bytes) == (world.cell.uuid, 10)
    assert 'h1' in world.agents.down(['h1'])
    assert caches.Caches(world.database).known_hosts() == frozenset()


@pytest.mark.parametrize(
    ('done', 'total', 'shown'),
    [
        (10**12, 100, (100, 100)),
        (10**12, 10**13, (100, 100)),
        (40, 10**13, (40, 100)),
        (40, None, (40, 100)),
        (90, 80, (80, 80)),
        (0, 0, (0, 0)),
    ],
)
def test_bytes_never_exceed_glance_size(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    done: int,
    total: int | None,
    shown: tuple[int, int],
) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    progress = {'status': 'downloading', 'bytes_done': done, 'bytes_total': total}

    endpoint.report_progress(CTXT, begun.job_id, begun.epoch, 1, progress)
    reports.write_progress()

    task = world.tasks(request)['h1', 'i1']
    assert (task.bytes_done, task.bytes_total) == shown
    row = world.job(begun.job_id)
    assert (row.bytes_done, row.bytes_total) == shown


@pytest.mark.parametrize(
    ('outcome', 'shown'),
    [
        (model.ImageOutcome('cached', bytes_done=10**12, bytes_total=10**12), (100, 100)),
        (model.ImageOutcome('existing', bytes_total=0), (60, 60)),
        (model.ImageOutcome('error', 'cut', bytes_done=10**12), (100, 100)),
        (model.ImageOutcome('cancelled', 'told to', bytes_done=10**12), (100, 100)),
    ],
)
def test_outcome_bytes_bounded_without_loss(
    world: World, outcome: model.ImageOutcome, shown: tuple[int, int]
) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    moved = model.Progress(model.TaskStatus.DOWNLOADING, 60, 100)
    world.jobs.record_progress([jobs.ProgressReport(begun.job_id, begun.epoch, 1, moved)])
    if outcome.status == 'cancelled':
        world.steering.cancel(request.id)

    assert world.jobs.finish(begun.job_id, begun.epoch, outcome)

    task = world.tasks(request)['h1', 'i1']
    assert (task.status, task.bytes_done, task.bytes_total) == (outcome.status, *shown)


def test_figures_of_ended_job_unchanged(world: World, endpoint: manager.CellEndpoint) -> None:
    request = world.planned(['h1'], ['i1'])
    begun = world.begun()
    cached = model.ImageOutcome('cached', bytes_done=100, bytes_total=100)
    assert world.jobs.finish(begun.job_id, begun.epoch, cached)
    late = model.Progress(model.TaskStatus.DOWNLOADING, 10**9, 10**9)

    assert (
        world.jobs.record_progress([jobs.ProgressReport(begun.job_id, begun.epoch, 9, late)]) == 0
    )
    assert not endpoint.begin_job(CTXT, begun.job_id, begun.epoch, True)

    shown = world.requests.get(request.id)
    assert (shown.bytes_done, shown.bytes_total, shown.counts) == (100, 100, {'cached': 1})


def test_other_cell_report_adds_no_agent(world: World) -> None:
    world.living('h1')
    before = world.agents.get(['h1'])

    world.agents.report([model.Agent('h1', 'agent-h1', 'another-cell', free_bytes=1)])

    assert world.agents.get(['h1']) == before
    assert world.agents.count(world.cell.uuid) == 1
    assert world.agents.count('another-cell') == 0
