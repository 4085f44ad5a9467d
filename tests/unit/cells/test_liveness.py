# SPDX-License-Identifier: Apache-2.0
"""Which nova-computes can be called, by the ``services`` of the cells' databases."""

import datetime
import pathlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import liveness, services
from tests import unclosed
from tests.unit.cells.conftest import CellDatabase, Clock, open_cell
from tests.unit.conftest import DOWN_SECONDS, LONG_AGO, World
from tools.waiting import TIMEOUT_SECONDS


def test_down_or_disabled_host_has_reason(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    named = ('up', 'late', 'off', 'forced', 'ahead', 'mute', 'new', 'none')
    open_cell(world, 'one', first.url, *named)
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

    down = dict(alive.down([*named, 'unmapped']))

    assert down.pop('ahead').startswith('host down: last report at ')
    assert down == {
        'late': 'host down: last report at 2001-01-01T00:00:00Z',
        'off': 'host disabled: maintenance',
        'forced': 'host down: it is forced down',
        'mute': 'host down: it has never reported',
        'none': 'host down: it has no nova-compute service',
    }


def test_host_down_after_configured_time(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    cell = open_cell(world, 'one', first.url, 'just', 'not')
    first.add('just', seen_seconds_ago=DOWN_SECONDS - 20)
    first.add('not', seen_seconds_ago=DOWN_SECONDS + 20)

    assert alive.why_down('just', cell.uuid) is None
    assert str(alive.why_down('not', cell.uuid)).startswith('host down: last report at ')


def test_hosts_queried_per_cell_in_chunks(
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


def test_unreachable_cell_reported_then_skipped(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_cell(world, 'one', first.url, 'h1')
    first.add('h1', forced_down=True)
    path = tmp_path / 'later.sqlite'
    cell = open_cell(world, 'two', f'sqlite:///{path}', 'h2')

    look = alive.look(['h1', 'h2'])
    assert look.down == {'h1': 'host down: it is forced down'}
    assert look.unknown == {'h2': "cell two's database is unreachable (OperationalError)"}

    assert caplog.messages == [
        "Database of cell two is unavailable: cell two's database is unreachable (OperationalError)"
    ]
    first_rest, second_rest, *_ = liveness.REST_SECONDS
    clock.now += first_rest
    assert set(alive.look(['h2']).unknown) == {'h2'}
    assert len(caplog.messages) == 1  # it is logged once

    assert not path.exists()
    second = CellDatabase(path)
    second.add('h2')
    clock.now += first_rest  # but its pause is longer now
    with pytest.raises(exception.CellUnreachable, match=r'two.*\(it did not answer a moment ago\)'):
        alive.why_down('h2', cell.uuid)
    clock.now += second_rest - first_rest
    assert alive.why_down('h2', cell.uuid) is None
    second.close()


def test_hanging_database_delays_no_other_cell(
    world: World,
    first: CellDatabase,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wait_for_the_first(asked: Iterable[futures.Future[Any]], seconds: float) -> None:
        futures.wait(list(asked)[:1], TIMEOUT_SECONDS)

    alive = liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock, wait_for_the_first)
    open_cell(world, 'one', first.url, 'h1')
    first.add('h1', disabled=True)
    open_cell(world, 'two', 'sqlite:////nowhere/silent.sqlite', 'h2')
    released = threading.Event()
    load = services.load

    def silent(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, services.Service]:
        if 'silent' in str(engine.url):
            assert released.wait(TIMEOUT_SECONDS)
        return load(engine, hosts)

    monkeypatch.setattr(services, 'load', silent)
    try:
        for why in ('it does not answer', 'it did not answer a moment ago'):
            look = alive.look(['h1', 'h2'])
            assert look.down == {'h1': 'host disabled: no reason is given'}
            assert look.unknown == {'h2': f"cell two's database is unreachable ({why})"}
    finally:
        released.set()
    (silent_cell,) = [each for each in alive._cells.values() if each.cell.name == 'two']
    silent_cell._pool.shutdown()  # once the abandoned query has failed
    alive.close()
    assert silent_cell._breaker._open_until == clock.now + liveness.REST_SECONDS[0]
    [line] = caplog.messages
    assert line.startswith('Database of cell two is unavailable: ')
    assert line.endswith(' (it does not answer)')


def test_short_wait_does_not_blame_cell(
    world: World, first: CellDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    pending: list[futures.Future[Any]] = []

    def wait(asked: Iterable[futures.Future[Any]], seconds: float) -> None:
        waited.append(seconds)
        pending.extend(asked)
        if seconds > liveness.BRIEF_SECONDS:
            futures.wait(pending, TIMEOUT_SECONDS)

    alive = liveness.NovaLiveness(world.inventory, DOWN_SECONDS, clock, wait)
    cell = open_cell(world, 'one', first.url, 'h1')
    first.add('h1', forced_down=True)
    released = threading.Event()
    load = services.load

    def slow(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, services.Service]:
        assert released.wait(TIMEOUT_SECONDS)
        return load(engine, hosts)

    monkeypatch.setattr(services, 'load', slow)
    try:
        assert alive.down(['h1']) == {}
    finally:
        released.set()

    assert alive.why_down('h1', cell.uuid) == 'host down: it is forced down'
    futures.wait(pending, TIMEOUT_SECONDS)
    alive.close()
    assert waited == [liveness.BRIEF_SECONDS, liveness.ANSWER_SECONDS]


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('', 'its mapping has no database URL'),
        ('nonsense:pa55', 'ArgumentError'),
        ('nosql://nova:pa55@db/nova', 'NoSuchModuleError'),
        ('mysql+pymysql://nova:pa55@db/nova?pa55word=1', 'TypeError'),
    ],
)
def test_unusable_database_reported_without_password(
    world: World, alive: liveness.NovaLiveness, url: str, why: str, caplog: Any
) -> None:
    cell = open_cell(world, 'one', url, 'h1')

    with pytest.raises(exception.CellUnreachable) as raised:
        alive.why_down('h1', cell.uuid)

    assert str(raised.value) == f"cell one's database is unreachable ({why})"
    assert 'pa55' not in caplog.text


@pytest.mark.parametrize(
    ('url', 'driver'),
    [
        ('mysql://nova@db/nova', 'mysql+pymysql'),
        ('mysql+mysqldb://nova@db/nova', 'mysql+pymysql'),
        ('postgresql+psycopg2://nova@db/nova', 'postgresql+psycopg'),
        ('sqlite:///nova.sqlite', 'sqlite'),
    ],
)
def test_cell_uses_drivers_of_this_service(url: str, driver: str) -> None:
    assert services.connect(url).url.drivername == driver


def test_lost_inventory_keeps_known_cells(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = open_cell(world, 'one', first.url, 'h1')
    first.add('h1')
    assert alive.why_down('h1', cell.uuid) is None

    def lost() -> None:
        raise sa.exc.OperationalError('SELECT', {}, Exception())

    monkeypatch.setattr(world.inventory, 'list_cells', lost)
    clock.now += liveness.CELLS_SECONDS

    assert alive.why_down('h1', cell.uuid) is None


def test_added_cell_queried_and_removed_dropped(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness
) -> None:
    with pytest.raises(exception.CellUnreachable, match='cell gone has no mapping'):
        alive.why_down('h1', 'gone')

    cell = open_cell(world, 'one', first.url, 'h1')
    first.add('h1')

    assert alive.why_down('h1', cell.uuid) is None


def test_moved_cell_queried_at_new_database(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = open_cell(world, 'one', first.url, 'h1')
    first.add('h1')
    assert alive.why_down('h1', cell.uuid) is None
    second = CellDatabase(tmp_path / 'second.sqlite')
    moved = model.Cell(cell.uuid, 'one', 'fake:///one', second.url)
    monkeypatch.setattr(world.inventory, 'list_cells', lambda: [moved])
    clock.now += liveness.CELLS_SECONDS

    assert alive.why_down('h1', cell.uuid) == 'host down: it has no nova-compute service'
    second.close()


def test_cell_moved_during_query_unreachable(
    world: World, first: CellDatabase, alive: liveness.NovaLiveness, clock: Clock
) -> None:
    cell = open_cell(world, 'one', first.url, 'h1')
    first.add('h1')
    assert alive.why_down('h1', cell.uuid) is None
    alive._cells[cell.uuid].close()  # as another thread does

    with pytest.raises(exception.CellUnreachable, match='its mapping has just changed'):
        alive.why_down('h1', cell.uuid)


def test_host_survives_outage_of_its_cell(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = open_cell(world, 'one', first.url, 'h1', 'h2', 'h3')
    first.add('h1', seen_seconds_ago=DOWN_SECONDS + 20)
    first.add('h2', forced_down=True)
    first.add('h3')
    with monkeypatch.context() as away:
        away.setattr(services, 'load', _fail)
        assert set(alive.look(['h1', 'h2', 'h3']).unknown) == {'h1', 'h2', 'h3'}
    clock.now += liveness.REST_SECONDS[0]

    look = alive.look(['h1', 'h2', 'h3'])

    assert look.down == {'h2': 'host down: it is forced down'}
    assert look.settling == {
        'h1': 'it has not reported yet since the database of its cell came back'
    }
    assert alive.settling(['h1', 'h2', 'h3']) == ['h1']
    with pytest.raises(exception.HostOccupied, match='has not reported yet'):
        alive.why_down('h1', cell.uuid)

    clock.now += DOWN_SECONDS + 1

    assert alive.settling(['h1']) == []
    assert str(alive.why_down('h1', cell.uuid)).startswith('host down: last report at ')


def _fail(engine: sa.Engine, hosts: Collection[str]) -> Any:
    raise OSError('away')


def test_busy_connection_closed_after_answer(
    world: World,
    first: CellDatabase,
    alive: liveness.NovaLiveness,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    open_cell(world, 'one', first.url, 'h1')
    first.close()
    in_use, released, found = threading.Event(), threading.Event(), threading.Event()

    def note(connection: sa.Connection, *more: Any) -> None:
        in_use.set()
        assert released.wait(TIMEOUT_SECONDS)

    connect = services.connect

    def slow(url: str) -> sa.Engine:
        engine = connect(url)
        sa.event.listen(engine, 'before_cursor_execute', note)
        return engine

    monkeypatch.setattr(services, 'connect', slow)
    looking = threading.Thread(target=lambda: (alive.look(['h1']), found.set()))
    looking.start()
    assert in_use.wait(TIMEOUT_SECONDS)

    alive.close()
    released.set()
    looking.join(TIMEOUT_SECONDS)

    assert found.is_set()
    assert f'{tmp_path}/cell1.sqlite' not in unclosed.databases(tmp_path)
