# SPDX-License-Identifier: Apache-2.0
"""Which nova-computes can be called, as the ``services`` of the cells' databases tell."""

import datetime
import pathlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import inventory, liveness, novahosts, services
from tests.unit.conftest import DOWN_SECONDS, LONG_AGO, World

# As Nova makes it, but for columns that nobody here reads.
_SERVICES = sa.Table(
    'services',
    sa.MetaData(),
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('host', sa.String(255)),
    sa.Column('binary', sa.String(255)),
    sa.Column('deleted', sa.Integer, default=0),
    sa.Column('disabled', sa.Boolean, default=False),
    sa.Column('disabled_reason', sa.String(255)),
    sa.Column('forced_down', sa.Boolean, default=False),
    sa.Column('last_seen_up', sa.DateTime),
    sa.Column('created_at', sa.DateTime),
)


class CellDatabase:
    """A cell's database with its services."""

    def __init__(self, path: pathlib.Path) -> None:
        self.url = f'sqlite:///{path}'
        self._engine = sa.create_engine(self.url)
        _SERVICES.create(self._engine)

    def add(self, host: str, seen_seconds_ago: float | None = 1, **more: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        seen = None
        if seen_seconds_ago is not None:
            seen = now - datetime.timedelta(seconds=seen_seconds_ago)
        row = {'host': host, 'binary': 'nova-compute', 'last_seen_up': seen, **more}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_SERVICES).values(row))

    def close(self) -> None:
        self._engine.dispose()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def first(tmp_path: pathlib.Path) -> Iterator[CellDatabase]:
    made = CellDatabase(tmp_path / 'cell1.sqlite')
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alive(world: World, clock: Clock) -> liveness.NovaLiveness:
    return liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock)


def _cell(world: World, name: str, url: str, *hosts: str) -> model.Cell:
    cell = world.inventory.create_cell(name, f'fake:///{name}', url)
    for host in hosts:
        world.inventory.map_host(host, cell.uuid)
    return cell


def test_what_is_down_or_disabled_is_told_with_its_reason(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    _cell(world, 'one', first.url, 'up', 'late', 'off', 'forced', 'ahead', 'mute', 'new', 'none')
    first.add('up')
    first.add('late', seen_seconds_ago=None, last_seen_up=LONG_AGO)
    first.add('off', disabled=True, disabled_reason='maintenance')
    first.add('forced', forced_down=True)
    first.add('ahead', seen_seconds_ago=-3600)
    first.add('mute', seen_seconds_ago=None)
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    first.add('new', seen_seconds_ago=None, created_at=now)
    first.add('none', deleted=7)
    first.add('none', binary='nova-conductor')

    hosts = ['up', 'late', 'off', 'forced', 'ahead', 'mute', 'new', 'none', 'unmapped']
    down = dict(alive.down(hosts))

    assert down.pop('ahead').startswith('host down: last report at ')
    assert down == {
        'late': 'host down: last report at 2001-01-01T00:00:00Z',
        'off': 'host disabled: maintenance',
        'forced': 'host down: it is forced down',
        'mute': 'host down: it has never reported',
        'none': 'host down: it has no nova-compute service',
    }


def test_a_host_is_down_only_after_the_time_that_is_configured(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    cell = _cell(world, 'one', first.url, 'just', 'not')
    first.add('just', seen_seconds_ago=DOWN_SECONDS - 20)
    first.add('not', seen_seconds_ago=DOWN_SECONDS + 20)

    assert alive.why_down('just', cell.uuid) is None
    assert str(alive.why_down('not', cell.uuid)).startswith('host down: last report at ')


def test_many_hosts_are_one_query_a_cell_and_chunks_of_it(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = [f'h{number}' for number in range(600)]
    cell = world.inventory.create_cell('one', 'fake:///one', first.url)
    for host in hosts:
        first.add(host)
    monkeypatch.setattr(
        world.inventory, 'cell_of_hosts', lambda asked: dict.fromkeys(asked, cell.uuid)
    )
    loads: list[int] = []
    monkeypatch.setattr(services, 'load', _counting(services.load, loads))

    look = alive.look(hosts)

    assert (len(look.services), look.down, look.unknown, loads) == (600, {}, {}, [600])


def _counting(load: Callable[..., Any], loads: list[int]) -> Callable[..., Any]:
    def count(engine: sa.Engine, hosts: Collection[str]) -> Any:
        loads.append(len(hosts))
        return load(engine, hosts)

    return count


def test_a_cell_whose_database_is_gone_is_told_and_left_alone_for_a_while(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    tmp_path: pathlib.Path,
) -> None:
    _cell(world, 'one', first.url, 'h1')
    first.add('h1', forced_down=True)
    path = tmp_path / 'later.sqlite'
    cell = _cell(world, 'two', f'sqlite:///{path}', 'h2')

    look = alive.look(['h1', 'h2'])
    assert look.down == {'h1': 'host down: it is forced down'}
    assert look.unknown == {'h2': "cell two's database is unreachable (OperationalError)"}

    assert not path.exists()
    second = CellDatabase(path)
    second.add('h2')
    with pytest.raises(exception.CellUnreachable, match=r'two.*\(it gave no answer a moment ago\)'):
        alive.why_down('h2', cell.uuid)
    clock.now += liveness.REST_SECONDS
    assert alive.why_down('h2', cell.uuid) is None
    second.close()


def test_a_database_that_gives_no_answer_delays_no_other_cell_and_not_the_caller_for_long(
    world: World, first: CellDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_the_first(asked: Iterable[futures.Future[Any]], seconds: float) -> None:
        futures.wait(list(asked)[:1], 20)

    alive = liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock, wait_for_the_first)
    _cell(world, 'one', first.url, 'h1')
    first.add('h1', disabled=True)
    _cell(world, 'two', 'sqlite:////nowhere/silent.sqlite', 'h2')
    released = threading.Event()
    load = services.load

    def silent(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, services.Service]:
        if 'silent' in str(engine.url):
            assert released.wait(20)
        return load(engine, hosts)

    monkeypatch.setattr(services, 'load', silent)
    try:
        for why in ('it gives no answer', 'it gave no answer a moment ago'):
            look = alive.look(['h1', 'h2'])
            assert look.down == {'h1': 'host disabled: no reason is given'}
            assert look.unknown == {'h2': f"cell two's database is unreachable ({why})"}
    finally:
        released.set()


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('', 'its mapping names none'),
        ('nonsense:pa55', 'ArgumentError'),
        ('mysql+nodriver://nova:pa55@db/nova', 'NoSuchModuleError'),
        ('mysql+pymysql://nova:pa55@db/nova?pa55word=1', 'TypeError'),
    ],
)
def test_a_cell_without_a_usable_database_says_so_and_no_password(
    world: World, alive: liveness.NovaLiveness, url: str, why: str, caplog: Any
) -> None:
    cell = _cell(world, 'one', url, 'h1')

    with pytest.raises(exception.CellUnreachable) as raised:
        alive.why_down('h1', cell.uuid)

    assert str(raised.value) == f"cell one's database is unreachable ({why})"
    assert 'pa55' not in caplog.text


def test_while_the_inventory_is_lost_the_cells_of_before_are_asked(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = _cell(world, 'one', first.url, 'h1')
    first.add('h1')
    assert alive.why_down('h1', cell.uuid) is None

    def lost() -> None:
        raise sa.exc.OperationalError('SELECT', {}, Exception())

    monkeypatch.setattr(world.inventory, 'list_cells', lost)
    clock.now += liveness.CELLS_SECONDS

    assert alive.why_down('h1', cell.uuid) is None


def test_a_cell_that_is_new_is_asked_at_once_and_one_that_is_gone_tells_nothing(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    with pytest.raises(exception.CellUnreachable, match='cell gone has no mapping'):
        alive.why_down('h1', 'gone')

    cell = _cell(world, 'one', first.url, 'h1')
    first.add('h1')

    assert alive.why_down('h1', cell.uuid) is None


def test_a_cell_that_moves_to_another_database_is_asked_there(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = _cell(world, 'one', first.url, 'h1')
    first.add('h1')
    assert alive.why_down('h1', cell.uuid) is None
    second = CellDatabase(tmp_path / 'second.sqlite')
    moved = model.Cell(cell.uuid, 'one', 'fake:///one', second.url)
    monkeypatch.setattr(world.inventory, 'list_cells', lambda: [moved])
    clock.now += liveness.CELLS_SECONDS

    assert alive.why_down('h1', cell.uuid) == 'host down: it has no nova-compute service'
    second.close()


# As the API shows them


@pytest.fixture
def shown(world: World, first: CellDatabase, alive: liveness.NovaLiveness) -> novahosts.NovaHosts:
    """Hosts of a cell that tells, and one of a cell that does not."""
    _cell(world, 'one', first.url, 'a', 'b', 'c')
    first.add('a')
    first.add('b', forced_down=True)
    _cell(world, 'two', '', 'd')
    stock: inventory.Inventory = world.inventory
    return novahosts.NovaHosts(stock, alive)


def test_every_mapped_host_is_listed_and_what_is_known_of_it(shown: novahosts.NovaHosts) -> None:
    listed = shown.list_page()

    assert [agent.host for agent in listed] == ['a', 'b', 'c', 'd']
    assert [agent.seen_at is not None for agent in listed] == [True, True, False, False]
    assert {agent.free_bytes for agent in listed} == {None}
    assert shown.down(['a', 'b', 'c', 'd', 'e']) == {
        'b': 'host down: it is forced down',
        'c': 'host down: it has no nova-compute service',
        'd': "cell two's database is unreachable (its mapping names none)",
    }
    assert set(shown.get(['a', 'e'])) == {'a'}


def test_hosts_are_listed_in_pages_by_state_and_by_cell(
    world: World, shown: novahosts.NovaHosts
) -> None:
    two = world.inventory.get_cell('two').uuid

    def names(**which: Any) -> list[str]:
        return [agent.host for agent in shown.list_page(**which)]

    assert names(limit=2) == ['a', 'b']
    assert names(limit=2, marker='b') == ['c', 'd']
    assert (names(up=True), names(up=False)) == (['a'], ['b', 'c', 'd'])
    assert names(up=False, limit=1, marker='b') == ['c']
    assert names(cell_uuid=two) == ['d']
