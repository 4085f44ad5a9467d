# SPDX-License-Identifier: Apache-2.0
"""The hosts of a Nova as they are shown and counted, each cell queried once for a page."""

import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import liveness, novahosts, services
from nova_precache.db import pages, statistics
from tests.unit.cells.conftest import CellDatabase, Clock, open_cell
from tests.unit.conftest import DOWN_SECONDS, World
from tools.waiting import TIMEOUT_SECONDS

UP, DOWN, UNKNOWN = model.HostStatus
FORCED = 'host down: it is forced down'
UNTOLD = "cell two's database is unreachable (its mapping has no database URL)"


@pytest.fixture
def shown(world: World, first: CellDatabase, alive: liveness.NovaLiveness) -> novahosts.NovaHosts:
    """Hosts of a cell that answers, and one of a cell that does not."""
    open_cell(world, 'one', first.url, 'a', 'b', 'c')
    first.add('a')
    first.add('b', forced_down=True)
    open_cell(world, 'two', '', 'd')
    return novahosts.NovaHosts(world.inventory, alive)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The hosts of each query of a cell."""
    asked: list[list[str]] = []
    load = services.load

    def note(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, services.Service]:
        asked.append(sorted(hosts))
        return load(engine, hosts)

    monkeypatch.setattr(services, 'load', note)
    return asked


def _many(world: World, cell: CellDatabase, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return more hosts than one query takes, the last of which is down."""
    monkeypatch.setattr(novahosts, 'CHUNK_HOSTS', 4)
    hosts = [f'h{number}' for number in range(9)]
    open_cell(world, 'one', cell.url, *hosts)
    for host in hosts:
        cell.add(host, forced_down=host == 'h8')
    return hosts


def test_mapped_hosts_listed_with_known_data(world: World, shown: novahosts.NovaHosts) -> None:
    listed = {host.agent.host: host for host in shown.list_page()}

    assert list(listed) == ['a', 'b', 'c', 'd']
    assert {name: (host.status, host.reason) for name, host in listed.items()} == {
        'a': (UP, None),
        'b': (DOWN, FORCED),
        'c': (DOWN, 'host down: it has no nova-compute service'),
        'd': (UNKNOWN, UNTOLD),
    }
    agents = [host.agent for host in listed.values()]
    assert [agent.seen_at is not None for agent in agents] == [True, True, False, False]
    assert {agent.free_bytes for agent in agents} == {None}
    assert listed['d'].agent.cell_uuid == world.inventory.get_cell('two').uuid


def test_unmapped_host_is_unknown(shown: novahosts.NovaHosts) -> None:
    assert {host: told.status for host, told in shown.look(['b', 'd', 'e']).items()} == {
        'b': DOWN,
        'd': UNKNOWN,
    }
    assert set(shown.get(['a', 'e'])) == {'a'}
    assert shown.down(['a', 'b', 'd', 'e']) == {'b': FORCED, 'd': UNTOLD}


def test_hosts_paged_by_state_and_cell(world: World, shown: novahosts.NovaHosts) -> None:
    two = world.inventory.get_cell('two').uuid

    def names(**which: Any) -> list[str]:
        page = pages.Page(limit=which.pop('limit', None), marker=which.pop('marker', None))
        return [host.agent.host for host in shown.list_page(page, **which)]

    assert names(limit=2) == ['a', 'b']
    assert names(limit=2, marker='b') == ['c', 'd']
    assert [names(status=status) for status in model.HostStatus] == [['a'], ['b', 'c'], ['d']]
    assert names(status=DOWN, limit=1, marker='b') == ['c']
    assert names(cell_uuid=two) == ['d']
    assert names(cell_uuid=two, status=UP) == []
    assert names(cell_uuid='no-such-cell') == []


def test_page_queries_its_hosts_once(shown: novahosts.NovaHosts, loads: list[list[str]]) -> None:
    assert [host.agent.host for host in shown.list_page(pages.Page(limit=2))] == ['a', 'b']
    assert loads == [['a', 'b']]


def test_filter_queries_each_host_once(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    loads: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = _many(world, first, monkeypatch)
    shown = novahosts.NovaHosts(world.inventory, alive)

    assert [host.agent.host for host in shown.list_page(pages.Page(limit=2), DOWN)] == ['h8']
    assert loads == [hosts[:4], hosts[4:8], hosts[8:]]
    loads.clear()
    assert [host.agent.host for host in shown.list_page(pages.Page(limit=3), UP)] == hosts[:3]
    assert loads == [hosts[:4]]


def test_hosts_counted_by_cell_and_state(world: World, shown: novahosts.NovaHosts) -> None:
    one, two = (world.inventory.get_cell(name).uuid for name in ('one', 'two'))

    assert shown.count() == {
        one: statistics.HostCount(up=1, down=2, unknown=0),
        two: statistics.HostCount(up=0, down=0, unknown=1),
    }


def test_many_hosts_counted_in_chunks(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    loads: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _many(world, first, monkeypatch)

    (counted,) = novahosts.NovaHosts(world.inventory, alive).count().values()

    assert counted == statistics.HostCount(up=8, down=1)
    assert [len(hosts) for hosts in loads] == [4, 4, 1]


def test_silent_cell_hosts_become_unknown(
    world: World, first: CellDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    released = threading.Event()
    load = services.load

    def wait_for_the_first(asked: Iterable[futures.Future[Any]], seconds: float) -> None:
        waited.append(seconds)
        futures.wait(list(asked)[:1], TIMEOUT_SECONDS)

    def silent(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, services.Service]:
        if 'nowhere' in str(engine.url):
            assert released.wait(TIMEOUT_SECONDS)
        return load(engine, hosts)

    monkeypatch.setattr(services, 'load', silent)
    open_cell(world, 'one', first.url, 'a')
    first.add('a')
    open_cell(world, 'two', 'sqlite:////nowhere/silent.sqlite', 'b')
    alive = liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock, wait_for_the_first, 2.0)
    try:
        listed = novahosts.NovaHosts(world.inventory, alive).list_page()
    finally:
        released.set()
        alive.close()

    assert [(host.agent.host, host.status, host.reason) for host in listed] == [
        ('a', UP, None),
        ('b', UNKNOWN, "cell two's database is unreachable (it does not answer)"),
    ]
    assert waited == [2.0]


def test_hosts_sorted_and_limited_to_some(world: World, shown: novahosts.NovaHosts) -> None:
    def names(sort: str, marker: str | None = None, **which: Any) -> list[str]:
        page = pages.Page([model.SortKey(sort, is_descending=True)], 2, marker)
        return [host.agent.host for host in shown.list_page(page, **which)]

    assert names('host') == ['d', 'c']
    assert names('host', 'c') == ['b', 'a']
    assert names('version', 'c') == ['b', 'a'], 'all without one'
    assert names('host', hosts=['a', 'c', 'x']) == ['c', 'a']
    few = shown.list_page(pages.Page(limit=2, marker='a'), hosts=['a', 'c', 'd'])
    assert [host.agent.host for host in few] == ['c', 'd']
    with pytest.raises(exception.InvalidMarker):
        names('version', 'x')
