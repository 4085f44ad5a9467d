# SPDX-License-Identifier: Apache-2.0
"""Who reports under which host name, and who is alive."""

import dataclasses
import datetime

import pytest

from nova_precache import exception, model
from nova_precache.db import models
from tests.unit.conftest import LONG_AGO, World

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


def test_a_living_agent_is_there_again_after_an_older_database_was_restored(world: World) -> None:
    world.agents.report([AGENT])

    [kept] = world.agents.list()
    assert (kept.host, kept.agent_id) == ('host1', 'agent-1')
    assert world.agents.down(['host1']) == {}


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
