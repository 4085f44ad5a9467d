# SPDX-License-Identifier: Apache-2.0
"""Which agent reports under a host name, and which hosts are alive."""

import dataclasses
import datetime
import re
from typing import Any

import pytest
import sqlalchemy as sa
from pymysql import converters

from nova_precache import exception, model, wire
from nova_precache.db import host_removal, pages, statistics
from nova_precache.db.engine import expressions, models, session
from tests import statements
from tests.unit.conftest import CACHED, DOWN_SECONDS, LONG_AGO, World

AGENT = model.Agent(
    host='host1',
    agent_id='agent-1',
    cell_uuid='cell-1',
    boot_id='boot-1',
    version='1.2',
    driver='libvirt.LibvirtDriver',
    store_id='store-1',
    cache_bytes=10,
    free_bytes=2**40,
    capabilities={'supports_cache_image': True},
)
OTHER = dataclasses.replace(AGENT, agent_id='agent-2', boot_id='boot-2')


def test_registered_agent_is_stored(world: World) -> None:
    world.agents.register(AGENT)

    [kept] = world.agents.list()
    assert dataclasses.replace(kept, started_at=None, seen_at=None) == AGENT
    assert kept.started_at == kept.seen_at is not None


def test_second_agent_of_live_host_refused(world: World) -> None:
    world.agents.register(AGENT)

    with pytest.raises(exception.AgentConflict, match='host1 has an agent with another id'):
        world.agents.register(OTHER)

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-1'


def test_restarted_agent_registers_again(world: World) -> None:
    world.agents.register(AGENT)

    world.agents.register(dataclasses.replace(AGENT, boot_id='boot-9'))

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-9'


def test_other_agent_takes_down_host(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.register(OTHER)

    assert world.agents.get(['host1'])['host1'].agent_id == 'agent-2'
    assert world.agents.down(['host1']) == {}


def test_report_updates_host_and_liveness(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.report([dataclasses.replace(AGENT, free_bytes=5)])

    assert world.agents.down(['host1']) == {}
    assert world.agents.get(['host1'])['host1'].free_bytes == 5


def test_report_of_superseded_agent_ignored(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.report([OTHER])

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-1'
    assert 'host1' in world.agents.down(['host1'])


def test_down_hosts_come_with_reason(world: World) -> None:
    for host in ('host1', 'host2'):
        world.agents.register(dataclasses.replace(AGENT, host=host))
    world.dead('host2')

    down = world.agents.down(['host1', 'host2', 'host3'])

    assert down == {
        'host2': f'host down: last report at {LONG_AGO:%Y-%m-%dT%H:%M:%SZ}',
        'host3': 'host down: it has never reported',
    }


def test_host_down_only_after_timeout(world: World) -> None:
    world.agents.register(AGENT)
    seen_at = world.agents.list()[0].seen_at
    assert seen_at is not None
    almost = seen_at - datetime.timedelta(seconds=50)
    world.change(models.Agent, models.Agent.host == 'host1', seen_at=almost)

    assert world.agents.down(['host1']) == {}


def test_host_query_exceeds_one_statement(world: World) -> None:
    world.agents.register(AGENT)
    hosts = [f'host{number}' for number in range(1, 2001)]

    assert set(world.agents.get(hosts)) == {'host1'}
    assert set(world.agents.down(hosts)) == set(hosts) - {'host1'}


def test_agents_listed_by_host(world: World) -> None:
    for host in ('b', 'c', 'a'):
        world.agents.register(dataclasses.replace(AGENT, host=host))

    assert [agent.host for agent in world.agents.list()] == ['a', 'b', 'c']


def test_report_returns_unregistered_agents(world: World) -> None:
    """As after a restore of an older database, or if another agent has the name."""
    world.agents.register(dataclasses.replace(AGENT, host='host2'))
    reports = [AGENT, *(dataclasses.replace(each, host='host2') for each in (AGENT, OTHER))]

    strangers = world.agents.report(reports)

    assert [(each.host, each.agent_id) for each in strangers] == [
        ('host1', 'agent-1'),
        ('host2', 'agent-2'),
    ]
    assert [each.host for each in world.agents.list()] == ['host2']


def test_other_cell_report_moves_no_agent(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    [stranger] = world.agents.report([dataclasses.replace(AGENT, cell_uuid='cell-2')])

    assert stranger.cell_uuid == 'cell-2'
    assert world.agents.get(['host1'])['host1'].cell_uuid == 'cell-1'
    assert 'host1' in world.agents.down(['host1'])


def test_agents_come_in_pages(world: World) -> None:
    for number in range(5):
        world.agents.register(dataclasses.replace(AGENT, host=f'host{number}'))

    first = world.agents.list_page(pages.Page(limit=3))
    second = world.agents.list_page(pages.Page(limit=3, marker=first[-1].agent.host))

    assert [host.agent.host for host in (*first, *second)] == [f'host{n}' for n in range(5)]
    assert len(first) == 3


def test_agents_filtered_by_state_and_cell(world: World) -> None:
    for host, cell_uuid in (('a', 'cell-1'), ('b', 'cell-2'), ('c', 'cell-1')):
        world.agents.register(dataclasses.replace(AGENT, host=host, cell_uuid=cell_uuid))
    world.dead('c')

    def hosts(**which: object) -> list[str]:
        found = world.agents.list_page(**which)  # type: ignore[arg-type]
        assert found == list(world.agents.look([host.agent.host for host in found]).values())
        return [host.agent.host for host in found]

    assert hosts(status=model.HostStatus.UP) == ['a', 'b']
    assert hosts(status=model.HostStatus.DOWN) == ['c'] == list(world.agents.down(['a', 'b', 'c']))
    assert hosts(status=model.HostStatus.UNKNOWN) == []
    assert hosts(cell_uuid='cell-1') == ['a', 'c']
    assert hosts(cell_uuid='cell-1', status=model.HostStatus.UP) == ['a']


def test_host_state_comes_with_reason(world: World) -> None:
    for host in ('a', 'b'):
        world.agents.register(dataclasses.replace(AGENT, host=host))
    world.dead('b')

    look = world.agents.look(['a', 'b', 'never'])

    assert {host: (told.status, told.reason) for host, told in look.items()} == {
        'a': (model.HostStatus.UP, None),
        'b': (model.HostStatus.DOWN, 'host down: last report at 2001-01-01T00:00:00Z'),
    }


# Outages, in which no conductor could have heard a host


def test_outage_does_not_count_as_silence(world: World) -> None:
    """The database, the cell's broker or every conductor is away, so none records the cell."""
    world.hears('cell-1', for_seconds=1000)
    world.agents.register(AGENT)

    world.pass_time(10 * DOWN_SECONDS)
    before_the_first_note = _take(world)
    world.hearings.note(['cell-1'])
    at_the_first_note = _take(world)
    world.pass_time(DOWN_SECONDS - 1)
    world.hears('cell-1', for_seconds=DOWN_SECONDS - 1)
    just_before_it_counts = _take(world)

    assert (before_the_first_note, at_the_first_note, just_before_it_counts) == (
        'host1 keeps its agent',
        'host1 keeps its agent',
        'host1 keeps its agent',
    )
    assert world.agents.down(['host1']) == {}


def test_silent_host_down_after_outage(world: World) -> None:
    world.hears('cell-1', for_seconds=1000)
    world.agents.register(AGENT)
    world.pass_time(10 * DOWN_SECONDS)

    world.hears('cell-1', for_seconds=DOWN_SECONDS + 1)

    assert list(world.agents.down(['host1'])) == ['host1']
    assert _take(world) == 'host1 has another agent'


def test_cell_noted_in_time_stays_heard(world: World) -> None:
    world.hears('cell-1', for_seconds=DOWN_SECONDS + 1)
    world.agents.register(AGENT)
    world.dead('host1')
    world.pass_time(10)  # less than the gap

    world.hearings.note(['cell-1'])

    assert list(world.agents.down(['host1'])) == ['host1']


def test_new_cell_marks_no_host_down(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.hearings.begin(['cell-1'])

    assert world.agents.down(['host1']) == {}
    assert _take(world) == 'host1 keeps its agent'
    world.hears('cell-1', for_seconds=DOWN_SECONDS + 1)
    world.hearings.begin(['cell-1'])  # by another conductor
    assert list(world.agents.down(['host1'])) == ['host1']


def _take(world: World) -> str:
    """Ask for the name of host1 as another agent."""
    try:
        world.agents.register(OTHER)
    except exception.AgentConflict:
        return 'host1 keeps its agent'
    return 'host1 has another agent'


@pytest.mark.parametrize('heard_seconds', [None, 0, DOWN_SECONDS - 5, DOWN_SECONDS + 5])
@pytest.mark.parametrize('silent_seconds', [0, DOWN_SECONDS - 5, DOWN_SECONDS + 5])
@pytest.mark.parametrize('gap_seconds', [0, 1000])
def test_host_queries_agree_on_state(
    world: World, heard_seconds: float | None, silent_seconds: float, gap_seconds: float
) -> None:
    world.agents.register(AGENT)
    if heard_seconds is not None:
        world.hears('cell-1', for_seconds=heard_seconds)
    world.pass_time(gap_seconds)
    now = world.agents.list()[0].seen_at
    assert now is not None
    world.change(
        models.Agent,
        models.Agent.host == 'host1',
        seen_at=now
        + datetime.timedelta(seconds=gap_seconds)
        - datetime.timedelta(seconds=silent_seconds),
    )

    [shown] = world.agents.look(['host1']).values()

    by_status = {
        status: [each.agent.host for each in world.agents.list_page(status=status)]
        for status in model.HostStatus
    }
    assert by_status == {
        status: ['host1'] if status == shown.status else [] for status in model.HostStatus
    }
    is_down = shown.status == model.HostStatus.DOWN
    assert bool(world.agents.down(['host1'])) == is_down
    assert (_take(world) == 'host1 has another agent') == is_down
    assert (shown.reason is None) == (shown.status == model.HostStatus.UP)


def test_unheard_cell_makes_silent_host_unknown(
    world: World,
) -> None:
    world.hears('cell-1')
    world.agents.register(AGENT)
    world.dead('host1')

    assert world.agents.settling(['host1', 'never']) == ['host1', 'never']
    assert world.agents.look(['host1'])['host1'].reason == (
        'last report at 2001-01-01T00:00:00Z, and conductors have just reconnected to its cell'
    )

    world.pass_time(DOWN_SECONDS)
    world.dead('host1')

    assert world.agents.settling(['host1', 'never']) == []
    assert world.agents.look(['host1'])['host1'].reason == (
        'last report at 2001-01-01T00:00:00Z, and no conductor is connected to its cell'
    )


def test_never_reported_host_becomes_down(world: World) -> None:
    world.hears('cell-2', for_seconds=5)  # and is away for long now
    world.pass_time(10 * DOWN_SECONDS)
    world.hears('cell-1', for_seconds=DOWN_SECONDS - 5)
    assert world.agents.down(['never']) == {}

    world.hears('cell-1', for_seconds=DOWN_SECONDS + 5)

    assert world.agents.down(['never']) == {'never': 'host down: it has never reported'}
    assert world.agents.settling(['never']) == []


# An agent that takes a name from another


def test_outcome_of_superseded_agent_ignored(world: World) -> None:
    request = world.planned(['host1'], ['i1'])
    world.agents.register(dataclasses.replace(AGENT, cell_uuid=world.cell.uuid))
    begun = world.begun()
    world.dead('host1')

    world.agents.register(dataclasses.replace(OTHER, cell_uuid=world.cell.uuid))

    assert not world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.statuses(request) == {('host1', 'i1'): 'retry_wait'}
    again = world.assign('c1', 'host1')
    assert again is not None
    assert (again.job_id, again.attempts, again.joins) == (begun.job_id, 1, False)


def test_restarted_agent_keeps_its_calls(world: World) -> None:
    request = world.planned(['host1'], ['i1'])
    agent = dataclasses.replace(AGENT, cell_uuid=world.cell.uuid)
    world.agents.register(agent)
    begun = world.begun()

    world.agents.register(dataclasses.replace(agent, boot_id='boot-9'))

    assert world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.statuses(request) == {('host1', 'i1'): 'cached'}


def test_stopping_job_survives_name_takeover(world: World) -> None:
    request = world.planned(['host1'], ['i1'])
    agent = dataclasses.replace(AGENT, cell_uuid=world.cell.uuid)
    world.agents.register(agent)
    begun = world.begun()
    world.steering.cancel(request.id)
    world.dead('host1')

    world.agents.register(dataclasses.replace(OTHER, cell_uuid=world.cell.uuid))

    [order] = world.steering.stop_orders()
    assert (order.job_id, order.epoch) == (begun.job_id, begun.epoch)


# An agent that stops cleanly


def _stop(world: World, agent: model.Agent = AGENT) -> None:
    world.agents.stop(agent.host, agent.agent_id, agent.cell_uuid, agent.boot_id)


def test_stopped_host_is_down_everywhere(world: World) -> None:
    world.agents.register(AGENT)
    world.hears('cell-1')  # only now: its silence could not be judged

    _stop(world)

    why = world.agents.down(['host1'])['host1']
    assert re.fullmatch(r'host down: stopped at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', why)
    shown = world.agents.look(['host1'])['host1']
    assert (shown.status, shown.reason) == ('down', why)
    for status, hosts in (('down', ['host1']), ('up', []), ('unknown', [])):
        listed = world.agents.list_page(status=model.HostStatus(status))
        assert [each.agent.host for each in listed] == hosts
    assert statistics.Statistics(world.database, DOWN_SECONDS).hosts() == {
        'cell-1': statistics.HostCount(up=0, down=1)
    }


def test_late_report_leaves_host_down(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)

    assert world.agents.report([dataclasses.replace(AGENT, version='9.9')]) == []

    assert 'stopped at' in world.agents.down(['host1'])['host1']
    assert world.agents.get(['host1'])['host1'].version == '1.2'


def test_registration_brings_host_back(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)

    world.agents.register(dataclasses.replace(AGENT, boot_id='boot-9'))

    assert world.agents.down(['host1']) == {}
    assert world.agents.get(['host1'])['host1'].stopped_at is None


def test_older_conductor_brings_host_back(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)
    stopped_at = world.agents.get(['host1'])['host1'].stopped_at
    assert stopped_at is not None
    world.wait(lambda: world.database.write(session.now) > stopped_at)  # SQLite has milliseconds

    # It does not know the column, but records the start.
    started = sa.update(models.Agent).values(
        started_at=expressions.database_now(), boot_id='boot-9'
    )
    world.database.write(lambda writer: writer.execute(started))
    world.agents.report([dataclasses.replace(AGENT, boot_id='boot-9')])

    assert world.agents.down(['host1']) == {}
    assert world.agents.look(['host1'])['host1'].status == 'up'


def test_restored_goodbye_is_corrected(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)
    later = dataclasses.replace(AGENT, boot_id='boot-9')

    assert world.agents.report([later]) == [later]  # so it has to register


@pytest.mark.parametrize(
    'changed',
    [
        {'agent_id': 'agent-2'},
        {'cell_uuid': 'cell-2'},
        {'boot_id': 'boot-9'},
        {'boot_id': None},
        {'host': 'host2'},
    ],
    ids=str,
)
def test_goodbye_of_other_agent_refused(world: World, changed: dict[str, Any]) -> None:
    world.agents.register(AGENT)

    with pytest.raises(exception.AgentConflict, match='is not registered for host'):
        _stop(world, dataclasses.replace(AGENT, **changed))

    assert world.agents.down(['host1']) == {}


def test_name_of_stopped_agent_is_free(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)

    world.agents.register(OTHER)

    assert world.agents.get(['host1'])['host1'].agent_id == 'agent-2'
    assert world.agents.down(['host1']) == {}


def test_stopped_host_can_be_removed(world: World) -> None:
    world.agents.register(AGENT)
    _stop(world)

    host_removal.Departures(world.database, DOWN_SECONDS).forget('host1')

    assert world.agents.list() == []


def test_largest_reports_fit_one_packet(world: World) -> None:
    ids = dict.fromkeys(('boot_id', 'version', 'store_id'), '"' * 64)
    state: dict[str, Any] = {'agent_id': '"' * 36, 'driver': '"' * 255, **ids, 'capabilities': {}}
    for number in range(wire.CAPABILITIES_MAX):
        more = {**state['capabilities'], f'{number:0>255}': '"' * 255}
        try:
            wire.agent({**state, 'host': 'h1', 'capabilities': more}, 'cell-1')
        except exception.InvalidInput:
            break
        state['capabilities'] = more
    hosts = [f'{number:0>255}' for number in range(session.CHUNK_KEYS)]

    with statements.recorded(world.database) as sent:
        world.agents.report([wire.agent({**state, 'host': each}, 'cell-1') for each in hosts])

    values = [value for each in sent for value in each.values if isinstance(value, str)]
    most = max(len(converters.escape_string(value)) for value in values)
    assert 2**20 < most < 2**24  # max_allowed_packet of MariaDB
