# SPDX-License-Identifier: Apache-2.0
"""Which agent reports under a host name, and which hosts are alive."""

import dataclasses
import datetime

import pytest

from nova_precache import exception, model
from nova_precache.db.engine import models
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


def test_a_registered_agent_is_kept_with_all_that_it_said(world: World) -> None:
    world.agents.register(AGENT)

    [kept] = world.agents.list()
    assert dataclasses.replace(kept, started_at=None, seen_at=None) == AGENT
    assert kept.started_at == kept.seen_at is not None


def test_a_second_agent_of_a_living_host_is_refused_and_changes_nothing(world: World) -> None:
    world.agents.register(AGENT)

    with pytest.raises(exception.AgentConflict, match='host1 has an agent with another id'):
        world.agents.register(OTHER)

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-1'


def test_an_agent_may_register_again_after_a_restart(world: World) -> None:
    world.agents.register(AGENT)

    world.agents.register(dataclasses.replace(AGENT, boot_id='boot-9'))

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-9'


def test_another_agent_may_take_the_name_of_a_host_that_is_down(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.register(OTHER)

    assert world.agents.get(['host1'])['host1'].agent_id == 'agent-2'
    assert world.agents.down(['host1']) == {}


def test_a_report_keeps_a_host_alive_and_updates_what_it_says(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.report([dataclasses.replace(AGENT, free_bytes=5)])

    assert world.agents.down(['host1']) == {}
    assert world.agents.get(['host1'])['host1'].free_bytes == 5


def test_the_report_of_an_agent_that_lost_its_name_is_left_out(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    world.agents.report([OTHER])

    assert world.agents.get(['host1'])['host1'].boot_id == 'boot-1'
    assert 'host1' in world.agents.down(['host1'])


def test_hosts_that_are_down_come_with_the_reason(world: World) -> None:
    for host in ('host1', 'host2'):
        world.agents.register(dataclasses.replace(AGENT, host=host))
    world.dead('host2')

    down = world.agents.down(['host1', 'host2', 'host3'])

    assert down == {
        'host2': f'host down: last report at {LONG_AGO:%Y-%m-%dT%H:%M:%SZ}',
        'host3': 'host down: it has never reported',
    }


def test_a_host_is_down_only_after_the_whole_time_without_a_report(world: World) -> None:
    world.agents.register(AGENT)
    seen_at = world.agents.list()[0].seen_at
    assert seen_at is not None
    almost = seen_at - datetime.timedelta(seconds=50)
    world.change(models.Agent, models.Agent.host == 'host1', seen_at=almost)

    assert world.agents.down(['host1']) == {}


def test_more_hosts_can_be_asked_for_than_one_query_takes(world: World) -> None:
    world.agents.register(AGENT)
    hosts = [f'host{number}' for number in range(1, 2001)]

    assert set(world.agents.get(hosts)) == {'host1'}
    assert set(world.agents.down(hosts)) == set(hosts) - {'host1'}


def test_agents_are_listed_by_host(world: World) -> None:
    for host in ('b', 'c', 'a'):
        world.agents.register(dataclasses.replace(AGENT, host=host))

    assert [agent.host for agent in world.agents.list()] == ['a', 'b', 'c']


def test_a_report_adds_no_agent_and_gives_those_that_have_to_register(world: World) -> None:
    """As after a restore of an older database, or if another agent has the name."""
    world.agents.register(dataclasses.replace(AGENT, host='host2'))
    reports = [AGENT, *(dataclasses.replace(each, host='host2') for each in (AGENT, OTHER))]

    strangers = world.agents.report(reports)

    assert [(each.host, each.agent_id) for each in strangers] == [
        ('host1', 'agent-1'),
        ('host2', 'agent-2'),
    ]
    assert [each.host for each in world.agents.list()] == ['host2']


def test_a_report_from_another_cell_does_not_move_the_agent(world: World) -> None:
    world.agents.register(AGENT)
    world.dead('host1')

    [stranger] = world.agents.report([dataclasses.replace(AGENT, cell_uuid='cell-2')])

    assert stranger.cell_uuid == 'cell-2'
    assert world.agents.get(['host1'])['host1'].cell_uuid == 'cell-1'
    assert 'host1' in world.agents.down(['host1'])


def test_agents_come_in_pages(world: World) -> None:
    for number in range(5):
        world.agents.register(dataclasses.replace(AGENT, host=f'host{number}'))

    first = world.agents.list_page(limit=3)
    second = world.agents.list_page(limit=3, marker=first[-1].agent.host)

    assert [host.agent.host for host in (*first, *second)] == [f'host{n}' for n in range(5)]
    assert len(first) == 3


def test_agents_are_listed_that_report_or_that_do_not_or_of_a_cell(world: World) -> None:
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


def test_how_a_host_is_comes_with_its_reason(world: World) -> None:
    for host in ('a', 'b'):
        world.agents.register(dataclasses.replace(AGENT, host=host))
    world.dead('b')

    look = world.agents.look(['a', 'b', 'never'])

    assert {host: (told.status, told.reason) for host, told in look.items()} == {
        'a': (model.HostStatus.UP, None),
        'b': (model.HostStatus.DOWN, 'host down: last report at 2001-01-01T00:00:00Z'),
    }


# Outages, in which no conductor could have heard a host


def test_an_outage_is_not_counted_as_the_silence_of_a_host(world: World) -> None:
    """Of the database, of the cell's broker, or of every conductor: none records the cell then."""
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


def test_a_host_that_stays_silent_after_an_outage_loses_its_name_in_the_end(world: World) -> None:
    world.hears('cell-1', for_seconds=1000)
    world.agents.register(AGENT)
    world.pass_time(10 * DOWN_SECONDS)

    world.hears('cell-1', for_seconds=DOWN_SECONDS + 1)

    assert list(world.agents.down(['host1'])) == ['host1']
    assert _take(world) == 'host1 has another agent'


def test_a_cell_that_is_noted_in_time_is_heard_all_along(world: World) -> None:
    world.hears('cell-1', for_seconds=DOWN_SECONDS + 1)
    world.agents.register(AGENT)
    world.dead('host1')
    world.pass_time(10)  # less than the gap

    world.hearings.note(['cell-1'])

    assert list(world.agents.down(['host1'])) == ['host1']


def test_a_cell_about_to_be_served_judges_nobody_before_it_was_heard(world: World) -> None:
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
def test_every_question_about_a_host_has_the_same_answer(
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


def test_a_silent_host_of_a_cell_that_cannot_be_heard_is_unknown_with_the_reason(
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


def test_a_host_that_never_reported_is_down_once_it_could_have_done_so(world: World) -> None:
    world.hears('cell-2', for_seconds=5)  # and is away for long now
    world.pass_time(10 * DOWN_SECONDS)
    world.hears('cell-1', for_seconds=DOWN_SECONDS - 5)
    assert world.agents.down(['never']) == {}

    world.hears('cell-1', for_seconds=DOWN_SECONDS + 5)

    assert world.agents.down(['never']) == {'never': 'host down: it has never reported'}
    assert world.agents.settling(['never']) == []


# An agent that takes a name from another


def test_the_outcome_of_an_agent_that_lost_its_name_is_not_recorded(world: World) -> None:
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


def test_a_restarted_agent_of_the_same_id_goes_on_with_its_calls(world: World) -> None:
    request = world.planned(['host1'], ['i1'])
    agent = dataclasses.replace(AGENT, cell_uuid=world.cell.uuid)
    world.agents.register(agent)
    begun = world.begun()

    world.agents.register(dataclasses.replace(agent, boot_id='boot-9'))

    assert world.jobs.finish(begun.job_id, begun.epoch, CACHED)
    assert world.statuses(request) == {('host1', 'i1'): 'cached'}


def test_a_job_that_is_to_stop_is_left_to_its_order_when_the_name_is_taken(world: World) -> None:
    request = world.planned(['host1'], ['i1'])
    agent = dataclasses.replace(AGENT, cell_uuid=world.cell.uuid)
    world.agents.register(agent)
    begun = world.begun()
    world.steering.cancel(request.id)
    world.dead('host1')

    world.agents.register(dataclasses.replace(OTHER, cell_uuid=world.cell.uuid))

    [order] = world.steering.stop_orders()
    assert (order.job_id, order.epoch) == (begun.job_id, begun.epoch)
