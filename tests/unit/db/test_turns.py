# SPDX-License-Identifier: Apache-2.0
"""The place of a host among those that wait for a slot."""

import datetime
from collections.abc import Mapping

import pytest

from nova_precache import model
from nova_precache.db.engine import models, session
from nova_precache.db.job import host_limits, turns
from tests import statements
from tests.unit.conftest import BROKEN, World

LATER = datetime.datetime(2099, 1, 1)  # noqa: DTZ001 - as the database keeps it


def places(world: World, *hosts: str, cell: model.Cell | None = None) -> Mapping[str, turns.Place]:
    with world.database.reader() as reader:
        now = session.now(reader)
        return turns.places(reader, now, {(cell or world.cell).uuid: list(hosts)})


def test_hosts_counted_once_for_several_images(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1', 'i2'])

    assert places(world, 'h1', 'h3') == {'h1': turns.Place(0, 0), 'h3': turns.Place(2, 400)}


def test_higher_priority_comes_first(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    world.planned(['h3'], ['i1'], priority=1)
    world.planned(['h4'], ['i1'], priority=-1)

    found = places(world, 'h1', 'h2', 'h3', 'h4')

    assert {host: place.hosts_before for host, place in found.items()} == {
        'h3': 0,
        'h1': 1,
        'h2': 2,
        'h4': 3,
    }


def test_most_urgent_job_decides(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    world.planned(['h2'], ['i2'], priority=1)

    assert places(world, 'h1', 'h2') == {'h2': turns.Place(0, 0), 'h1': turns.Place(1, 200)}


def test_claimed_hosts_not_counted(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1', 'i2'])
    world.begun()

    assert places(world, 'h1', 'h2') == {'h2': turns.Place(0, 0)}


def test_only_due_jobs_counted(world: World) -> None:
    request = world.planned(['h1', 'h2', 'h3', 'h4'], ['i1'])
    paused = world.planned(['h0'], ['i1'], priority=5)
    world.steering.pause(paused.id)
    begun = world.begun()
    world.jobs.retry(begun.job_id, begun.epoch, BROKEN, 600)
    world.jobs.release('c1', [begun.host])
    world.change(models.Job, models.Job.host == 'h2', next_attempt_at=LATER)

    assert begun.host == 'h1'
    assert places(world, 'h1', 'h2', 'h3', 'h4') == {
        'h3': turns.Place(0, 0),
        'h4': turns.Place(1, 100),
    }
    world.make_due()
    assert places(world, 'h4')['h4'].hosts_before == 3
    assert world.status(request) == 'running'


def test_more_urgent_hosts_of_other_cells_counted(world: World) -> None:
    far = world.inventory.create_cell('far', 'fake:///far')
    world.planned(['f1', 'f2'], ['i1'], cell_uuid=far.uuid)
    world.planned(['f3'], ['i1'], cell_uuid=far.uuid, priority=1)
    world.planned(['h1', 'h2'], ['i1'])

    assert places(world, 'h2') == {'h2': turns.Place(2, 200)}
    assert places(world, 'f2', cell=far) == {'f2': turns.Place(2, 200)}


def test_host_of_other_cell_counted_once(world: World) -> None:
    far = world.inventory.create_cell('far', 'fake:///far')
    world.planned(['f1'], ['i1'], cell_uuid=far.uuid, priority=1)
    world.planned(['f1'], ['i2'], cell_uuid=far.uuid, priority=2)
    world.planned(['h1'], ['i1'])

    assert places(world, 'h1') == {'h1': turns.Place(1, 200)}


def test_far_places_not_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, 'MOST_JOBS', 4)
    world.planned([f'h{number}' for number in range(6)], ['i1', 'i2'])

    assert places(world, 'h1', 'h5') == {
        'h1': turns.Place(1, 200),
        'h5': turns.Place(2, is_beyond=True),
    }


@pytest.mark.parametrize('most', [2, 20, 500])
def test_bytes_behind_more_jobs_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(turns, 'MOST_JOBS', most)
    world.planned(['h1', 'h2'], ['i1'])
    for number in range(20):
        world.planned(['h1'], [f'{number}a', f'{number}b', f'{number}c'])
    world.change(models.Job, models.Job.image_id == '19c', next_attempt_at=LATER)
    paused = world.planned(['h1'], ['i2'])
    world.steering.pause(paused.id)

    assert places(world, 'h2') == {'h2': turns.Place(1, 100 * (1 + 59))}


def test_bytes_held_up_not_counted(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    limited = world.planned(['h1'], ['i2'])
    world.planned(['h1'], ['i3'])
    full = [host_limits.SaturatedRequest(limited.id, ['h9'])]

    with world.database.reader() as reader:
        found = turns.places(reader, session.now(reader), {world.cell.uuid: ['h2']}, full)

    assert found == {'h2': turns.Place(1, 200)}


def test_place_behind_many_urgent_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, 'MOST_JOBS', 2)
    far = world.inventory.create_cell('far', 'fake:///far')
    world.planned(['f1', 'f2', 'f3'], ['i1'], cell_uuid=far.uuid, priority=1)
    world.planned(['f4'], ['i1'], cell_uuid=far.uuid, priority=3)
    world.planned(['h1'], ['i1'])
    world.planned(['h2'], ['i1'], priority=1)

    assert places(world, 'h1', 'h2') == {
        'h2': turns.Place(1, 100),
        'h1': turns.Place(3, is_beyond=True),
    }


def test_place_same_on_any_page(world: World) -> None:
    far = world.inventory.create_cell('far', 'fake:///far')
    world.planned(['f1'], ['i1'], cell_uuid=far.uuid, priority=1)
    world.planned(['f1'], ['i2'], cell_uuid=far.uuid)
    world.planned(['h1'], ['i1'])
    world.planned(['h2'], ['i1'], priority=-1)

    assert places(world, 'h1') == {'h1': turns.Place(1, 100)}
    assert places(world, 'h1', 'h2') == {
        'h1': turns.Place(1, 100),
        'h2': turns.Place(2, 300),
    }


def test_cells_of_page_share_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, 'MOST_JOBS', 4)
    far = world.inventory.create_cell('far', 'fake:///far')
    for prefix, cell in (('h', world.cell), ('f', far)):
        world.planned([f'{prefix}{n}' for n in range(4)], ['i1'], cell_uuid=cell.uuid)

    with world.database.reader() as reader:
        hosts = {world.cell.uuid: ['h0', 'h3'], far.uuid: ['f1', 'f2']}
        found = turns.places(reader, session.now(reader), hosts)

    assert found == {
        'h0': turns.Place(0, 0),
        'h3': turns.Place(2, is_beyond=True),
        'f1': turns.Place(1, 100),
        'f2': turns.Place(2, is_beyond=True),
    }


def test_cells_of_page_share_one_statement(world: World) -> None:
    cells = [world.cell, *(world.inventory.create_cell(n, f'fake:///{n}') for n in 'abcd')]
    for number, cell in enumerate(cells):
        world.planned([f'h{number}', f'k{number}'], ['i1'], cell_uuid=cell.uuid)
    hosts = {cell.uuid: [f'k{number}'] for number, cell in enumerate(cells)}

    with world.database.reader() as reader:
        now = session.now(reader)
        with statements.recorded(world.database) as sent:
            found = turns.places(reader, now, hosts)

    assert found == {f'k{number}': turns.Place(1, 100) for number in range(5)}
    assert len(sent) == 1


def test_other_cells_read_only_if_more_urgent(world: World) -> None:
    far = world.inventory.create_cell('far', 'fake:///far')
    world.planned(['f1'], ['i1'], cell_uuid=far.uuid)
    world.planned(['h1'], ['i1'])

    with statements.recorded(world.database, 'SELECT') as alike:
        assert places(world, 'h1') == {'h1': turns.Place(0, 0)}
    world.planned(['f1'], ['i2'], cell_uuid=far.uuid, priority=1)
    with statements.recorded(world.database, 'SELECT') as urgent:
        assert places(world, 'h1') == {'h1': turns.Place(1, 100)}

    assert len(urgent) == len(alike) + 1


def test_queue_without_due_jobs_has_no_places(world: World) -> None:
    world.planned(['h1'], ['i1'])
    world.change(models.Job, models.Job.host == 'h1', next_attempt_at=LATER)

    assert places(world, 'h1') == {}


def test_bytes_of_host_before_task(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    request = world.planned(['h1', 'h2'], ['i3'], priority=1)
    ids = {host: task.id for (host, _), task in world.tasks(request).items()}
    with world.database.reader() as reader:
        assert turns.bytes_before(reader, list(ids.values())) == {}
    last = world.planned(['h1'], ['i4'])
    (task,) = world.tasks(last).values()

    with world.database.reader() as reader:
        assert turns.bytes_before(reader, [task.id, ids['h1']]) == {task.id: 300}
