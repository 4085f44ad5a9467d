# SPDX-License-Identifier: Apache-2.0
"""What computes report to a conductor and ask it."""

import dataclasses
import datetime
import logging
import re
from collections.abc import Callable
from typing import Any

import oslo_messaging
import pytest

from nova_precache import context, exception, model
from nova_precache.cells import inventory
from nova_precache.conductor import job_access, manager, report_buffer, rpcapi
from nova_precache.db import caches, jobs
from tests.unit.conductor.conftest import Parts
from tests.unit.conftest import BROKEN, CACHED, World

CTXT = context.admin_context()
STATE = {
    'host': 'h1',
    'agent_id': 'agent-1',
    'boot_id': 'boot-1',
    'version': '1.2',
    'driver': 'FakeDriver',
    'capabilities': {'supports_cache_image': True},
    'free_bytes': 10,
}


@pytest.fixture
def reports(world: World) -> report_buffer.ReportBuffer:
    return report_buffer.ReportBuffer(world.agents, world.jobs, caches.Caches(world.database))


@pytest.fixture
def endpoint_of(
    world: World, reports: report_buffer.ReportBuffer
) -> Callable[[str], manager.CellEndpoint]:
    def build(cell_uuid: str) -> manager.CellEndpoint:
        return manager.CellEndpoint(
            cell_uuid, world.inventory, world.agents, world.jobs, reports, lambda: 'fresh-token'
        )

    return build


@pytest.fixture
def endpoint(
    world: World, endpoint_of: Callable[[str], manager.CellEndpoint]
) -> manager.CellEndpoint:
    return endpoint_of(world.cell.uuid)


def test_api_cast_wakes_conductor() -> None:
    woken: list[bool] = []

    endpoint = manager.ApiEndpoint(lambda: woken.append(True), remove=_removes)
    endpoint.work_available(CTXT, why='of a newer API')

    assert woken == [True]


def _removes(ctxt: context.RequestContext, host: str, image_id: str) -> model.ImageRemoval:
    return model.ImageRemoval('removed', freed_bytes=len(host + image_id), names=('file',))


def test_removal_of_api_answered() -> None:
    endpoint = manager.ApiEndpoint(lambda: None, remove=_removes)
    answer = endpoint.remove_image(CTXT, host='h1', image_id='i1', why='of a newer API')
    assert answer == {'status': 'removed', 'reason': None, 'freed_bytes': 4, 'names': ('file',)}


@pytest.mark.parametrize(
    ('host', 'image_id', 'field'),
    [(None, 'i1', 'host'), ('../h', 'i1', 'host'), ('h1', None, 'image_id'), ('h1', 7, 'image_id')],
)
def test_odd_removal_names_field(host: object, image_id: object, field: str) -> None:
    endpoint = manager.ApiEndpoint(lambda: None, remove=_removes)
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        endpoint.remove_image(CTXT, host=host, image_id=image_id)
    assert str(answered.value.exc_info[1]).startswith(f'{field}: ')


def test_registered_agent_alive_and_mapped(world: World, endpoint: manager.CellEndpoint) -> None:
    endpoint.register(CTXT, STATE)

    assert world.inventory.cell_of_hosts(['h1']) == {'h1': world.cell.uuid}
    agent = world.agents.get(['h1'])['h1']
    assert (agent.agent_id, agent.cell_uuid, agent.free_bytes) == ('agent-1', world.cell.uuid, 10)
    assert world.agents.down(['h1']) == {}


def test_unknown_fields_of_newer_compute_ignored(
    world: World, endpoint: manager.CellEndpoint
) -> None:
    endpoint.register(CTXT, {**STATE, 'mood': 'fine'}, priority=3)

    assert world.agents.get(['h1'])['h1'].agent_id == 'agent-1'


def test_second_agent_of_live_host_refused(world: World, endpoint: manager.CellEndpoint) -> None:
    endpoint.register(CTXT, STATE)

    refusal = _refusal(endpoint, {**STATE, 'agent_id': 'agent-2'})

    assert isinstance(refusal, exception.AgentConflict)
    assert 'another id' in str(refusal)


def _refusal(endpoint: manager.CellEndpoint, state: model.Json) -> BaseException | None:
    """Return the refusal sent to the agent; oslo.messaging does not log it as a failure."""
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        endpoint.register(CTXT, state)
    _, error, _ = answered.value.exc_info
    return error


def test_host_of_other_cell_refused(
    world: World,
    endpoint: manager.CellEndpoint,
    endpoint_of: Callable[[str], manager.CellEndpoint],
) -> None:
    endpoint.register(CTXT, STATE)
    world.dead('h1')
    other = world.inventory.create_cell('cell2', 'fake:///cell2')

    refusal = _refusal(endpoint_of(other.uuid), {**STATE, 'agent_id': 'agent-2'})

    assert isinstance(refusal, exception.AgentConflict)
    assert 'is mapped to cell' in str(refusal)
    agent = world.agents.get(['h1'])['h1']
    assert (agent.agent_id, agent.cell_uuid) == ('agent-1', world.cell.uuid)
    assert 'h1' in world.agents.down(['h1'])


def test_unmapped_host_refused_with_one_warning(
    world: World, reports: report_buffer.ReportBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = manager.CellEndpoint(
        world.cell.uuid,
        inventory.Inventory(world.database, writable=False),
        world.agents,
        world.jobs,
        reports,
        lambda: None,
    )

    for _ in range(2):
        assert isinstance(_refusal(endpoint, STATE), exception.HostNotMapped)
        assert world.agents.get(['h1']) == {}
    [warning] = [each for each in caplog.messages if 'Host h1' in each]
    assert warning.startswith('Host h1 is not mapped to cell cell1 in the database of Nova; ')

    world.inventory.map_host('h1', world.cell.uuid)
    endpoint.register(CTXT, STATE)
    assert world.agents.get(['h1'])['h1'].cell_uuid == world.cell.uuid


def test_report_keeps_host_alive(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.register(CTXT, STATE)
    world.dead('h1')

    endpoint.report_state(CTXT, {**STATE, 'free_bytes': 5, 'mood': 'fine'})
    reports.write_states()

    assert world.agents.down(['h1']) == {}
    assert world.agents.get(['h1'])['h1'].free_bytes == 5


@pytest.mark.parametrize('total', [{'bytes_total': 80}, {}])
def test_progress_reaches_job(
    world: World,
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    total: dict[str, Any],
) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    progress = {'status': 'converting', 'bytes_done': 40, 'speed': 3, **total}

    endpoint.report_progress(CTXT, begun.job_id, begun.epoch, 1, progress, mood='fine')
    reports.write_progress()

    job = world.job(begun.job_id)
    assert (job.status, job.bytes_done) == ('converting', 40)
    assert job.bytes_total == total.get('bytes_total', 100)


def test_unknown_newer_step_counts_bytes(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    request = world.planned(['h1'], ['i1'])
    world.claim('c1', 1)
    job = world.assign('c1', 'h1')
    assert job is not None
    assert endpoint.begin_job(CTXT, job.job_id, job.epoch, mood='fine')
    progress = {'status': 'polishing', 'bytes_done': 5, 'bytes_total': 9, 'gloss': 1}

    endpoint.report_progress(CTXT, job.job_id, job.epoch, 1, progress, mood='fine')
    reports.write_progress()

    [task] = world.requests.tasks(request.id)
    assert (task.status, task.bytes_done, task.bytes_total) == ('downloading', 5, 9)


def test_job_begins_only_under_its_epoch(world: World, endpoint: manager.CellEndpoint) -> None:
    world.planned(['h1'], ['i1'])
    world.claim('c1', limit=1)
    assigned = world.assign('c1', 'h1')
    assert assigned is not None

    assert not endpoint.begin_job(CTXT, assigned.job_id, assigned.epoch - 1)
    assert world.job(assigned.job_id).status == model.TaskStatus.QUEUED
    assert endpoint.begin_job(CTXT, assigned.job_id, assigned.epoch, mood='fine')
    assert world.job(assigned.job_id).status == model.TaskStatus.DOWNLOADING


@pytest.fixture
def confirming(
    world: World, parts: Parts, endpoint_of: Callable[[str], manager.CellEndpoint]
) -> manager.CellEndpoint:
    endpoint = endpoint_of(world.cell.uuid)
    endpoint._check_access = job_access.JobAccess(world.jobs, parts.images, parts.tracker).check
    return endpoint


def _gone(endpoint: manager.CellEndpoint, job: jobs.Assignment) -> str:
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        endpoint.confirm_job(CTXT, job_id=job.job_id, epoch=job.epoch)
    _, error, _ = answered.value.exc_info
    assert type(error) is exception.ImageGone
    return str(error)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'visibility': 'private'}, 'is not visible to project p2'),
        ({'status': 'deactivated'}, 'is deactivated, not active'),
        ({'container_format': 'compressed'}, 'has container_format compressed'),
    ],
)
def test_hidden_image_not_confirmed(
    world: World,
    parts: Parts,
    confirming: manager.CellEndpoint,
    change: dict[str, str],
    reason: str,
) -> None:
    image = parts.images.add(b'data', owner='p1')
    request = world.planned(['h1'], [image.id], project_id='p2')
    begun = world.begun()
    confirming.confirm_job(CTXT, job_id=begun.job_id, epoch=begun.epoch, mood='fine')
    parts.images.update(image.id, **change)

    assert reason in _gone(confirming, begun)

    [task] = world.requests.tasks(request.id)
    assert task.status == 'error'
    assert f'Image {image.id} {reason}' in str(task.reason)
    assert world.status(request) == 'failed'


def test_removed_member_refused_not_owner(
    world: World, parts: Parts, confirming: manager.CellEndpoint
) -> None:
    image = parts.images.add(b'data', owner='p1', visibility='shared')
    parts.images.share(image.id, 'p2')
    mine = world.planned(['h1'], [image.id], project_id='p1')
    other = world.planned(['h1'], [image.id], project_id='p2')
    begun = world.begun()
    parts.images.unshare(image.id, 'p2')

    confirming.confirm_job(CTXT, job_id=begun.job_id, epoch=begun.epoch)

    [task] = world.requests.tasks(other.id)
    assert (task.status, task.reason) == (
        'error',
        f'Image {image.id} is not visible to project p2',
    )
    world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    [task] = world.requests.tasks(mine.id)
    assert task.status == 'cached'


def test_refused_job_ends_with_compute_reason(
    world: World, parts: Parts, confirming: manager.CellEndpoint
) -> None:
    image = parts.images.add(b'data', owner='p1', visibility='private')
    world.planned(['h1'], [image.id], project_id='p2')
    begun = world.begun()
    outcome = model.ImageOutcome(model.TaskStatus.ERROR, _gone(confirming, begun))

    world.jobs.finish(begun.job_id, begun.epoch, outcome)

    job = world.job(begun.job_id)
    assert (job.status, job.reason, job.active_key) == ('error', outcome.reason, None)


def test_stale_or_foreign_job_not_refused(
    world: World,
    parts: Parts,
    confirming: manager.CellEndpoint,
    endpoint_of: Callable[[str], manager.CellEndpoint],
) -> None:
    request = world.planned(['h1'], ['unknown'], project_id='p1')
    begun = world.begun()
    theirs = endpoint_of(world.inventory.create_cell('cell2', 'fake:///cell2').uuid)
    theirs._check_access = confirming._check_access

    confirming.confirm_job(CTXT, job_id=begun.job_id, epoch=begun.epoch - 1)
    confirming.confirm_job(CTXT, job_id='unknown', epoch=1)
    theirs.confirm_job(CTXT, job_id=begun.job_id, epoch=begun.epoch)

    [task] = world.requests.tasks(request.id)
    assert task.status == 'downloading'


def test_without_image_service_nothing_confirmed(
    world: World, parts: Parts, confirming: manager.CellEndpoint
) -> None:
    image = parts.images.add(b'data')
    request = world.planned(['h1'], [image.id], project_id='p1')
    begun = world.begun()
    parts.images.faults.unavailable = 1

    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        confirming.confirm_job(CTXT, job_id=begun.job_id, epoch=begun.epoch)

    assert isinstance(answered.value.exc_info[1], exception.Unavailable)
    [task] = world.requests.tasks(request.id)
    assert task.status == 'downloading'


def _token_refusal(endpoint: manager.CellEndpoint, **named: Any) -> str:
    """Return why a compute gets no token; oslo.messaging does not log it as a failure."""
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        endpoint.get_token(CTXT, **named)
    _, error, _ = answered.value.exc_info
    assert isinstance(error, exception.TokenRefused | exception.InvalidInput)
    return str(error)


def test_compute_gets_token_for_its_job(world: World, endpoint: manager.CellEndpoint) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()

    for _ in range(2):
        token = endpoint.get_token(CTXT, job_id=begun.job_id, epoch=begun.epoch, mood='fine')
        assert token == 'fresh-token'


@pytest.mark.parametrize(
    ('job_id', 'epoch'),
    [
        ('{job}', -1),
        ('{job}', 0),
        ('{job}', 2**63),
        ('{job}', 2**70),
        ('{job}', None),
        ('{job}', True),
        ('{job}', '{epoch}'),
        ('{job}', [1]),
        ('{job}', 1.0),
        ('', 1),
        ('%', 1),
        ('unknown', 1),
        ('00000000-0000-4000-8000-000000000000', 1),
        ('\x00\ud800', 1),
        ('x' * 10000, 1),
        (['{job}'], 1),
        ({'job': 1}, 1),
        (7, 1),
        (False, 1),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_misnamed_job_gets_no_token(
    world: World, endpoint: manager.CellEndpoint, job_id: Any, epoch: Any
) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    if job_id == '{job}':
        job_id = begun.job_id
    if epoch == '{epoch}':
        epoch = str(begun.epoch)
    if type(epoch) is int and job_id == begun.job_id:
        assert epoch != begun.epoch

    said = _token_refusal(endpoint, job_id=job_id, epoch=epoch)

    assert re.search(r'is not in flight in this cell|^(job_id|epoch): .* is not ', said)
    assert len(said) < 200
    assert said.isprintable()


def test_only_newest_call_gets_token(world: World, endpoint: manager.CellEndpoint) -> None:
    world.planned(['h1'], ['i1'])
    begun = world.begun()
    again = world.jobs.assign_again('c1', begun)
    assert again is not None

    _token_refusal(endpoint, job_id=begun.job_id, epoch=begun.epoch)

    assert endpoint.get_token(CTXT, job_id=again.job_id, epoch=again.epoch) == 'fresh-token'


def test_waiting_or_ended_job_without_token(world: World, endpoint: manager.CellEndpoint) -> None:
    world.planned(['h1'], ['i1'])
    world.claim('c1', limit=1)
    job = world.assign('c1', 'h1')
    assert job is not None
    named = {'job_id': job.job_id, 'epoch': job.epoch}

    _token_refusal(endpoint, **named)
    assert world.jobs.begin(job.job_id, job.epoch)
    assert endpoint.get_token(CTXT, **named) == 'fresh-token'
    world.jobs.retry(job.job_id, job.epoch, BROKEN, delay_seconds=60)
    _token_refusal(endpoint, **named)
    world.jobs.finish(job.job_id, job.epoch, CACHED)
    _token_refusal(endpoint, **named)


def test_other_cell_job_gets_no_token(
    world: World, endpoint_of: Callable[[str], manager.CellEndpoint]
) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    world.planned(['h1'], ['i1'])
    begun = world.begun()

    _token_refusal(endpoint_of(other.uuid), job_id=begun.job_id, epoch=begun.epoch)


def test_older_compute_gets_token_with_warning(
    world: World,
    endpoint: manager.CellEndpoint,
    endpoint_of: Callable[[str], manager.CellEndpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    caplog.set_level(logging.WARNING, 'nova_precache')
    assert _token_refusal(endpoint) == 'no job is in flight in this cell'
    world.planned(['h1', 'h2'], ['i1'])

    first = world.begun()
    for _ in range(3):
        assert endpoint.get_token(CTXT) == 'fresh-token'
    assert _token_refusal(endpoint_of(other.uuid)) == 'no job is in flight in this cell'
    second = world.begun()
    for _ in range(3):
        assert endpoint.get_token(CTXT, mood='fine') == 'fresh-token'

    warnings = [each for each in caplog.messages if 'without a job id' in each]
    assert [each.rsplit(' ', 1)[1] for each in warnings] == [first.host, second.host]
    for each in (first, second):
        world.jobs.finish(each.job_id, each.epoch, CACHED)
    assert _token_refusal(endpoint) == 'no job is in flight in this cell'


def test_warning_about_older_computes_is_short(
    world: World, endpoint: manager.CellEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = [f'h{number:02}' for number in range(manager.SHOWN_HOSTS + 2)]
    world.planned(hosts, ['i1'])
    for _ in hosts:
        world.begun()

    assert endpoint.get_token(CTXT) == 'fresh-token'

    [warning] = [each for each in caplog.messages if 'without a job id' in each]
    assert warning.endswith('h09 and 2 more')


@pytest.mark.parametrize(('told', 'rate'), [({'rate_bytes': 7}, 7), ({}, None)])
def test_progress_reports_rate(
    endpoint: manager.CellEndpoint,
    reports: report_buffer.ReportBuffer,
    told: dict[str, int],
    rate: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[Any] = []
    monkeypatch.setattr(reports, 'add_progress', noted.append)

    endpoint.report_progress(
        CTXT, 'j1', 1, 1, {'status': 'downloading', 'bytes_done': 4, 'bytes_total': 9, **told}
    )

    assert [each.progress for each in noted] == [
        model.Progress(model.TaskStatus.DOWNLOADING, 4, 9, rate)
    ]


A, B, C = (letter * 40 for letter in 'abc')
IMAGE = {
    'name': A,
    'size_bytes': 2**40,
    'disk_bytes': 5,
    'touched_at': '2026-01-02T03:04:05.678901Z',
    'used_by': 2,
}


def test_host_cache_is_stored(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.register(CTXT, STATE)
    old = {**IMAGE, 'name': B, 'touched_at': '2026-01-02T04:04:05+01:00', 'colour': 'blue'}
    del old['used_by']

    endpoint.report_images(CTXT, 'h1', 'agent-1', [IMAGE, old], [], True, mood='fine')
    reports.write_images()

    first, second = caches.Caches(world.database).of_host('h1')
    touched_at = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)  # noqa: DTZ001
    assert dataclasses.replace(first, reported_at=None) == model.CachedImage(
        'h1', A, None, 2**40, 5, touched_at, 2
    )
    assert (second.touched_at, second.used_by) == (touched_at.replace(microsecond=0), None)


def test_cache_changes_and_report_parts_stored(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    def names() -> list[str]:
        reports.write_images()
        return [each.name for each in caches.Caches(world.database).of_host('h1')]

    endpoint.register(CTXT, STATE)
    endpoint.report_images(CTXT, 'h1', 'agent-1', [IMAGE, {**IMAGE, 'name': B}], [], True)
    assert names() == [A, B]

    endpoint.report_images(CTXT, 'h1', 'agent-1', [{**IMAGE, 'name': C}], [A], False)
    assert names() == [B, C]

    endpoint.report_images(CTXT, 'h1', 'agent-1', [], [], True, after=B, until=None)
    assert names() == [B]


@pytest.mark.parametrize(
    'name', ['', f'{"a" * 40}_{"9" * 24}', 'swap_512', '../a', '\ud800', 'a\nb']
)
def test_refused_file_name_blocks_no_others(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer, name: str
) -> None:
    endpoint.register(CTXT, STATE)

    endpoint.report_images(CTXT, 'h1', 'agent-1', [{**IMAGE, 'name': name}, IMAGE], [], True)
    reports.write_images()

    assert [each.name for each in caches.Caches(world.database).of_host('h1')] == [A]


def test_unregistered_agent_reports_no_cache(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.register(CTXT, STATE)

    endpoint.report_images(CTXT, 'h1', 'agent-2', [IMAGE], [], True)
    reports.write_images()

    assert caches.Caches(world.database).of_host('h1') == []
    assert caches.Caches(world.database).known_hosts() == frozenset()


# Two agents of one name, and an older database


def test_report_adds_no_agent(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.report_state(CTXT, STATE)
    reports.write_states()

    assert world.agents.list() == []


def test_unregistered_agent_begins_and_reports_nothing(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.register(CTXT, STATE)
    world.planned(['h1'], ['i1'])
    world.claim('c1', limit=1)
    assigned = world.assign('c1', 'h1')
    assert assigned is not None
    call = CTXT, assigned.job_id, assigned.epoch

    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        endpoint.begin_job(*call, True, agent_id='agent-2')
    assert endpoint.begin_job(*call, True, agent_id='agent-1')
    progress = {'status': 'converting', 'bytes_done': 40}
    endpoint.report_progress(*call, 1, progress, agent_id='agent-2')
    reports.write_progress()

    assert isinstance(answered.value.exc_info[1], exception.AgentConflict)
    job = world.job(assigned.job_id)
    assert (job.status, job.bytes_done, job.attempts) == ('downloading', 0, 1)


def test_ping_and_report_mark_cell_heard(
    world: World,
) -> None:
    heard: list[str] = []
    noting = report_buffer.ReportBuffer(
        world.agents, world.jobs, caches.Caches(world.database), note_heard=heard.extend
    )
    endpoint = manager.CellEndpoint(
        world.cell.uuid, world.inventory, world.agents, world.jobs, noting, lambda: None
    )
    now = 0.0
    noting._clock = lambda: now
    noting.hear(world.cell.uuid, rpcapi.REPORTS_TOPIC)
    noting.write_states()
    assert heard == []

    assert endpoint.ping(CTXT) == rpcapi.VERSION
    noting.write_states()
    assert heard == [world.cell.uuid]
    now = 60
    noting.hear(world.cell.uuid, rpcapi.REPORTS_TOPIC)
    endpoint.report_state(CTXT, STATE)
    noting.write_states()

    assert heard == [world.cell.uuid] * 2


# The goodbye of a compute


def _goodbye(endpoint: manager.CellEndpoint, **changed: Any) -> None:
    told = {name: STATE[name] for name in ('host', 'agent_id', 'boot_id')}
    endpoint.goodbye(CTXT, **{**told, **changed}, mood='fine')


def test_goodbye_takes_host_down(
    world: World, endpoint: manager.CellEndpoint, reports: report_buffer.ReportBuffer
) -> None:
    endpoint.register(CTXT, STATE)
    endpoint.report_state(CTXT, STATE)

    _goodbye(endpoint)
    reports.write_states()

    assert world.agents.down(['h1'])['h1'].startswith('host down: stopped at')


@pytest.mark.parametrize(
    ('changed', 'error'),
    [
        ({'agent_id': 'agent-2'}, 'Agent agent-2 is not registered for host h1'),
        ({'boot_id': 'boot-2'}, 'Agent agent-1 is not registered for host h1'),
        ({'boot_id': None}, 'Agent agent-1 is not registered for host h1'),
        ({'host': 'h2'}, 'Agent agent-1 is not registered for host h2'),
        ({'host': ['h1']}, 'host: '),
        ({'agent_id': None}, 'agent_id: '),
        ({'boot_id': 5}, 'boot_id: '),
        ({'boot_id': 'x' * 100}, 'boot_id: '),
    ],
    ids=str,
)
def test_false_goodbye_changes_nothing(
    world: World, endpoint: manager.CellEndpoint, changed: dict[str, Any], error: str
) -> None:
    endpoint.register(CTXT, STATE)

    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        _goodbye(endpoint, **changed)

    assert error in str(answered.value.exc_info[1])
    assert world.agents.down(['h1']) == {}


def test_goodbye_from_other_cell_refused(
    world: World,
    endpoint: manager.CellEndpoint,
    endpoint_of: Callable[[str], manager.CellEndpoint],
) -> None:
    endpoint.register(CTXT, STATE)
    other = world.inventory.create_cell('cell2', 'fake:///cell2')

    with pytest.raises(oslo_messaging.ExpectedException):
        _goodbye(endpoint_of(other.uuid))

    assert world.agents.down(['h1']) == {}
