# SPDX-License-Identifier: Apache-2.0
"""Which conductors, APIs and computes run, by their reports and their clean stops."""

import dataclasses

import pytest

from nova_precache import exception, model
from nova_precache.db import hearing, services, statistics
from nova_precache.db.engine import models
from tests.unit.conftest import DOWN_SECONDS, LONG_AGO, World

CONDUCTOR = model.ServiceProcess('c-1', model.Binary.CONDUCTOR, 'ctl1', '1.0')
SECOND = dataclasses.replace(CONDUCTOR, id='c-2')
API = model.ServiceProcess('a-1', model.Binary.API, 'ctl1', '1.0')


@pytest.fixture
def known(world: World) -> services.Services:
    return services.Services(world.database, DOWN_SECONDS, report_seconds=10)


def _silence(world: World, process: model.ServiceProcess) -> None:
    """Set the last report long into the past, while reports could be written."""
    world.change(
        models.Service, models.Service.id == process.id, started_at=LONG_AGO, seen_at=LONG_AGO
    )
    world.hears(hearing.SERVICES, for_seconds=2 * DOWN_SECONDS)


def _statuses(known: services.Services) -> dict[str, str]:
    return {each.id: str(each.status) for each in known.list_page()}


def test_reporting_process_is_up(known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.report(CONDUCTOR, replaces=True)

    [shown] = known.list_page()
    assert (shown.binary, shown.host, shown.version) == ('nova-precache-conductor', 'ctl1', '1.0')
    assert (shown.status, shown.reason, shown.cell_uuid) == ('up', None, None)
    assert shown.started_at <= shown.seen_at


def test_silent_process_goes_down(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.report(SECOND, replaces=True)

    _silence(world, CONDUCTOR)

    first, second = known.list_page()
    assert (first.status, first.reason) == ('down', 'last report at 2001-01-01T00:00:00Z')
    assert second.status == 'up'


def test_stopped_process_is_down_at_once(known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)

    known.stop(CONDUCTOR.id)
    known.report(CONDUCTOR, replaces=True)  # one that was late

    [shown] = known.list_page()
    assert shown.status == 'down'
    assert str(shown.reason).startswith('stopped at 20')


def test_restart_replaces_stopped_process(known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.stop(CONDUCTOR.id)

    assert known.report(SECOND, replaces=True)

    assert _statuses(known) == {'c-2': 'up'}


def test_restart_replaces_killed_process(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    assert not known.report(SECOND, replaces=True)
    assert _statuses(known) == {'c-1': 'up', 'c-2': 'up'}
    _silence(world, CONDUCTOR)

    assert known.report(SECOND, replaces=True)

    assert _statuses(known) == {'c-2': 'up'}


def test_process_replaces_only_one(world: World, known: services.Services) -> None:
    third = dataclasses.replace(CONDUCTOR, id='c-3')
    for process in (CONDUCTOR, SECOND, CONDUCTOR, third):
        known.report(process, replaces=False)
    for process in (CONDUCTOR, SECOND):
        known.stop(process.id)

    assert known.report(third, replaces=True)
    assert not known.report(third, replaces=False)

    assert sorted(_statuses(known).values()) == ['down', 'up']


def test_crashing_process_leaves_no_rows(world: World, known: services.Services) -> None:
    third = dataclasses.replace(CONDUCTOR, id='c-3')
    known.report(CONDUCTOR, replaces=True)
    assert not known.report(SECOND, replaces=True)  # it dies before the first one is down
    assert not known.report(third, replaces=True)
    for process in (CONDUCTOR, SECOND):
        _silence(world, process)

    assert known.report(third, replaces=True)

    assert _statuses(known) == {'c-3': 'up'}


def test_process_replaces_no_later_one(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.report(SECOND, replaces=True)
    known.stop(SECOND.id)

    assert not known.report(CONDUCTOR, replaces=True)

    assert _statuses(known) == {'c-1': 'up', 'c-2': 'down'}


@pytest.mark.parametrize(
    'other',
    [dataclasses.replace(API, id='x'), dataclasses.replace(CONDUCTOR, id='x', host='ctl2')],
)
def test_process_replaces_no_other_service(
    known: services.Services, other: model.ServiceProcess
) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.stop(CONDUCTOR.id)

    assert not known.report(other, replaces=True)

    assert _statuses(known) == {'c-1': 'down', 'x': 'up'}


def test_database_outage_is_no_silence(world: World, known: services.Services) -> None:
    for process in (CONDUCTOR, SECOND):
        known.report(process, replaces=False)
        _silence(world, process)
    world.change(models.Hearing, models.Hearing.cell_uuid == 'services', until=LONG_AGO)
    assert [each.status for each in known.list_page()] == ['unknown', 'unknown']

    known.report(SECOND, replaces=False)

    first, second = known.list_page()
    assert (first.status, second.status) == ('unknown', 'up')
    assert first.reason == (
        'last report at 2001-01-01T00:00:00Z, and services have just begun to report again'
    )


def test_services_do_not_vouch_for_cells(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    world.hears(hearing.SERVICES, for_seconds=2 * DOWN_SECONDS)
    world.hears()

    assert world.agents.down(['never']) == {}
    assert list(world.hearings.load().cells) == [world.cell.uuid]
    counted = statistics.Statistics(world.database, DOWN_SECONDS).take()
    assert list(counted.silent_seconds) == [world.cell.uuid]


def test_agents_are_listed_with_services(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.report(API, replaces=True)
    world.living('h1')

    found = known.list_page()

    assert [(each.binary, each.host, each.cell_uuid) for each in found] == [
        ('nova-precache-api', 'ctl1', None),
        ('nova-precache-compute', 'h1', world.cell.uuid),
        ('nova-precache-conductor', 'ctl1', None),
    ]


def test_list_filters_and_pages(world: World, known: services.Services) -> None:
    for process in (CONDUCTOR, SECOND, API):
        known.report(process, replaces=False)
    known.stop(SECOND.id)
    world.living('h1')
    world.living('h2')
    world.dead('h2')

    def ids(**which: object) -> list[str]:
        return [each.id for each in known.list_page(**which)]  # type: ignore[arg-type]

    everything = ids()
    assert everything == ['a-1', 'agent-h1', 'agent-h2', 'c-1', 'c-2']
    paged = [ids(limit=1, marker=marker) for marker in everything]
    assert [*everything[1:], []] == [page[0] if page else [] for page in paged]
    assert ids(binary='nova-precache-conductor') == ['c-1', 'c-2']
    assert ids(host='h1') == ['agent-h1']
    assert ids(status=model.HostStatus.DOWN) == ['agent-h2', 'c-2']
    assert ids(status=model.HostStatus.UP) == ['a-1', 'agent-h1', 'c-1']


def test_unknown_marker_is_refused(known: services.Services) -> None:
    with pytest.raises(exception.InvalidMarker, match='Value: nowhere'):
        known.list_page(marker='nowhere')


def test_copied_agent_ids_end_paging(world: World, known: services.Services) -> None:
    for host in ('h1', 'h2'):
        world.agents.register(model.Agent(host, 'copied', world.cell.uuid))

    assert [each.host for each in known.list_page(limit=1)] == ['h1']
    assert known.list_page(limit=1, marker='copied') == []


def test_purge_removes_gone_processes(world: World, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    known.report(API, replaces=True)
    world.change(models.Service, models.Service.id == API.id, seen_at=LONG_AGO)

    known.purge(retention_days=7)

    assert _statuses(known) == {'c-1': 'up'}
