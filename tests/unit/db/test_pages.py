# SPDX-License-Identifier: Apache-2.0
"""Sorted pages neither hide nor repeat rows: any key and direction, nulls, changes in between."""

import itertools

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.db import agents, caches, pages, pins, requests
from nova_precache.db.engine import models
from nova_precache.db.request import queries
from tests import sorted_tasks
from tests.unit.conftest import World

LISTINGS = (
    queries.REQUESTS,
    queries.TASKS,
    pins.PINS,
    agents.HOSTS,
    caches.FILES_OF_HOST,
    caches.FILES_OF_IMAGE,
)

pytestmark = pytest.mark.usefixtures('handmade_rows')


def test_pages_continue_across_nulls(world: World) -> None:
    sorted_tasks.insert(world)

    sorted_tasks.check_any_order(world, 4)


def test_every_key_of_lists_works(world: World) -> None:
    for listing in LISTINGS:
        for key, is_descending in itertools.product(listing.keys, (False, True)):
            page = pages.Page([model.SortKey(key, is_descending)], 5)
            with world.database.reader() as session:
                query = pages.select(session, sa.select(listing.unique), listing, page)
                assert session.scalars(query).all() == []


def test_rows_added_and_deleted_between_pages(world: World) -> None:
    sorted_tasks.insert(world)
    sort = [model.SortKey('finished_at', is_descending=True)]
    before = sorted_tasks.listed(world, sort, 100)
    first = world.requests.list_tasks(requests.TaskFilter(), pages.Page(sort, 6))
    world.database.write(
        lambda session: session.execute(
            sa.delete(models.Task).where(models.Task.id.in_([first[0].id, before[8].id]))
        )
    )

    rest = world.requests.list_tasks(requests.TaskFilter(), pages.Page(sort, 100, first[-1].id))

    assert [task.id for task in rest] == [task.id for task in (*before[6:8], *before[9:])]


def test_unknown_marker_refused(world: World) -> None:
    page = pages.Page([model.SortKey('status')], 5, 99)

    with pytest.raises(exception.InvalidMarker, match=r'99\. It is not in the list'):
        world.requests.list_tasks(requests.TaskFilter(), page)


def test_marker_of_other_project_refused(world: World) -> None:
    world.planned(['h1'], ['i1'], project_id='p2')
    [task] = world.requests.list_tasks(requests.TaskFilter(), pages.Page())
    page = pages.Page([model.SortKey('status')], 5, task.id)

    with pytest.raises(exception.InvalidMarker):
        world.requests.list_tasks(requests.TaskFilter(project_id='p1'), page)


def test_tasks_listed_over_all_requests(world: World) -> None:
    first = world.planned(['h1', 'h2'], ['i1'], project_id='p1')
    second = world.planned(['h1'], ['i2'], project_id='p2')

    def found(**which: str) -> list[tuple[str, str]]:
        listed = world.requests.list_tasks(requests.TaskFilter(**which), pages.Page())
        return [(task.request_id, task.host) for task in listed]

    assert found() == [(first.id, 'h1'), (first.id, 'h2'), (second.id, 'h1')]
    assert found(host='h1') == [(first.id, 'h1'), (second.id, 'h1')]
    assert found(image_id='i2') == [(second.id, 'h1')]
    assert found(project_id='p1', host='h1') == [(first.id, 'h1')]
    assert found(request_id=second.id) == [(second.id, 'h1')]
    assert found(request_id=second.id, project_id='p1') == []
    assert found(status='cached') == []
