# SPDX-License-Identifier: Apache-2.0
"""Which brokers a conductor serves: the one of each enabled cell, at its current URL."""

import functools
import threading
import types
import uuid
from typing import Any

import pytest

from nova_precache import conf as options, context, exception, rpc
from nova_precache.cells import models as cell_models, transports
from nova_precache.conductor import rpcapi, service
from tests.service import wait_until
from tests.unit.conftest import World
from tools.waiting import TIMEOUT_SECONDS

CTXT = context.admin_context()


class Endpoint(rpc.Endpoint):
    """Records the cell for which it was made."""

    def __init__(self, cell_uuid: str) -> None:
        self._cell_uuid = cell_uuid

    def cell(self, ctxt: context.RequestContext) -> str:
        return self._cell_uuid


@pytest.fixture
def conf() -> Any:
    return options.new(config_files=[])


@pytest.fixture
def brokers(world: World, conf: Any) -> transports.CellTransports:
    return transports.CellTransports(world.inventory, functools.partial(rpc.connect, conf))


@pytest.fixture
def conductor(world: World, conf: Any, brokers: transports.CellTransports) -> service.Conductor:
    nothing: Any = types.SimpleNamespace(
        write_progress=None, write_states=None, write_images=None, wake=None
    )
    return service.Conductor(
        conductor_id=str(uuid.uuid4()),
        dispatch=nothing,
        lifecycle_loop=nothing,
        keep_pins=nothing,
        announce=nothing,
        reports=nothing,
        job_store=world.jobs,
        api_transport=rpc.connect(conf, 'fake:///api'),
        cell_transports=brokers,
        cell_endpoint=Endpoint,  # type: ignore[arg-type]
        report_endpoint=Endpoint,  # type: ignore[arg-type]
        correct_clock=lambda: None,
        periods=service.Periods(60, 60, 60, 60, purge=lambda: None, check_counts=lambda: None),
        remove=nothing,
    )


def _move(world: World, **values: object) -> None:
    this = cell_models.CellMapping.uuid == world.cell.uuid
    world.change(cell_models.CellMapping, this, **values)


def _answers(conf: Any, url: str) -> str | None:
    """Return the cell that is served on all topics, None if it is served on none."""
    answers = set()
    for topic in rpcapi.CELL_TOPICS:
        client = rpc.Client(rpc.connect(conf, url), topic)
        try:
            answers.add(client.call(CTXT, 'cell', '1.0', timeout_seconds=0.5))
        except TimeoutError:
            answers.add(None)
    return answers.pop() if len(answers) == 1 else 'served in part'


def test_cell_with_new_url_served_there(
    world: World, conductor: service.Conductor, conf: Any, brokers: transports.CellTransports
) -> None:
    old, new = (f'fake:///{uuid.uuid4().hex}' for _ in range(2))
    _move(world, transport_url=old)
    conductor.serve_all()
    wait_until(lambda: _answers(conf, old) == world.cell.uuid, 'the cell is served')
    left = brokers.get(world.cell.uuid)

    _move(world, transport_url=new)
    conductor.serve_all()

    wait_until(lambda: _answers(conf, new) == world.cell.uuid, 'the cell is served anew')
    wait_until(lambda: _answers(conf, old) is None, 'the old broker is left')
    wait_until(lambda: _is_retired(left), 'its connections are closed')


def _is_retired(transport: rpc.Transport) -> bool:
    try:
        transport.send(context.admin_context(), 'ping 1.0', TIMEOUT_SECONDS, lambda: None)
    except exception.PrecacheError:
        return True
    return False


def test_blocked_broker_not_waited_for(
    world: World, conductor: service.Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lets_go, is_left = threading.Event(), threading.Event()

    def stop(served: object) -> None:
        lets_go.wait(TIMEOUT_SECONDS)
        is_left.set()

    monkeypatch.setattr(service._Served, 'stop', stop)
    conductor.serve_all()
    for change in ({'transport_url': 'fake:///moved'}, {'disabled': True}):
        _move(world, **change)
        conductor.serve_all()

    assert not is_left.is_set()
    lets_go.set()
    assert is_left.wait(TIMEOUT_SECONDS)


def test_cell_unserved_while_disabled(
    world: World, conductor: service.Conductor, conf: Any
) -> None:
    url = f'fake:///{uuid.uuid4().hex}'
    _move(world, transport_url=url)
    conductor.serve_all()
    wait_until(lambda: _answers(conf, url) == world.cell.uuid, 'the cell is served')

    _move(world, disabled=True)
    conductor.serve_all()
    wait_until(lambda: _answers(conf, url) is None, 'the cell is left')
    _move(world, disabled=False)
    conductor.serve_all()

    wait_until(lambda: _answers(conf, url) == world.cell.uuid, 'the cell is served again')
