# SPDX-License-Identifier: Apache-2.0
"""Tasks with nulls and equal values, to be listed in pages on any database."""

import datetime
import itertools
import operator

import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import pages, requests
from nova_precache.db.engine import models
from tests.unit.conftest import World

TIMES = [datetime.datetime(2026, 1, day) for day in (1, 2)]  # noqa: DTZ001
COUNT = 18


def insert(world: World) -> None:
    """Insert tasks with all combinations of values and nulls, in no order."""
    request = world.accept([], ['i1'])
    combinations = itertools.product([None, 3, 7], [None, *TIMES], ['error', 'cached'])
    rows = [
        {
            'request_id': request.id,
            'host': f'h{number}',
            'image_id': 'i1',
            'status': status,
            'rate_bytes': rate_bytes,
            'finished_at': finished_at,
            'created_at': TIMES[0],
        }
        for number, (rate_bytes, finished_at, status) in enumerate(combinations)
    ]
    rows = rows[1::2] + rows[::2]
    world.database.write(lambda session: session.execute(sa.insert(models.Task), rows))


def listed(world: World, sort: list[model.SortKey], size: int) -> list[model.Task]:
    """List all tasks in pages of a size."""
    found: list[model.Task] = []
    while page := world.requests.list_tasks(
        requests.TaskFilter(), pages.Page(sort, size, found[-1].id if found else None)
    ):
        found += page
    return found


def in_order(tasks: list[model.Task], sort: list[model.SortKey]) -> list[model.Task]:
    """Sort tasks as a database is to do it: a null is greater than any value."""
    ordered = sorted(tasks, key=lambda task: task.id, reverse=sort[-1].is_descending)
    for key in reversed(sort):
        by = operator.attrgetter(key.name)
        ordered.sort(
            key=lambda task, by=by: (by(task) is None, by(task)),  # type: ignore[misc]
            reverse=key.is_descending,
        )
    return ordered


def check_any_order(world: World, size: int) -> None:
    """Check that pages in any order of some keys have each task once, and in that order."""
    names = ('rate_bytes', 'finished_at', 'status')
    for order in itertools.permutations(names):
        for directions in itertools.product([False, True], repeat=len(names)):
            sort = [model.SortKey(*each) for each in zip(order, directions, strict=True)]

            found = listed(world, sort, size)

            assert len({task.id for task in found}) == len(found) == COUNT
            assert found == in_order(found, sort)
