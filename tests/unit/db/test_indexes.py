# SPDX-License-Identifier: Apache-2.0
"""The indexes by which SQLite finds tasks."""

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import jobs, pins, request_actions
from tests.unit.conftest import BROKEN, CACHED, World


@contextlib.contextmanager
def _plans(world: World) -> Iterator[dict[str, list[str]]]:
    """Collect the steps by which SQLite executes each statement of a block."""
    executed: dict[str, Any] = {}
    plans: dict[str, list[str]] = {}

    def note(conn: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
        if statement.startswith(('SELECT', 'UPDATE', 'DELETE', 'INSERT')):
            executed[statement] = values[0] if many else values

    sa.event.listen(world.database.engine, 'before_cursor_execute', note)
    try:
        yield plans
    finally:
        sa.event.remove(world.database.engine, 'before_cursor_execute', note)
    with world.database.engine.connect() as connection:
        for statement, values in executed.items():
            steps = connection.exec_driver_sql(f'EXPLAIN QUERY PLAN {statement}', values)
            plans[statement] = [step.detail for step in steps]


def test_work_reads_no_other_tasks(world: World) -> None:
    actions = request_actions.RequestActions(world.database)
    with _plans(world) as plans:
        request = world.planned(['h1', 'h2', 'h3'], ['i1'])
        first, second = world.begun(), world.begun()
        progress = model.Progress(model.TaskStatus.DOWNLOADING, 1)
        world.jobs.record_progress([jobs.ProgressReport(first.job_id, first.epoch, 1, progress)])
        world.jobs.finish(first.job_id, first.epoch, CACHED)
        world.jobs.retry(second.job_id, second.epoch, BROKEN, 100)
        actions.pause(request.id)
        actions.resume(request.id)
        actions.cancel(request.id)
        pins.Pins(world.database).load()

    assert any('cache_tasks' in step for steps in plans.values() for step in steps)
    by_status = [step for steps in plans.values() for step in steps if 'state_idx' in step]
    assert by_status == []
